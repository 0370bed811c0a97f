"""The tasks of a folder of games, and its index ``games.json``.

A folder is generated (``evolving-rl games``), indexed (``evolving-rl data``) or just what ALFWorld's
download unpacks to.  A row of an index either says all that a task is, so that no game folder is
read, or only which game must be there.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from evolving_rl_jax.envs.alfworld.folder import alfworld_task, field, read_object
from evolving_rl_jax.envs.alfworld.index import index_games, refuse
from evolving_rl_jax.envs.base import TaskError
from evolving_rl_jax.types import Task

__all__ = ["INDEX", "index_row", "load_tasks"]

INDEX = "games.json"
_NAMED = ("id", "split", "path", "content_hash")  # of every row
_WHOLE = ("task_type", "text", "group", "step_limit", "meta", "size")  # besides, of a whole row


def load_tasks(folder: str | os.PathLike[str], split: str | None = None) -> list[Task]:
    """All tasks of a folder of games, sorted by id.

    A folder without an index is searched and read as ``evolving-rl data`` would (``index_games``):
    the same splits, and the same games left out.

    Args:
      folder: generated, indexed or downloaded.
      split: only this split; None = all.

    Raises:
      TaskError: no games, an unknown split, malformed games, or games that are missing or differ from
        the index.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise TaskError(f"{root}: must be a folder of games, found no such folder")
    index = root / INDEX
    tasks = _indexed(index) if index.is_file() else index_games(root)[0]
    known = {task.split for task in tasks}
    if split is not None and split not in known:
        where = index if index.is_file() else root
        raise TaskError(f"{where}: split must be one of {', '.join(sorted(known))}, got {split!r}")
    return sorted((t for t in tasks if split in (None, t.split)), key=lambda task: task.id)


def index_row(task: Task, root: pathlib.Path) -> dict[str, Any]:
    """A whole row of an index of games below ``root``."""
    return {
        "id": task.id,
        "split": task.split,
        "task_type": task.task_type,
        "text": task.text,
        "group": task.group,
        "step_limit": task.step_limit,
        "path": pathlib.Path(task.path).relative_to(root.absolute()).as_posix(),
        "content_hash": task.content_hash,
        "size": _game_file(pathlib.Path(task.path)).stat().st_size,
        "meta": task.meta,
    }


def _indexed(index: pathlib.Path) -> list[Task]:
    content = read_object(index)
    rows = field(content, "games", list, index)
    root = (index.parent / content.get("root", "")).absolute()
    if not root.is_dir():
        raise TaskError(f"{index}: the games must be in {root}, found no such folder")
    tasks, problems = [], []
    for row in rows:
        if not isinstance(row, dict) or any(not isinstance(row.get(key), str) for key in _NAMED):
            names = ", ".join(_NAMED[:-1])
            raise TaskError(
                f"{index}: every game must have {names} and {_NAMED[-1]}, found one without"
            )
        try:
            is_whole = all(key in row for key in _WHOLE)
            tasks.append((_whole if is_whole else _named)(index, root / row["path"], row))
        except TaskError as error:
            problems.append(str(error))
    refuse(problems)
    return tasks


def _whole(index: pathlib.Path, folder: pathlib.Path, row: Mapping[str, Any]) -> Task:
    """The task that a row says, once its game file is seen to be there."""
    file = _game_file(folder)
    try:
        size = file.stat().st_size
    except OSError:
        raise TaskError(f"{file}: must exist, it is in {index}") from None
    if size != row["size"]:
        raise TaskError(f"{file}: must have {row['size']} bytes as when indexed, got {size}")
    said = {key: row[key] for key in (*_NAMED, *_WHOLE) if key not in ("path", "size")}
    return Task(env="alfworld", path=str(folder), **said)


def _named(index: pathlib.Path, folder: pathlib.Path, row: Mapping[str, Any]) -> Task:
    """The task of a folder, once it is seen to be the one that a row names."""
    task = alfworld_task(folder)
    if any(getattr(task, key) != row[key] for key in ("id", "split", "content_hash")):
        raise TaskError(f"{folder}: must be the game {row['id']} of {index}, found another")
    return task


def _game_file(folder: pathlib.Path) -> pathlib.Path:
    return folder / "game.tw-pddl"
