"""Answers of an environment of one's own that the rest could not take fail one episode, and say what they are."""

import dataclasses
import threading

import numpy as np
import pytest

pytest.importorskip("ml_collections")

from doubles import make_task

from evolving_rl_jax.config import ConfigError, default_config
from evolving_rl_jax.data.tasks import source_split
from evolving_rl_jax.envs.base import EnvError, TaskError, game_name
from evolving_rl_jax.envs.custom.benchmark import _AsListed, _UserTeacher
from evolving_rl_jax.envs.custom.contract import checked_tasks
from evolving_rl_jax.envs.sound import of_type, sound
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.run.inputs import check_inputs, keep_inputs
from evolving_rl_jax.run.parts import training_tasks
from evolving_rl_jax.types import Observation, StepResult, Task

STEP = StepResult("a", ("b",), 0.5, False, False)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"text": b"a"}, "text must be a str, got b'a'"),
        ({"actions": "look"}, "actions must be a tuple of texts, got 'look'"),
        ({"actions": {"look": 1}.keys()}, "actions must be a tuple of texts"),
        ({"actions": ("a", 1)}, "actions must be a tuple of texts"),
        ({"reward": "1"}, "a reward must be a finite number, got '1'"),
        ({"reward": float("nan")}, "a reward must be a finite number, got nan"),
        ({"reward": 1e308}, r"a reward must be within \+-1e\+06, got 1e\+308"),
        ({"done": "false"}, "done must be True or False, got 'false'"),
        ({"won": None}, "won must be True or False, got None"),
        ({"done": np.zeros(2)}, "done must be True or False"),
        ({"info": 5}, "info must be a dict or None, got 5"),
        ({"info": "is correct"}, "info must be a dict or None"),
    ],
)
def test_what_is_wrong_is_said(change, message):
    with pytest.raises(EnvError, match=message):
        sound(STEP._replace(**change))


def test_what_is_right_stays_and_lists_become_tuples():
    assert sound(STEP) is STEP
    numpy = STEP._replace(reward=np.float32(0.5), done=np.bool_(True), info={"x": 1})
    assert sound(numpy) is numpy
    assert sound(STEP._replace(actions=["b", "c\ud800"])).actions == ("b", "c\ufffd")
    for kind, other, name in ((StepResult, None, "step"), (Observation, ("a", {}), "reset")):
        with pytest.raises(EnvError, match=f"{name} must return types.{kind.__name__}, got"):
            of_type(other, kind)


def test_actions_are_found_whatever_their_blanks():
    class Inner:
        def reset(self, task):
            return Observation("a", ("Guess  3", "Submit "))

        def step(self, action):
            return STEP._replace(text=action, actions=())

    env = _AsListed(Inner())
    for written, listed in (("guess 3", "Guess  3"), ("submit", "Submit "), ("look", "look")):
        env.reset(None)
        assert env.step(written).text == listed


class Own:
    splits = ("train",)

    def __init__(self, **changes):
        self.changes = changes

    def tasks(self, split):
        fields = {"id": "1", "split": split, "task_type": "a", "text": "b", "path": "", "env": ""}
        return [Task(**{**fields, "content_hash": "", **self.changes})]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"path": None}, "Task.path must be a text of whole characters, got None"),
        ({"text": "a\ud800"}, "Task.text must be a text of whole characters"),
        ({"content_hash": 5}, "Task.content_hash must be a text"),
        ({"meta": None}, "Task.meta must be a dict with texts as keys, got None"),
        ({"meta": {1: 2}}, "Task.meta must be a dict with texts as keys"),
        ({"meta": {"sealed": True}}, "must not have 'sealed'"),
        ({"meta": {"answers": "42"}}, r"Task.meta\['answers'\] of '1' must be a list of texts"),
        ({"meta": {"kin": None}}, r"Task.meta\['kin'\] of '1' must be a list of texts"),
        ({"step_limit": 3.5}, "Task.step_limit must be >= 1, got 3.5"),
        ({"step_limit": None}, "Task.step_limit must be >= 1, got None"),
    ],
)
def test_fields_of_a_task_are_checked(change, message):
    assert checked_tasks(Own(), "m:ENV")[0].content_hash
    with pytest.raises(TaskError, match=message):
        checked_tasks(Own(**change), "m:ENV")


def test_failures_of_ones_own_tasks_are_counted_by_their_ids():
    task = make_task("a")
    assert game_name(task) == task.path
    (own,) = checked_tasks(Own(), "m:ENV")
    assert own.path == "" and game_name(own) == "1"


def test_a_teacher_that_raises_or_says_nothing_is_named():
    class Silent:
        def act(self, observation, actions):
            return None

        def skill(self, observations, won):
            raise KeyError("x")

    teacher = _UserTeacher(Silent(), "m:ENV")
    with pytest.raises(
        TaskError, match=r"m:ENV: the teacher's act\(\) must return a text, got None"
    ):
        teacher.act("", ())
    with pytest.raises(TaskError, match=r"m:ENV: the teacher's skill\(\) raised KeyError"):
        teacher.skill((), True)
    with pytest.raises(TaskError, match="must return an object with act"):
        _UserTeacher(threading.Event(), "m:ENV")


def test_past_experience_comes_from_the_split_of_training_whatever_its_name():
    assert source_split("test", {"learn", "test"}, "learn") == "learn"
    assert source_split("test", {"train", "test"}) == "train"


def test_a_training_split_of_copies_is_refused():
    config = default_config()
    config.data.train_types = ("a",)
    same = {"split": "train", "task_type": "a", "content_hash": "same"}
    tasks = [dataclasses.replace(make_task(str(i)), **same) for i in range(3)]
    panel = [dataclasses.replace(make_task("p"), content_hash="same")]
    with pytest.raises(ConfigError, match="data.train_split must have a task that is no copy"):
        training_tasks(config, tasks, panel)


def test_a_run_keeps_the_tasks_of_an_environment_of_ones_own(tmp_path):
    config = default_config()
    config.env.name = "m:ENV"
    folder = RunFolder(str(tmp_path / "run"), config)
    folder.begin()
    tasks = [make_task(str(i)) for i in range(3)]
    keep_inputs(folder, check_inputs(config, folder, tasks))
    assert check_inputs(config, folder, tasks[::-1])
    tasks[0] = dataclasses.replace(tasks[0], split="test")
    with pytest.raises(ConfigError, match="env.name must have the tasks that it had when the run"):
        check_inputs(config, folder, tasks)
