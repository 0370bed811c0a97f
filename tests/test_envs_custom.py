"""An environment of one's own: the example of the docs from end to end, and what is said of a bad one."""

import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("ml_collections")

from evolving_rl_jax import config as config_lib
from evolving_rl_jax import envs
from evolving_rl_jax.cli import main as cli
from evolving_rl_jax.config import ConfigError, default_config
from evolving_rl_jax.config.accepted import names_attribute
from evolving_rl_jax.envs.base import TaskError
from evolving_rl_jax.envs.conformance import checks
from evolving_rl_jax.run.skills import audit_rules

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "add-an-environment.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder that holds the two files of the page, and is the present one."""
    (tmp_path / "coin_game.py").write_text(BLOCKS[0], encoding="utf-8")
    (tmp_path / "coin.py").write_text(BLOCKS[1], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("coin_game", None)
    from evolving_rl_jax.envs.custom.benchmark import load

    load.cache_clear()


def command(*arguments):
    paths = os.pathsep.join([str(PAGE.parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "evolving_rl_jax", *arguments], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def write(folder, name, body):
    (folder / f"{name}.py").write_text(textwrap.dedent(body), encoding="utf-8")
    return f"{name}:ENV"


def test_the_example_is_short_and_complete():
    assert len(BLOCKS[0].splitlines()) <= 80


def test_the_example_keeps_the_contract(project):
    tasks = envs.benchmark("coin_game:ENV").load(None)
    found = list(checks("coin_game:ENV", tasks[:2], steps=2))
    assert [f.name for f in found if not f.ok] == [], found
    assert len(found) == 12


def test_check_env_prints_what_fails(project):
    write(project, "dice", BLOCKS[0].replace(
        'return Observation("you see six boxes."',
        'import random\n        return Observation(f"you see {random.random()} boxes."',
    ))  # fmt: skip
    done = command("check-env", "--env=dice:ENV", "--tasks=1")
    assert done.returncode == 1
    assert "FAIL  deterministic, and replayed from actions" in done.stdout
    assert "ok    close" not in done.stdout  # it opens with another text too
    assert "ok    an invalid action is answered" in done.stdout


def test_a_run_trains_on_it_and_writes_its_report(project):
    small = {
        "train.num_iterations": 2, "warmstart.steps": 6, "warmstart.episodes": 32, "eval.num_games": 4,
        "rollout.num_sources": 2, "checkpoint.every": 1,
    }  # fmt: skip
    options = [f"--config.{key}={value}" for key, value in small.items()]
    done = command("train", "--config=coin.py", "--workdir=run", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    run = project / "run"
    assert (run / "report.html").is_file()
    records = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["iteration"] == 2 or len(records) >= 2
    assert list((run / "eval").glob("*.json"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("env.name=nowhere:ENV", "config.env.name: environment 'nowhere:ENV' cannot be imported"),
        ("env.name=coin_game:NOPE", "the module has no 'NOPE'"),
        ('env.options={"x": 1}', "config.env.options: coin_game:ENV.make() got an unexpected"),
    ],
)
def test_what_train_says_of_an_environment_that_is_not_there(project, capsys, change, words):
    arguments = ["train", "--config=coin.py", "--workdir=run", f"--config.{change}"]
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and not (project / "run" / "config.json").exists()


def test_an_ablation_of_it_has_its_own_tasks(project):
    from evolving_rl_jax.run.folder import RunFolder
    from evolving_rl_jax.train.ablation.run import Ablation

    config = config_lib.load_config("coin.py")
    ablation = Ablation(RunFolder("all", config), ("joint", "grpo"), (0, 1))
    for arm, seed in ablation.runs():
        own = ablation.run_config(config, arm, seed)
        assert (own.data.games, own.algorithm.arm, own.seed) == ("", arm, seed)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("ENV = 3", "name: str, got None; splits: tuple[str, ...]"),
        ("class ENV:\n    name = 'x'\n    splits = ('train',)", "tasks(split) -> Sequence[Task]"),
        ("class ENV:\n    name = 'x'\n    splits = ('a', 'a')\n    tasks = make = print",
         "splits: different names"),
        ("OTHER = 1", "the module has no 'ENV'"),
        ("import no_such_thing_at_all", "cannot be imported: ModuleNotFoundError"),
        ("def", "cannot be imported: SyntaxError"),
        ("class ENV:\n    def __init__(self, x):\n        pass", "must be made by a call without arguments, got TypeError"),
        ("class ENV:\n    name = 'x'\n    splits = ('train',)\n    tasks = make = print\n    teacher = 3",
         "teacher as a method"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(project, body, words):
    spec = write(project, "mine", body)
    sys.modules.pop("mine", None)
    with pytest.raises(ValueError, match=re.escape(words)):
        envs.benchmark(spec)


TASKS = """
    from evolving_rl_jax.types import Task

    def task(**changes):
        given = dict(id="a", env="", split="train", task_type="t", text="do it", path="", content_hash="")
        return Task(**{**given, **changes})

    class ENV:
        name = "mine"
        splits = ("train",)
        def tasks(self, split):
            return TASKS
        def make(self):
            return None

    TASKS = """


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ("[]", "must be a sequence of tasks, got []"),
        ("['a']", "must hold types.Task, got 'a'"),
        ("[task(), task()]", "two tasks have the id 'a'"),
        ("[task(split='test')]", "task 'a' of 'train' says split 'test'"),
        ("[task(text='')]", "Task.text must be a text that is not empty"),
        ("[task(step_limit=0)]", "Task.step_limit must be >= 1, got 0"),
    ],
)
def test_wrong_tasks_are_named(project, tasks, words):
    spec = write(project, "mine", TASKS + tasks)
    sys.modules.pop("mine", None)
    with pytest.raises(TaskError, match=re.escape(words)):
        envs.benchmark(spec).load(None)


def test_tasks_get_their_environment_and_a_hash(project):
    tasks = envs.benchmark("coin_game:ENV").load(None)
    assert {t.env for t in tasks} == {"coin_game:ENV"}
    assert len({t.content_hash for t in tasks}) == len(tasks) == 144
    assert [t.id for t in tasks] == sorted(t.id for t in tasks)


def test_tasks_that_raise_are_one_line(project):
    spec = write(project, "mine", TASKS + "[]\n    ENV.tasks = lambda self, split: 1 / 0")
    sys.modules.pop("mine", None)
    with pytest.raises(TaskError, match="raised ZeroDivisionError"):
        envs.benchmark(spec).load(None)


def test_listed_actions_keep_their_spelling(project):
    body = """
        from evolving_rl_jax.envs.base import Environment
        from evolving_rl_jax.types import Observation, StepResult, Task

        class Doors(Environment):
            def reset(self, task):
                return Observation("two doors", ("Open A", "Open B", "push x", "push X"))

            def step(self, action):
                return StepResult(action, ("Close A",), 0.0, False, False)

        class ENV:
            name, splits = "doors", ("train",)
            def tasks(self, split):
                return [Task("a", "", "train", "t", "do it", "", "")]
            def make(self):
                return Doors()
    """
    spec = write(project, "doors", body)
    env = envs.make(spec)
    env.reset(envs.benchmark(spec).load(None)[0])
    assert env.step("open a").text == "Open A"
    assert env.step("open b").text == "open b"  # no longer listed
    env.reset(None)
    assert [env.step("push x").text, env.step("CLOSE A").text] == ["push x", "CLOSE A"]
    assert env.step("close a").text == "Close A"


def test_an_environment_that_is_none_is_an_error(project):
    spec = write(project, "mine", TASKS + "[task()]")
    sys.modules.pop("mine", None)
    with pytest.raises(ValueError, match="must return an envs.base.Environment, got None"):
        envs.make(spec)


def test_names_that_are_no_environment():
    assert names_attribute("a.b_c:D") and not names_attribute("a-b:c")
    for name in ("alfword", "x:", ":y", "a b:c"):
        with pytest.raises(ValueError, match="must be one of"):
            envs.benchmark(name)
        config = default_config()
        config.env.name = name
        with pytest.raises(
            ConfigError,
            match="env.name must be alfworld, mind2web, miniwob, scienceworld, or package",
        ):
            config_lib.validate(config)


def test_options_and_games_of_a_configuration():
    config = default_config()
    config.env.options = '{"a": 1}'
    with pytest.raises(ConfigError, match="env.options must be empty with env.name 'alfworld'"):
        config_lib.validate(config)
    config.env.name = "coin_game:ENV"
    config_lib.validate(config)
    config.env.options = "[1]"
    with pytest.raises(ConfigError, match="env.options must be empty or a JSON object"):
        config_lib.validate(config)
    config.env.options, config.data.games = "", "/somewhere"
    with pytest.raises(
        ConfigError, match="data.games must be empty with an environment of one's own"
    ):
        config_lib.validate(config)


def test_audit_rules_of_the_environment_are_applied(project):
    source = BLOCKS[0].replace(
        "    def make(self):",
        "    def audit_rules(self):\n"
        "        from evolving_rl_jax.skills.audit import AuditRules\n"
        "        return AuditRules(max_chars=10)\n\n    def make(self):",
    )
    spec = write(project, "strict", source)
    config = default_config()
    config.env.name = spec
    rules = audit_rules(config)
    task = envs.benchmark(spec).load(None)[0]
    assert rules.apply("short", task).passed
    refused = rules.apply("more than ten characters", task)
    assert not refused.passed and refused.too_long and "more than 10" in refused.reasons[0]


@pytest.mark.parametrize("name", ["alfworld"])
def test_built_in_environments_keep_the_contract(name, household_games):
    found = list(checks(name, household_games[:2], {"engine": "native", "check_games": 0}, steps=4))
    assert [f for f in found if not f.ok] == []


@pytest.mark.parametrize(("reward", "status"), [("float('nan')", "env_error"), ("0.5", "ok")])
def test_answers_are_numbers_and_texts_that_can_be_kept(project, reward, status):
    source = BLOCKS[0].replace(
        'return Observation("you see six boxes."', 'return Observation("half \\ud800"'
    )
    source += f"""

class Odd(type(ENV)):
    def make(self):
        inner = super().make()
        step = inner.step
        inner.step = lambda action: step(action)._replace(reward={reward})
        return inner


ENV = Odd()
"""
    from evolving_rl_jax.envs.pool.process import Player, Request

    spec = write(project, f"odd_{status}", source)
    (task, *_) = envs.benchmark(spec).load(None)
    player = Player(spec, {})
    opening = player.answer(Request(0, 0, task=task))
    assert opening.text == "half \ufffd" and opening.text.encode()
    reply = player.answer(Request(1, 0, 0, action=opening.actions[0]))
    assert reply.status == status
    assert status == "ok" or "a reward must be a finite number, got nan" in reply.text


def test_a_thousand_waiting_episodes_of_what_is_quarantined_are_answered(project):
    from evolving_rl_jax.envs.pool.pool import EnvPool

    source = BLOCKS[0].replace(
        "    def reset(self, task):",
        "    def reset(self, task):\n        import os\n        os._exit(9)",
        1,
    )
    source = source.replace(
        "    def make(self):", "    episodes_per_worker = 1\n\n    def make(self):"
    )
    spec = write(project, "deadly", source)
    (task, *_) = envs.benchmark(spec).load(None)
    with EnvPool(spec, num_workers=1) as pool:
        for episode in range(1000):
            pool.reset(episode, task)
        answers = []
        while len(answers) < 1000:
            answers += pool.poll(60.0)
    assert {answer.status for _, answer in answers} == {"env_error"}


def test_what_cannot_be_sent_fails_its_episode_alone(project):
    from evolving_rl_jax.envs.pool.pool import EnvPool

    source = (
        BLOCKS[0]
        + """

class Locked(type(ENV)):
    def make(self):
        import threading
        inner = super().make()
        step = inner.step
        inner.step = lambda action: step(action)._replace(info={"lock": threading.Lock()})
        return inner


ENV = Locked()
"""
    )
    spec = write(project, "locked", source)
    (task, *_) = envs.benchmark(spec).load(None)
    with EnvPool(spec, num_workers=1) as pool:
        pool.reset(0, task)
        ((_, opening),) = pool.poll(60.0)
        pool.step(0, opening.actions[0])
        ((_, reply),) = pool.poll(60.0)
        assert reply.status == "env_error" and "StepResult.info must be" in reply.text
        pool.reset(1, task)
        assert pool.poll(60.0)[0][1].status == "ok" and pool.respawns == 0


def test_a_task_is_the_same_in_every_process(project):
    source = BLOCKS[0].replace('meta={"', 'meta={"tags": {"a", "b"}, "', 1)
    assert source != BLOCKS[0]
    with pytest.raises(TaskError, match="Task.meta of .* must hold JSON values.*got set in 'tags'"):
        envs.benchmark(write(project, "sets", source)).load(None)
