"""One game folder of ALFWorld, generated or downloaded, read as a task."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from typing import Any

from evolving_rl_jax.types import Task

__all__ = ["SPLITS", "TASK_TYPES", "TaskError", "alfworld_task", "content_hash", "read_game"]

_PHRASES = {  # how ALFWorld words a task of each type
    "pick_and_place_simple": "put a {obj} in {target}",
    "pick_clean_then_place_in_recep": "put a clean {obj} in {target}",
    "pick_heat_then_place_in_recep": "put a hot {obj} in {target}",
    "pick_cool_then_place_in_recep": "put a cool {obj} in {target}",
    "pick_two_obj_and_place": "put two {obj} in {target}",
    "look_at_obj_in_light": "look at {obj} under the {target}",
}
SPLITS = ("train", "valid_seen", "valid_unseen")
TASK_TYPES = tuple(_PHRASES)
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
      ``look_at_obj_in_light``), ``walkthrough`` (commands, empty when unknown) and ``scene`` (its
      floor plan, where the game names one); for a generated game also ``household``, ``place`` (where the object is kept), ``habits`` (class word ->
      place, all six), ``things`` (object -> place at the start), ``shortest`` (steps of the
      shortest solution) and ``source`` (id of the game to learn from in the unseen panels, or "").

    Raises:
      TaskError: the folder or a file is missing or malformed.
    """
    folder = pathlib.Path(game_dir).absolute()
    if not folder.is_dir():
        raise TaskError(f"{folder}: must be a game folder, found no such folder")
    return read_game(folder)[0]


def read_game(folder: pathlib.Path) -> tuple[Task, dict[str, Any]]:
    """As ``alfworld_task``, with the content of ``game.tw-pddl``."""
    traj_path, game_path = folder / "traj_data.json", folder / "game.tw-pddl"
    traj, game = read_object(traj_path), read_object(game_path)
    task_type = field(traj, "task_type", str, traj_path)
    if task_type not in _PHRASES:
        raise TaskError(
            f"{traj_path}: task_type must be one of {', '.join(_PHRASES)}, got {task_type!r}"
        )
    params = field(traj, "pddl_params", dict, traj_path)
    target_key = "toggle_target" if task_type == "look_at_obj_in_light" else "parent_target"
    obj, target = (field(params, k, str, traj_path).lower() for k in ("object_target", target_key))
    meta = {"object": obj, "target": target, "walkthrough": list(game.get("walkthrough") or ())}
    scene = traj.get("scene")
    if isinstance(scene, dict) and scene.get("floor_plan"):
        meta["scene"] = str(scene["floor_plan"])
    own = _own_facts(traj, traj_path)
    if own:
        meta["household"] = own["name"]
        meta |= {key: own[key] for key in _OWN_META}
    problem = field(game, "pddl_problem", str, game_path)
    task = Task(
        id=own.get("id") or "/".join(folder.parts[-2:]),
        env="alfworld",
        split=own.get("split") or next((p for p in folder.parts[::-1] if p in SPLITS), ""),
        task_type=task_type,
        text=_sentence(game, _PHRASES[task_type].format(obj=obj, target=target), game_path),
        path=str(folder),
        content_hash=content_hash(problem, task_type),
        group=own.get("name", ""),
        step_limit=own.get("step_limit", _STEP_LIMIT),
        meta=meta,
    )
    return task, game


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
