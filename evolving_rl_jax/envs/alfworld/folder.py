"""One game folder of ALFWorld, generated or downloaded, read as a task."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from typing import Any

from evolving_rl_jax.envs.alfworld.names import HELDOUT_TYPES, TASK_TYPES, task_sentence
from evolving_rl_jax.envs.base import TaskError
from evolving_rl_jax.types import Task

__all__ = [
    "GAME_FILES",
    "SPLITS",
    "TaskError",
    "alfworld_task",
    "content_hash",
    "field",
    "official_split",
    "read_object",
    "task_of",
]

GAME_FILES = ("traj_data.json", "game.tw-pddl")
SPLITS = ("train", "valid_seen", "valid_unseen")
# Where the held-out task types of an official split go; the four trained types keep its name.
HELDOUT_SPLITS = {
    "train": "heldout_types_train",
    "valid_seen": "heldout_types_seen",
    "valid_unseen": "heldout_types",
}
_STEP_LIMIT = 50
_OWN_META = ("place", "habits", "things", "shortest", "source")
_OWN_KEYS = ("id", "split", "name", "step_limit", *_OWN_META)
_SENTENCE = re.compile(r'Your task is to: ([^"]*?)\.?"')


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
      limit 50, its two innermost folder names as id, its floor plan as group, and its split from the
      folder names: that of its official split, or the one for held-out task types beside it
      (``HELDOUT_SPLITS``).  ``meta`` has ``object`` and ``target`` (class words as the agent reads
      them; the lamp is the target of ``look_at_obj_in_light``), ``walkthrough`` (commands, empty when
      unknown) and ``scene`` (its floor plan, where the game names one); for a generated game also ``household``, ``place``
      (where the object is kept), ``habits`` (class word -> place, all six), ``things`` (object ->
      place at the start), ``shortest`` (steps of the shortest solution) and ``source`` (id of the
      game to learn from in the unseen panels, or "").  The group of a generated game is its household.

    Raises:
      TaskError: the folder or a file is missing or malformed.
    """
    folder = pathlib.Path(game_dir).absolute()
    if not folder.is_dir():
        raise TaskError(f"{folder}: must be a game folder, found no such folder")
    return task_of(folder, *(read_object(folder / name) for name in GAME_FILES))


def task_of(folder: pathlib.Path, traj: dict[str, Any], game: dict[str, Any]) -> Task:
    """As ``alfworld_task``, from the content of the two files."""
    traj_path, game_path = (folder / name for name in GAME_FILES)
    task_type = field(traj, "task_type", str, traj_path)
    if task_type not in TASK_TYPES:
        raise TaskError(
            f"{traj_path}: task_type must be one of {', '.join(TASK_TYPES)}, got {task_type!r}"
        )
    params = field(traj, "pddl_params", dict, traj_path)
    target_key = "toggle_target" if task_type == "look_at_obj_in_light" else "parent_target"
    obj, target = (field(params, k, str, traj_path).lower() for k in ("object_target", target_key))
    meta = {"object": obj, "target": target, "walkthrough": list(game.get("walkthrough") or ())}
    scene = traj.get("scene")
    if isinstance(scene, dict) and scene.get("floor_plan"):
        meta["scene"] = str(scene["floor_plan"])
    meta |= traj.get("alfred") or {}  # a game made from ALFRED's record says where its things are
    own = _own_facts(traj, traj_path)
    if own:
        meta["household"] = own["name"]
        meta |= {key: own[key] for key in _OWN_META}
    problem = field(game, "pddl_problem", str, game_path)
    return Task(
        id=own.get("id") or "/".join(folder.parts[-2:]),
        env="alfworld",
        split=own.get("split") or _split(official_split(folder), task_type),
        task_type=task_type,
        text=_sentence(game, task_sentence(task_type, obj, target), game_path),
        path=str(folder),
        content_hash=content_hash(problem, task_type),
        group=own.get("name") or meta.get("scene", ""),
        step_limit=own.get("step_limit", _STEP_LIMIT),
        meta=meta,
    )


def official_split(folder: pathlib.PurePath) -> str:
    """The innermost folder name that is a split of the release; empty without one."""
    return next((part for part in folder.parts[::-1] if part in SPLITS), "")


def _split(official: str, task_type: str) -> str:
    return HELDOUT_SPLITS.get(official, "") if task_type in HELDOUT_TYPES else official


def _own_facts(traj: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """What a generated game says of its household; empty for a downloaded game."""
    own = traj.get("household") or {}
    for key in _OWN_KEYS if own else ():
        if key not in own:
            raise TaskError(f"{path}: household must have {key}, found none")
    return own


def is_left_out(folder: pathlib.PurePath) -> bool:
    """Whether the published loader leaves a game out by its name: movable receptacle or sliced."""
    return "movable" in str(folder) or "Sliced" in str(folder)


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object; a ``TaskError`` names the file when it is none."""
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


def field(data: dict[str, Any], key: str, kind: type, path: pathlib.Path) -> Any:
    """The value of a key of that type; a ``TaskError`` names the file when it is missing."""
    value = data.get(key)
    if not isinstance(value, kind):
        raise TaskError(f"{path}: {key} must be a {kind.__name__}, found {type(value).__name__}")
    return value


def _sentence(game: dict[str, Any], usual: str, path: pathlib.Path) -> str:
    """The task as the engine words it; the usual phrase where the grammar leaves it open."""
    found = _SENTENCE.search(field(game, "grammar", str, path))
    if found is None:
        raise TaskError(f"{path}: grammar must have a sentence 'Your task is to: ...', found none")
    return usual if found[1] == "UNKNOWN GOAL" else found[1]
