"""ALFWorld on generated games: our engine against the published one, and malformed games."""

import json
import os
import pathlib
import random
import subprocess
import sys

import pytest

pytest.importorskip("alfworld")

from evolving_rl_jax import envs, types
from evolving_rl_jax.envs.alfworld.households import write as households

ODD_ACTIONS = ("", "  look  ", "help ", "Look", "go to nowhere 9", "take mug 1", "drop {r}")


def task_of(folder) -> types.Task:
    folder = str(folder)
    return types.Task(
        id=folder,
        env="alfworld",
        split="test",
        task_type="",
        text="",
        path=folder,
        content_hash=folder,
    )


def write_game(folder: pathlib.Path, **data) -> pathlib.Path:
    folder.mkdir(parents=True)
    (folder / "game.tw-pddl").write_text(json.dumps(data))
    return folder


def read(folder) -> dict:
    return json.loads((pathlib.Path(folder) / "game.tw-pddl").read_text())


@pytest.fixture(scope="module")
def games(tmp_path_factory) -> list[pathlib.Path]:
    """One generated game of each of the six task types."""
    out = tmp_path_factory.mktemp("games")
    index = households.generate_even(out, num=6, seed=11)
    return [out / entry["path"] for entry in index["games"]]


@pytest.fixture(scope="module")
def crowded(games, tmp_path_factory) -> pathlib.Path:
    """A game with receptacles that share a location, a knife, and things that can be sliced."""
    data = read(games[0])
    lines = data["pddl_problem"].replace("loc_bar_2_bar", "loc_bar_1_bar").split("\n")
    shared = next(line for line in lines if line.startswith("loc_bar_1_bar"))
    lines = [line for i, line in enumerate(lines) if line != shared or lines.index(line) == i]
    kinds = dict(line.strip("()").split()[1:] for line in lines if line.startswith("(objectType"))
    things = list(kinds)
    extra = [f"(sliceable {thing})\n(isReceptacleObject {thing})" for thing in things[:3]]
    problem = "\n".join(lines).replace("(:init\n", "(:init\n" + "\n".join(extra) + "\n")
    problem = problem.replace(kinds[things[-1]], "KnifeType")
    folder = tmp_path_factory.mktemp("crowded") / "game"
    return write_game(folder, **{**data, "pddl_problem": problem})


def pick(rng: random.Random, actions, walkthrough: list[str]) -> str:
    """The next expert action now and then, an odd one seldom, else one that changes something."""
    if walkthrough and rng.random() < 0.4:
        return walkthrough.pop(0)
    if rng.random() < 0.12:
        return rng.choice(ODD_ACTIONS)
    verbs = ("take", "move", "open", "use", "heat", "cool", "clean", "slice", "close")
    changing = [a for a in actions if a.split()[0] in verbs]
    return rng.choice(changing) if changing and rng.random() < 0.6 else rng.choice(actions)


def assert_lock_step(stock, own, folder, num_steps: int, seed: int, walkthrough=()) -> None:
    expected = stock.reset(task_of(folder))
    assert own.reset(task_of(folder)) == expected
    rng, plan, actions = random.Random(seed), list(walkthrough), expected.actions
    for _ in range(num_steps):
        action = pick(rng, actions, plan)
        expected = stock.step(action)
        assert own.step(action) == expected, action
        actions = expected.actions


@pytest.fixture(scope="module")
def stock():
    return envs.make("alfworld", engine="stock")


def test_native_equals_stock_on_every_task_type(games, stock):
    # A small memory: texts and states are forgotten all the time.
    own = envs.make("alfworld", memory_mb=1)
    for seed, folder in enumerate(games):
        walkthrough = read(folder)["walkthrough"]
        assert_lock_step(stock, own, folder, 25, seed, walkthrough)
        expected, got = stock.reset(task_of(folder)), own.reset(task_of(folder))
        assert got == expected
        for action in walkthrough:
            expected, got = stock.step(action), own.step(action)
            assert got == expected
        assert got.won and got.done and got.reward == 1.0


def test_native_equals_stock_where_texts_depend_on_the_past(crowded, stock):
    own = envs.make("alfworld")
    assert_lock_step(stock, own, crowded, 50, 0)
    # Cabinets 1 and 2 share a location: what was moved between them counts as lying beside.
    expected = stock.reset(task_of(crowded))
    assert own.reset(task_of(crowded)) == expected
    for command in (
        *("go to cabinet 1", "open cabinet 1", "open cabinet 2", "look"),
        "take",
        "move",
    ):
        known = [a for a in expected.actions if a.startswith(command)]
        action = next(
            (a for a in known if a.endswith(("from cabinet 1", "to cabinet 2"))), known[0]
        )
        expected = stock.step(action)
        assert own.step(action) == expected, action
    expected = stock.step("look")
    assert own.step("look") == expected
    assert "Next to it, you see a" in expected.text


def test_interleaved_episodes_do_not_disturb_each_other(games):
    def play(env, folder, seed):
        rng, seen = random.Random(seed), [env.reset(task_of(folder))]
        for _ in range(25):
            seen.append(env.step(rng.choice(seen[-1].actions)))
            yield seen
        yield seen

    alone = [list(play(envs.make("alfworld"), f, i))[-1] for i, f in enumerate(games * 2)]
    options = {"memory_mb": 0.8}
    turns = [play(envs.make("alfworld", **options), f, i) for i, f in enumerate(games * 2)]
    assert list(list(zip(*turns, strict=True))[-1]) == alone


def test_reading_a_game_leaves_arguments_and_output_alone(games, capfd):
    argv = list(sys.argv)
    envs.make("alfworld", memory_mb=99).reset(task_of(games[0]))
    assert sys.argv == argv
    assert capfd.readouterr().out == ""


def malformed(good: dict) -> dict[str, dict | str | None]:
    problem, grammar = good["pddl_problem"], good["grammar"]
    edits = {
        "no grammar": {"grammar": None},
        "text is a number": {"pddl_problem": 3},
        "unbalanced": {"pddl_problem": problem[: len(problem) // 2]},
        "unknown type": {"pddl_problem": problem.replace("agent1 - agent", "agent1 - robot")},
        "object twice": {
            "pddl_problem": problem.replace("agent1 - agent", "agent1 agent1 - agent")
        },
        "not ascii": {"pddl_problem": problem.replace("agent1", "agent\u00e91")},
        "out of reach": {"pddl_problem": problem.split("(:goal")[0] + "(:goal (full nowhere)))"},
        "grammar syntax": {"grammar": grammar[:-40]},
        "rule missing": {"grammar": grammar.replace('"intro"', '"outro"')},
        "domain is prose": {"pddl_domain": "a kitchen"},
    }
    games = {name: {**good, **edit} for name, edit in edits.items()}
    return {**games, "not json": "{", "json list": "[1]", "no file": None}


def test_malformed_games_are_one_line_errors(games, tmp_path, stock):
    own = envs.make("alfworld")
    for name, content in malformed(read(games[0])).items():
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / "game.tw-pddl").write_text(text)
        for env in (own, stock):
            with pytest.raises(envs.EnvError) as error:
                env.reset(task_of(folder))
            assert str(folder) in str(error.value) and "\n" not in str(error.value), name
    assert own.reset(task_of(games[0])) == stock.reset(task_of(games[0]))


def test_a_goal_that_no_sequence_of_actions_reaches_is_refused_by_stock_alone(
    games, tmp_path, stock
):
    """The one known difference: looking for that would make loading a game several times slower."""
    data = read(games[0])
    nowhere = data["pddl_problem"].replace("(atLocation agent1", "(checked agent1) (x")
    task = task_of(write_game(tmp_path / "g", **{**data, "pddl_problem": nowhere}))
    with pytest.raises(envs.EnvError, match="reached|cannot load game"):
        stock.reset(task)
    own = envs.make("alfworld")
    assert own.reset(task).actions == ("help", "inventory")
    assert not own.step("inventory").won


def test_wrong_use_and_options():
    with pytest.raises(envs.EnvError, match="before reset"):
        envs.make("alfworld").step("look")
    for options, expected in (
        ({"engine": "quick"}, "engine must be one of"),
        ({"memory_mb": 0}, "memory_mb must be"),
        ({"check_games": "many"}, "check_games must be"),
        ({"speed": 3}, "option of alfworld must be one of"),
    ):
        with pytest.raises(ValueError, match=expected):
            envs.make("alfworld", **options)
    with pytest.raises(ValueError, match="environment must be one of"):
        envs.make("chess")


@pytest.mark.parametrize(
    "options", [{"engine": "cached"}, {"cache_dir": "/tmp"}, {"max_loaded": 2}]
)
def test_the_translating_engine_and_its_options_are_no_more(options):
    """With it went copies of a 32 MB library for each game, and a cache that did not know our code."""
    accepted = r"got ('cached'|'cache_dir'|'max_loaded')$"
    with pytest.raises(ValueError, match=rf"must be one of .*, {accepted}"):
        envs.make("alfworld", **options)


def test_least_recently_used_games_are_dropped(games):
    store = envs.make("alfworld", memory_mb=0.5)._games  # a new one takes a fifth of a megabyte
    first = store.game(str(games[0]))
    store.game(str(games[1]))
    assert store.game(str(games[0])) is first
    store.game(str(games[2]))
    assert store.game(str(games[0])) is first
    assert len(store) == 2


def test_environments_never_import_jax(games):
    script = (
        "import sys; from evolving_rl_jax import envs; from evolving_rl_jax.envs.pool import pool\n"
        "from evolving_rl_jax.types import Task\n"
        f"t = Task('a', 'alfworld', 's', '', '', {str(games[0])!r}, 'h')\n"
        "envs.make('alfworld').reset(t)\n"
        "envs.make('alfworld', engine='stock').reset(t)\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('jax', 'jaxlib', 'flax', 'torch')]\n"
        "print(bad, flush=True); import os; os._exit(0)\n"
    )
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr
