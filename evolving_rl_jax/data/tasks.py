"""Tasks on disk: game folders, splits, content hashes, and the order of training.

A game folder is the same whether it was generated here or downloaded from ALFWorld.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from evolving_rl_jax.types import Task

__all__ = ["TaskError", "TaskOrder", "alfworld_task", "content_hash", "load_tasks"]

_PHRASES = {  # how ALFWorld words a task of each type
    "pick_and_place_simple": "put a {obj} in {target}",
    "pick_clean_then_place_in_recep": "put a clean {obj} in {target}",
    "pick_heat_then_place_in_recep": "put a hot {obj} in {target}",
    "pick_cool_then_place_in_recep": "put a cool {obj} in {target}",
    "pick_two_obj_and_place": "put two {obj} in {target}",
    "look_at_obj_in_light": "look at {obj} under the {target}",
}
_SPLITS = ("train", "valid_seen", "valid_unseen")
_STEP_LIMIT = 50
_OWN_META = ("place", "habits", "things", "shortest", "source")
_OWN_KEYS = ("id", "split", "name", "step_limit", *_OWN_META)
_SENTENCE = re.compile(r'Your task is to: ([^"]*?)\.?"')


class TaskError(ValueError):
    """A game folder or an index that cannot be used; the message names the file."""


def content_hash(pddl_problem: str, task_type: str) -> str:
    """sha256 (hex) of what a game is: its problem, name and layout aside, and its task type."""
    unnamed = re.sub(r"\(\s*problem\s+[^\s()]*\s*\)", "", pddl_problem, count=1)
    text = " ".join(unnamed.split())
    return hashlib.sha256(f"{task_type}\n{text}".encode()).hexdigest()


def alfworld_task(game_dir: str | os.PathLike[str]) -> Task:
    """Reads one game folder, generated or downloaded.

    Args:
      game_dir: holds ``traj_data.json`` and ``game.tw-pddl``.

    Returns:
      The task.  ``text`` is the sentence that the engine shows.  A downloaded game has the step
      limit 50, its two innermost folder names as id, and its split from the folder names.  ``meta``
      has ``object`` and ``target`` (class words as the agent reads them; the lamp is the target of
      ``look_at_obj_in_light``) and ``walkthrough`` (commands, empty when unknown); for a generated
      game also ``household``, ``place`` (where the object is kept), ``habits`` (class word ->
      place, all six), ``things`` (object -> place at the start), ``shortest`` (steps of the
      shortest solution) and ``source`` (id of the game to learn from in the unseen panels, or "").

    Raises:
      TaskError: the folder or a file is missing or malformed.
    """
    folder = pathlib.Path(game_dir).absolute()
    if not folder.is_dir():
        raise TaskError(f"{folder}: must be a game folder, found no such folder")
    traj_path, game_path = folder / "traj_data.json", folder / "game.tw-pddl"
    traj, game = _read_object(traj_path), _read_object(game_path)
    task_type = _field(traj, "task_type", str, traj_path)
    if task_type not in _PHRASES:
        raise TaskError(
            f"{traj_path}: task_type must be one of {', '.join(_PHRASES)}, got {task_type!r}"
        )
    params = _field(traj, "pddl_params", dict, traj_path)
    target_key = "toggle_target" if task_type == "look_at_obj_in_light" else "parent_target"
    obj, target = (_field(params, k, str, traj_path).lower() for k in ("object_target", target_key))
    meta = {"object": obj, "target": target, "walkthrough": list(game.get("walkthrough") or ())}
    own = _own_facts(traj, traj_path)
    if own:
        meta["household"] = own["name"]
        meta |= {key: own[key] for key in _OWN_META}
    problem = _field(game, "pddl_problem", str, game_path)
    return Task(
        id=own.get("id") or "/".join(folder.parts[-2:]),
        env="alfworld",
        split=own.get("split") or next((p for p in folder.parts[::-1] if p in _SPLITS), ""),
        task_type=task_type,
        text=_sentence(game, _PHRASES[task_type].format(obj=obj, target=target), game_path),
        path=str(folder),
        content_hash=content_hash(problem, task_type),
        group=own.get("name", ""),
        step_limit=own.get("step_limit", _STEP_LIMIT),
        meta=meta,
    )


def _own_facts(traj: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """What a generated game says of its household; empty for a downloaded game."""
    own = traj.get("household") or {}
    for key in _OWN_KEYS if own else ():
        if key not in own:
            raise TaskError(f"{path}: household must have {key}, found none")
    return own


def load_tasks(folder: str | os.PathLike[str], split: str | None = None) -> list[Task]:
    """All tasks of a folder of games, sorted by id.

    Args:
      folder: generated (with ``games.json``) or downloaded (searched for game folders; those that
        the published loader leaves out, sliced, movable or unsolvable, are left out here too).
      split: only this split; None = all.

    Raises:
      TaskError: no games, an unknown split, a malformed game, or one that differs from the index.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise TaskError(f"{root}: must be a folder of games, found no such folder")
    index = root / "games.json"
    tasks = _indexed(root, index, split) if index.is_file() else _found(root, split)
    return sorted(tasks, key=lambda task: task.id)


def _indexed(root: pathlib.Path, index: pathlib.Path, split: str | None) -> list[Task]:
    entries = _field(_read_object(index), "games", list, index)
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
        if "movable" in str(folder) or "Sliced" in str(folder):
            continue
        if not (folder / "game.tw-pddl").is_file():
            continue
        if _read_object(folder / "game.tw-pddl").get("solvable") is not False:
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


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TaskError(f"{path}: must exist, found no such file") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TaskError(f"{path}: must be a JSON file, found {reason}") from error
    if not isinstance(data, dict):
        raise TaskError(f"{path}: must hold a JSON object, found {type(data).__name__}")
    return data


def _field(data: dict[str, Any], key: str, kind: type, path: pathlib.Path) -> Any:
    value = data.get(key)
    if not isinstance(value, kind):
        raise TaskError(f"{path}: {key} must be a {kind.__name__}, found {type(value).__name__}")
    return value


def _sentence(game: dict[str, Any], usual: str, path: pathlib.Path) -> str:
    """The task as the engine words it; the usual phrase where the grammar leaves it open."""
    found = _SENTENCE.search(_field(game, "grammar", str, path))
    if found is None:
        raise TaskError(f"{path}: grammar must have a sentence 'Your task is to: ...', found none")
    return usual if found[1] == "UNKNOWN GOAL" else found[1]


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
        self._seed = seed

    def take(self, iteration: int, n: int) -> list[Task]:
        """Tasks ``iteration * n`` to ``(iteration + 1) * n`` of the endless order.

        With the same ``n`` at every iteration no task is left out of an epoch or taken twice in it.

        Raises:
          ValueError: ``iteration`` is negative or ``n`` is below 1.
        """
        if iteration < 0 or n < 1:
            raise ValueError(f"iteration must be >= 0 and n >= 1, got {iteration} and {n}")
        size = len(self._tasks)
        epochs: dict[int, np.ndarray] = {}
        taken = []
        for position in range(iteration * n, (iteration + 1) * n):
            epoch, rank = divmod(position, size)
            if epoch not in epochs:
                epochs[epoch] = np.random.default_rng([self._seed, epoch]).permutation(size)
            taken.append(self._tasks[epochs[epoch][rank]])
        return taken
