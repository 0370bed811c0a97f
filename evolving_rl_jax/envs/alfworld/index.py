"""Looks through folders of games: which there are, and whether all is as in ALFWorld's release.

The one reader of games that have no index, for training and for ``evolving-rl data`` alike.  Every
file is read once.  What the published loader leaves out is left out and counted, and so is what
nobody can play; what is damaged or of another release stops the indexing, by name.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from evolving_rl_jax.envs.alfworld.folder import (
    SPLITS,
    is_left_out,
    official_split,
    read_object,
    task_of,
)
from evolving_rl_jax.envs.alfworld.names import TASK_TYPES
from evolving_rl_jax.envs.alfworld.start import is_won_at_start
from evolving_rl_jax.envs.base import TaskError
from evolving_rl_jax.types import Task

__all__ = [
    "OFFICIAL_COUNTS",
    "OFFICIAL_TYPES",
    "PUBLISHED",
    "IndexReport",
    "find_root",
    "index_games",
    "refuse",
]

RELEASE = "json_2.1.1"
PUBLISHED = {  # games of each split and type, as ALFWorld's paper counts them (arXiv 2010.03768, table 1)
    split: dict(
        zip(
            (
                "pick_and_place_simple",
                "look_at_obj_in_light",
                "pick_clean_then_place_in_recep",
                "pick_heat_then_place_in_recep",
                "pick_cool_then_place_in_recep",
                "pick_two_obj_and_place",
            ),
            counts,
            strict=True,
        )
    )
    for split, counts in {
        "train": (790, 308, 650, 459, 533, 813),
        "valid_seen": (35, 13, 27, 16, 25, 24),
        "valid_unseen": (24, 18, 31, 23, 21, 17),
    }.items()
}
OFFICIAL_COUNTS = {split: sum(types.values()) for split, types in PUBLISHED.items()}
OFFICIAL_TYPES = PUBLISHED["valid_unseen"]
_PUT = re.compile(r'action\s+PutObject\s*\{\s*template\s*::\s*"([^"]*)"')
_SHOWN = 10  # bad files named in one message


@dataclasses.dataclass
class IndexReport:
    """What was found.

    Attributes:
      counts: games of each official split that the published loader has, those of ``won`` included.
      types: official split -> games of each task type, the same.
      left_out: reason -> games that the published loader leaves out too.
      won: ids of the games that are won before the first action: left out, nothing can be learned.
      duplicates: ids of games with the same content, in groups.
      differences: in which counts the games differ from the official release, one line each.
    """

    counts: dict[str, int]
    types: dict[str, dict[str, int]]
    left_out: dict[str, int]
    won: list[str]
    duplicates: list[list[str]]
    differences: list[str]

    @property
    def num_games(self) -> int:
        """Games that can be played."""
        return sum(self.counts.values()) - len(self.won)

    def lines(self) -> list[str]:
        """The report as text."""
        text = []
        for split, count in self.counts.items():
            types = ", ".join(f"{t} {n}" for t, n in sorted(self.types[split].items()))
            text.append(f"{split}: {count} games ({types})" if types else f"{split}: no games")
        text += [f"left out, {why}: {n}" for why, n in sorted(self.left_out.items())]
        if self.won:
            names = ", ".join(self.won)
            text.append(f"left out, won before the first action: {len(self.won)} ({names})")
        text += [f"the same game under {len(g)} names: {', '.join(g)}" for g in self.duplicates]
        text += [f"not as released: {line}" for line in self.differences]
        return text


def refuse(problems: Sequence[str]) -> None:
    """Raises a ``TaskError`` that names the first problems, where there are any."""
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise TaskError(f"{'; '.join(problems[:_SHOWN])}{more}")


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
    root = _official_root(source)
    if root is None:
        found = ", ".join(sorted(p.name for p in source.iterdir())[:_SHOWN]) or "nothing"
        raise TaskError(f"{name} must hold {wanted}; looked in {source}, found {found}")
    return root


def _official_root(source: pathlib.Path) -> pathlib.Path | None:
    roots = (source / RELEASE, source)
    return next((r for r in roots if any((r / split).is_dir() for split in SPLITS)), None)


def game_folders(source: pathlib.Path) -> list[pathlib.Path]:
    """Folders with ``traj_data.json``: those of the official splits, or all where there are none.

    Beside its splits the release has a copy of some training games, which nobody plays.
    """
    root = _official_root(source)
    places = [source] if root is None else [root / split for split in SPLITS]
    return sorted(path.parent for place in places for path in place.rglob("traj_data.json"))


def index_games(
    source: pathlib.Path, progress: Callable[[int], None] | None = None
) -> tuple[list[Task], IndexReport]:
    """Reads all games of a folder.

    Args:
      source: see ``game_folders``.
      progress: called with the number of folders looked at so far.

    Returns:
      The tasks by id, and the report.  The order does not depend on that of the file system.

    Raises:
      TaskError: no games at all, or games that are damaged or of another release, by name.
    """
    source = source.absolute()  # as the paths of all tasks
    left_out: Counter[str] = Counter()
    bad: list[str] = []
    tasks: list[Task] = []
    won: list[Task] = []
    folders = game_folders(source)
    for done, folder in enumerate(folders, start=1):
        try:
            found = _playable(folder, folder.relative_to(source), left_out)
        except TaskError as error:
            bad.append(str(error))
            found = None
        if found is not None:
            task, is_won = found
            (won if is_won else tasks).append(task)
        if progress:
            progress(done)
    names = Counter(task.id for task in (*tasks, *won))
    bad += [
        f"{source}: a game must have one folder, found two of {i}" for i in names if names[i] > 1
    ]
    refuse(bad)
    if not tasks:
        raise TaskError(
            f"{source}: must hold games.json or folders with traj_data.json and game.tw-pddl, found "
            f"{len(folders)} folders with traj_data.json and no game to play"
        )
    tasks, won = (sorted(some, key=lambda task: task.id) for some in (tasks, won))
    return tasks, _report(tasks, won, left_out)


def _playable(
    folder: pathlib.Path, relative: pathlib.PurePath, left_out: Counter[str]
) -> tuple[Task, bool] | None:
    """The task of a folder and whether it is won already; None, with the reason counted, where the
    published loader has none."""
    if is_left_out(relative):
        left_out["movable receptacle or sliced object"] += 1
        return None
    if not (folder / "game.tw-pddl").is_file():
        left_out["no game.tw-pddl"] += 1
        return None
    traj = read_object(folder / "traj_data.json")
    if traj.get("task_type") not in TASK_TYPES:
        left_out["another task type"] += 1
        return None
    game = read_object(folder / "game.tw-pddl")
    task = task_of(folder, traj, game)
    if not game.get("solvable"):
        left_out["not solvable" if "solvable" in game else "not checked to be solvable"] += 1
        return None
    _check_release(folder / "game.tw-pddl", game)
    return task, is_won_at_start(game, str(folder / "game.tw-pddl"))


def _check_release(path: pathlib.Path, game: Mapping[str, Any]) -> None:
    """Since release 0.4 the agent writes ``move X to Y``; games of older ones play differently."""
    found = _PUT.search(game["grammar"])
    if found is None or not found[1].startswith("move "):
        template = "no such action" if found is None else f"{found[1]!r}"
        raise TaskError(
            f"{path}: grammar must word PutObject as 'move ... to ...' (games of ALFWorld 0.4 or "
            f"later), found {template}"
        )


def _report(tasks: Sequence[Task], won: Sequence[Task], left_out: Mapping[str, int]) -> IndexReport:
    official: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    by_hash: dict[str, list[str]] = defaultdict(list)
    for task in (*tasks, *won):
        split = official_split(pathlib.PurePath(task.path))
        official.get(split, Counter())[task.task_type] += 1
    for task in tasks:
        by_hash[task.content_hash].append(task.id)
    return IndexReport(
        {split: types.total() for split, types in official.items()},
        {split: dict(types) for split, types in official.items()},
        dict(left_out),
        [task.id for task in won],
        sorted(ids for ids in by_hash.values() if len(ids) > 1),
        list(_differences(official)),
    )


def _differences(official: Mapping[str, Counter[str]]) -> Iterator[str]:
    """In which numbers the games differ from the release."""
    for split, wanted in OFFICIAL_COUNTS.items():
        if official[split].total() != wanted:
            yield f"{split} must have {wanted} games, found {official[split].total()}"
    for kind, wanted in OFFICIAL_TYPES.items():
        found = official["valid_unseen"][kind]
        if found != wanted:
            yield f"valid_unseen must have {wanted} games of {kind}, found {found}"
