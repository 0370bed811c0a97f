"""Single ALFWorld games in rooms of a chosen size, for comparing engines."""

import dataclasses
import json
import pathlib
import random

from evolving_rl_jax.envs.alfworld.households import scenes as scene_layouts
from evolving_rl_jax.envs.alfworld.households.problem import (
    LAMP,
    Room,
    Thing,
    compact_room,
    engine_logic,
    problem,
)

SMALL = ("cabinet 1", "drawer 1", "countertop 1", "sidetable 1")
SMALL += ("fridge 1", "microwave 1", "sinkbasin 1")


def small_room() -> Room:
    """Seven receptacles, enough for every task type, in which the published engine is fastest."""
    room = compact_room(("Mug", "Apple"), ("Knife", "Book"))
    return dataclasses.replace(room, places={name: room.places[name] for name in SMALL})


def scene_room(num_receptacles: int) -> Room:
    """The kitchen of the installed package whose number of receptacles is nearest, then first."""
    rooms = [scene_layouts.load_scene(n).room for n in scene_layouts.scene_numbers("kitchen")]
    return min(rooms, key=lambda room: abs(len(room.places) - num_receptacles))


def write_game(
    folder: pathlib.Path, room: Room, task_type: str, kinds, seed: int, target: str = ""
) -> pathlib.Path:
    """Writes a game whose objects lie at random; the first kind is what its task is about, and it
    starts outside ``target``, where that is given."""
    rng = random.Random(f"{seed} {task_type}")
    names = list(room.places)
    lamp_place = "sidetable 1" if "sidetable 1" in room.places else None
    if task_type == "look_at_obj_in_light" and lamp_place is None:  # kitchens have no lamp
        lamp_place = next(n for n in names if not room.places[n].openable)
    things = [Thing(LAMP, 1, lamp_place)] if lamp_place else []
    for kind in (kinds[0], *kinds):
        places = [n for n in names if kind in room.contains.get(room.places[n].type, ())]
        if target and kind == kinds[0]:
            places = [n for n in places if room.places[n].type != target]
        number = sum(t.kind == kind for t in things) + 1
        things.append(Thing(kind, number, rng.choice(places)))
    free = [p for p in room.places.values() if kinds[0] in room.contains.get(p.type, ())]
    used = {room.places[t.place].type for t in things}
    target = target or next((p.type for p in free if p.type not in used), free[0].type)
    text = problem(room, things, task_type=task_type, kind=kinds[0], target=target)
    text = text.replace("(:init\n", f"(:init\n{_sliceable(text)}", 1)
    domain, grammar = engine_logic()
    grammar = grammar.replace("UNKNOWN GOAL", f"deal with the {kinds[0].lower()}")
    data = {"pddl_domain": domain, "grammar": grammar, "pddl_problem": text, "solvable": True}
    folder.mkdir(parents=True)
    (folder / "game.tw-pddl").write_text(json.dumps(data))
    return folder


def _sliceable(text: str) -> str:
    """Facts that let apples be sliced."""
    facts = [line.split()[1] for line in text.split("\n") if line.endswith(" AppleType)")]
    return "".join(f"(sliceable {thing})\n" for thing in facts if thing.startswith("Apple_"))
