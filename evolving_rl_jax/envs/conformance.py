"""Does an environment keep what every run relies on: played, compared, and its workers killed.

`checks` plays a few tasks of any benchmark, the built-in ones too; ``evolving-rl check-env`` prints
what it finds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from evolving_rl_jax import envs
from evolving_rl_jax.envs.base import EnvError, one_line
from evolving_rl_jax.envs.pool.play import play_all
from evolving_rl_jax.envs.pool.pool import EnvPool
from evolving_rl_jax.envs.sound import of_type, sound
from evolving_rl_jax.types import OK, SCORED, Observation, StepResult, Task

__all__ = ["Finding", "checks"]

_NONSENSE = "xyzzy 1234 no such action"
_POLL_S = 600.0  # for all answers of a pool
_NO_JAX = """
import sys
from evolving_rl_jax import envs
env = envs.make(sys.argv[1], **__import__("json").loads(sys.argv[2]))
print(sorted({"jax", "jaxlib", "torch", "tensorflow"} & set(sys.modules)))
"""

Reply = Observation | StepResult


class Finding(NamedTuple):
    """One check: its name, whether it passed, and what was seen."""

    name: str
    ok: bool
    said: str


class _Subject(NamedTuple):
    name: str
    options: dict[str, Any]
    tasks: Sequence[Task]
    steps: int


def checks(
    name: str, tasks: Sequence[Task], options: dict[str, Any] | None = None, *, steps: int = 12
) -> Iterator[Finding]:
    """Plays some tasks and yields a finding for each thing that a run relies on.

    Args:
      name: of the environment, as ``envs.make`` takes it.
      tasks: to play; two or three are enough.
      options: of the environment.
      steps: most actions of an episode.
    """
    subject = _Subject(name, dict(options or {}), tasks, steps)
    for title, check in _CHECKS.items():
        try:
            said = check(subject)
            yield Finding(title, True, said)
        except _Failed as e:
            yield Finding(title, False, str(e))
        except Exception as e:  # whatever it raises is what its author wants to read
            yield Finding(title, False, one_line(e))


class _Failed(AssertionError):
    """A check that did not pass; the text says what was seen."""


def _require(ok: bool, said: str) -> None:
    if not ok:
        raise _Failed(said)


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)


def _player(subject: _Subject, task: Task) -> Callable[[Reply], str]:
    """Chooses actions by what is shown, the same ones each time: a teacher's, or any admissible one."""
    rng, benchmark = _rng(), envs.benchmark(subject.name)
    if ":" in subject.name and benchmark.teaches(task):
        teacher = benchmark.teacher(task, rng)
        return lambda reply: teacher.act(reply.text, reply.actions)
    return lambda r: str(rng.choice(list(r.actions))) if r.actions else _NONSENSE


def _play(env, subject: _Subject, task: Task, choose=None) -> tuple[list[str], list[Reply]]:
    """One episode: its actions (None: those of `_player`) and what answered them."""
    choose, reply = choose or _player(subject, task), env.reset(task)
    actions, replies = [], [reply]
    for _ in range(min(subject.steps, task.step_limit)):
        actions.append(choose(reply))
        reply = env.step(actions[-1])
        replies.append(reply)
        if reply.done:
            break
    return actions, replies


def _shown(reply: Reply) -> tuple:
    return (
        reply.text,
        tuple(reply.actions),
        *(getattr(reply, n, None) for n in ("reward", "done", "won")),
    )


def _same(first: Sequence[Reply], second: Sequence[Reply], what: str) -> None:
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        _require(
            _shown(a) == _shown(b),
            f"{what}: answer {i} was {_shown(a)!r:.200}, then {_shown(b)!r:.200}",
        )
    _require(len(first) == len(second), f"{what}: {len(first)} answers, then {len(second)}")


def _types(subject: _Subject) -> str:
    env, count = envs.make(subject.name, **subject.options), 0
    for task in subject.tasks:
        _, replies = _play(env, subject, task)
        count += len(replies)
        opening = replies[0]
        of_type(opening, Observation)
        _require(
            bool(opening.text.strip()), "the first observation must say something, it is empty"
        )
        for reply in replies[1:]:
            of_type(reply, StepResult)
            _require(not reply.won or reply.done, "an episode that is won must be done")
        for reply in replies:
            sound(reply)
    env.close()
    return f"{count} answers of {len(subject.tasks)} tasks"


def _teaching(subject: _Subject) -> str:
    benchmark, task = envs.benchmark(subject.name), subject.tasks[0]
    if ":" not in subject.name or not benchmark.teaches(task):
        return "no teacher of one's own"
    env, teacher = envs.make(subject.name, **subject.options), benchmark.teacher(task, _rng())
    _, replies = _play(env, subject, task, lambda reply: teacher.act(reply.text, reply.actions))
    env.close()
    won = bool(getattr(replies[-1], "won", False))
    said = teacher.skill([reply.text for reply in replies], won)
    try:
        fields = json.loads(said)
    except ValueError:
        fields = None
    _require(
        isinstance(fields, dict), f"a teacher's skill must be a JSON object, got {said!r:.120}"
    )
    return f"a skill with {', '.join(fields)}"


def _deterministic(subject: _Subject) -> str:
    first, second = (envs.make(subject.name, **subject.options) for _ in range(2))
    for task in subject.tasks:
        actions, replies = _play(first, subject, task)
        again, others = _play(second, subject, task)
        _require(actions == again, f"{task.id}: other actions were offered the second time")
        _same(replies, others, task.id)
        replay = [first.reset(task), *(first.step(a) for a in actions)]
        _same(replies, replay, f"{task.id} replayed from its actions")
    return "the same texts from two environments, and replayed from the actions"


def _interleaved(subject: _Subject) -> str:
    env = envs.make(subject.name, **subject.options)
    alone = {t.id: _play(env, subject, t)[1] for t in subject.tasks}
    for task in reversed(subject.tasks):
        _same(alone[task.id], _play(env, subject, task)[1], f"{task.id} after other tasks")
    return "a task does not depend on those before it"


def _invalid(subject: _Subject) -> str:
    task = subject.tasks[0]
    env = envs.make(subject.name, **subject.options)
    env.reset(task)
    reply = env.step(_NONSENSE)
    _require(
        isinstance(reply, StepResult), f"an invalid action must be answered, got {reply!r:.120}"
    )
    _require(reply.status == OK, f"an invalid action is the agent's, status {reply.status!r}")
    _require(not reply.won, "an invalid action won the task")
    return f"answered: {reply.text!r:.60}"


def _after_failure(subject: _Subject) -> str:
    task = subject.tasks[0]
    env = envs.make(subject.name, **subject.options)
    want = env.reset(task)
    broken = Task(
        "no-such", subject.name, task.split, task.task_type, "no task", "/no/such", "0" * 64
    )
    try:
        env.reset(broken)
        said = "a task that does not exist was played"
    except EnvError as e:
        said = f"refused: {e!s:.60}"
    except Exception as e:  # the worker turns it into a status; a clear EnvError is better
        said = f"refused with {type(e).__name__}"
    _require(
        _shown(env.reset(task)) == _shown(want), "another first observation after a failed reset"
    )
    return said


def _closing(subject: _Subject) -> str:
    task = subject.tasks[0]
    env = envs.make(subject.name, **subject.options)
    want = env.reset(task)
    env.close()
    env.close()
    _require(_shown(env.reset(task)) == _shown(want), "another first observation after close()")
    env.close()
    return "closed twice and opened again"


def _no_jax(subject: _Subject) -> str:
    command = [sys.executable, "-c", _NO_JAX, subject.name, json.dumps(subject.options)]
    paths = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    _require(done.returncode == 0, f"it cannot be made in a new process: {done.stderr[-300:]}")
    _require(
        done.stdout.strip() == "[]", f"it imports {done.stdout.strip()}, which claims a device"
    )
    return "workers claim no device"


def _hashes(subject: _Subject) -> str:
    hashes = [t.content_hash for t in subject.tasks]
    _require(all(hashes), "every task needs a content_hash")
    if ":" in subject.name:
        before = {t.id: t.content_hash for t in envs.benchmark(subject.name).load(None)}
        again = {t.id: t.content_hash for t in envs.benchmark(subject.name).load(None)}
        _require(before == again, "tasks() gave other tasks, or other hashes, the second time")
    return f"{len(set(hashes))} different of {len(hashes)}"


def _through_pool(pool: EnvPool, subject: _Subject, harm: Callable[[int], None] | None = None):
    """Episodes of all tasks through a pool, side by side: number -> answers."""
    players = {i: _player(subject, t) for i, t in enumerate(subject.tasks)}
    left = {i: min(subject.steps, t.step_limit) for i, t in enumerate(subject.tasks)}
    replies: dict[int, list[Reply]] = {i: [] for i in players}

    def turn(i, reply):
        replies[i].append(reply)
        if harm:
            harm(sum(map(len, replies.values())))
        if reply.status not in SCORED or getattr(reply, "done", False) or not left[i]:
            return None
        left[i] -= 1
        return players[i](reply)

    unfinished = play_all(pool, subject.tasks, turn, seconds=_POLL_S)
    _require(not unfinished, f"{len(unfinished)} episodes did not end in {_POLL_S:.0f} s")
    return replies


def _pool(subject: _Subject) -> str:
    env = envs.make(subject.name, **subject.options)
    alone = [_play(env, subject, t)[1] for t in subject.tasks]
    with EnvPool(subject.name, subject.options, num_workers=2) as pool:
        found = _through_pool(pool, subject)
    for i, want in enumerate(alone):
        _same(want, found[i], f"{subject.tasks[i].id} in a worker")
    return "workers play the same texts"


def _killed(subject: _Subject) -> str:
    return _harmed(subject, signal.SIGKILL, 60.0)


def _hung(subject: _Subject) -> str:
    return _harmed(subject, signal.SIGSTOP, 5.0)


def _harmed(subject: _Subject, how: signal.Signals, deadline_s: float) -> str:
    workers = min(2, len(subject.tasks))
    with EnvPool(subject.name, subject.options, num_workers=workers) as pool:
        want = _through_pool(pool, subject)
    pids: set[int] = set()
    # While something is left to be answered.
    when = min(3, sum(map(len, want.values())) - 1)
    with EnvPool(subject.name, subject.options, num_workers=workers, deadline_s=deadline_s) as pool:

        def harm(count: int) -> None:
            if count == when:
                pids.update(pool.worker_pids())
                for pid in pool.worker_pids():
                    os.kill(pid, how)

        found = _through_pool(pool, subject, harm)
        respawns = pool.respawns
        pids.update(pool.worker_pids())
    lost = [i for i, replies in found.items() if any(r.status != OK for r in replies)]
    # What a worker was doing when it hung is given up, alone; what a killed one did is played again.
    most = workers if how == signal.SIGSTOP else 0
    _require(
        len(lost) <= most,
        f"{len(lost)} episodes were lost: {found[lost[0]][-1].text if lost else ''}",
    )
    for i, replies in found.items():
        if i not in lost:
            _same(want[i], replies, f"{subject.tasks[i].id} played again")
    _require(respawns > 0, "no worker was at work when one was ended: give more --tasks or --steps")
    running = [pid for pid in pids if _runs(pid)]
    _require(not running, f"processes {running} still run after the pool was closed")
    return f"{respawns} replaced, {len(lost)} episodes masked, the others the same; nothing left running"


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


_CHECKS: dict[str, Callable[[_Subject], str]] = {
    "answers have the types of the contract": _types,
    "what a teacher writes": _teaching,
    "deterministic, and replayed from actions": _deterministic,
    "tasks do not depend on each other": _interleaved,
    "content hashes": _hashes,
    "an invalid action is answered": _invalid,
    "reset after a failed reset": _after_failure,
    "close": _closing,
    "no accelerator library is imported": _no_jax,
    "plays the same in worker processes": _pool,
    "a killed worker is replaced": _killed,
    "a hung worker is replaced": _hung,
}
