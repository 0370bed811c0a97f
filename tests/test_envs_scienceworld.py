"""ScienceWorld in its own simulator: solutions are played, processes end, what is missing is named."""

import gzip
import json
import os
import pathlib
import signal
import time

import pytest

pytest.importorskip("ml_collections")

from evolving_rl_jax import envs
from evolving_rl_jax.config import default_config
from evolving_rl_jax.envs.base import EnvError, TaskError
from evolving_rl_jax.envs.conformance import checks
from evolving_rl_jax.envs.pool.play import play_all
from evolving_rl_jax.envs.pool.pool import EnvPool
from evolving_rl_jax.envs.scienceworld import game, index

LACK = game.missing()
simulated = pytest.mark.skipif(bool(LACK), reason=LACK)
TYPES = ("find-non-living-thing", "lifespan-shortest-lived")


def wanted(**changes):
    data = default_config().data
    data.scienceworld.update({"types": TYPES, "variations": 2, **changes})
    return data


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("science")
    science, done = envs.benchmark("scienceworld"), []
    assert not science.is_generated(folder)
    science.generate(wanted(), folder, 0, done.append)
    assert science.is_generated(folder) and done[-1] == 12
    return science.load(folder)


def play(env, task):
    """(replies, score) of a task's own solution."""
    replies = [env.reset(task)]
    for action in task.meta["walkthrough"]:
        replies.append(env.step(action))
        if replies[-1].done:
            break
    return replies, sum(r.reward for r in replies[1:])


def java_processes():
    found = set()
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes()
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if b"scienceworld.jar" in line and state not in "ZX":
                found.add(int(folder.name))
    return found


def gone(processes, seconds=20.0):
    end = time.monotonic() + seconds
    while processes & java_processes() and time.monotonic() < end:
        time.sleep(0.1)
    return not processes & java_processes()


@simulated
def test_the_index_says_what_a_task_asks_for(tasks):
    assert len(tasks) == 12 and {t.split for t in tasks} == {"train", "dev", "test"}
    assert len({t.content_hash for t in tasks}) == 12
    for task in tasks:
        assert task.group == task.task_type in TYPES and task.text.startswith("Your task is to")
        assert task.meta["walkthrough"] and task.step_limit >= 10


@simulated
def test_solutions_win_and_scores_add_up_to_one(tasks):
    env = envs.make("scienceworld")
    for task in tasks[::4]:
        replies, score = play(env, task)
        assert replies[-1].won and replies[-1].done and score == pytest.approx(1.0)
        assert not any(r.won for r in replies[1:-1])


@simulated
def test_a_wrong_focus_ends_the_episode_with_a_negative_score(tasks):
    env = envs.make("scienceworld", actions="valid")
    opening = env.reset(next(t for t in tasks if t.task_type == "lifespan-shortest-lived"))
    assert "focus on air" in opening.actions
    reply = env.step("focus on air")
    assert reply.done and not reply.won and reply.reward < 0 and reply.actions == ()


@pytest.mark.slow
@simulated
def test_it_keeps_the_contract_and_leaves_no_process(tasks):
    before = java_processes()
    found = list(checks("scienceworld", [tasks[0], tasks[-1]], steps=3))
    assert [f for f in found if not f.ok] == []
    import gc

    gc.collect()
    assert gone(java_processes() - before)


@pytest.mark.slow
@simulated
def test_twenty_variations_are_won_by_two_workers_with_a_process_each(tmp_path):
    science = envs.benchmark("scienceworld")
    science.generate(
        wanted(types=("find-plant", "find-non-living-thing"), variations=4), tmp_path, 0, lambda n: None
    )  # fmt: skip
    tasks, before = science.load(tmp_path)[:20], java_processes()
    won, most, at = {}, 0, [0] * len(tasks)

    def turn(i, reply):
        nonlocal most
        most = max(most, len(java_processes() - before))
        if getattr(reply, "done", False):
            won[i] = reply.won
            return None
        at[i] += 1
        return tasks[i].meta["walkthrough"][at[i] - 1]

    with EnvPool("scienceworld", {}, num_workers=2, deadline_s=120.0) as pool:
        assert not play_all(pool, tasks, turn)
    assert len(tasks) == 20 and won == dict.fromkeys(range(20), True)
    assert most == 2 and gone(java_processes() - before)


@simulated
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_simulator_ends_with_a_killed_worker(tasks, how):
    before = java_processes()
    with EnvPool("scienceworld", {}, num_workers=1, deadline_s=60.0) as pool:
        pool.reset(0, tasks[0])
        pool.flush()
        while not pool.poll(1.0):
            pass
        started = java_processes() - before
        assert len(started) == 1
        os.kill(pool.worker_pids()[0], how)
        assert gone(started)
    assert gone(java_processes() - before)


@simulated
def test_the_teacher_plays_the_solution_and_says_its_steps(tasks):
    import numpy as np

    science = envs.benchmark("scienceworld")
    quality = default_config().warmstart
    quality.action_noise = 0.3
    teacher = science.teacher(tasks[0], np.random.default_rng(0), quality)
    said, plan = [], list(tasks[0].meta["walkthrough"])
    while len([a for a in said if a != "look around"]) < len(
        [a for a in plan if a != "look around"]
    ):
        assert teacher.target
        said.append(teacher.act("", ()))
    kept = [a for a in said if a != "look around"]
    assert kept == [a for a in plan if a != "look around"]
    skill = json.loads(teacher.skill([], True))
    assert skill["name"] == tasks[0].task_type.replace("-", " ")
    assert skill["description"].split(", ")[0] in plan


@simulated
def test_unknown_names_are_said(tmp_path, tasks):
    science = envs.benchmark("scienceworld")
    with pytest.raises(ValueError, match="types must be of boil, .*, got fly"):
        science.plan(wanted(types=("fly",)), 0)
    with pytest.raises(ValueError, match="simplifications must be of easy, .* got hard"):
        science.plan(wanted(simplifications="easy,hard"), 0)
    env = envs.make("scienceworld")
    import dataclasses

    for meta, words in (
        ({"task": "fly", "variation": 0}, "no task 'fly'"),
        (
            {"task": TYPES[0], "variation": 99999},
            "variations of 'find-non-living-thing', not 99999",
        ),
        ({"task": TYPES[0]}, "has no 'variation'"),
    ):
        with pytest.raises(EnvError, match=words):
            env.reset(dataclasses.replace(tasks[0], meta=meta))
    assert env.reset(tasks[0]).text  # and plays on


def test_what_is_missing_is_one_line(monkeypatch):
    monkeypatch.setattr(game.shutil, "which", lambda name: None)
    monkeypatch.setattr(game.importlib.util, "find_spec", lambda name: object())
    assert "Java must be installed for scienceworld" in game.missing()
    with pytest.raises(ValueError, match="found no java on PATH"):
        envs.benchmark("scienceworld").plan(wanted(), 0)
    monkeypatch.setattr(game.importlib.util, "find_spec", lambda name: None)
    assert "pip install -e '.[scienceworld]'" in game.missing()


def test_damaged_indexes_are_named(tmp_path):
    with pytest.raises(TaskError, match=r"must hold scienceworld.jsonl.gz"):
        index.load_tasks(tmp_path)
    (tmp_path / index.FILE).write_bytes(b"no gzip")
    with pytest.raises(TaskError, match="is damaged"):
        index.load_tasks(tmp_path)
    (tmp_path / index.FILE).write_bytes(gzip.compress(b'{"id": "a"}\n'))
    with pytest.raises(TaskError, match="line 1: split must be a str"):
        index.load_tasks(tmp_path)


def test_options_are_checked():
    with pytest.raises(ValueError, match="actions must be one of none, valid, got 'all'"):
        envs.make("scienceworld", actions="all")
