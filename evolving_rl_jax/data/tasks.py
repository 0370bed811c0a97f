"""Tasks on disk: folders of games, their splits, and the order of training.

A folder of games is generated (``evolving-rl games``), indexed (``evolving-rl data``) or just a
folder of game folders as ALFWorld's download has it.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Collection, Sequence

import numpy as np

from evolving_rl_jax.data.task_source import TaskSource
from evolving_rl_jax.envs.alfworld.folder import (
    TaskError,
    alfworld_task,
    content_hash,
    field,
    is_left_out,
    read_object,
)
from evolving_rl_jax.types import Task

__all__ = [
    "TaskError",
    "TaskOrder",
    "alfworld_task",
    "content_hash",
    "copies_of",
    "load_tasks",
    "select",
    "source_split",
]


def load_tasks(folder: str | os.PathLike[str], split: str | None = None) -> Sequence[Task]:
    """All tasks of a folder of games, sorted by id.

    Args:
      folder: generated (with ``games.json``), indexed by ``evolving-rl data`` (the tasks are then
        read from its data set when they are asked for, see ``TaskSource``), or downloaded (searched
        for game folders; those that the published loader leaves out, sliced, movable or unsolvable,
        are left out here too).
      split: only this split; None = all.

    Raises:
      TaskError: no games, an unknown split, a malformed game, or one that differs from the index.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise TaskError(f"{root}: must be a folder of games, found no such folder")
    index = root / "games.json"
    if not index.is_file():
        return sorted(_found(root, split), key=lambda task: task.id)
    content = read_object(index)
    if "dataset" in content:
        source = TaskSource.open(root, content)
        _check_split(index, split, set(source.splits))
        return source if split is None else source.select(split=split)
    return sorted(_indexed(root, index, content, split), key=lambda task: task.id)


def _indexed(root: pathlib.Path, index: pathlib.Path, content: dict, split: str | None):
    entries = field(content, "games", list, index)
    try:
        rows = [(e["id"], e["split"], e["path"], e["content_hash"]) for e in entries]
    except (KeyError, TypeError) as error:
        raise TaskError(
            f"{index}: every game must have id, split, path and content_hash, found one without"
        ) from error
    _check_split(index, split, {row[1] for row in rows})
    tasks = []
    for task_id, task_split, path, digest in rows:
        if split not in (None, task_split):
            continue
        task = alfworld_task(root / path)
        if (task.id, task.split, task.content_hash) != (task_id, task_split, digest):
            raise TaskError(f"{root / path}: must be the game {task_id} of {index}, found another")
        tasks.append(task)
    return tasks


def _found(root: pathlib.Path, split: str | None) -> list[Task]:
    tasks = []
    for path in sorted(root.rglob("traj_data.json")):
        folder = path.parent
        if is_left_out(folder.relative_to(root)):
            continue
        if not (folder / "game.tw-pddl").is_file():
            continue
        if read_object(folder / "game.tw-pddl").get("solvable") is not False:
            tasks.append(alfworld_task(folder))
    if not tasks:
        raise TaskError(
            f"{root}: must hold games.json or folders with traj_data.json and game.tw-pddl, "
            "found neither"
        )
    _check_split(root, split, {task.split for task in tasks})
    return [task for task in tasks if split in (None, task.split)]


def _check_split(where: pathlib.Path, split: str | None, known: set[str]) -> None:
    if split is not None and split not in known:
        raise TaskError(f"{where}: split must be one of {', '.join(sorted(known))}, got {split!r}")


def select(
    tasks: Sequence[Task], *, split: str | None = None, types: Collection[str] | None = None
) -> Sequence[Task]:
    """The tasks of a split and of some task types (None = all), in their order."""
    if isinstance(tasks, TaskSource):
        return tasks.select(split=split, types=types)
    return [
        task
        for task in tasks
        if split in (None, task.split) and (types is None or task.task_type in types)
    ]


def source_split(split: str, known: Collection[str]) -> str:
    """The declared pool that a panel split draws its past experience from.

    Panels of unseen generated households or web sites have a split of sources of their own; all
    others, those of downloaded tasks among them, draw from ``train``, but one of the training games
    themselves.

    Args:
      split: of a panel.
      known: names of all splits.
    """
    if f"{split}_sources" in known:
        return f"{split}_sources"
    of_unseen = split != "valid_seen" and "valid_unseen_sources" in known
    return "valid_unseen_sources" if of_unseen or split == "train" else "train"


def copies_of(panel: Sequence[Task], tasks: Sequence[Task]) -> list[dict[str, str]]:
    """Those of ``tasks`` that are games of the panel, by ``id`` or by ``content``."""
    by_id = {t.id: t for t in panel}
    by_hash = {t.content_hash: t for t in panel}
    found = []
    for task in tasks:
        same = by_id.get(task.id) or by_hash.get(task.content_hash)
        if same is not None:
            reason = "id" if task.id == same.id else "content"
            found.append({"id": task.id, "same": reason, "panel_game": same.id})
    return found


class TaskOrder:
    """The endless order in which training takes tasks: one permutation of all of them an epoch.

    A pure function of the ids, the seed and the position, so a resumed run needs nothing but its
    iteration number.  Several hosts take disjoint shares of the same order.  A task is read only
    when it is taken.

    Args:
      tasks: at least one; their order does not matter.
      seed: of the permutations.

    >>> tasks = [Task(id=i, env="", split="", task_type="", text="", path="", content_hash=i)
    ...          for i in "abcd"]
    >>> order = TaskOrder(tasks, seed=0)
    >>> sorted(task.id for task in order.take(0, 2) + order.take(1, 2))
    ['a', 'b', 'c', 'd']
    """

    def __init__(self, tasks: Sequence[Task], seed: int):
        if not tasks:
            raise ValueError("tasks must hold at least one task, got none")
        by_id = isinstance(tasks, TaskSource)  # sorted already, and read one by one
        self._tasks = tasks if by_id else sorted(tasks, key=lambda task: task.id)
        self._permutation = functools.lru_cache(maxsize=2)(self._shuffled)
        self._seed = seed

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._tasks))

    def take(self, iteration: int, n: int, *, host: int = 0, num_hosts: int = 1) -> list[Task]:
        """Tasks ``iteration * n`` to ``(iteration + 1) * n`` of the endless order.

        With the same ``n`` at every iteration no task is left out of an epoch or taken twice in it.

        Args:
          iteration: from 0.
          n: tasks an iteration, over all hosts.
          host: which share to return: every ``num_hosts``-th task from this one on.  The shares
            together are the tasks of one host that takes all, whatever the number of hosts, so a
            run may go on with another number.
          num_hosts: how many hosts share the tasks.

        Raises:
          ValueError: ``iteration`` is negative, ``n`` is below 1, or ``host`` is not one of them.
        """
        if iteration < 0 or n < 1:
            raise ValueError(f"iteration must be >= 0 and n >= 1, got {iteration} and {n}")
        if not 0 <= host < num_hosts:
            raise ValueError(f"host must be in [0, num_hosts), got {host} of {num_hosts}")
        taken = []
        for position in range(iteration * n + host, (iteration + 1) * n, num_hosts):
            epoch, rank = divmod(position, len(self._tasks))
            taken.append(self._tasks[int(self._permutation(epoch)[rank])])
        return taken
