"""The comparison of our engine with the published one: which games, when, and what a difference does."""

import contextlib
import dataclasses
import json
import pathlib

import pytest

pytest.importorskip("alfworld")

from evolving_rl_jax import envs, types
from evolving_rl_jax.cli import main as cli
from evolving_rl_jax.data.tasks import load_tasks
from evolving_rl_jax.envs.alfworld import check
from evolving_rl_jax.envs.alfworld.households import write as households

ROOT = pathlib.Path(__file__).parents[1]


@contextlib.contextmanager
def progress(title, total):
    yield lambda done: None


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> list[types.Task]:
    """Generated games with walkthroughs, two of each task type."""
    out = tmp_path_factory.mktemp("homes")
    households.generate_even(out, num=12, seed=7)
    return list(load_tasks(out))


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """A cache folder of its own for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compared(monkeypatch) -> list[str]:
    """Ids of the games that would be played, none of which is."""
    seen: list[str] = []

    def compare_all(tasks, progress):
        seen.extend(task.id for task in tasks)
        return 10 * len(tasks), {}

    monkeypatch.setattr(check, "_compare_all", compare_all)
    return seen


def changing_text(task: types.Task, folder: pathlib.Path) -> types.Task:
    """The same game, but ``help`` says something else each time, so no two engines agree on it."""
    data = json.loads((pathlib.Path(task.path) / "game.tw-pddl").read_text())
    head, tail = data["grammar"].split('"help.feedback": [', 1)
    rule = """{"rhs": "{__import__('time').monotonic_ns()}"}, """
    data["grammar"] = head + '"help.feedback": [' + rule + tail
    data["walkthrough"] = ["look", "help"]
    folder.mkdir()
    (folder / "game.tw-pddl").write_text(json.dumps(data))
    return dataclasses.replace(task, id="bad", path=str(folder))


def test_engines_that_agree_are_compared_once(homes, tmp_path):
    missing = dataclasses.replace(homes[1], id="gone", task_type="t", path=str(tmp_path / "gone"))
    said = envs.check("alfworld", [homes[0], missing], progress)
    assert said.startswith("engine native equals stock on 1 games (8")  # two of 40 and the expert's
    assert said.endswith("; gone was left out: it cannot be read")
    again = envs.check("alfworld", homes[:1], progress)
    assert again == "engine native equals stock, as compared before on this machine"


def test_an_engine_that_differs_ends_it_with_game_step_and_field(homes, tmp_path):
    bad = changing_text(homes[0], tmp_path / "bad")
    expected = rf"{bad.path} .* episode 0, step 2 \('help'\), text must be '\d+', got '\d+'"
    for _ in range(2):  # what differed is not remembered
        with pytest.raises(envs.EngineMismatch, match=expected):
            envs.check("alfworld", [bad], progress)


def test_a_game_that_only_the_reference_plays_is_a_difference(homes, tmp_path):
    class Refusing(envs.Environment):
        def reset(self, task):
            raise envs.EnvError("cannot compile it")

        def step(self, action):
            raise AssertionError

    class Playing(Refusing):
        def reset(self, task):
            return types.Observation("a room", ("look",))

    with pytest.raises(envs.EngineMismatch, match="episode 0, reset, .* got cannot compile it; "):
        check.compare(Refusing(), Playing(), homes[0])
    with pytest.raises(envs.EnvError, match="cannot compile it"):
        check.compare(Playing(), Refusing(), homes[0])


def test_games_that_the_reference_does_not_play_are_left_out_and_named(homes, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    data = json.loads((pathlib.Path(homes[0].path) / "game.tw-pddl").read_text())
    (folder / "game.tw-pddl").write_text(json.dumps({**data, "pddl_problem": "a kitchen"}))
    broken = dataclasses.replace(homes[0], id="broken", path=str(folder))
    for _ in range(2):
        said = envs.check("alfworld", [broken], progress)
        assert said.startswith("engine native equals stock on 0 games (0 steps); broken was left")
        assert str(folder) in said and "\n" not in said


def test_the_first_games_of_each_type_are_compared(homes, compared):
    tasks = sorted(homes, key=lambda task: task.id)
    firsts = {}
    for task in tasks:
        firsts.setdefault(task.task_type, task.id)
    envs.check("alfworld", tasks, progress, check_games=1)
    assert sorted(compared) == sorted(firsts.values()) and len(compared) == 6
    envs.check("alfworld", tasks, progress, check_games=1)
    assert len(compared) == 6
    envs.check("alfworld", tasks, progress, check_games=2)  # more than what was asked for before
    assert len(compared) == 6 + 12
    envs.check("alfworld", tasks, progress, check_games=1)
    assert len(compared) == 6 + 12


def test_what_is_remembered_is_all_that_the_answers_depend_on(homes, compared, monkeypatch):
    def played(tasks) -> list[str]:
        before = len(compared)
        envs.check("alfworld", tasks, progress, check_games=1)
        return compared[before:]

    one, other = homes[0], homes[1]
    assert played([one]) == [one.id]
    renamed = dataclasses.replace(other, task_type=one.task_type)
    assert played([renamed]) == []  # the same domain and grammar, another task sentence
    assert played([other]) == [other.id]  # another task type
    parts = check._engine()
    for changed in (("9.9", *parts[1:]), (*parts[:-1], parts[-1] + "\n")):  # a package, our source
        monkeypatch.setattr(check, "_engine", lambda changed=changed: changed)
        assert played([one]) == [one.id]
        assert played([one]) == []


@pytest.mark.parametrize("options", [{"engine": "stock"}, {"check_games": 0}])
def test_nothing_is_compared_where_nobody_asked(options, homes, compared, memory):
    assert envs.check("alfworld", homes, progress, **options) == ""
    assert envs.check("mind2web", [], progress) == ""
    assert not compared and not memory.exists()


def test_a_cache_folder_that_cannot_be_written_costs_the_comparison_only(homes, compared, memory):
    memory.write_text("not a folder")
    for _ in range(2):
        assert envs.check("alfworld", homes, progress, check_games=1).endswith("(60 steps)")
    assert len(compared) == 12


def test_a_run_ends_with_exit_code_1_where_they_differ(tmp_path, monkeypatch, capsys):
    def differ(name, tasks, progress, **options):
        assert name == "alfworld" and tasks and options["check_games"] == 3
        raise envs.EngineMismatch("engine native must play x as stock does; in episode 0, reset")

    monkeypatch.setattr(envs, "check", differ)
    config = f"--config={ROOT / 'configs' / 'debug.py'}"
    code = cli.main(["train", config, f"--workdir={tmp_path}", "--config.env.check_games=3"])
    assert code == 1
    assert "engine native must play x as stock does" in capsys.readouterr().err
