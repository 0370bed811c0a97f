"""ALFRED's trajectories as games: where they come from, where things lie, what is left out."""

import json
import pathlib

import pytest
from alfred_records import (
    LAMP_AT,
    TASKS,
    goto,
    ids,
    made,
    only,
    pick,
    point,
    put,
    records,
    trial,
    write_lines,
    write_published,
)
from official_games import no_bar

from evolving_rl_jax import envs
from evolving_rl_jax.cli import main as cli
from evolving_rl_jax.envs.alfworld.alfred.convert import convert
from evolving_rl_jax.envs.alfworld.alfred.placement import left_one_out
from evolving_rl_jax.envs.alfworld.alfred.scene import make_scene
from evolving_rl_jax.envs.alfworld.alfred.survey import Survey
from evolving_rl_jax.envs.alfworld.alfred.trial import parse_trial
from evolving_rl_jax.envs.alfworld.folder import alfworld_task
from evolving_rl_jax.envs.base import TaskError

pytest.importorskip("alfworld")


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    return made(tmp_path_factory.mktemp("alfred"), train=records())


def test_every_task_type_becomes_a_game(twelve):
    report, tasks = twelve
    assert report.num_games == len(tasks) == 12 and not report.left_out
    assert {t.split for t in tasks} == {"train", "heldout_types_train"}
    for task in tasks:
        held_out = task.task_type in ("pick_two_obj_and_place", "look_at_obj_in_light")
        assert task.split == ("heldout_types_train" if held_out else "train")
    texts = {t.text for t in tasks}
    assert {"put a clean apple in fridge", "look at book under the desklamp"} <= texts
    assert "put two cd in desk" in texts and "put a hot egg in sinkbasin" in texts


@pytest.mark.parametrize("number", range(12))
def test_its_walkthrough_wins_a_game_on_the_published_engine_and_ours_says_the_same(twelve, number):
    task = twelve[1][number]
    both = [envs.make("alfworld", engine=name) for name in ("stock", "native")]
    answers = [env.reset(task) for env in both]
    for command in task.meta["walkthrough"]:
        assert answers[0] == answers[1] and command in answers[0].actions
        answers = [env.step(command) for env in both]
    assert answers[0] == answers[1] and answers[0].won and task.text in both[0].reset(task).text


def test_a_game_says_what_the_index_says(twelve):
    for task in twelve[1]:
        read = alfworld_task(task.path)
        assert read.id == task.id and read.content_hash == task.content_hash
        for key, value in read.meta.items():
            assert task.meta[key] == value
        lies = {place for thing, place in task.meta["things"].items()
                if thing.split()[0] == task.meta["object"]}  # fmt: skip
        assert set(task.meta["kept"]) == lies  # none lies in a place like the target's here
        assert lies <= set(task.meta["places"])
        assert task.meta["usual"][0] == task.meta["kept"][0].split()[0]


def test_things_are_numbered_as_the_engine_numbers_them(tmp_path):
    """Downwards in the order of their ids, the spelling of PDDL: plus sorts before minus, not here."""
    place = ids(301, "Bed")[0]
    x, y, z = point(place)
    others = [("Book", (x - 0.1, y, z)), ("Book", (x + 0.1, y, z))]
    _, tasks = made(tmp_path, train=[trial(*TASKS[1], others=others)])
    engine = envs.make("alfworld", engine="stock")
    task = only(tasks)
    engine.reset(task)
    seen = engine.step("go to bed 1").text
    for number in (1, 2, 3):
        assert f"a book {number}" in seen


def test_a_lamp_that_is_turned_on_before_the_object_is_fetched(tmp_path):
    kind, source, scene = "CD", "Desk", 301
    task = only(made(tmp_path, train=[
        trial("look_at_obj_in_light", kind, source, "DeskLamp", scene, lamp_first=True)])[1])  # fmt: skip
    use, take = (next(i for i, c in enumerate(task.meta["walkthrough"]) if c.startswith(word))
                 for word in ("use", "take"))  # fmt: skip
    assert use < take
    engine = envs.make("alfworld", engine="native")
    engine.reset(task)
    assert [engine.step(c).won for c in task.meta["walkthrough"]][-1]


def test_people_word_their_tasks_themselves(tmp_path):
    row = trial(*TASKS[0]) | {"task_descs": ['Put a {dirty} "mug" <away>; [now] #1 |\\ quick.'] * 3}
    task = only(made(tmp_path, goals="human", train=[row])[1])
    assert task.text == "Put a dirty 'mug' away , now 1 quick"
    for name in ("native", "stock"):
        assert task.text in envs.make("alfworld", engine=name).reset(task).text


def test_the_same_person_words_a_task_each_time(tmp_path):
    first, again = (made(tmp_path / n, goals="human", train=records())[1] for n in "ab")
    assert [t.text for t in first] == [t.text for t in again]
    assert len({t.text.split(", ")[1] for t in first}) > 1  # not always the first of the three


# -- sources -----------------------------------------------------------------------------------------


def test_the_published_folder_and_json_lines_give_the_same_games(tmp_path):
    write_published(tmp_path, "train", records())
    made(tmp_path / "lines", train=records())
    convert([str(tmp_path)], tmp_path / "out", progress=no_bar, jobs=1)
    a, b = (
        (folder / "out" / "games.json").read_text() for folder in (tmp_path, tmp_path / "lines")
    )
    assert a == b
    game = sorted((tmp_path / "out" / "games").rglob("game.tw-pddl"))[0]
    other = tmp_path / "lines" / game.relative_to(tmp_path)
    assert game.read_bytes() == other.read_bytes()


def test_the_number_of_processes_changes_nothing(tmp_path):
    for jobs in (1, 2):
        made(tmp_path / str(jobs), jobs=jobs, train=records() * 1)
    one, two = ((tmp_path / str(jobs) / "out/games.json").read_text() for jobs in (1, 2))
    assert one == two


def test_games_of_alfworld_are_no_records(tmp_path):
    write_published(tmp_path, "train", records()[:1])
    game = next(tmp_path.rglob("traj_data.json")).with_name("game.tw-pddl")
    game.write_text("{}")
    with pytest.raises(TaskError, match="evolving-rl data alfworld"):
        convert([str(tmp_path)], tmp_path / "out", progress=no_bar)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("files", [(), ("other.jsonl",), ("train.json",)])
def test_a_source_without_records_is_named(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("{}\n")
    with pytest.raises(TaskError, match="json_2.1.0"):
        convert([str(tmp_path)], tmp_path / "out", progress=no_bar)


def test_a_split_is_given_once(tmp_path):
    paths = [str(write_lines(tmp_path / n, "train", records()[:1])) for n in "ab"]
    with pytest.raises(TaskError, match="each split once"):
        convert(paths, tmp_path / "out", progress=no_bar)


def test_an_index_is_not_overwritten(tmp_path):
    made(tmp_path, train=records()[:1])
    with pytest.raises(FileExistsError, match="games.json"):
        made(tmp_path, train=records()[:1])


# -- what is left out --------------------------------------------------------------------------------


def _changed(number, **changes):
    row = trial(*TASKS[0], 40 + number)
    for path, value in changes.items():
        *keys, last = path.split("__")
        at = row
        for key in keys:
            at = at[key]
        at[last] = value
    return row


def test_every_record_is_a_game_or_named_with_its_reason(tmp_path):
    good = trial(*TASKS[0])
    rows = {
        "damaged record": json.dumps(good)[:200],
        "unknown scene": _changed(1, scene__scene_num=99),
        "its object has no place": _changed(2, scene__object_poses=[]),
        "an object of a class that ALFWorld's tables lack": _changed(
            3, pddl_params__object_target="Cat"
        ),
        "movable receptacle": _changed(4, pddl_params__mrecep_target="Plate"),
        "sliced object": _changed(5, pddl_params__object_sliced=True),
        "no receptacle of the target's class in the scene": _changed(
            6, pddl_params__parent_target="Bed"
        ),
        "another lamp than a desk lamp": trial(
            "look_at_obj_in_light", "Book", "Bed", "FloorLamp", 301, 7
        ),
        "duplicate": good,
    }
    report, tasks = made(tmp_path, train=[good, *rows.values()])
    assert len(tasks) == report.num_games == 1
    assert {why: len(names) for why, names in report.left_out.items()} == dict.fromkeys(rows, 1)
    assert report.records == {"train": 1 + len(rows)}
    (damaged,) = report.left_out["damaged record"]
    assert "train.jsonl.gz:2" in damaged and "JSON" in damaged
    assert good["folder"] in report.left_out["duplicate"][0]
    assert ":1" in report.left_out["duplicate"][0]  # where the first one is
    text = "\n".join(report.lines())
    for why in rows:
        assert f"left out, {why}: 1" in text
    kept = json.loads((tmp_path / "out" / "games.json").read_text())["report"]["left_out"]
    assert kept == report.left_out


@pytest.mark.parametrize(
    "path",
    [
        "task_type",
        "scene__scene_num",
        "scene__object_poses",
        "plan__high_pddl",
        "pddl_params__object_sliced",
        "folder",
    ],
)
@pytest.mark.parametrize("value", [None, "x", 7.5, [{}], {}])
def test_a_field_of_another_form_damages_its_record_alone(tmp_path, path, value):
    report, _ = made(tmp_path, train=[_changed(1, **{path: value}), trial(*TASKS[0])])
    (line,) = report.left_out["damaged record"]
    assert "train.jsonl.gz:1" in line and path.split("__")[-1] in line
    assert report.num_games == 1


def test_a_file_that_ends_early_loses_only_what_is_missing(tmp_path):
    path = write_lines(
        tmp_path / "alfred", "train", [trial(*t, i) for i in range(40) for t in TASKS[:1]]
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    report = convert([str(path)], tmp_path / "out", progress=no_bar, jobs=1)
    assert 1 <= report.num_games < 40
    (line,) = report.left_out["damaged record"]
    assert "readable to its end" in line


def test_a_game_that_is_won_at_the_start_is_left_out(tmp_path):
    others = [("Mug", point(ids(2, "Cabinet")[3], 0.02))]
    seen = trial("pick_and_place_simple", "Mug", "Cabinet", "CounterTop", 2, 3)
    report, _ = made(tmp_path, train=[seen, trial(*TASKS[0], 9, others=others)])
    (name,) = report.left_out["won before the first action"]
    assert "Mug-None-Cabinet-2/trial_T2019_000009" in name


def test_records_without_any_game_are_refused(tmp_path):
    with pytest.raises(TaskError, match="no record that a game can be made of.*sliced object: 1"):
        made(tmp_path, train=[_changed(0, pddl_params__object_sliced=True)])
    assert not (tmp_path / "out" / "games.json").exists()


# -- receptacles and places --------------------------------------------------------------------------

_BURNER = ((-0.5, 0.9, -1.2), "loc|-1|-1|2|45")  # no layout has burners


def _with_burner(number, at=None):
    """A pan on a burner, seen from the burner's own standing point."""
    burner, location = _BURNER
    pan = at or (burner[0], burner[1] + 0.03, burner[2])
    row = trial("pick_and_place_simple", "Pan", "CounterTop", "Cabinet", 2, number)
    goal = ids(2, "Cabinet")[0]
    steps = [
        goto(2, location=location),
        pick("Pan", pan, "", kind_of="StoveBurner", place_at=burner),
        goto(2, goal),
        put("Pan", pan, goal),
    ]
    row["plan"]["high_pddl"] = [{"planner_action": step} for step in steps]
    row["scene"]["object_poses"] = [
        {"objectName": "Pan_1", "position": dict(zip("xyz", pan, strict=True))}
    ]
    return row


def test_a_receptacle_that_the_layout_lacks_comes_from_the_plans_of_training(tmp_path):
    seen = trial(*TASKS[0], others=[("Pan", (-0.5, 0.93, -1.2))])
    report, tasks = made(tmp_path, train=[_with_burner(50)], valid_seen=[seen])
    assert report.added == {"stoveburner": 1}
    task = only([t for t in tasks if t.split == "valid_seen"])
    assert task.meta["things"]["pan 1"] == "stoveburner 1"
    assert task.meta["placed_by"]["nearest_pickup"] == ["pan 1"]
    game = json.loads(pathlib.Path(task.path, "game.tw-pddl").read_text())["pddl_problem"]
    assert "(receptacleAtLocation StoveBurner_bar__minus_00_dot_50" in game
    assert "loc_bar__minus_1_bar__minus_1_bar_2_bar_45)" in game
    engine = envs.make("alfworld", engine="stock")
    assert "stoveburner 1" in engine.reset(task).text
    assert "a pan 1" in engine.step("go to stoveburner 1").text


def test_a_scene_without_training_trials_is_known_from_its_own_split(tmp_path):
    report, tasks = made(tmp_path, train=records()[1:2], valid_unseen=[_with_burner(50)])
    task = only([t for t in tasks if t.split == "valid_unseen"])
    assert report.alone == ["FloorPlan2"]
    assert any("FloorPlan2" in line for line in report.lines())
    assert task.meta["walkthrough"][:2] == ["go to stoveburner 1", "take pan 1 from stoveburner 1"]


def test_three_rules_say_where_a_thing_lies(tmp_path):
    counter = ids(2, "CounterTop")[0]
    at = point(counter)
    far = ("Knife", (at[0], at[1], at[2] + 0.9))
    near = ("Fork", (at[0] + 0.1, at[1] + 0.2, at[2]))
    nowhere = ("Pillow", (at[0], at[1], at[2] - 0.9))  # nothing in a kitchen holds one
    unknown = ("Chair", at)  # no class of the tables
    row = trial("pick_and_place_simple", "Mug", "CounterTop", "Cabinet", 2,
                others=[far, near, nowhere, unknown])  # fmt: skip
    task = only(made(tmp_path, train=[row])[1])
    assert task.meta["placed_by"] == {
        "plan": ["mug 1"], "nearest_pickup": ["fork 1"], "nearest_receptacle": ["knife 1"]
    }  # fmt: skip
    assert task.meta["things"]["fork 1"] == task.meta["things"]["mug 1"]
    assert task.meta["not_placed"] == 1
    assert not any(thing.startswith(("pillow", "chair")) for thing in task.meta["things"])


def test_the_rules_are_tried_on_plans_that_they_have_not_seen():
    """Two picks at one point, one alone beside its receptacle, one alone far from it."""
    survey = Survey()
    same = [trial("pick_and_place_simple", "Mug", "CounterTop", "Cabinet", 2, n) for n in (0, 0)]
    same[1]["folder"] += "1"
    alone = trial("pick_and_place_simple", "Egg", "Fridge", "CounterTop", 2)
    for row in (*same, alone):
        survey.add(parse_trial(row, "train", ""))
    scene = make_scene(2, survey.scene(2))
    found = {row.rule: (row.right, row.total) for row in left_one_out([scene])}
    assert found["both rules"] == (3, 3)
    assert found["nearest_pickup"] == found["nearest_pickup, 0 to 0.1 m"] == (2, 2)
    assert found["nearest_receptacle, beyond 0.4 m"] == (1, 1)


def test_a_desk_lamp_stands_on_what_can_hold_one(twelve):
    lit = [t for t in twelve[1] if t.task_type == "look_at_obj_in_light"]
    assert len(lit) == 2 and LAMP_AT
    for task in lit:
        assert task.meta["things"]["desklamp 1"] == "dresser 1"


def test_usual_places_are_those_of_training_in_the_scene(tmp_path):
    train = [trial("pick_and_place_simple", "Mug", kind, "Microwave", 2, n)
             for n, kind in enumerate(("CounterTop", "CounterTop", "Cabinet"))]  # fmt: skip
    train += [trial("pick_and_place_simple", "Mug", "Cabinet", "Microwave", 4, n) for n in range(5)]
    seen = trial("pick_and_place_simple", "Mug", "Cabinet", "CounterTop", 2, 7)
    _, tasks = made(tmp_path, train=train, valid_seen=[seen])
    here = only([t for t in tasks if t.split == "valid_seen"])
    assert here.meta["usual"] == ["cabinet"]  # the target's kind is no answer
    other = next(t for t in tasks if t.meta["scene"] == "FloorPlan2" and t.split == "train")
    assert other.meta["usual"] == ["countertop", "cabinet"]


# -- the command -------------------------------------------------------------------------------------


def test_the_command_prints_counts_beside_the_published_ones(tmp_path, capsys):
    write_lines(tmp_path, "train", records())
    assert (
        cli.main(["data", "alfred", f"--source={tmp_path}", f"--out={tmp_path}/out", "--jobs=1"])
        == 0
    )
    said = capsys.readouterr().out
    assert "train: 12 games of 12 records (ALFWorld's release: 3553)" in said
    assert "  pick_two_obj_and_place: 2 (813)" in said and "left-one-out, both rules: " in said
    assert f"12 games indexed in {tmp_path}/out" in said


def test_the_command_names_a_wrong_source(tmp_path, capsys):
    assert cli.main(["data", "alfred", f"--source={tmp_path}", f"--out={tmp_path}/out"]) == 2
    assert "--source must be the folder json_2.1.0 of ALFRED" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_command_names_an_output_that_cannot_be_written(tmp_path, capsys, jobs):
    write_lines(tmp_path / "alfred", "train", records()[:1])
    (tmp_path / "out").write_text("a file")
    arguments = [f"--source={tmp_path}/alfred", f"--out={tmp_path}/out", f"--jobs={jobs}"]
    assert cli.main(["data", "alfred", *arguments]) == 2
    assert "--out must be a folder that can be written" in capsys.readouterr().err


def test_an_interrupted_conversion_is_simply_run_again(tmp_path):
    _, tasks = made(tmp_path, train=records()[:3])
    index = tmp_path / "out" / "games.json"
    whole = index.read_bytes()
    index.unlink()
    (pathlib.Path(tasks[0].path) / "game.tw-pddl").write_text("{")  # killed while it was written
    made(tmp_path, train=records()[:3])
    assert index.read_bytes() == whole
