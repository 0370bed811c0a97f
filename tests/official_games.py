"""Small folders and zip files in the layout of the official ALFWorld games."""

import contextlib
import json
import random
import zipfile

from evolving_rl_jax.envs.alfworld import official as alfworld
from evolving_rl_jax.envs.alfworld.index import OFFICIAL_COUNTS, OFFICIAL_TYPES

TYPES = tuple(OFFICIAL_TYPES)
TRAINED = tuple(t for t in TYPES if t not in ("pick_two_obj_and_place", "look_at_obj_in_light"))
GRAMMAR = (
    'grammar :: """ {"task": [{"rhs": "Your task is to: SENTENCE."}]} """;\n'
    'action PutObject {\n    template :: "WORDING";\n    feedback :: "#PutObject.feedback#";\n}'
)


DOMAIN = (
    "(define (domain alfred) (:requirements :typing) (:types thing) (:predicates (n ?x - thing) (g)) "
    "(:action win :parameters () :precondition (and) :effect (and (g))))"
)


@contextlib.contextmanager
def no_bar(*_args):
    yield lambda done: None


def write_game(folder, task_type, number, *, wording="move {o} to {r}", won=False, **changes):
    """A game folder with the keys that the official ones have; ``won``: before the first action."""
    folder.mkdir(parents=True)
    light = task_type == "look_at_obj_in_light"
    traj = {
        "task_type": task_type,
        "pddl_params": {
            "object_target": "Mug",
            "parent_target": "" if light else "Shelf",
            "toggle_target": "DeskLamp" if light else "",
            "mrecep_target": "",
            "object_sliced": False,
        },
        "scene": {"floor_plan": "FloorPlan7", "scene_num": 7},
        "plan": {"high_pddl": []},
    }
    problem = (
        f"(define (problem p) (:domain alfred) (:objects n{number} - thing) "
        f"(:init (n n{number}){' (g)' if won else ''}) (:goal (g)))"
    )
    game = {
        "pddl_domain": DOMAIN,
        "grammar": GRAMMAR.replace("SENTENCE", f"use mug {number}").replace("WORDING", wording),
        "pddl_problem": problem,
        "solvable": True,
        "walkthrough": ["look"],
    }
    game |= changes
    game = {key: value for key, value in game.items() if value is not None}
    (folder / "traj_data.json").write_text(json.dumps(traj))
    (folder / "game.tw-pddl").write_text(json.dumps(game))
    return folder


def official(root, games_per_type=2):
    """A small folder in the official layout, made in an order that is not sorted."""
    places = [
        (split, task_type, i)
        for split in OFFICIAL_COUNTS
        for task_type in TYPES
        for i in range(games_per_type if split == "train" else 1)
    ]
    random.Random(0).shuffle(places)
    for split, task_type, i in places:
        name = f"{task_type}-Mug-None-Shelf-{i + 1}"
        number = f"{list(OFFICIAL_COUNTS).index(split)}{TYPES.index(task_type)}{i}"
        write_game(root / "json_2.1.1" / split / name / f"trial_T{number}", task_type, number)
    return root


def prepare(source, out, **options):
    options = {"progress": no_bar, "allow_counts": True} | options
    return alfworld.prepare(
        [str(s) for s in (source if isinstance(source, list) else [source])], out, **options
    )


def zipped(folder, archive, keep=lambda path: True):
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and keep(path):
                file.write(path, path.relative_to(folder))
    return archive
