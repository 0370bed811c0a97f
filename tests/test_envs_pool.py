"""The pool of environment workers: equal to playing in one process, whatever happens to workers."""

import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time

import pytest

pytest.importorskip("alfworld")

from evolving_rl_jax import types
from evolving_rl_jax.envs.alfworld.households import write as households
from evolving_rl_jax.envs.pool import pool as pool_module
from evolving_rl_jax.envs.pool.handle import WorkerHandle
from evolving_rl_jax.envs.pool.pool import EnvPool

ROOT = pathlib.Path(__file__).parents[1]


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


def with_look(task: types.Task, folder: pathlib.Path, expression: str) -> types.Task:
    """The same game, but ``help`` evaluates a Python expression while its text is derived."""
    data = json.loads((pathlib.Path(task.path) / "game.tw-pddl").read_text())
    head, tail = data["grammar"].split('"help.feedback": [', 1)
    rule = '{"rhs": "{' + expression + '}"}, '
    data["grammar"] = head + '"help.feedback": [' + rule + tail
    folder.mkdir()
    (folder / "game.tw-pddl").write_text(json.dumps(data))
    return task_of(folder)


def crashing(task, folder):
    return with_look(task, folder, "__import__('os').kill(__import__('os').getpid(), 9)")


def play(pool: EnvPool, tasks: dict[int, types.Task], num_steps: int, on_answer=None, plan=None):
    """Plays episodes side by side; returns the answers of each."""
    rngs = {episode: random.Random(episode) for episode in tasks}
    answers = {episode: [] for episode in tasks}
    for episode, task in tasks.items():
        pool.reset(episode, task)
    left, count, end = set(tasks), 0, time.monotonic() + 120
    while left:
        pool.flush()
        assert time.monotonic() < end, "the pool stopped answering"
        for episode, answer in pool.poll(1.0):
            answers[episode].append(answer)
            count += 1
            if on_answer:
                on_answer(count)
            if answer.status != types.OK or len(answers[episode]) > num_steps:
                left.discard(episode)
                pool.close(episode)
            else:
                fixed = (plan or {}).get((episode, len(answers[episode])))
                pool.step(episode, fixed or rngs[episode].choice(answer.actions))
    return answers


def spread(games: list[types.Task], num: int) -> dict[int, types.Task]:
    return {episode: games[episode % len(games)] for episode in range(num)}


@pytest.fixture(scope="module")
def undisturbed(games, options) -> dict:
    with EnvPool("alfworld", options, num_workers=0) as pool:
        return play(pool, spread(games, 18), 12)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_equal_one_process(games, options, undisturbed, num_workers):
    with EnvPool("alfworld", options, num_workers=num_workers) as pool:
        assert play(pool, spread(games, 18), 12) == undisturbed
        assert play(pool, spread(games, 18), 12) == undisturbed
        assert pool.respawns == 0


def test_killed_workers_do_not_change_any_transcript(games, options, undisturbed):
    with EnvPool("alfworld", options, num_workers=2) as pool:

        def kill(count):
            if count in (7, 60, 61, 150):
                os.kill(pool.worker_pids()[count % 2], signal.SIGKILL)

        assert play(pool, spread(games, 18), 12, kill) == undisturbed
        assert pool.respawns >= 2
        assert not pool.quarantined


def test_stopped_worker_is_replaced(games, options, undisturbed):
    with EnvPool("alfworld", options, num_workers=1, deadline_s=4.0) as pool:

        def stop(count):
            if count == 40:
                os.kill(pool.worker_pids()[0], signal.SIGSTOP)

        answers = play(pool, spread(games, 18), 12, stop)
        # Whichever request was under way may be given up; nothing else may differ.
        changed = [e for e in answers if answers[e] != undisturbed[e]]
        assert len(changed) <= 1 and pool.respawns == 1
        for episode in changed:
            assert answers[episode][-1].status == types.TIMEOUT
            assert answers[episode][:-1] == undisturbed[episode][: len(answers[episode]) - 1]


def test_hanging_game_times_out_alone(games, options, undisturbed, tmp_path):
    slow = with_look(games[0], tmp_path / "slow", "__import__('time').sleep(100)")
    tasks = {**spread(games, 18), 99: slow}
    with EnvPool("alfworld", options, num_workers=1, deadline_s=4.0) as pool:
        answers = play(pool, tasks, 12, plan={(99, 4): "help"})
        last = answers.pop(99)[-1]
        assert (last.status, last.reward, last.done) == (types.TIMEOUT, 0.0, True)
        assert slow.path in last.text and "4 s" in last.text
        assert answers == undisturbed
        with pytest.raises(KeyError, match="99"):
            pool.step(99, "look")


def test_crashing_game_is_quarantined_and_reported(games, options, undisturbed, tmp_path):
    bad = crashing(games[0], tmp_path / "bad")
    tasks = {**spread(games, 18), 98: bad, 99: bad}
    with EnvPool("alfworld", options, num_workers=1) as pool:
        answers = play(pool, tasks, 12, plan={(98, 3): "help", (99, 5): "help"})
        for episode in (98, 99):
            last = answers.pop(episode)[-1]
            assert last.status == types.ENV_ERROR and bad.path in last.text
        assert answers == undisturbed
        assert list(pool.quarantined) == [bad.path] and pool.respawns == 3
        pool.reset(7, bad)
        ((episode, answer),) = pool.poll(5.0)
        assert (episode, answer.status) == (7, types.ENV_ERROR)
        assert pool.respawns == 3


def test_a_game_that_was_not_to_blame_is_forgiven(games, tmp_path, caplog):
    """A worker that others end (out of memory, say) while it serves one game, again and again."""
    bomb = tmp_path / "bomb"
    once = (
        f"str(__import__('os').path.exists('{bomb}') and (__import__('os').remove('{bomb}'),"
        " __import__('os').kill(__import__('os').getpid(), 9)))"
    )
    game = with_look(games[0], tmp_path / "game", once)
    with EnvPool("alfworld", num_workers=1) as pool:
        for episode in range(5):
            bomb.touch()
            pool.reset(episode, game)
            assert pool.poll(60.0)[0][1].status == types.OK
            pool.step(episode, "help")
            ((_, answer),) = pool.poll(60.0)
            assert answer.status == types.OK and answer.text == "False" and not bomb.exists()
            os.kill(pool.worker_pids()[0], signal.SIGKILL)  # the next one remembers no text
        assert pool.respawns >= 5 and not pool.quarantined and not caplog.records


class Unreadable(str):
    """An action that ends the process which unpickles it, outside anything that a game does."""

    def __reduce__(self):
        return eval, ("1 // 0",)


def test_a_pool_that_gives_up_says_why_and_leaves_nothing(games):
    with pytest.raises(RuntimeError, match="while starting, at last with: ZeroDivisionError"):
        with EnvPool("alfworld", num_workers=2) as pool:
            for episode in range(2):
                pool.reset(episode, games[episode])
            left = 2
            while left:
                left -= len(pool.poll(60.0))
            pool.step(0, Unreadable("look"))
            pool.poll(60.0)
    pool.shutdown()  # may be called again
    assert multiprocessing.active_children() == []


def test_a_worker_that_fails_outside_a_game_prints_it():
    read, write = multiprocessing.Pipe()
    write.send(Unreadable("look"))
    code = f"""
import ctypes, multiprocessing.connection
from evolving_rl_jax.envs.pool.process import main
main(multiprocessing.connection.Connection({read.fileno()}), ctypes.c_longlong(-1), "alfworld", {{}})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, pass_fds=[read.fileno()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("Traceback (most recent call last)")
    assert "ZeroDivisionError: " in done.stderr.splitlines()[-1]
    assert write.recv()[0].reason.startswith("ZeroDivisionError")


def test_a_crash_says_how_the_worker_ended(games, tmp_path, caplog):
    for name, ends, how in (
        ("kill", "__import__('os').kill(__import__('os').getpid(), 9)", "SIGKILL"),
        ("exit", "__import__('os')._exit(7)", "exit status 7"),
    ):
        game = with_look(games[0], tmp_path / name, ends)
        caplog.clear()
        with EnvPool("alfworld", num_workers=1) as pool:
            answers = play(pool, {0: game, 1: game}, 5, plan={(0, 1): "help", (1, 3): "help"})
            assert answers[0][-1].text.startswith(
                f"game {game.path} ended its worker process ({how})"
            )
        (record,) = caplog.records  # said once
        assert game.path in record.getMessage() and "not played any more" in record.getMessage()


def test_all_workers_leave_by_one_deadline(games, monkeypatch):
    given = []

    def stop(worker, deadline, own=WorkerHandle.stop):
        given.append((worker.connection.closed, deadline))
        own(worker, deadline)

    monkeypatch.setattr(WorkerHandle, "stop", stop)
    monkeypatch.setattr(pool_module, "_LEAVE_S", 0.5)
    with EnvPool("alfworld", num_workers=3) as pool:
        for pid in pool.worker_pids():
            os.kill(pid, signal.SIGSTOP)
    assert len(given) == 3 and len({deadline for _, deadline in given}) == 1
    assert all(closed for closed, _ in given) and multiprocessing.active_children() == []


def test_exceptions_in_a_game_are_statuses(games, options, undisturbed, tmp_path):
    exits = with_look(games[1], tmp_path / "exits", "__import__('sys').exit(3)")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "game.tw-pddl").write_text(json.dumps({"pddl_domain": "(", "grammar": ""}))
    tasks = {**spread(games, 18), 97: exits, 98: task_of(broken), 99: task_of(tmp_path / "none")}
    for num_workers in (0, 2):
        with EnvPool("alfworld", options, num_workers=num_workers) as pool:
            answers = play(pool, tasks, 12, plan={(97, 2): "help"})
            assert "SystemExit: 3" in answers[97][-1].text
            assert isinstance(answers[97][-1], types.StepResult)
            for episode in (98, 99):
                (only,) = answers[episode]
                assert isinstance(only, types.Observation) and only.actions == ()
                assert tasks[episode].path in only.text
            for episode in (97, 98, 99):
                assert answers.pop(episode)[-1].status == types.ENV_ERROR
            assert answers == undisturbed
            assert pool.respawns == 0 and not pool.quarantined


def test_close_and_restart_drop_old_answers(games, options):
    for num_workers in (0, 1):
        with EnvPool("alfworld", options, num_workers=num_workers) as pool:
            assert pool.poll(None) == []
            pool.reset(0, games[0])
            pool.reset(1, games[1])
            pool.flush()
            pool.reset(0, games[2])
            pool.close(1)
            pool.flush()
            ((episode, first),) = pool.poll(60.0)
            assert episode == 0
            pool.step(0, "look")
            with pytest.raises(RuntimeError, match="still waits"):
                pool.step(0, "look")
            pool.poll(60.0)
            pool.reset(3, games[2])
            assert pool.poll(60.0) == [(3, first)]
            assert pool.poll(60.0) == []
            with pytest.raises(KeyError):
                pool.step(1, "look")
            with pytest.raises(ValueError, match="episode must be"):
                pool.reset(-1, games[0])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"num_workers": -1}, "num_workers must be"),
        ({"deadline_s": 0}, "deadline_s must be"),
        ({"env": "chess"}, "environment must be one of"),
        ({"options": {"engine": "fast"}}, "engine must be one of"),
    ],
)
def test_wrong_arguments(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        EnvPool(**arguments)


def test_a_temporary_folder_with_a_long_name(games, tmp_path, request):
    """As schedulers set it for a job: longer than the path of a Unix socket can be."""
    temporary = pathlib.Path(tempfile.mkdtemp(prefix="x" * 95))
    request.addfinalizer(lambda: shutil.rmtree(temporary))
    code = f"""
from evolving_rl_jax import types
from evolving_rl_jax.envs.pool.pool import EnvPool
path = {games[0].path!r}
with EnvPool("alfworld", num_workers=1) as pool:
    pool.reset(0, types.Task(path, "alfworld", "test", "", "", path, content_hash=path))
    print(pool.poll(60.0)[0][1].status)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout == "ok\n" and not done.stderr
    assert list(temporary.iterdir()) == []


def test_workers_leave_nothing_behind(games, tmp_path, request):
    """A main script that imports jax, and an exit without shutdown."""
    pytest.importorskip("jax")
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent(f"""
        import jax
        from evolving_rl_jax import types
        from evolving_rl_jax.envs.pool.pool import EnvPool
        MARK = "imported " + __name__
        if __name__ == "__main__":
            pools = [EnvPool("alfworld", num_workers=2) for _ in range(2)]
            path = {games[0].path!r}
            task = types.Task(path, "alfworld", "test", "", "", path, content_hash=path)
            for pool in pools:
                pool.reset(0, task)
                assert pool.poll(60.0)[0][1].status == "ok"
            pids = [pid for pool in pools for pid in pool.worker_pids()]
            for pid in pids:
                assert "jaxlib" not in open(f"/proc/{{pid}}/maps").read()
            pools[0].shutdown()
            print(*pids)
        else:
            open({str(tmp_path / "imported")!r}, "w").write(MARK)
    """)
    )
    # Not in tmp_path: the path of a Unix socket has at most 107 bytes.
    temporary = pathlib.Path(tempfile.mkdtemp())
    request.addfinalizer(lambda: shutil.rmtree(temporary))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert not (tmp_path / "imported").exists()
    end = time.monotonic() + 60
    pids = [int(pid) for pid in done.stdout.split()]
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids)
    assert list(temporary.iterdir()) == []
    assert multiprocessing.active_children() == []
