"""What tasks have in common with those that were retrieved for them, as shares."""

from __future__ import annotations

from collections.abc import Iterable

from evolving_rl_jax.envs import benchmark
from evolving_rl_jax.types import Task

__all__ = ["retrieved_shares"]


def retrieved_shares(pairs: Iterable[tuple[Task, Task]]) -> dict[str, float]:
    """How alike tasks and those retrieved for them are.

    Args:
      pairs: (task, one that was retrieved for it).

    Returns:
      ``same_type``, ``same_subject`` (what a task is about, see `Benchmark.subject`) and
      ``same_group`` (its room, household or site): shares of the pairs of which both say it; left
      out where none does.
    """
    alike: dict[str, list[bool]] = {}
    for pair in pairs:
        for name, (own, other) in _named(*pair):
            if own and other:
                alike.setdefault(f"same_{name}", []).append(own == other)
    return {name: sum(found) / len(found) for name, found in alike.items()}


def _named(task: Task, other: Task):
    yield "type", (task.task_type, other.task_type)
    yield "subject", tuple(benchmark(t.env).subject(t) for t in (task, other))
    yield "group", (task.group, other.group)
