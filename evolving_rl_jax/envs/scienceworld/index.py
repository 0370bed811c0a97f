"""The tasks of a run on disk: what each asks for, and a way to solve it."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from evolving_rl_jax.envs.records import read_records, write_records
from evolving_rl_jax.envs.scienceworld.game import SIMPLIFICATIONS, Simulator
from evolving_rl_jax.types import Task

__all__ = ["FILE", "SPLITS", "Planned", "load_tasks", "plan", "write"]

FILE = "scienceworld.jsonl.gz"
SPLITS = ("train", "dev", "test")
_FIELDS = {"id": str, "split": str, "task": str, "variation": int, "text": str, "gold": list,
           "simplifications": str, "hash": str}  # fmt: skip


class Planned(NamedTuple):
    """A task that is going to be indexed."""

    split: str
    task_type: str
    variation: int


def plan(simulator: Simulator, wanted: Any) -> list[Planned]:
    """Which variations a run has.

    Args:
      simulator: to ask for them.
      wanted: ``config.data.scienceworld``: ``types``, ``variations`` of each type and split (0 = all,
        the first ones), ``simplifications``.

    Raises:
      ValueError: a kind of task, or a simplification, that the package does not have.
    """
    known = simulator.task_names()
    unknown = sorted(set(wanted.types) - set(known))
    if unknown:
        raise ValueError(f"types must be of {', '.join(known)}, got {', '.join(unknown)}")
    strange = sorted(set(filter(None, wanted.simplifications.split(","))) - set(SIMPLIFICATIONS))
    if strange:
        raise ValueError(
            f"simplifications must be of {', '.join(SIMPLIFICATIONS)}, got {', '.join(strange)}"
        )
    most = wanted.variations or None
    return [
        Planned(split, name, variation)
        for name in wanted.types
        for split, numbers in simulator.variations(name).items()
        for variation in numbers[:most]
    ]


def write(
    folder: pathlib.Path,
    simulator: Simulator,
    planned: Sequence[Planned],
    simplifications: str,
    progress: Callable[[int], None],
) -> None:
    """Loads every planned task and writes the index, last and at once."""
    lines = []
    for i, one in enumerate(planned):
        simulator.load(one.task_type, one.variation, simplifications, gold=True)
        text, gold = simulator.description(), simulator.gold()
        shown = [one.task_type, text, simulator.reset(), simplifications, *gold]
        lines.append(
            {
                "id": f"{one.task_type}/{one.variation:04}", "split": one.split,
                "task": one.task_type, "variation": one.variation, "text": text, "gold": gold,
                "simplifications": simplifications,
                "hash": hashlib.sha256("\0".join(shown).encode()).hexdigest(),
            }
        )  # fmt: skip
        progress(i + 1)
    write_records(folder / FILE, lines)


def load_tasks(folder: pathlib.Path) -> list[Task]:
    """All tasks of a folder, sorted by id.

    Raises:
      TaskError: no index, or a damaged one.
    """
    tasks = []
    for record in read_records(folder / FILE, _FIELDS, "scienceworld"):
        tasks.append(
            Task(
                id=record["id"],
                env="scienceworld",
                split=record["split"],
                task_type=record["task"],
                text=record["text"],
                path=str(folder / record["id"]),
                content_hash=record["hash"],
                group=record["task"],
                step_limit=max(10, 2 * len(record["gold"])),
                meta={k: record[k] for k in ("task", "variation", "simplifications")}
                | {"walkthrough": record["gold"]},
            )
        )
    return sorted(tasks, key=lambda t: t.id)
