"""Faults of workers and games at every stage: all other episodes go on as if nothing had happened.

Every disturbed run is compared with the transcripts of an undisturbed one.
"""

import json
import multiprocessing
import multiprocessing.util
import os
import pathlib
import random
import re
import resource
import signal
import tempfile
import time

import pytest

pytest.importorskip("alfworld")

from evolving_rl_jax import types
from evolving_rl_jax.envs.alfworld.households import write as households
from evolving_rl_jax.envs.pool import handle as worker_handle
from evolving_rl_jax.envs.pool.pool import EnvPool

NUM_EPISODES, NUM_STEPS = 12, 8
KILL = "__import__('os').kill(__import__('os').getpid(), {})"


def task_of(folder) -> types.Task:
    folder = str(folder)
    return types.Task(folder, "alfworld", "test", "", "", folder, content_hash=folder)


@pytest.fixture(scope="module")
def games(tmp_path_factory) -> list[types.Task]:
    out = tmp_path_factory.mktemp("games")
    index = households.generate_even(out, num=6, seed=5)
    return [task_of(out / entry["path"]) for entry in index["games"]]


@pytest.fixture(scope="module")
def options() -> dict:
    return {"engine": "native"}


def read(task: types.Task) -> dict:
    return json.loads((pathlib.Path(task.path) / "game.tw-pddl").read_text())


def write(folder: pathlib.Path, content) -> types.Task:
    folder.mkdir(parents=True)
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path = folder / "game.tw-pddl"
    path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
    return task_of(folder)


def rule(data: dict, name: str, expression: str) -> dict:
    """The game with a rule of its grammar that evaluates an expression first."""
    head, tail = data["grammar"].split(f'"{name}": [', 1)
    return {**data, "grammar": f'{head}"{name}": [{{"rhs": "{{{expression}}}"}}, {tail}'}


def play(pool: EnvPool, tasks: dict, plan: dict | None = None, on_answer=None) -> dict:
    """Plays episodes side by side; the answers of each."""
    rngs = {episode: random.Random(episode) for episode in tasks}
    answers: dict[int, list] = {episode: [] for episode in tasks}
    for episode, task in tasks.items():
        pool.reset(episode, task)
    left, count, end = set(tasks), 0, time.monotonic() + 120
    while left:
        assert time.monotonic() < end, "the pool stopped answering"
        for episode, answer in pool.poll(1.0):
            answers[episode].append(answer)
            count += 1
            if on_answer:
                on_answer(count)
            if answer.status != types.OK or len(answers[episode]) > NUM_STEPS:
                left.discard(episode)
                pool.close(episode)
            else:
                fixed = (plan or {}).get((episode, len(answers[episode])))
                pool.step(episode, fixed or rngs[episode].choice(answer.actions))
    return answers


def spread(games: list[types.Task]) -> dict[int, types.Task]:
    return {episode: games[episode % len(games)] for episode in range(NUM_EPISODES)}


@pytest.fixture(scope="module")
def undisturbed(games, options) -> dict:
    with EnvPool("alfworld", options, num_workers=0) as pool:
        return play(pool, spread(games))


def zombies() -> set[str]:
    """Children of this process that ended and were not waited for."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] == "Z":
            found.add(path.parent.name)
    return found


@pytest.fixture(autouse=True)
def nothing_left(tmp_path, monkeypatch):
    """No zombie, no process, no temporary file after any of these tests."""
    multiprocessing.util.get_temp_dir()  # belongs to this process as long as that lives
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert multiprocessing.active_children() == []
    assert zombies() == set()
    assert list(folder.iterdir()) == []


# Stages at which a worker is hit: while it starts, loads its first games, plays, is idle.
STAGES = {"start": 0, "first answer": 1, "loading": 6, "playing": 40, "late": 80}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("stage", STAGES)
def test_worker_hit_at_every_stage(how, stage, games, options, undisturbed, monkeypatch):
    monkeypatch.setattr(worker_handle, "_START_GRACE_S", 10.0)
    deadline_s = 5.0 if how == signal.SIGSTOP else 60.0
    with EnvPool("alfworld", options, num_workers=2, deadline_s=deadline_s) as pool:
        hit = []

        def strike(count):
            if count == STAGES[stage]:
                waiting = [e.worker for e in pool._episodes.values() if e.pending >= 0]
                hit.append(pool.worker_pids()[min(waiting, default=0)])
                os.kill(hit[0], how)

        strike(0)
        answers = play(pool, spread(games), on_answer=strike)
        assert hit and hit[0] not in pool.worker_pids() and pool.respawns >= 1
        assert not pool.quarantined
    changed = [e for e in answers if answers[e] != undisturbed[e]]
    assert len(changed) <= (how == signal.SIGSTOP)  # the request that hung is given up, alone
    for episode in changed:
        assert answers[episode][-1].status == types.TIMEOUT
        assert answers[episode][:-1] == undisturbed[episode][: len(answers[episode]) - 1]


def test_idle_worker_hit(games, options, undisturbed):
    with EnvPool("alfworld", options, num_workers=2, deadline_s=5.0) as pool:
        assert play(pool, spread(games)) == undisturbed
        os.kill(pool.worker_pids()[0], signal.SIGKILL)
        os.kill(pool.worker_pids()[1], signal.SIGSTOP)
        assert play(pool, spread(games)) == undisturbed
        assert pool.respawns == 2


FAULTS = {  # expression -> (status, text in the reason, crashes of its worker)
    KILL.format(9): (types.ENV_ERROR, "ended its worker process", 3),
    KILL.format(19): (types.TIMEOUT, "did not answer within 4 s", 1),
    "__import__('os')._exit(0)": (types.ENV_ERROR, "ended its worker process", 3),
    "__import__('sys').exit(3)": (types.ENV_ERROR, "SystemExit: 3", 0),
    "__import__('time').sleep(99)": (types.TIMEOUT, "did not answer within 4 s", 1),
    "1 // 0": (types.ENV_ERROR, "ZeroDivisionError", 0),
    "'x' * 10 ** 18": (types.ENV_ERROR, "MemoryError", 0),
}


@pytest.mark.parametrize("where", ["intro", "help.feedback"])
@pytest.mark.parametrize("expression", FAULTS)
def test_game_that_fails_at_load_or_in_a_step(
    where, expression, games, options, undisturbed, tmp_path
):
    status, reason, crashes = FAULTS[expression]
    bad = write(tmp_path / "bad", rule(read(games[0]), where, expression))
    with EnvPool("alfworld", options, num_workers=1, deadline_s=4.0) as pool:
        answers = play(pool, spread(games) | {99: bad}, plan={(99, 3): "help"})
        assert pool.respawns == crashes
        assert (bad.path in pool.quarantined) == (crashes == 3)
    last = answers.pop(99)[-1]
    assert (last.status, last.actions) == (status, ()) and reason in last.text
    assert "\n" not in last.text and bad.path in last.text
    assert answers == undisturbed


def malformed(good: dict) -> dict:
    problem, grammar, domain = good["pddl_problem"], good["grammar"], good["pddl_domain"]
    head = problem.split("(:goal")[0]
    thing = head.split("(pickupable ", 1)[1].split(")", 1)[0]
    edits = {
        "no domain": {"pddl_domain": None},
        "empty problem": {"pddl_problem": ""},
        "cut problem": {"pddl_problem": problem[: len(problem) // 2]},
        "no goal": {"pddl_problem": head + ")"},
        "unknown object": {"pddl_problem": problem.replace("(:goal", "(:goal (opened ghost1))(x")},
        "unknown predicate": {"pddl_problem": head + "(:goal (flies agent1)))"},
        "out of reach": {"pddl_problem": head + "(:goal (full nowhere)))"},
        "settled goal": {"pddl_problem": head + f"(:goal (pickupable {thing})))"},
        "other domain": {"pddl_problem": problem.replace(":domain alfred", ":domain cooking")},
        "cut grammar": {"grammar": grammar[:-40]},
        "no intro": {"grammar": grammar.replace('"intro"', '"outro"')},
        "grammar is prose": {"grammar": "once upon a time"},
        "domain is prose": {"pddl_domain": "a kitchen"},
        "unbalanced domain": {"pddl_domain": domain + ")))"},
        "number for a text": {"grammar": 7},
    }
    games = {name: {**good, **edit} for name, edit in edits.items()}
    return games | {
        "not json": "{",
        "json list": "[1]",
        "not a text file": b"\xff\xfe\x00PK\x03\x04",
        "deep json": "[" * 100_000,
        "empty file": "",
    }


def test_malformed_games_fail_alone(games, options, undisturbed, tmp_path):
    bad = {
        100 + i: write(tmp_path / name.replace(" ", "-"), content)
        for i, (name, content) in enumerate(malformed(read(games[0])).items())
    }
    bad[98] = task_of(tmp_path / "no such folder")
    (tmp_path / "folder" / "game.tw-pddl").mkdir(parents=True)
    bad[99] = task_of(tmp_path / "folder")
    with EnvPool("alfworld", options, num_workers=2) as pool:
        pool.load([*games, *bad.values()])
        answers = play(pool, spread(games) | bad)
        assert pool.respawns == 0 and not pool.quarantined
    for episode, task in bad.items():
        (only,) = answers.pop(episode)
        assert only.status == types.ENV_ERROR and only.actions == (), task.path
        assert task.path in only.text and "\n" not in only.text
    assert answers == undisturbed


def test_pool_survives_a_worker_stopped_before_a_large_message(games, options, undisturbed):
    """A message that does not fit into the pipe would block the pool for ever."""
    with EnvPool("alfworld", options, num_workers=1, deadline_s=5.0) as pool:
        pool.reset(50, games[0])
        pool.poll(60.0)
        os.kill(pool.worker_pids()[0], signal.SIGSTOP)
        pool.step(50, "x" * 2_000_000)
        start = time.monotonic()
        answers = play(pool, spread(games) | {50: games[0]})
        assert time.monotonic() - start < 60
        assert pool.respawns == 1
        answers.pop(50)
        assert answers == undisturbed


def test_load_loads_games_where_they_will_be_played(games, options, tmp_path):
    bad = task_of(tmp_path / "missing")
    for num_workers in (0, 2):
        with EnvPool("alfworld", options, num_workers=num_workers) as pool:
            pool.load([bad, *games[1:]])
            pool.reset(0, games[0])
            end = time.monotonic() + 60
            while any(worker.ahead for worker in pool._workers):
                assert time.monotonic() < end
                for _, answer in pool.poll(60.0):
                    assert answer.status == types.OK
                    pool.step(0, "look")
            pool.reset(1, bad)
            answers = {}
            while 1 not in answers:
                answers |= pool.poll(60.0)
            assert answers[1].status == types.ENV_ERROR


def test_steps_are_never_applied_twice(games, options):
    """A worker that dies after a step but before it answers replays the step once."""
    counted = read(games[0])
    with EnvPool("alfworld", options, num_workers=1, deadline_s=5.0) as pool:
        plan = counted["walkthrough"]
        pool.reset(0, games[0])
        pool.poll(60.0)
        for i, action in enumerate(plan):
            pool.step(0, action)
            pool.flush()
            if i % 2:
                os.kill(pool.worker_pids()[0], signal.SIGKILL)
            ((_, answer),) = pool.poll(60.0)
            assert answer.status == types.OK
        assert answer.won and pool.respawns >= 1


def rss_mib(pid: int) -> float:
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def many_episodes(options: dict, games: list, num: int, every: int) -> list[float]:
    """Resident memory of a worker, in MiB, each ``every`` of ``num`` episodes of 15 steps."""
    seen = []
    with EnvPool("alfworld", options, num_workers=1) as pool:
        rng, left, started = random.Random(0), {}, 0
        while started < num or left:
            while started < num and len(left) < 64:
                pool.reset(started, rng.choice(games))
                left[started] = 0
                started += 1
                if started % every == 0:
                    seen.append(rss_mib(pool.worker_pids()[0]))
            for episode, answer in pool.poll(60.0):
                assert answer.status == types.OK
                left[episode] += 1
                if left[episode] > 15 or getattr(answer, "done", False):
                    del left[episode]
                    pool.close(episode)
                else:
                    pool.step(episode, rng.choice(answer.actions))
    return seen


@pytest.mark.slow
def test_memory_is_flat_over_many_episodes(options, tmp_path_factory):
    """More games than fit: they are dropped and read again all the time.

    The first 8,000 episodes fill what is bounded and the allocator's holes; the 8,000 after them must
    add nothing.
    """
    out = tmp_path_factory.mktemp("many")
    index = households.generate_even(out, num=18, seed=3)
    tasks = [task_of(out / entry["path"]) for entry in index["games"]]
    seen = many_episodes({**options, "memory_mb": 8}, tasks, 16_000, 500)
    print(f"{options['engine']}: MiB after each 500 episodes:", *(f"{x:.0f}" for x in seen))
    full = seen[16:]
    assert max(full) < 1.05 * min(full)
    early, late = full[: len(full) // 2], full[len(full) // 2 :]
    assert sum(late) / len(late) < 1.02 * sum(early) / len(early)


@pytest.mark.parametrize("engine", ["native", "stock"])
def test_a_game_that_starts_won_is_a_failed_episode_and_not_a_win(games, tmp_path, engine):
    """As in real data, where another object of the kind lies in the target already."""
    from evolving_rl_jax.envs.alfworld.start import is_won_at_start

    data = read(games[0])
    object_, place = re.search(r"\(inReceptacle (\w+) (\w+)\)", data["pddl_problem"]).groups()
    kinds = dict(re.findall(r"\((?:object|receptacle)Type (\w+) (\w+)\)", data["pddl_problem"]))
    head = data["pddl_problem"].split("(:goal")[0]
    goal = (
        f"(receptacleType ?r {kinds[place]}) (objectType ?o {kinds[object_]}) (inReceptacle ?o ?r)"
    )
    problem = f"{head}(:goal (exists (?r - receptacle ?o - object) (and {goal}))))"
    won = {**data, "pddl_problem": problem}
    assert is_won_at_start(won, "won") and not is_won_at_start(data, "game")
    task = write(tmp_path / "won", won)
    with EnvPool(env="alfworld", options={"engine": engine}, num_workers=1) as pool:
        answers = play(pool, {0: task, 1: games[0]})
    assert [a.status for a in answers[0]] == [types.ENV_ERROR]
    assert "must not be won before the first action" in answers[0][0].text
    assert all(a.status == types.OK for a in answers[1])
