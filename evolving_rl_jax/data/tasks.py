"""Tasks: their splits, and the order of training."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Sequence

import numpy as np

from evolving_rl_jax.envs.alfworld.folder import alfworld_task, content_hash
from evolving_rl_jax.envs.alfworld.tasks import load_tasks
from evolving_rl_jax.envs.base import TaskError
from evolving_rl_jax.types import Task

__all__ = [
    "TaskError",
    "TaskOrder",
    "alfworld_task",
    "content_hash",
    "copies_of",
    "load_tasks",
    "panel_sample",
    "select",
    "source_split",
]


def select(
    tasks: Sequence[Task], *, split: str | None = None, types: Collection[str] | None = None
) -> list[Task]:
    """The tasks of a split and of some task types (None = all), in their order."""
    return [
        task
        for task in tasks
        if split in (None, task.split) and (types is None or task.task_type in types)
    ]


def source_split(split: str, known: Collection[str], train: str = "train") -> str:
    """The declared pool that a panel split draws its past experience from.

    Panels of unseen generated households, web sites or held-out objects have a split of sources of
    their own, or share it with the panel that their name begins with; all others, those of downloaded
    tasks among them, draw from ``train``, but one of the training games themselves.

    Args:
      split: of a panel.
      known: names of all splits.
      train: that of training, ``config.data.train_split``.
    """
    words = split.split("_")
    for end in range(len(words), 0, -1):
        own = f"{'_'.join(words[:end])}_sources"
        if own in known:
            return own
    of_unseen = split != "valid_seen" and "valid_unseen_sources" in known
    return "valid_unseen_sources" if of_unseen or split == train else train


def list_hash(tasks: Sequence[Task]) -> str:
    """Hash of a list of tasks by their content: equal if and only if they are the same, in any order."""
    text = "\n".join(sorted(t.content_hash for t in tasks))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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


def panel_sample(tasks: Sequence[Task], num: int) -> list[Task]:
    """A fixed sample of the tasks of a split, spread over their types; sorted by id.

    Each type gives its share: its tasks, in an order drawn by a fixed seed and their ids, stand at
    equal distances, and the first ``num`` over all types are taken.  So a smaller sample is part of a
    larger one.  A pure function of ids and types: the same on every host, in every run.

    Args:
      tasks: of one split.
      num: how many; 0 = all.

    >>> tasks = [Task(id=f"{kind}{i}", env="", split="", task_type=kind, text="", path="",
    ...               content_hash="") for kind in "ab" for i in range(6)]
    >>> [task.task_type for task in panel_sample(tasks, 4)]
    ['a', 'a', 'b', 'b']
    """
    by_id = sorted(tasks, key=lambda task: task.id)
    by_type: dict[str, list[tuple[str, Task]]] = {}
    for task in by_id:
        drawn = hashlib.sha256(f"panel/{task.id}".encode()).hexdigest()
        by_type.setdefault(task.task_type, []).append((drawn, task))
    places = {}
    for members in by_type.values():
        for i, (drawn, task) in enumerate(sorted(members, key=lambda member: member[0])):
            places[task.id] = (i + 0.5) / len(members), drawn
    chosen = sorted(by_id, key=lambda task: places[task.id])[: num or None]
    return sorted(chosen, key=lambda task: task.id)


class TaskOrder:
    """The endless order in which training takes tasks: one permutation of all of them an epoch.

    A pure function of the ids, the seed and the position, so a resumed run needs nothing but its
    iteration number.

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
        self._tasks = sorted(tasks, key=lambda task: task.id)
        self._permutation = functools.lru_cache(maxsize=2)(self._shuffled)
        self._seed = seed

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._tasks))

    def take(self, iteration: int, n: int) -> list[Task]:
        """Tasks ``iteration * n`` to ``(iteration + 1) * n`` of the endless order.

        With the same ``n`` at every iteration no task is left out of an epoch or taken twice in it.

        Args:
          iteration: from 0.
          n: tasks an iteration, over all hosts.

        Raises:
          ValueError: ``iteration`` is negative, or ``n`` is below 1.
        """
        if iteration < 0 or n < 1:
            raise ValueError(f"iteration must be >= 0 and n >= 1, got {iteration} and {n}")
        taken = []
        for position in range(iteration * n, (iteration + 1) * n):
            epoch, rank = divmod(position, len(self._tasks))
            taken.append(self._tasks[int(self._permutation(epoch)[rank])])
        return taken
