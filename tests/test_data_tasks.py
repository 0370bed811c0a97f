"""Tasks on disk and the order of training."""

import collections
import json
import random
import subprocess
import sys

import pytest
from official_games import DOMAIN

from evolving_rl_jax.data.tasks import (
    TaskError,
    TaskOrder,
    alfworld_task,
    content_hash,
    load_tasks,
    panel_sample,
)
from evolving_rl_jax.types import Task

PROBLEM = "(define (problem p1) (:domain alfred) (:objects a - thing) (:init (n a)) (:goal (g)))"
GRAMMAR = (
    'grammar :: """ {"task": [{"rhs": "Your task is to: UNKNOWN GOAL."}]} """;\n'
    'action PutObject {\n    template :: "move {o} to {r}";\n}'
)


def downloaded_game(root, name, *, task_type="pick_heat_then_place_in_recep", **changes):
    """A folder laid out as ALFWorld's download lays it out."""
    folder = root / "json_2.1.1" / "valid_seen" / name / "trial_T2019"
    folder.mkdir(parents=True)
    light = task_type == "look_at_obj_in_light"
    traj = {
        "task_type": task_type,
        "pddl_params": {
            "object_target": "Mug",
            "parent_target": "" if light else "CoffeeMachine",
            "toggle_target": "DeskLamp" if light else "",
            "mrecep_target": "",
            "object_sliced": False,
        },
        "turk_annotations": {"anns": [{"task_desc": "Warm the cup."}]},
    }
    game = {
        "pddl_domain": DOMAIN,
        "grammar": GRAMMAR.replace("UNKNOWN GOAL", "heat some mug and put it in coffeemachine"),
        "pddl_problem": PROBLEM,
        "solvable": True,
        "walkthrough": ["look"],
    }
    for key, value in changes.items():
        (traj if key in traj else game)[key] = value
    (folder / "traj_data.json").write_text(json.dumps(traj))
    (folder / "game.tw-pddl").write_text(json.dumps(game))
    return folder


def test_a_downloaded_game_becomes_a_task(tmp_path):
    folder = downloaded_game(tmp_path, "pick_heat-Mug-None-CoffeeMachine-1")
    task = alfworld_task(folder)
    assert task.id == "pick_heat-Mug-None-CoffeeMachine-1/trial_T2019"
    assert (task.env, task.split, task.group) == ("alfworld", "valid_seen", "")
    assert task.text == "heat some mug and put it in coffeemachine"
    assert (task.step_limit, task.path) == (50, str(folder))
    assert task.meta == {"object": "mug", "target": "coffeemachine", "walkthrough": ["look"]}


@pytest.mark.parametrize(
    ("task_type", "text", "target"),
    [
        ("pick_heat_then_place_in_recep", "put a hot mug in coffeemachine", "coffeemachine"),
        ("pick_two_obj_and_place", "put two mug in coffeemachine", "coffeemachine"),
        ("look_at_obj_in_light", "look at mug under the desklamp", "desklamp"),
    ],
)
def test_an_open_sentence_takes_the_usual_wording(tmp_path, task_type, text, target):
    folder = downloaded_game(tmp_path, "game", task_type=task_type, grammar=GRAMMAR)
    task = alfworld_task(folder)
    assert (task.text, task.meta["target"]) == (text, target)


def test_the_hash_ignores_name_and_layout_and_nothing_else():
    renamed = PROBLEM.replace("(problem p1)", "(problem plan_trial)").replace(" (:", "\n  (:")
    assert content_hash(renamed, "a") == content_hash(PROBLEM, "a")
    assert content_hash(PROBLEM, "b") != content_hash(PROBLEM, "a")
    assert content_hash(PROBLEM.replace("(n a)", "(m a)"), "a") != content_hash(PROBLEM, "a")


def test_downloaded_folders_are_searched_as_the_published_loader_does(tmp_path):
    downloaded_game(tmp_path, "b")
    downloaded_game(tmp_path, "a")
    downloaded_game(tmp_path, "unsolvable", solvable=False)
    downloaded_game(tmp_path, "pick_and_place_with_movable_recep-Mug")
    (downloaded_game(tmp_path, "no-game") / "game.tw-pddl").unlink()
    assert [t.id for t in load_tasks(tmp_path)] == ["a/trial_T2019", "b/trial_T2019"]
    assert len(load_tasks(tmp_path, "valid_seen")) == 2
    with pytest.raises(TaskError, match="split must be one of valid_seen, got 'train'"):
        load_tasks(tmp_path, "train")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "traj_data.json").unlink(), r"traj_data.json: must exist, found no such"),
        (lambda d: (d / "game.tw-pddl").write_text("{"), r"game.tw-pddl: must be a JSON file"),
        (lambda d: (d / "game.tw-pddl").write_text("[]"), r"must hold a JSON object, found list"),
        (lambda d: (d / "game.tw-pddl").write_text("{}"), r"grammar must be a str|pddl_problem"),
        (
            lambda d: (d / "traj_data.json").write_text('{"task_type": "fly"}'),
            r"traj_data.json: task_type must be one of pick_and_place_simple, .*got 'fly'",
        ),
        (
            lambda d: (d / "traj_data.json").write_text('{"task_type": "pick_two_obj_and_place"}'),
            r"traj_data.json: pddl_params must be a dict, found NoneType",
        ),
    ],
)
def test_malformed_games_name_the_file(tmp_path, spoil, message):
    folder = downloaded_game(tmp_path, "game")
    spoil(folder)
    with pytest.raises(TaskError, match=message) as error:
        alfworld_task(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_missing_folders_and_empty_ones_are_named(tmp_path):
    with pytest.raises(TaskError, match="must be a game folder, found no such folder"):
        alfworld_task(tmp_path / "nowhere")
    with pytest.raises(TaskError, match="must be a folder of games, found no such folder"):
        load_tasks(tmp_path / "nowhere")
    with pytest.raises(TaskError, match="must hold games.json or folders with traj_data.json"):
        load_tasks(tmp_path)


def test_an_index_is_checked_against_its_games(tmp_path):
    pytest.importorskip("alfworld")
    from evolving_rl_jax.envs.alfworld.households.write import generate_even

    manifest = generate_even(tmp_path, num=6, seed=0)
    assert len(load_tasks(tmp_path)) == len(load_tasks(tmp_path, "train")) == 6
    with pytest.raises(TaskError, match="games.json: split must be one of train, got 'test'"):
        load_tasks(tmp_path, "test")
    path = tmp_path / manifest["games"][2]["path"] / "game.tw-pddl"
    game = json.loads(path.read_text())
    path.write_text(json.dumps({**game, "pddl_problem": PROBLEM}))
    with pytest.raises(TaskError, match="must be the game .* found another"):
        load_tasks(tmp_path)
    (tmp_path / "games.json").write_text('{"games": [{"id": "x"}]}')
    with pytest.raises(TaskError, match="every game must have id, split, path and content_hash"):
        load_tasks(tmp_path)


def tasks(n):
    names = [f"t{i:03d}" for i in range(n)]
    return [Task(i, "alfworld", "train", "", i, "", content_hash=i) for i in names]


@pytest.mark.parametrize(("size", "n"), [(12, 4), (10, 4), (5, 7), (1, 3)])
def test_no_task_is_lost_or_repeated_within_an_epoch(size, n):
    order = TaskOrder(tasks(size), seed=3)
    iterations = 3 * size  # 3 n epochs
    ids = [t.id for i in range(iterations) for t in order.take(i, n)]
    epochs = [ids[start : start + size] for start in range(0, len(ids), size)]
    assert all(collections.Counter(e) == {t.id: 1 for t in tasks(size)} for e in epochs)
    assert size == 1 or len({tuple(e) for e in epochs}) > 1


def test_the_order_depends_on_the_seed_and_the_ids_alone():
    some = tasks(20)
    later = TaskOrder(some[::-1], seed=3).take(9, 4)  # a fresh object: as after a resume
    assert later == [TaskOrder(some, seed=3).take(i, 4) for i in range(10)][9]
    assert TaskOrder(some, seed=4).take(0, 20) != TaskOrder(some, seed=3).take(0, 20)
    with pytest.raises(ValueError, match="at least one task"):
        TaskOrder([], seed=0)
    with pytest.raises(ValueError, match="iteration must be >= 0 and n >= 1, got 0 and 0"):
        TaskOrder(some, seed=0).take(0, 0)


def mixed(sizes):
    """Tasks whose ids begin with their type, as real ones do."""
    return [
        Task(f"{kind}-{i:03d}", "alfworld", "valid_unseen", kind, "", "", content_hash=f"{kind}{i}")
        for kind, size in sizes.items()
        for i in range(size)
    ]


def test_a_small_panel_has_its_share_of_every_type_and_is_always_the_same():
    """The shares of ALFRED's unseen games; by id the first 24 are all of one type."""
    sizes = {"pick": 27, "clean": 30, "heat": 24, "cool": 24}
    all_tasks = mixed(sizes)
    shuffled = random.Random(3).sample(all_tasks, len(all_tasks))
    for num in (4, 24, 64):
        chosen = panel_sample(all_tasks, num)
        counts = collections.Counter(t.task_type for t in chosen)
        for kind, size in sizes.items():
            assert abs(counts[kind] - num * size / 105) <= 1
        assert chosen == panel_sample(shuffled, num) == sorted(chosen, key=lambda t: t.id)
        assert {t.id for t in chosen} <= {t.id for t in panel_sample(all_tasks, num + 17)}
    assert len({t.id[-3:] for t in panel_sample(all_tasks, 24)}) > 8  # not the first of each type
    assert (
        panel_sample(shuffled, 0)
        == panel_sample(shuffled, 999)
        == sorted(all_tasks, key=lambda t: t.id)
    )


def test_the_sample_does_not_change_with_a_release():
    """A panel of today is compared with those of runs to come."""
    ids = [t.id for t in panel_sample(mixed({"a": 40, "b": 20}), 6)]
    assert ids == ["a-006", "a-017", "a-022", "a-029", "b-003", "b-007"]


def test_tasks_and_games_never_import_jax():
    modules = "data.tasks, evolving_rl_jax.envs.alfworld.households.write, evolving_rl_jax.envs.alfworld.experts"
    code = f"import sys, evolving_rl_jax.{modules}; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
