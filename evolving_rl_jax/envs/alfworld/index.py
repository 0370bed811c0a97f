"""Looks through the official ALFWorld folders: which games there are, and whether all is as released.

Every game is read once.  What the published loader leaves out is left out and counted; what is
damaged or of another release stops the indexing, by name.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from evolving_rl_jax.envs.alfworld.folder import (
    SPLITS,
    TASK_TYPES,
    TaskError,
    is_left_out,
    read_game,
    read_object,
)
from evolving_rl_jax.types import Task

__all__ = ["OFFICIAL_COUNTS", "OFFICIAL_TYPES", "IndexReport", "find_root", "index_games"]

RELEASE = "json_2.1.1"
OFFICIAL_COUNTS = {"train": 3553, "valid_seen": 140, "valid_unseen": 134}
OFFICIAL_TYPES = {  # of valid_unseen
    "pick_and_place_simple": 24,
    "look_at_obj_in_light": 18,
    "pick_clean_then_place_in_recep": 31,
    "pick_heat_then_place_in_recep": 23,
    "pick_cool_then_place_in_recep": 21,
    "pick_two_obj_and_place": 17,
}
HELDOUT_TYPES = ("pick_two_obj_and_place", "look_at_obj_in_light")
# Where the held-out task types of an official split go; the four trained types keep its name.
HELDOUT_SPLITS = {
    "train": "heldout_types_train",
    "valid_seen": "heldout_types_seen",
    "valid_unseen": "heldout_types",
}
_PUT = re.compile(r'action\s+PutObject\s*\{\s*template\s*::\s*"([^"]*)"')
_SHOWN = 10  # bad files named in one message


@dataclasses.dataclass
class IndexReport:
    """What was found.

    Attributes:
      counts: games of each official split.
      types: official split -> games of each task type.
      left_out: reason -> games that the published loader leaves out too.
      duplicates: ids of games with the same content, in groups.
      differences: in which counts the games differ from the official release, one line each.
    """

    counts: dict[str, int]
    types: dict[str, dict[str, int]]
    left_out: dict[str, int]
    duplicates: list[list[str]]
    differences: list[str]

    def lines(self) -> list[str]:
        """The report as text."""
        text = []
        for split, count in self.counts.items():
            types = ", ".join(f"{t} {n}" for t, n in sorted(self.types[split].items()))
            text.append(f"{split}: {count} games ({types})" if types else f"{split}: no games")
        text += [f"left out, {why}: {n}" for why, n in sorted(self.left_out.items())]
        text += [f"the same game under {len(g)} names: {', '.join(g)}" for g in self.duplicates]
        text += [f"not as released: {line}" for line in self.differences]
        return text


def find_root(source: pathlib.Path, name: str = "--source") -> pathlib.Path:
    """The folder that holds the official splits: ``source`` itself or its ``json_2.1.1``.

    Args:
      source: a folder.
      name: what to call it in messages.

    Raises:
      TaskError: it is neither; the message says what was looked for and what is there.
    """
    wanted = f"{RELEASE}/ with the folders {', '.join(SPLITS)}, or be that folder"
    if not source.is_dir():
        raise TaskError(f"{name} must hold {wanted}; found no folder {source}")
    for root in (source / RELEASE, source):
        if any((root / split).is_dir() for split in SPLITS):
            return root
    found = ", ".join(sorted(p.name for p in source.iterdir())[:_SHOWN]) or "nothing"
    raise TaskError(f"{name} must hold {wanted}; looked in {source}, found {found}")


def index_games(
    root: pathlib.Path, progress: Callable[[int], None] | None = None
) -> tuple[dict[str, list[Task]], dict[str, int], IndexReport]:
    """Reads all games of the official splits.

    Args:
      root: see ``find_root``.
      progress: called with the number of folders looked at so far.

    Returns:
      Split of the paper -> tasks sorted by id, with paths relative to ``root``; path -> bytes of its
      game file; the report.  The order does not depend on that of the file system.

    Raises:
      TaskError: no games at all, or games that are damaged or of another release, by name.
    """
    left_out: Counter[str] = Counter()
    bad: list[str] = []
    splits: dict[str, list[Task]] = defaultdict(list)
    sizes: dict[str, int] = {}
    official: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    paths = sorted(p.parent for split in SPLITS for p in (root / split).rglob("traj_data.json"))
    for done, folder in enumerate(paths, start=1):
        relative = folder.relative_to(root)
        official_split = relative.parts[0]
        try:
            task = _usable_game(folder, relative, left_out)
        except TaskError as error:
            bad.append(str(error))
            task = None
        if task is not None:
            official[official_split][task.task_type] += 1
            is_heldout = task.task_type in HELDOUT_TYPES
            split = HELDOUT_SPLITS[official_split] if is_heldout else official_split
            splits[split].append(dataclasses.replace(task, split=split, path=relative.as_posix()))
            sizes[relative.as_posix()] = (folder / "game.tw-pddl").stat().st_size
        if progress:
            progress(done)
    names = Counter(task.id for tasks in splits.values() for task in tasks)
    bad += [f"{root}: a game must have one folder, found two of {i}" for i in names if names[i] > 1]
    if bad:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise TaskError(f"{'; '.join(bad[:_SHOWN])}{more}")
    if not splits:
        raise TaskError(
            f"{root}: must hold games (traj_data.json with game.tw-pddl in one folder), found "
            f"{len(paths)} folders with traj_data.json and no game to play"
        )
    ordered = {name: sorted(splits[name], key=lambda t: t.id) for name in sorted(splits)}
    return ordered, sizes, _report(ordered, official, left_out)


def _usable_game(
    folder: pathlib.Path, relative: pathlib.PurePath, left_out: Counter[str]
) -> Task | None:
    """The task of a folder, or None, with the reason counted, where the published loader has none."""
    if is_left_out(relative):
        left_out["movable receptacle or sliced object"] += 1
        return None
    if not (folder / "game.tw-pddl").is_file():
        left_out["no game.tw-pddl"] += 1
        return None
    if read_object(folder / "traj_data.json").get("task_type") not in TASK_TYPES:
        left_out["another task type"] += 1
        return None
    task, game = read_game(folder)
    if not game.get("solvable"):
        left_out["not solvable" if "solvable" in game else "not checked to be solvable"] += 1
        return None
    _check_release(folder / "game.tw-pddl", game)
    return task


def _check_release(path: pathlib.Path, game: Mapping[str, Any]) -> None:
    """Since release 0.4 the agent writes ``move X to Y``; games of older ones play differently."""
    found = _PUT.search(game["grammar"])
    if found is None or not found[1].startswith("move "):
        template = "no such action" if found is None else f"{found[1]!r}"
        raise TaskError(
            f"{path}: grammar must word PutObject as 'move ... to ...' (games of ALFWorld 0.4 or "
            f"later), found {template}"
        )


def _report(
    splits: Mapping[str, list[Task]],
    official: Mapping[str, Counter[str]],
    left_out: Mapping[str, int],
) -> IndexReport:
    by_hash: dict[str, list[str]] = defaultdict(list)
    for tasks in splits.values():
        for task in tasks:
            by_hash[task.content_hash].append(task.id)
    counts = {split: sum(types.values()) for split, types in official.items()}
    differences = [
        f"{split} must have {wanted} games, found {counts[split]}"
        for split, wanted in OFFICIAL_COUNTS.items()
        if counts[split] != wanted
    ]
    differences += [
        f"valid_unseen must have {wanted} games of {kind}, found {official['valid_unseen'][kind]}"
        for kind, wanted in OFFICIAL_TYPES.items()
        if official["valid_unseen"][kind] != wanted
    ]
    return IndexReport(
        counts,
        {split: dict(types) for split, types in official.items()},
        dict(left_out),
        sorted(sorted(ids) for ids in by_hash.values() if len(ids) > 1),
        differences,
    )
