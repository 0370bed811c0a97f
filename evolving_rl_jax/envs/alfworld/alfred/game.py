"""From a trial to a game: its things with their places, its walkthrough, its two files."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from evolving_rl_jax.envs.alfworld.alfred.placement import BY_PLAN, lamp_place, place_of
from evolving_rl_jax.envs.alfworld.alfred.scene import KnownScene
from evolving_rl_jax.envs.alfworld.alfred.trial import LeftOut, Pose, Step, Trial
from evolving_rl_jax.envs.alfworld.households.plan import Route
from evolving_rl_jax.envs.alfworld.households.problem import LAMP, Thing, engine_logic, problem
from evolving_rl_jax.envs.alfworld.households.scenes import mangled, tables
from evolving_rl_jax.envs.alfworld.households.write import PlanError, commands_to_win
from evolving_rl_jax.envs.alfworld.names import task_sentence
from evolving_rl_jax.envs.base import EnvError, one_line

__all__ = ["ALFWORLD", "GOALS", "HUMAN", "make_game"]

GOALS = ALFWORLD, HUMAN = ("alfworld", "human")  # whose words a task is given in
_SAME_THING = 0.15  # metres between the point of an object and that which the plan says of it
_VERBS = {"CleanObject": "clean", "HeatObject": "heat", "CoolObject": "cool"}


class _Placed(NamedTuple):
    thing: Thing
    pose: Pose
    rule: str


def make_game(
    trial: Trial, scene: KnownScene, goals: str = ALFWORLD
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of the two files of a game, played to its end by its walkthrough.

    Args:
      trial: what ALFRED recorded.
      scene: where it took place.
      goals: one of ``GOALS``.

    Raises:
      LeftOut: no game can be made of it; says why.
    """
    trial.check_played()
    if trial.kind not in tables().properties:
        raise LeftOut("an object of a class that ALFWorld's tables lack", trial.kind)
    types = {place.type for place in scene.room.places.values()}
    if trial.target and trial.target not in types:
        raise LeftOut("no receptacle of the target's class in the scene", trial.target)
    placed = _place_all(trial, scene)
    data = _game_data(trial, scene, placed, goals)
    try:
        needed = commands_to_win(data)
    except (PlanError, EnvError, ValueError) as error:  # ValueError: no grammar that can be read
        raise LeftOut("not won by its walkthrough", one_line(error)) from error
    if not needed:
        raise LeftOut("won before the first action")
    data["walkthrough"] = data["walkthrough"][:needed]
    return _traj_data(trial, placed, needed), data


def _place_all(trial: Trial, scene: KnownScene) -> list[_Placed]:
    """All objects that can be placed: numbered as the engine numbers ALFWorld's own."""
    told = _told_places(trial, scene)
    rows = [
        (pose, told.get(index) or place_of(scene, pose))
        for index, pose in enumerate(trial.poses)
        if pose.kind in tables().properties
    ]
    rows += [(Pose(LAMP, at), lamp_place(scene, at)) for at in scene.lamps]
    kept = sorted(((pose, found) for pose, found in rows if found), key=lambda row: _id(row[0]))
    left: dict[str, int] = {}
    for pose, _ in kept:
        left[pose.kind] = left.get(pose.kind, 0) + 1
    placed = []
    for pose, (place, rule) in kept:
        placed.append(_Placed(Thing(pose.kind, left[pose.kind], place), pose, rule))
        left[pose.kind] -= 1
    return placed


def _told_places(trial: Trial, scene: KnownScene) -> dict[int, tuple[str, str]]:
    """Places that the plan itself says: number of the pose -> (place, rule)."""
    told = {}
    for step in trial.steps:
        if step.action != "PickupObject" or step.receptacle is None:
            continue
        index = _closest(step.thing, trial.poses)
        place = scene.receptacle(step.receptacle)
        if index is not None and place is not None:
            told[index] = (place, BY_PLAN)
    return told


def _closest(thing: Pose, poses: Sequence[Pose]) -> int | None:
    """The number of the object of that class that stands where a plan says; None without one."""
    same = [i for i, pose in enumerate(poses) if pose.kind == thing.kind]
    index = min(same, key=lambda i: math.dist(poses[i].at, thing.at), default=None)
    near = index is not None and math.dist(poses[index].at, thing.at) <= _SAME_THING
    return index if near else None


def _id(pose: Pose) -> str:
    at = "|".join(f"{value:+06.2f}" for value in pose.at)
    return mangled(f"{pose.kind}|{at}").lower()


def _walkthrough(trial: Trial, scene: KnownScene, placed: Sequence[_Placed]) -> list[str]:
    """The plan as commands: go, open, take, clean, heat, cool, move, use."""
    route = Route(scene.room)
    held, lamp = "", None
    for step in trial.steps:
        if step.action == "PickupObject":
            thing = _found(step, placed)
            held = thing.name
            route.visit(thing.place)
            route.steps.append(f"take {held} from {thing.place}")
        elif step.action == "ToggleObject":
            lamp = _found(step, placed)
            route.visit(lamp.place, closed=True)
            route.steps.append(f"use {lamp.name}")
        elif not held:
            raise LeftOut("a plan that uses what it does not hold", step.action)
        else:
            place = scene.receptacle(step.receptacle) if step.receptacle else None
            if place is None:
                where = step.receptacle.kind if step.receptacle else step.receptacle_id
                raise LeftOut("a plan with a receptacle that the scene lacks", where)
            verb = _VERBS.get(step.action)
            route.visit(place, closed=bool(verb))
            route.steps.append(f"{verb} {held} with {place}" if verb else f"move {held} to {place}")
    if lamp is not None:  # a plan may turn it on first, and then fetch what is looked at
        route.visit(lamp.place, closed=True)
    return route.steps


def _found(step: Step, placed: Sequence[_Placed]) -> Thing:
    index = _closest(step.thing, [row.pose for row in placed]) if step.thing else None
    if index is None:
        raise LeftOut("its object has no place", step.thing.kind if step.thing else "")
    return placed[index].thing


def _game_data(
    trial: Trial, scene: KnownScene, placed: Sequence[_Placed], goals: str
) -> dict[str, Any]:
    domain, grammar = engine_logic()
    things = [row.thing for row in placed]
    about = {"task_type": trial.task_type, "kind": trial.kind, "target": trial.target}
    return {
        "pddl_domain": domain,
        "grammar": grammar.replace("UNKNOWN GOAL", _sentence(trial, goals)),
        "pddl_problem": problem(scene.room, things, **about),
        "solvable": True,
        "walkthrough": _walkthrough(trial, scene, placed),
    }


def _sentence(trial: Trial, goals: str) -> str:
    """The task in ALFWorld's words, or in those of one of the people, always the same one."""
    if goals == HUMAN:
        if not trial.sentences:
            raise LeftOut("no sentence of a person")
        draw = int.from_bytes(hashlib.sha256(trial.name.encode()).digest()[:8], "big")
        text = trial.sentences[draw % len(trial.sentences)]
        # What the grammar reads as its own marks, in letters that mean the same to people.
        text = re.sub(r"[{}\[\]|#<>\\\x00-\x1f]", " ", text.replace('"', "'").replace(";", ","))
        return " ".join(text.split()).rstrip(". ")
    target = trial.lamp or trial.target
    return task_sentence(trial.task_type, trial.kind.lower(), target.lower())


def _traj_data(trial: Trial, placed: Sequence[_Placed], shortest: int) -> dict[str, Any]:
    """What the file beside a game says of it; ``alfred`` is what the index says besides."""
    by_rule: dict[str, list[str]] = {}
    for row in placed:
        by_rule.setdefault(row.rule, []).append(row.thing.name)
    unplaced = len([p for p in trial.poses if p.kind in tables().properties]) + sum(
        row.thing.kind == LAMP for row in placed
    )
    return {
        "task_id": trial.name.split("/")[1],
        "task_type": trial.task_type,
        "pddl_params": {
            "object_target": trial.kind,
            "parent_target": trial.target,
            "toggle_target": trial.lamp,
            "mrecep_target": "",
            "object_sliced": False,
        },
        "turk_annotations": {
            "anns": [{"task_desc": text, "high_descs": []} for text in trial.sentences]
        },
        "scene": {"floor_plan": f"FloorPlan{trial.scene}", "scene_num": trial.scene},
        "alfred": {
            "things": {row.thing.name: row.thing.place for row in placed},
            "placed_by": by_rule,
            "not_placed": unplaced - len(placed),
            "shortest": shortest,
        },
    }
