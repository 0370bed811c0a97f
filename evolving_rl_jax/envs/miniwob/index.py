"""The tasks of a run on disk: a family and a seed each, with the sentence and a hash of what is shown."""

from __future__ import annotations

import collections
import difflib
import hashlib
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from evolving_rl_jax.envs.miniwob import families
from evolving_rl_jax.envs.miniwob.skills import HOW
from evolving_rl_jax.envs.records import read_records, write_records
from evolving_rl_jax.types import Task

__all__ = ["FILE", "SPLITS", "Planned", "load_tasks", "plan", "write"]

FILE = "miniwob.jsonl.gz"
# Split -> its first seed; each has a million of its own.
_SEEDS = {
    "train": 0,
    "test_task": 1_000_000,
    "test_family": 2_000_000,
    "test_family_sources": 3_000_000,
}
SPLITS = tuple(_SEEDS)
_TRIES = 4  # seeds tried for each task: many pages are the same for many seeds
_FIELDS = {"id": str, "split": str, "family": str, "seed": int, "text": str, "hash": str,
           "answers": list}  # fmt: skip
_QUOTED = re.compile(r'"([^"]+)"')
_ENOUGH = 20  # sentences of a family that tell which words are its own
_RARE = 10  # a word that one of so many sentences has, or fewer, is the seed's


class Planned(NamedTuple):
    """A task that is going to be indexed."""

    split: str
    task_type: str
    number: int


def plan(wanted: Any) -> list[Planned]:
    """Which tasks a run has; those whose page is that of another one are left out when they are written.

    Args:
      wanted: ``config.data.miniwob``: ``families``, ``test_families``, ``train_seeds``, ``test_seeds``.

    Raises:
      ValueError: a family that is not played (with the reason) or in both lists.
    """
    both = sorted(set(wanted.families) & set(wanted.test_families))
    if both:
        raise ValueError(f"test_families must not be of families, got {', '.join(both)}")
    for name in (*wanted.families, *wanted.test_families):
        if name in families.LEFT_OUT:
            raise ValueError(f"family {name} of miniwob is not played: {families.LEFT_OUT[name]}")
        if name not in families.PLAYED:
            near = difflib.get_close_matches(name, families.PLAYED) or families.PLAYED
            raise ValueError(
                f"families must be of miniwob, got {name!r}; there are {', '.join(near)}"
            )
    sizes = {
        "train": (wanted.families, wanted.train_seeds),
        "test_task": (wanted.families, wanted.test_seeds),
        "test_family": (wanted.test_families, wanted.test_seeds),
        "test_family_sources": (wanted.test_families, wanted.test_seeds),
    }
    return [
        Planned(split, name, number)
        for split, (names, count) in sizes.items()
        for name in names
        for number in range(count)
    ]


def write(
    folder: pathlib.Path,
    show: Callable[[str, int], str],
    planned: Sequence[Planned],
    progress: Callable[[int], None],
) -> None:
    """Looks at every planned task and writes the index, last and at once.

    Args:
      folder: where to.
      show: (family, seed) -> the first observation.
      planned: what to look for.
      progress: is told how many are done.
    """
    lines: list[dict[str, Any]] = []
    seen: set[str] = set()
    tried: collections.Counter[tuple[str, str]] = collections.Counter()
    given_up: set[tuple[str, str]] = set()
    for done, one in enumerate(planned, 1):
        key = one.split, one.task_type
        for _ in range(0 if key in given_up else _TRIES):
            seed = _SEEDS[one.split] + tried[key]
            tried[key] += 1
            shown = show(one.task_type, seed)
            page = f"{seed}\0{shown}" if one.task_type in families.HIDES else shown
            digest = hashlib.sha256(f"{one.task_type}\0{page}".encode()).hexdigest()
            if digest not in seen:
                seen.add(digest)
                lines.append(_line(one, seed, shown, digest))
                break
        else:
            given_up.add(key)  # the family has no more pages than these
        progress(done)
    _tell_answers(lines)
    write_records(folder / FILE, lines)


def _line(one: Planned, seed: int, shown: str, digest: str) -> dict[str, Any]:
    text = shown.partition("\n")[0].removeprefix("Task: ")
    return {
        "id": f"{one.task_type}/{seed:07}", "split": one.split, "family": one.task_type,
        "seed": seed, "text": text, "hash": digest, "answers": [],
    }  # fmt: skip


def _tell_answers(lines: Sequence[dict[str, Any]]) -> None:
    """Adds what a skill must not say: what a sentence quotes, and words that few of its family have."""
    words = {line["id"]: set(re.findall(r"[\w@#./'-]+\w", line["text"])) for line in lines}
    by_family = collections.defaultdict(list)
    for line in lines:
        by_family[line["family"]].append(line)
    for members in by_family.values():
        texts = [set(_QUOTED.findall(line["text"])) for line in members]
        quoted = collections.Counter(q for found in texts for q in found)
        times = collections.Counter(w for line in members for w in words[line["id"]])
        few = max(1, len(members) // _RARE)
        for line, found in zip(members, texts, strict=True):
            told = {q for q in found if quoted[q] < len(members)}
            if len(members) >= _ENOUGH:
                told |= {w for w in words[line["id"]] if times[w] <= few}
            # A lesson may say "an x is called Close".
            lesson = set(re.findall(r"\w+", HOW.get(line["family"], "").lower()))
            line["answers"] = sorted(
                a for a in told if not _is_common(a) and a.lower() not in lesson
            )


def _is_common(word: str) -> bool:
    """Whether any skill may have it: "in", "x"."""
    return len(word) < 3 and word.isalpha()


def load_tasks(folder: pathlib.Path) -> list[Task]:
    """All tasks of a folder, sorted by id.

    Raises:
      TaskError: no index, or a damaged one.
    """
    tasks = []
    records = list(read_records(folder / FILE, _FIELDS, "miniwob"))
    trained = sorted({record["family"] for record in records if record["split"] == "train"})
    for record in records:
        tasks.append(
            Task(
                id=record["id"],
                env="miniwob",
                split=record["split"],
                task_type=record["family"],
                text=record["text"],
                path=str(folder / record["id"]),
                content_hash=record["hash"],
                group=record["family"],
                step_limit=families.steps(record["family"]),
                meta={k: record[k] for k in ("family", "seed", "answers")} | {"trained": trained},
            )
        )
    return sorted(tasks, key=lambda t: t.id)
