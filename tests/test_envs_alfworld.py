"""ALFWorld engines: the fast one against the published one, step by step, and malformed games."""

import collections
import json
import os
import pathlib
import pickle
import random
import subprocess
import sys

import pytest

pytest.importorskip("alfworld")

from evolving_rl_jax import envs, types
from evolving_rl_jax.envs.alfworld import cached as alfworld_cached
from evolving_rl_jax.envs.alfworld import translation
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


def assert_lock_step(stock, cached, folder, num_steps: int, seed: int, walkthrough=()) -> None:
    expected = stock.reset(task_of(folder))
    assert cached.reset(task_of(folder)) == expected
    rng, plan, actions = random.Random(seed), list(walkthrough), expected.actions
    for _ in range(num_steps):
        action = pick(rng, actions, plan)
        expected = stock.step(action)
        assert cached.step(action) == expected, action
        actions = expected.actions


@pytest.fixture(scope="module")
def stock():
    return envs.make("alfworld", engine="stock")


def test_cached_equals_stock_on_every_task_type(games, stock, tmp_path):
    # One library copy and a small memory: games are reloaded and states forgotten all the time.
    cached = envs.make("alfworld", cache_dir=str(tmp_path), max_loaded=1, max_nodes=20)
    for seed, folder in enumerate(games):
        walkthrough = read(folder)["walkthrough"]
        assert_lock_step(stock, cached, folder, 40, seed, walkthrough)
        expected, got = stock.reset(task_of(folder)), cached.reset(task_of(folder))
        assert got == expected
        for action in walkthrough:
            expected, got = stock.step(action), cached.step(action)
            assert got == expected
        assert got.won and got.done and got.reward == 1.0


def test_cached_equals_stock_where_texts_depend_on_the_past(crowded, stock):
    cached = envs.make("alfworld", cache_dir=None)
    for seed in range(2):
        assert_lock_step(stock, cached, crowded, 50, seed)
    # Cabinets 1 and 2 share a location: what was moved between them counts as lying beside.
    expected = stock.reset(task_of(crowded))
    assert cached.reset(task_of(crowded)) == expected
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
        assert cached.step(action) == expected, action
    expected = stock.step("look")
    assert cached.step("look") == expected
    assert "Next to it, you see a" in expected.text


def test_interleaved_episodes_do_not_disturb_each_other(games, tmp_path):
    options = {"cache_dir": str(tmp_path), "max_loaded": 2, "max_games": 3, "max_nodes": 10}

    def play(env, folder, seed):
        rng, seen = random.Random(seed), [env.reset(task_of(folder))]
        for _ in range(25):
            seen.append(env.step(rng.choice(seen[-1].actions)))
            yield seen
        yield seen

    alone = [list(play(envs.make("alfworld"), f, i))[-1] for i, f in enumerate(games * 2)]
    turns = [play(envs.make("alfworld", **options), f, i) for i, f in enumerate(games * 2)]
    assert list(list(zip(*turns, strict=True))[-1]) == alone


def parse_sas(text: str) -> dict:
    """A SAS task without its numbering: facts, start, goal, operators and rules by name."""
    lines = iter(text.split("\n"))

    def section(count, read_one):
        return [read_one() for _ in range(count)]

    def variable():
        assert next(lines) == "begin_variable"
        next(lines)
        layer, size = int(next(lines)), int(next(lines))
        values = section(size, lambda: next(lines))
        assert next(lines) == "end_variable"
        return ["GOAL", "NOT GOAL"] if layer >= 0 else values

    def fact(pair=None):
        var, value = map(int, pair or next(lines).split())
        return names[var][value] if value >= 0 else f"any {names[var][0]}"

    def effect():
        count, *rest = next(lines).split()
        pairs = [fact(rest[2 * i : 2 * i + 2]) for i in range(int(count))]
        var, before, after = rest[2 * int(count) :]
        return frozenset(pairs), fact((var, before)), fact((var, after))

    def operator():
        assert next(lines) == "begin_operator"
        name = next(lines)
        prevail = frozenset(section(int(next(lines)), fact))
        effects = frozenset(section(int(next(lines)), effect))
        cost = next(lines)
        assert next(lines) == "end_operator"
        return name, prevail, effects, cost

    def rule():
        assert next(lines) == "begin_rule"
        body = frozenset(section(int(next(lines)), fact))
        var, before, after = next(lines).split()
        assert next(lines) == "end_rule"
        return body, fact((var, before)), fact((var, after))

    header = section(6, lambda: next(lines))
    names = section(int(next(lines)), variable)
    assert next(lines) == "0"  # mutual exclusions
    assert next(lines) == "begin_state"
    start = {names[i][int(next(lines))] for i in range(len(names))}
    assert [next(lines), next(lines)] == ["end_state", "begin_goal"]
    goal = section(int(next(lines)), fact)
    next(lines)
    operators = section(int(next(lines)), operator)
    rules = section(int(next(lines)), rule)
    assert [o[0] for o in operators] == sorted(o[0] for o in operators)
    return {
        "header": header,
        "facts": {tuple(values) for values in names},
        "start": start,
        "goal": goal,
        "operators": collections.Counter(operators),
        "rules": collections.Counter(rules),
    }


def test_fast_translation_equals_the_translator(games, crowded):
    for folder in [*games, crowded]:
        data = read(folder)
        texts = data["pddl_domain"], data["pddl_problem"]
        fast, plain = translation.translate(*texts), translation.translate_plainly(*texts)
        assert b"goal@" in fast.sas  # the fast way was taken
        assert parse_sas(fast.sas.decode()) == parse_sas(plain.sas.decode())
        assert (fast.objects, fast.types, fast.parameters) == (
            plain.objects,
            plain.types,
            plain.parameters,
        )
        assert sorted(fast.init) == sorted(plain.init)


def test_unusual_problem_goes_through_the_translator(games, stock, tmp_path):
    data = read(games[1])
    agent_goal = "(:goal (forall (?a - agent) (checked ?a)))"
    head = data["pddl_problem"].split("(:goal")[0]
    folder = write_game(tmp_path / "g", **{**data, "pddl_problem": f"{head}{agent_goal}\n)\n"})
    translated = translation.translate(data["pddl_domain"], read(folder)["pddl_problem"])
    assert b"goal@" not in translated.sas
    cached = envs.make("alfworld", cache_dir=None, max_loaded=1)
    assert_lock_step(stock, cached, folder, 15, 0)
    cached.reset(task_of(folder))
    assert cached.step("inventory").won
    # Loaded again, the library numbers the states anew: "look" leads where "inventory" led before.
    other = envs.make("alfworld", cache_dir=None, max_loaded=1)
    other.reset(task_of(games[2]))
    other.step("look")
    cached.reset(task_of(folder))
    assert not cached.step("look").won
    assert cached.step("inventory").won


def test_translation_is_stored_once_and_a_damaged_file_is_replaced(games, tmp_path, monkeypatch):
    data = read(games[0])
    texts = data["pddl_domain"], data["pddl_problem"]
    first = translation.TranslationCache(str(tmp_path)).get(*texts)
    (path,) = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert translation.TranslationCache(str(tmp_path)).get(*texts) == first
    for damaged in (b"", path.read_bytes()[:-10], pickle.dumps({"x": 1})):
        path.write_bytes(damaged)
        assert translation.TranslationCache(str(tmp_path)).get(*texts) == first
        assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    monkeypatch.setattr(translation, "translate", None)  # only the file can answer now
    assert translation.TranslationCache(str(tmp_path)).get(*texts) == first


def test_translation_leaves_arguments_and_output_alone(games, capfd):
    argv, data = list(sys.argv), read(games[0])
    envs.make("alfworld", cache_dir=None).reset(task_of(games[0]))
    translation.translate_plainly(data["pddl_domain"], data["pddl_problem"])
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
        "no agent": {"pddl_problem": problem.replace("(atLocation agent1", "(checked agent1) (x")},
        "grammar syntax": {"grammar": grammar[:-40]},
        "rule missing": {"grammar": grammar.replace('"intro"', '"outro"')},
        "domain is prose": {"pddl_domain": "a kitchen"},
    }
    games = {name: {**good, **edit} for name, edit in edits.items()}
    return {**games, "not json": "{", "json list": "[1]", "no file": None}


def test_malformed_games_are_one_line_errors(games, tmp_path, stock):
    cached = envs.make("alfworld", cache_dir=str(tmp_path / "cache"))
    for name, content in malformed(read(games[0])).items():
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / "game.tw-pddl").write_text(text)
        for env in (cached, stock):
            with pytest.raises(envs.EnvError) as error:
                env.reset(task_of(folder))
            assert str(folder) in str(error.value) and "\n" not in str(error.value), name
    assert cached.reset(task_of(games[0])) == stock.reset(task_of(games[0]))


def test_wrong_use_and_options(tmp_path):
    with pytest.raises(envs.EnvError, match="before reset"):
        envs.make("alfworld", cache_dir=None).step("look")
    (tmp_path / "file").write_text("")
    for options, expected in (
        ({"engine": "quick"}, "engine must be one of"),
        ({"max_nodes": 0}, "max_nodes must be"),
        ({"max_games": "many"}, "max_games must be"),
        ({"speed": 3}, "option of alfworld must be one of"),
        ({"cache_dir": str(tmp_path / "file" / "x")}, "cache_dir must be"),
    ):
        with pytest.raises(ValueError, match=expected):
            envs.make("alfworld", **options)
    with pytest.raises(ValueError, match="environment must be one of"):
        envs.make("chess")


def test_least_recently_used_games_are_dropped(games):
    store = alfworld_cached.CachedGames(None, 2, 1, max_nodes=50, max_states=100_000)
    first = store.game(str(games[0]))
    store.game(str(games[1]))
    assert store.game(str(games[0])) is first
    store.game(str(games[2]))
    assert store.game(str(games[0])) is first
    assert len(store._games) == 2


def test_environments_never_import_jax(games):
    script = (
        "import sys; from evolving_rl_jax import envs; from evolving_rl_jax.envs.pool import pool\n"
        "from evolving_rl_jax.types import Task\n"
        f"t = Task('a', 'alfworld', 's', '', '', {str(games[0])!r}, 'h')\n"
        "envs.make('alfworld', cache_dir=None).reset(t)\n"
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
