"""Games in the form of real ones: ALFRED's scenes and folder names, no walkthrough, no stated facts.

Of the released games they have what a run relies on: ids that begin with the task's type, the floor
plan in ``traj_data.json``, few sentences for many games, and rooms of many sizes.
"""

import json
import pathlib
import random

from scene_games import write_game

from evolving_rl_jax.envs.alfworld.folder import SPLITS
from evolving_rl_jax.envs.alfworld.households import scenes
from evolving_rl_jax.envs.alfworld.households.problem import PROCESS
from evolving_rl_jax.envs.alfworld.names import TASK_TYPES, task_sentence

NUM_THINGS = 16
MOST_PLACES = 26  # larger rooms translate slowly


def write_games(root: pathlib.Path, counts: dict[str, int], seed: int = 0, rooms: int = 4):
    """Writes ``counts`` games of each split below ``root/json_2.1.1``, over all task types.

    Args:
      root: folder; `evolving-rl data alfworld --source` takes it.
      counts: split of the release -> number of games.
      seed: of every choice.
      rooms: scenes of each kind of room (kitchen, room with a lamp, bathroom).
    """
    rng = random.Random(seed)
    chosen = [_scene(n) for kind in scenes.ROOM_KINDS for n in _numbers(kind)[:rooms]]
    for split, count in counts.items():
        assert split in SPLITS
        for i in range(count):
            task_type = TASK_TYPES[i % len(TASK_TYPES)]
            able = [s for s in chosen if _choices(s, task_type)]
            scene = rng.choice(able)
            kind, target = rng.choice(_choices(scene, task_type))
            _write(root / "json_2.1.1" / split, scene, task_type, kind, target, i, rng)


def _numbers(kind):
    found = scenes.scene_numbers(kind)
    return [n for n in found if len(_scene(n).room.places) <= MOST_PLACES]


def _scene(number):
    return scenes.load_scene(number)


def _choices(scene, task_type):
    """(object class, target type) of the tasks that can be set in a scene."""
    room = scene.room
    types = sorted({place.type for place in room.places.values()})
    if task_type == "look_at_obj_in_light":
        return [
            (k, "DeskLamp") for k in scene.kinds if room.lamp_place and len(room.holding(k)) > 3
        ]
    needed = PROCESS[task_type][0] if task_type in PROCESS else ""
    return [
        (kind, target)
        for kind in scene.kinds
        for target in types
        if (not needed or needed in room.properties.get(kind, ()))
        and kind in room.contains.get(target, ())
        and any(room.places[name].type != target for name in room.holding(kind))
    ]


def _write(root, scene, task_type, kind, target, number, rng):
    is_light = task_type == "look_at_obj_in_light"
    others = [k for k in scene.kinds if k != kind and scene.room.holding(k) and k != "DeskLamp"]
    kinds = [kind, *rng.choices(others, k=NUM_THINGS)]
    name = f"{task_type}-{kind}-None-{target}-{scene.name.removeprefix('FloorPlan')}"
    folder = root / name / f"trial_T2019{number:06d}"
    write_game(folder, scene.room, task_type, kinds, number, target="" if is_light else target)
    file = folder / "game.tw-pddl"
    game = json.loads(file.read_text())
    said = task_sentence(task_type, kind.lower(), target.lower())
    game["grammar"] = game["grammar"].replace(f"deal with the {kind.lower()}", said)
    file.write_text(json.dumps(game))
    params = {"object_target": kind, "parent_target": "" if is_light else target}
    params |= {"toggle_target": "DeskLamp" if is_light else "", "mrecep_target": ""}
    traj = {
        "task_type": task_type,
        "pddl_params": params | {"object_sliced": False},
        "scene": {"floor_plan": scene.name, "scene_num": int(scene.name.removeprefix("FloorPlan"))},
    }
    (folder / "traj_data.json").write_text(json.dumps(traj))
