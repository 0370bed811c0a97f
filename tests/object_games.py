"""Games in real rooms in the layout of a release, about several classes of objects, without facts."""

import json
import pathlib
import re

from scene_games import write_game

from evolving_rl_jax.envs.alfworld.households.scenes import load_scene
from evolving_rl_jax.envs.alfworld.names import task_sentence

OBJECTS = ("Mug", "Apple", "Plate", "Spoon", "Pan", "Tomato")
SPLITS = {"train": (2, 3, 4), "valid_seen": (2, 4)}  # kitchens of the package
TWO = "pick_two_obj_and_place"


def write_release(root: pathlib.Path, objects=OBJECTS, splits=None) -> pathlib.Path:
    """A game about every object in every room of a split, and in train one that is about two.

    Some are won before the first action, which an index leaves out.
    """
    for split, numbers in (splits or SPLITS).items():
        for i, kind in enumerate(objects):
            for number in numbers:
                _write(root, split, number, "pick_and_place_simple", kind, 10 * len(split) + i)
        if split == "train":
            _write(root, split, numbers[0], TWO, objects[0], 99)
    return root


def _write(root, split, number, task_type, kind, seed) -> None:
    folder = root / split / f"{task_type}-{kind}-None-X-{number}" / f"trial_T{split}{seed}"
    others = [other for other in OBJECTS if other != kind]
    write_game(folder, load_scene(number).room, task_type, (kind, *others), seed)
    path = folder / "game.tw-pddl"
    game = json.loads(path.read_text())
    goal = game["pddl_problem"].split("(:goal", 1)[1]
    target = re.search(r"\(receptacleType \?r (\w+)Type\)", goal)[1]
    sentence = task_sentence(task_type, kind.lower(), target.lower())
    game["grammar"] = game["grammar"].replace(f"deal with the {kind.lower()}", sentence)
    path.write_text(json.dumps(game))
    params = {"object_target": kind, "parent_target": target, "toggle_target": ""}
    traj = {
        "task_type": task_type,
        "pddl_params": {**params, "mrecep_target": "", "object_sliced": False},
        "scene": {"floor_plan": f"FloorPlan{number}", "scene_num": number},
    }
    (folder / "traj_data.json").write_text(json.dumps(traj))
