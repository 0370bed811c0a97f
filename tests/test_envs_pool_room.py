"""Environments of which a worker can hold few: the other episodes wait, and play as they would have."""

import os
import signal
import sys
import textwrap

import pytest
from doubles import FakeEngine, compact_prompts

from evolving_rl_jax import envs
from evolving_rl_jax.envs.custom.benchmark import load
from evolving_rl_jax.envs.pool.play import play_all
from evolving_rl_jax.envs.pool.pool import EnvPool
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.types import OK

# Counts to three; the answers say how many of its episodes the process plays at the moment.
MODULE = """
    from evolving_rl_jax.envs.base import Environment
    from evolving_rl_jax.types import Observation, StepResult, Task

    OPEN = set()


    class Count(Environment):
        def reset(self, task):
            OPEN.add(self)
            self.at = 0
            return Observation(f"{task.text}, {len(OPEN)} open", ("go",))

        def step(self, action):
            self.at += 1
            over = self.at == 3
            return StepResult(f"{self.at}, {len(OPEN)} open", ("go",), float(over), over, over)

        def close(self):
            OPEN.discard(self)


    class Counting:
        name, splits, episodes_per_worker = "counting", ("train",), ROOM

        def tasks(self, split):
            return [
                Task(str(i), "", split, "count", f"task {i}", f"c/{i}", "", step_limit=5) for i in range(7)
            ]

        def make(self):
            return Count()


    ENV = Counting()
"""


@pytest.fixture
def tasks_of(tmp_path, monkeypatch):
    """A function of the room of a worker: (name of the environment, its tasks)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))

    def make(room):
        name = f"counting_{room}"
        body = textwrap.dedent(MODULE).replace("ROOM", repr(room))
        (tmp_path / f"{name}.py").write_text(body, encoding="utf-8")
        return f"{name}:ENV", envs.benchmark(f"{name}:ENV").load(None)

    yield make
    load.cache_clear()


def play(pool, tasks, kill_at=None):
    """What each episode read; all of them said ``go`` to the end."""
    read = {i: [] for i in range(len(tasks))}

    def turn(i, reply):
        read[i].append((reply.status, reply.text))
        if (i, len(read[i])) == kill_at:
            for pid in pool.worker_pids():
                os.kill(pid, signal.SIGKILL)
        return None if getattr(reply, "done", False) else "go"

    left = play_all(pool, tasks, turn, seconds=120)
    assert not left
    return read


@pytest.mark.parametrize(("room", "workers"), [(1, 0), (1, 2), (2, 2)])
@pytest.mark.parametrize("kill_at", [None, (3, 2)])
def test_no_worker_holds_more_than_it_can_and_all_are_played(tasks_of, room, workers, kill_at):
    name, tasks = tasks_of(room)
    with EnvPool(name, num_workers=workers) as pool:
        pool.load(tasks)
        read = play(pool, tasks, kill_at if workers else None)
        assert pool.num_waiting == 0
    for i, answers in read.items():
        assert [status for status, _ in answers] == [OK] * 4
        said, opened = zip(*(text.split(", ") for _, text in answers), strict=True)
        assert said == (f"task {tasks[i].id}", "1", "2", "3")
        assert {int(o.split()[0]) for o in opened} <= set(range(1, room + 1))


def test_without_a_limit_all_are_open_at_once(tasks_of):
    name, tasks = tasks_of(None)
    with EnvPool(name, num_workers=0) as pool:
        read = play(pool, tasks)
    assert max(int(text.split()[-2]) for answers in read.values() for _, text in answers) == 7


def test_one_that_waits_may_be_closed_and_cannot_be_stepped(tasks_of):
    name, tasks = tasks_of(1)
    with EnvPool(name, num_workers=0) as pool:
        for i in range(3):
            pool.reset(i, tasks[i])
        assert pool.num_waiting == 2
        pool.close(1)
        with pytest.raises(KeyError, match="episode 2 is not running"):
            pool.step(2, "go")
        assert [i for i, _ in pool.poll()] == [0] and pool.poll(0.0) == []
        pool.close(0)
        assert [i for i, _ in pool.poll()] == [2] and pool.num_waiting == 0


@pytest.mark.parametrize("sync", [True, False])
def test_a_driver_plays_the_same_whatever_room_there_is(tasks_of, sync):
    found = {}
    for room in (1, None):
        name, tasks = tasks_of(room)
        prompts, episodes = compact_prompts(), {}
        engine = FakeEngine(prompts.tokenizer, lambda _key, _turn: "x> go", max_length=600)
        settings = PlaySettings(20, 20, 5, 1.0, 1.0, 0, sync=sync)
        with EnvPool(name, num_workers=2) as pool:
            driver = Driver(engine, pool, prompts, settings, iteration=0)
            for i, task in enumerate(tasks):
                driver.play(i, task, "", lambda e, _, i=i, to=episodes: to.update({i: e}))
            driver.run()
        found[room] = {i: (e.won, e.status, len(e.turns)) for i, e in episodes.items()}
    assert found[1] == found[None] == {i: (True, OK, 3) for i in range(7)}


def test_an_abandoned_driver_ends_those_that_wait_too(tasks_of):
    name, tasks = tasks_of(1)
    prompts, episodes = compact_prompts(), []
    engine = FakeEngine(prompts.tokenizer, lambda _key, _turn: "x> go", max_length=600)
    settings = PlaySettings(20, 20, 5, 1.0, 1.0, 0)
    with EnvPool(name, num_workers=0) as pool:
        driver = Driver(engine, pool, prompts, settings, iteration=0)
        for i, task in enumerate(tasks):
            driver.play(i, task, "", lambda e, _: episodes.append(e))
        driver.run(stop=lambda: "enough")
        assert len(episodes) == 7 and all(e.cut for e in episodes)
        assert pool.num_waiting == 0
