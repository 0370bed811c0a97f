"""Trials in the form of ALFRED's records, made up in the scenes of the installed package."""

import gzip
import json
import pathlib

from official_games import no_bar

from evolving_rl_jax.envs.alfworld.alfred.convert import convert
from evolving_rl_jax.envs.alfworld.households import scenes
from evolving_rl_jax.envs.alfworld.tasks import load_tasks

# (task type, object, where it lies, target, where it is put, scene); receptacles are ids of the layouts.
TASKS = (
    ("pick_and_place_simple", "Mug", "CounterTop", "Cabinet", 2),
    ("pick_and_place_simple", "Book", "Bed", "Desk", 301),
    ("pick_clean_then_place_in_recep", "Apple", "CounterTop", "Fridge", 2),
    ("pick_clean_then_place_in_recep", "SoapBar", "Cabinet", "Toilet", 402),
    ("pick_heat_then_place_in_recep", "Egg", "CounterTop", "SinkBasin", 2),
    ("pick_heat_then_place_in_recep", "Mug", "Cabinet", "CounterTop", 4),
    ("pick_cool_then_place_in_recep", "Tomato", "CounterTop", "Microwave", 2),
    ("pick_cool_then_place_in_recep", "Apple", "CounterTop", "Microwave", 4),
    ("pick_two_obj_and_place", "CD", "Drawer", "Desk", 301),
    ("pick_two_obj_and_place", "ToiletPaper", "Cabinet", "Toilet", 402),
    ("look_at_obj_in_light", "AlarmClock", "Dresser", "DeskLamp", 301),
    ("look_at_obj_in_light", "Book", "Bed", "DeskLamp", 301),
)
_STATES = {
    "pick_clean_then_place_in_recep": ("CleanObject", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("HeatObject", "Microwave"),
    "pick_cool_then_place_in_recep": ("CoolObject", "Fridge"),
}
LAMP_AT = (-1.31, 1.23, -0.99)  # on the dresser of FloorPlan301


def ids(scene, kind):
    """Ids of the receptacles of a class in a layout."""
    return sorted(i for i in scenes.layout_points(scene) if scenes.receptacle_type(i) == kind)


def point(place_id, shift=0.0):
    x, y, z = map(float, place_id.split("|")[1:4])
    return (x + shift, y + 0.1 if shift else y, z)


def coordinates(at):
    x, y, z = (4 * value for value in at)
    return [x, x, z, z, y, y]


def pose(kind, at):
    named = dict(zip("xyz", at, strict=True))
    return {"objectName": f"{kind}_0a1b2c3d", "position": named, "rotation": named}


def goto(scene, place_id=None, location=None):
    location = location or scenes.layout_points(scene)[place_id]
    return {"action": "GotoLocation", "location": location}


def pick(kind, at, place_id, *, kind_of=None, place_at=None):
    step = {
        "action": "PickupObject",
        "coordinateObjectId": [kind, coordinates(at)],
        "objectId": f"{kind}|{at[0]:+06.2f}|{at[1]:+06.2f}|{at[2]:+06.2f}",
    }
    if place_id or place_at:
        kind_of = kind_of or scenes.receptacle_type(place_id)
        step["coordinateReceptacleObjectId"] = [kind_of, coordinates(place_at or point(place_id))]
    return step


def put(kind, at, place_id):
    return {
        "action": "PutObject",
        "coordinateObjectId": [kind, coordinates(at)],
        "coordinateReceptacleObjectId": [
            scenes.receptacle_type(place_id),
            coordinates(point(place_id)),
        ],
        "objectId": f"{kind}|1",
        "receptacleObjectId": place_id,
    }


def change(action, kind, at, place_id):
    step = {"action": action, "objectId": place_id}
    step["coordinateReceptacleObjectId"] = [
        scenes.receptacle_type(place_id),
        coordinates(point(place_id)),
    ]
    if action == "CleanObject":
        step |= {"coordinateObjectId": [kind, coordinates(at)], "cleanObjectId": f"{kind}|1"}
    return step


def toggle(lamp, at):
    return {
        "action": "ToggleObject",
        "coordinateObjectId": [lamp, coordinates(at)],
        "coordinateReceptacleObjectId": [lamp, coordinates(at)],
        "objectId": f"{lamp}|1",
    }


def trial(task_type, kind, source, target, scene, number=0, *, lamp_first=False, others=()):
    """A record: the object lies in the ``number``-th receptacle of class ``source``.

    Args:
      others: (class, point) of more objects.
    """
    lamp = target if task_type == "look_at_obj_in_light" else ""
    places = ids(scene, source)
    place = places[number % len(places)]
    count = 2 if task_type == "pick_two_obj_and_place" else 1
    points = [point(place, 0.02 + 0.04 * i) for i in range(count)]
    steps = [goto(scene, place), toggle(lamp, LAMP_AT)] if lamp_first else []
    for at in points:
        steps += [goto(scene, place), pick(kind, at, place)]
        if task_type in _STATES:
            action, appliance = _STATES[task_type]
            used = ids(scene, appliance)[0]
            steps += [goto(scene, used), change(action, kind, at, used)]
        if lamp and not lamp_first:
            steps += [goto(scene, place), toggle(lamp, LAMP_AT)]
        elif not lamp:
            goal = next(i for i in ids(scene, target) if i != place)
            steps += [goto(scene, goal), put(kind, at, goal)]
    steps.append({"action": "End", "value": 1})
    things = [*((kind, at) for at in points), *others]
    return {
        "folder": f"{task_type}-{kind}-None-{target}-{scene}/trial_T2019_{number:06d}",
        "task_id": f"trial_T2019_{number:06d}",
        "task_type": task_type,
        "pddl_params": {
            "object_target": kind,
            "parent_target": "" if lamp else target,
            "toggle_target": lamp,
            "mrecep_target": "",
            "object_sliced": False,
        },
        "scene": {
            "floor_plan": f"FloorPlan{scene}",
            "scene_num": scene,
            "object_poses": [pose(*thing) for thing in things],
        },
        "plan": {
            "high_pddl": [{"high_idx": i, "planner_action": step} for i, step in enumerate(steps)]
        },
        "task_descs": [f"Bring the {kind}, {word}." for word in ("please", "now", "at once")],
    }


def write_lines(folder: pathlib.Path, split: str, records) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(
            (record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records
        )
    return path


def write_published(folder: pathlib.Path, split: str, records) -> None:
    """As ALFRED publishes them: one folder a trial, sentences among other annotations."""
    for record in records:
        path = folder / "json_2.1.0" / split / record["folder"] / "traj_data.json"
        path.parent.mkdir(parents=True)
        data = {k: v for k, v in record.items() if k not in ("folder", "task_descs")}
        anns = [
            {"task_desc": text, "high_descs": ["go"], "votes": [1]} for text in record["task_descs"]
        ]
        data |= {"turk_annotations": {"anns": anns}, "images": [{"image_name": "0.png"}] * 3}
        data["plan"] = data["plan"] | {"low_actions": [{"api_action": {"action": "MoveAhead"}}]}
        path.write_text(json.dumps(data))


def records():
    return [trial(*task, number) for number, task in enumerate(TASKS)]


def made(tmp_path, jobs=1, goals="alfworld", **splits):
    for split, rows in splits.items():
        write_lines(tmp_path / "alfred", split, rows)
    out = tmp_path / "out"
    report = convert([str(tmp_path / "alfred")], out, progress=no_bar, jobs=jobs, goals=goals)
    return report, load_tasks(out)


def only(tasks):
    (task,) = tasks
    return task
