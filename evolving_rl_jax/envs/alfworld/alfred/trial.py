"""One trial of ALFRED: what of its record a game is made from, checked.

ALFRED writes a position in a plan as metres times four, each coordinate twice and the height last
(``x, x, z, z, y, y``); here a point is ``(x, y, z)`` in metres, y up.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from evolving_rl_jax.envs.alfworld.names import TASK_TYPES

__all__ = ["LeftOut", "Point", "Pose", "RecordError", "Step", "Trial", "parse_trial"]

Point = tuple[float, float, float]

_MOVABLE_TYPE = "pick_and_place_with_movable_recep"
_LAMP = "DeskLamp"
_USED = ("PickupObject", "PutObject", "CleanObject", "HeatObject", "CoolObject", "ToggleObject")
_POINT = re.compile(r"loc(\|-?\d+){4}")


class RecordError(ValueError):
    """A record that is not one of ALFRED's; the message says what is wrong, not where it lies."""


class LeftOut(ValueError):
    """A trial that no game is made from; the message is the reason, the same for all of its kind.

    Attributes:
      detail: what of this one, or "".
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.detail = detail


class Pose(NamedTuple):
    """Where an object stands at the start: its class and the point."""

    kind: str
    at: Point


class Step(NamedTuple):
    """A step of the planner that uses something.

    Attributes:
      action: ALFRED's name, e.g. ``PickupObject``.
      thing: what is picked up, cleaned or toggled; None where the record names only the receptacle.
      receptacle: class and point of the receptacle; None where the record names none.
      receptacle_id: its id, ``Class|x|y|z``, or "" where the record gives only its point.
      location: where the agent stands, ``loc|x|z|turn|horizon``, or "" before the first ``GotoLocation``.
    """

    action: str
    thing: Pose | None
    receptacle: Pose | None
    receptacle_id: str
    location: str


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial.

    Attributes:
      split: of ALFRED.
      name: its two folder names, ``TASK/TRIAL``.
      task_type: ALFRED's, one more than ALFWorld has.
      kind: class of the object that the task is about.
      target: class of the receptacle to fill, or "".
      lamp: class of the lamp to turn on, or "".
      is_movable: the task fills a receptacle that is itself moved.
      is_sliced: the task slices its object.
      scene: number of its floor plan.
      poses: all movable objects at the start.
      steps: what the plan uses, in order.
      sentences: how people worded the task.
    """

    split: str
    name: str
    task_type: str
    kind: str
    target: str
    lamp: str
    is_movable: bool
    is_sliced: bool
    scene: int
    poses: tuple[Pose, ...]
    steps: tuple[Step, ...]
    sentences: tuple[str, ...]

    def check_played(self) -> None:
        """Raises ``LeftOut`` for what ALFWorld has no games of."""
        if self.is_movable:
            raise LeftOut("movable receptacle")
        if self.is_sliced:
            raise LeftOut("sliced object")
        if self.lamp not in ("", _LAMP):
            raise LeftOut("another lamp than a desk lamp", self.lamp)


def parse_trial(record: Any, split: str, name: str) -> Trial:
    """Reads one record: the content of a ``traj_data.json`` or a line of JSON lines.

    Args:
      record: decoded JSON.
      split: of ALFRED, from the folder or file that holds it.
      name: its two folder names; "" = the record's own field ``folder``.

    Raises:
      RecordError: a field is missing or of another type; the message names it.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"must be a JSON object, found {type(record).__name__}")
    name = name or _get(record, "folder", str)
    if name.count("/") != 1 or not all(name.split("/")) or ".." in name:
        raise RecordError(f"folder must be TASK/TRIAL, got {name!r}")
    params = _get(record, "pddl_params", Mapping)
    task_type = _get(record, "task_type", str)
    if task_type not in (*TASK_TYPES, _MOVABLE_TYPE):
        raise RecordError(f"task_type must be one of ALFRED's seven, got {task_type!r}")
    scene = _get(record, "scene", Mapping)
    lamp = _get(params, "toggle_target", str)
    return Trial(
        split=split,
        name=name,
        task_type=task_type,
        kind=_get(params, "object_target", str),
        target=_get(params, "parent_target", str),
        lamp=lamp if task_type == "look_at_obj_in_light" else "",
        is_movable=bool(_get(params, "mrecep_target", str)) or task_type == _MOVABLE_TYPE,
        is_sliced=_get(params, "object_sliced", bool),
        scene=_get(scene, "scene_num", int),
        poses=tuple(_pose(pose) for pose in _get(scene, "object_poses", list)),
        steps=_steps(_get(_get(record, "plan", Mapping), "high_pddl", list)),
        sentences=_sentences(record),
    )


def _get(data: Mapping[str, Any], key: str, kind: type) -> Any:
    value = data.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = "none" if key not in data else f"{type(value).__name__} {str(value)[:40]!r}"
        raise RecordError(f"{key} must be of type {kind.__name__}, found {found}")
    return value


def _pose(data: Any) -> Pose:
    try:
        at = data["position"]
        return Pose(data["objectName"].split("_")[0], tuple(float(at[axis]) for axis in "xyz"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecordError(
            f"object_poses must have objectName and position x, y, z, got {str(data)[:80]!r}"
        ) from error


def _sentences(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The people's sentences: of the published files, or of records reduced to ``task_descs``."""
    found = record.get("task_descs")
    if found is None:
        try:
            found = [ann["task_desc"] for ann in record["turk_annotations"]["anns"]]
        except (KeyError, TypeError) as error:
            raise RecordError("turk_annotations.anns must have task_desc, found none") from error
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise RecordError("task_descs must be a list of sentences, got something else")
    return tuple(found)


def _steps(plan: list[Any]) -> tuple[Step, ...]:
    steps, location = [], ""
    for number, row in enumerate(plan):
        try:
            action = row["planner_action"]
            if action["action"] == "GotoLocation":
                location = action["location"]
                if not _POINT.fullmatch(location):
                    raise ValueError(location)
            elif action["action"] in _USED:
                steps.append(_step(action, location))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RecordError(
                f"plan.high_pddl must have planner_action as ALFRED's planner wrote it, step {number} "
                f"has not ({type(error).__name__}: {error})"
            ) from error
    return tuple(steps)


def _step(action: Mapping[str, Any], location: str) -> Step:
    name = action["action"]
    thing, receptacle = (
        _coordinates(action.get(key))
        for key in ("coordinateObjectId", "coordinateReceptacleObjectId")
    )
    if name == "ToggleObject":  # a lamp is written as its own receptacle
        return Step(name, thing, None, "", location)
    if name in ("PickupObject", "PutObject") and thing is None:
        raise KeyError("coordinateObjectId")
    key = "receptacleObjectId" if name == "PutObject" else "objectId"
    receptacle_id = "" if name == "PickupObject" else action[key]
    if not isinstance(receptacle_id, str):
        raise TypeError(f"{key} {receptacle_id!r}")
    return Step(name, thing, receptacle, receptacle_id, location)


def _coordinates(data: Any) -> Pose | None:
    if data is None:
        return None
    kind, (x, _, z, _, y, _) = data
    return Pose(str(kind), (x / 4, y / 4, z / 4))
