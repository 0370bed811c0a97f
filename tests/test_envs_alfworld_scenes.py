"""Games in the scene layouts of the alfworld package: real rooms, fit tasks, proven walkthroughs."""

import collections
import json
import re

import pytest

from evolving_rl_jax.cli import main as cli
from evolving_rl_jax.config import ConfigError, default_config, validate
from evolving_rl_jax.data.tasks import load_tasks
from evolving_rl_jax.envs.alfworld.households import scenes as scene_layouts
from evolving_rl_jax.envs.alfworld.households.homes import make_households
from evolving_rl_jax.envs.alfworld.households.plan import GamesSpec, plan_games, spread_spec
from evolving_rl_jax.envs.alfworld.households.write import (
    PlanError,
    generate_even,
    generate_games,
    prove,
)
from evolving_rl_jax.envs.alfworld.names import HELDOUT_TYPES, TRAINED_TYPES
from evolving_rl_jax.run.environments import prepare_games
from evolving_rl_jax.run.folder import RunFolder

pytest.importorskip("alfworld")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scene_games")
    generate_games(path, seed=5, spec=spread_spec(400, rooms="scenes"))
    return path


@pytest.fixture(scope="module")
def tasks(folder):
    return load_tasks(folder)


def game_of(task):
    with open(f"{task.path}/game.tw-pddl") as file:
        return json.load(file)


# -- layouts ---------------------------------------------------------------------------------------


def test_receptacles_are_those_of_the_layout_file():
    from importlib.resources import files

    original = json.loads((files("alfworld") / "gen/layouts/FloorPlan7-openable.json").read_text())
    room = scene_layouts.load_scene(7).room
    restored = {
        p.id.replace("_bar_", "|")
        .replace("_plus_", "+")
        .replace("_minus_", "-")
        .replace("_dot_", ".")
        for p in room.places.values()
    }
    assert restored == set(original) and len(restored) == 25
    words = collections.Counter(name.split()[0] for name in room.places)
    for word, count in words.items():
        assert {f"{word} {i}" for i in range(1, count + 1)} <= set(room.places)
    assert room.places["sinkbasin 1"].type == "SinkBasin"
    assert room.places["fridge 1"].openable and not room.places["countertop 1"].openable


def test_rooms_have_what_their_tasks_need():
    for kind in scene_layouts.ROOM_KINDS:
        numbers = scene_layouts.scene_numbers(kind)
        assert len(numbers) > 20
        for number in numbers:
            room = scene_layouts.load_scene(number).room
            assert room.start not in {p.location for p in room.places.values()}
            assert bool(room.lamp_place) == (kind == "lamp_room")
    sizes = [
        len(scene_layouts.load_scene(n).room.places) for n in scene_layouts.scene_numbers("kitchen")
    ]
    assert (min(sizes), max(sizes)) == (15, 39)


# -- games -----------------------------------------------------------------------------------------


def test_the_engine_shows_the_receptacles_under_their_names(tasks):
    """The names that the game's facts use are those that the published engine computes."""
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs import PddlEnv

    env = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))
    game = max(tasks[:200], key=lambda t: -len(t.meta["things"]))
    env.load(f"{game.path}/game.tw-pddl")
    text = env.reset().feedback
    room = scene_layouts.load_scene(int(game.meta["scene"].removeprefix("FloorPlan"))).room
    assert set(re.findall(r"\ban? (\w+ \d+)", text)) == set(room.places)
    for thing, place in list(game.meta["things"].items())[:4]:
        env.step(f"go to {place}")
        if room.places[place].openable:
            env.step(f"open {place}")
        state, _, _ = env.step(f"examine {place}")
        assert thing in state.feedback


def test_all_splits_have_games_and_their_task_types(tasks):
    sizes = collections.Counter(t.split for t in tasks)
    assert sum(sizes.values()) == 400 and set(sizes) == {
        *("train", "valid_seen", "valid_unseen", "valid_unseen_sources"),
        *("heldout_types", "warmstart"),
    }
    for split, types in (("train", TRAINED_TYPES), ("heldout_types", HELDOUT_TYPES)):
        assert {t.task_type for t in tasks if t.split == split} == set(types)
    assert len({t.content_hash for t in tasks}) == len({t.id for t in tasks}) == 400


def test_unseen_households_live_in_test_scenes_and_no_other(tasks):
    scenes, groups = collections.defaultdict(set), collections.defaultdict(set)
    for task in tasks:
        unseen = task.split in ("valid_unseen", "valid_unseen_sources", "heldout_types")
        scenes[unseen].add(int(task.meta["scene"].removeprefix("FloorPlan")))
        groups[unseen].add(task.group)
    assert not scenes[True] & scenes[False] and not groups[True] & groups[False]
    assert scenes[True] <= scene_layouts.tables().test_scenes


def test_habits_are_kept_and_facts_fit_the_tables(tasks):
    contains = scene_layouts.tables().contains
    words = {p.lower(): {k.lower() for k in kinds} for p, kinds in contains.items()}
    habits = collections.defaultdict(set)
    for task in tasks:
        habits[task.group].add(json.dumps(task.meta["habits"], sort_keys=True))
        obj, things = task.meta["object"], task.meta["things"]
        assert things[f"{obj} 1"] == task.meta["place"] == task.meta["habits"][obj]
        assert task.meta["place"].split()[0] != task.meta["target"]  # not won at the start
        for thing, place in things.items():
            if thing != "desklamp 1":
                assert thing.split()[0] in words[place.split()[0]], (thing, place)
        assert task.meta["shortest"] < task.step_limit <= 50
    assert all(len(kept) == 1 for kept in habits.values())


def test_every_panel_game_has_a_source_of_the_same_object(tasks):
    by_id = {t.id: t for t in tasks}
    panels = [t for t in tasks if t.split in ("valid_unseen", "heldout_types")]
    assert panels
    for task in panels:
        source = by_id[task.meta["source"]]
        assert (source.group, source.meta["object"]) == (task.group, task.meta["object"])
        assert source.content_hash != task.content_hash
        if task.task_type != "look_at_obj_in_light":
            assert source.meta["target"] != task.meta["target"]


def test_the_same_seed_gives_the_same_games(folder, tmp_path):
    generate_games(tmp_path / "a", seed=5, spec=spread_spec(400, rooms="scenes"))
    assert (tmp_path / "a" / "games.json").read_bytes() == (folder / "games.json").read_bytes()
    generate_even(tmp_path / "b", num=12, seed=5, rooms="scenes", split="valid_unseen")
    generate_even(tmp_path / "c", num=12, seed=5, rooms="scenes", slack=9)
    unseen, seen = load_tasks(tmp_path / "b"), load_tasks(tmp_path / "c")
    assert not {t.meta["scene"] for t in unseen} & {t.meta["scene"] for t in seen}
    assert all(t.step_limit == t.meta["shortest"] + 9 for t in seen)


def test_larger_rooms_allow_more_steps():
    games = plan_games(GamesSpec(num_warmstart=0, rooms="scenes"), seed=0)
    for game in games[:200]:
        cost = sum(1 + p.openable for p in map(game.room.places.get, game.room.holding(game.kind)))
        assert game.slack >= 3 and 3 * game.slack >= min(cost, 3 * (50 - len(game.walkthrough())))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rooms": "huge"}, "GamesSpec.rooms must be one of compact, scenes, got 'huge'"),
        ({"slack": -1}, "GamesSpec.slack must be an integer of at least 0, got -1"),
    ],
)
def test_impossible_specs_name_the_field(options, message):
    with pytest.raises(ValueError, match=message):
        GamesSpec(**options)


def test_too_few_games_for_all_splits_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="num must be at least 78 to give every split games, got 77"
    ):
        spread_spec(77)
    assert spread_spec(78).num_train_households == 1
    with pytest.raises(ValueError, match="rooms must be one of compact, scenes, got 'huge'"):
        generate_even(tmp_path, num=6, seed=0, rooms="huge")
    with pytest.raises(ValueError, match="slack must be at least 0, got -2"):
        generate_even(tmp_path, num=6, seed=0, slack=-2)


def test_households_of_scenes_follow_from_the_seed():
    some = make_households(20, 10, 3, rooms="scenes", test_from=10)
    assert some == make_households(20, 10, 3, rooms="scenes", test_from=10)
    assert some != make_households(20, 10, 4, rooms="scenes", test_from=10)
    for household in some:
        per_scene = collections.Counter(household.scenes.values())
        assert sorted(per_scene.values()) == [1, 2, 3]


def test_the_command_makes_all_splits_of_scene_games(tmp_path, capsys):
    out = tmp_path / "games"
    assert cli.main(["games", f"--out={out}", "--num=78", "--rooms=scenes", "--split=all"]) == 0
    assert "78 games in" in capsys.readouterr().out
    assert len({t.split for t in load_tasks(out)}) == 6
    wrong = ["games", f"--out={tmp_path / 'new'}", "--num=12"]
    for option, message in (
        ("--split=all", "--num must be at least 78"),
        ("--slack=-1", "--slack"),
    ):
        assert cli.main([*wrong, option]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_configuration_chooses_the_rooms(tmp_path):
    config = default_config()
    config.data.households.update(
        rooms="scenes", num_train=2, num_unseen=1, heldout_games=6, warmstart_games=6
    )
    tasks = prepare_games(config, RunFolder(tmp_path, config))
    assert all(t.meta["scene"].startswith("FloorPlan") for t in tasks)
    config.data.households.rooms = "castle"
    with pytest.raises(
        ConfigError, match="data.households.rooms must be one of compact, scenes, got 'c"
    ):
        validate(config)


# -- the proof that a game can be won --------------------------------------------------------------


@pytest.mark.parametrize("task_type", TRAINED_TYPES + HELDOUT_TYPES)
def test_no_command_of_a_walkthrough_can_be_left_out(tasks, task_type):
    game = game_of(next(t for t in tasks if t.task_type == task_type))
    prove(game)
    steps = game["walkthrough"]
    for i in range(len(steps)):
        with pytest.raises(PlanError, match="must be possible where it comes|goal must hold after"):
            prove({**game, "walkthrough": steps[:i] + steps[i + 1 :]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda steps: [*steps, "look"],
            r"goal must not hold before command \d+ \('look'\), it does",
        ),
        (lambda steps: ["fly", *steps], "command 'fly' must be possible where it comes"),
        (lambda steps: [*steps[:1], *steps], "must be possible where it comes, it is not"),
        (lambda steps: ["go to attic 1", *steps], "command 'go to attic 1' must be possible"),
        (lambda steps: [], "goal must hold after 0 commands, it does not"),
    ],
)
def test_wrong_walkthroughs_are_refused(tasks, change, message):
    game = game_of(next(t for t in tasks if t.task_type == "pick_heat_then_place_in_recep"))
    with pytest.raises(PlanError, match=message):
        prove({**game, "walkthrough": change(game["walkthrough"])})


def test_a_game_that_cannot_be_won_is_not_indexed(tmp_path, monkeypatch):
    from evolving_rl_jax.envs.alfworld.households import write as households

    whole = households.problem
    for broken, message in (
        (
            lambda *a, **k: re.sub(r"\(pickupable [^)]*\)", "", whole(*a, **k)),
            "command 'take .* must be possible",
        ),
        (
            lambda *a, **k: whole(*a, **k).split("(:goal")[0] + "(:goal (and)))",
            "goal must not hold before",
        ),
    ):
        monkeypatch.setattr(households, "problem", broken)
        with pytest.raises(PlanError, match=f"^game .*: .*{message}"):
            generate_even(tmp_path, num=6, seed=0, rooms="scenes")
        assert not (tmp_path / "games.json").exists()
