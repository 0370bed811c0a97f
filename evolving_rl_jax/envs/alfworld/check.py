"""Our engine against the published one, step by step, before a run trusts it.

The first games of each task type are played on both in worker processes of their own: with the
solution that they came with, and at random with invalid actions among.  What agreed is remembered
on this machine by everything that the answers depend on: the games' domain and grammar, the
versions of the published packages, and the source of our own engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from evolving_rl_jax import envs, types
from evolving_rl_jax.envs.alfworld.games import read_game, shared_grammar
from evolving_rl_jax.envs.alfworld.households.write import generate_even
from evolving_rl_jax.envs.alfworld.tasks import load_tasks
from evolving_rl_jax.envs.base import EngineMismatch, EnvError, Environment, Progress, cores
from evolving_rl_jax.envs.pool.pool import EnvPool

__all__ = ["Comparison", "Options", "check_engine", "compare", "make", "memory_folder", "prove"]

_INVALID = ("", "look around", "go to nowhere 9", "take nothing 1 from nowhere 1", "drop {r}")
_RANDOM_STEPS = 40  # of each of two random episodes
_PACKAGES = ("alfworld", "textworld", "fast-downward-textworld")
_SOURCES = ("check.py", "env.py", "games.py", "stock.py")
_DEADLINE_S = 300.0  # of one game, on a busy machine


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a ``Comparison``: none."""


def check_engine(tasks: Sequence[types.Task], games_per_type: int, progress: Progress) -> str:
    """Compares ``native`` with ``stock`` unless that was done before.

    Args:
      tasks: the first ones of each task type are played, some six seconds each on a core.
      games_per_type: how many.
      progress: makes a progress bar.

    Returns:
      A line on what was compared, or remembered.

    Raises:
      EngineMismatch: they differ; names game, step and field.
    """
    chosen = list(_first_of_each_type(tasks, games_per_type))
    keys = {task.id: _key(task) for task in chosen}
    failed = {task_id: "it cannot be read" for task_id, key in keys.items() if not key}
    with _memory_held():
        new = [t for t in chosen if keys[t.id] and _remembered(keys[t.id]) < games_per_type]
        steps, unplayable = _compare_all(new, progress)
        for key in {keys[task.id] for task in new if task.id not in unplayable}:
            _remember(key, games_per_type)
    said = f"engine native equals stock on {len(new) - len(unplayable)} games ({steps:,} steps)"
    if not new:
        said = "engine native equals stock, as compared before on this machine"
    failed |= unplayable
    return "; ".join([said, *(f"{task} was left out: {why}" for task, why in failed.items())])


def prove(engine: str) -> str:
    """Plays one generated game by its walkthrough on ``engine`` and on ``stock``; returns a line.

    Raises:
      EngineMismatch: they differ, or the walkthrough does not win.
    """
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        generate_even(pathlib.Path(scratch, "games"), num=1, seed=0)
        (task,) = load_tasks(pathlib.Path(scratch, "games"))
        both = [envs.make("alfworld", engine=name) for name in ("stock", engine)]
        for env in both:
            stack.callback(env.close)
        answers = [env.reset(task) for env in both]
        for number, action in enumerate([*task.meta["walkthrough"], ""]):
            if answers[0] != answers[1]:
                raise EngineMismatch(
                    f"{engine} must answer like stock, got another answer at {number}"
                )
            if action:
                answers = [env.step(action) for env in both]
    if not answers[0].won:
        raise EngineMismatch("the walkthrough of a generated game must win it, got a loss")
    return f"{engine} equals stock over a game of {number} steps"


def _first_of_each_type(tasks: Sequence[types.Task], number: int) -> Iterator[types.Task]:
    seen: Counter[str] = Counter()
    for task in tasks:
        seen[task.task_type] += 1
        if seen[task.task_type] <= number:
            yield task


def _compare_all(tasks: list[types.Task], progress: Progress) -> tuple[int, dict[str, str]]:
    """Number of steps compared, and task id -> reason where ``stock`` does not play a game."""
    if not tasks:
        return 0, {}
    steps, failed = 0, {}
    workers = min(len(tasks), cores())
    with (
        progress("comparing engines", len(tasks)) as bar,
        EnvPool("alfworld_check", num_workers=workers, deadline_s=_DEADLINE_S) as pool,
    ):
        for episode, task in enumerate(tasks):
            pool.reset(episode, task)
        done = 0
        while done < len(tasks):
            for episode, answer in pool.poll(None):
                done += 1
                bar(done)
                if answer.status == types.OK:
                    steps += int(answer.text)
                else:
                    failed[tasks[episode].id] = answer.text
    return steps, failed


# -- what agreed on this machine -------------------------------------------------------------------


def memory_folder() -> pathlib.Path:
    """Where it is remembered which games agreed: below the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(cache, "evolving_rl_jax", "alfworld_check")


@contextlib.contextmanager
def _memory_held() -> Iterator[None]:
    """Lets one process compare at a time: those that come after it find the result."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # nothing is remembered then
            memory_folder().mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(memory_folder() / "lock", "w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _key(task: types.Task) -> str:
    """Stands for all that the answers of the two engines depend on; empty for an unreadable game."""
    try:
        data = read_game(task.path)
    except EnvError:
        return ""
    grammar = shared_grammar(data["grammar"])[0]
    parts = (*_engine(), data["pddl_domain"], grammar, task.task_type)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@functools.cache
def _engine() -> tuple[str, ...]:
    """The versions of the published packages and the source of our engine."""
    here = pathlib.Path(__file__).parent
    files = [*(here / "engine").glob("*.py"), *(here / name for name in _SOURCES)]
    versions = (importlib.metadata.version(name) for name in _PACKAGES)
    return *versions, *(path.read_text(encoding="utf-8") for path in sorted(files))


def _remembered(key: str) -> int:
    """Games of each task type that were asked for when this was compared; 0 = it was not."""
    try:
        return int(json.loads((memory_folder() / key).read_text(encoding="utf-8"))["games"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _remember(key: str, games_per_type: int) -> None:
    with contextlib.suppress(OSError):
        (memory_folder() / key).write_text(json.dumps({"games": games_per_type}), encoding="utf-8")


# -- one game, on both engines ---------------------------------------------------------------------


def make(_options: Options) -> Environment:
    """Makes what ``check_engine`` plays in its workers."""
    return Comparison()


class Comparison(Environment):
    """Compares the two engines on a whole game when it is reset; the text is the number of steps."""

    def __init__(self):
        self._native = envs.make("alfworld", engine="native")
        self._stock = envs.make("alfworld", engine="stock")

    def reset(self, task: types.Task) -> types.Observation:
        walkthrough = read_game(task.path).get("walkthrough") or ()
        return types.Observation(str(compare(self._native, self._stock, task, walkthrough)), ())

    def step(self, action: str) -> types.StepResult:
        raise EnvError("a comparison has no steps of its own")


def compare(
    native: Environment, reference: Environment, task: types.Task, expert: Sequence[str] = ()
) -> int:
    """Plays a game on two engines at once; returns the number of steps compared.

    Args:
      native: the engine to check.
      reference: the engine to trust.
      task: the game.
      expert: actions that solve it, where known.

    Raises:
      EngineMismatch: they differ, or the first one cannot play the game; names game, step and field.
      EnvError: the reference cannot play the game.
    """
    steps = 0
    for episode, plan in enumerate(_plans(expert, task.path)):
        rng, where = random.Random(f"{task.path} {episode}"), "reset"
        expected = reference.reset(task)
        try:
            _same(task, episode, where, expected, native.reset(task))
            for number, planned in enumerate(plan, start=1):
                action = rng.choice(expected.actions or _INVALID) if planned is None else planned
                expected, where = reference.step(action), f"step {number} ({action!r})"
                _same(task, episode, where, expected, native.step(action))
                steps += 1
        except EnvError as error:
            raise _mismatch(task, episode, where, "the game must be played", error) from error
    return steps


def _plans(actions: Sequence[str], seed: str) -> Iterator[list[str | None]]:
    """Episodes to compare: expert, and random ones with an invalid action now and then.

    None stands for an admissible action chosen at random.
    """
    yield list(actions)
    rng = random.Random(seed)
    for _ in range(2):
        yield [rng.choice(_INVALID) if rng.random() < 0.1 else None for _ in range(_RANDOM_STEPS)]


def _same(task: types.Task, episode: int, where: str, expected: Any, got: Any) -> None:
    for field, a, b in zip(expected._fields, expected, got, strict=True):
        if a != b:
            raise _mismatch(task, episode, where, f"{field} must be {_short(a)}", _short(b))


def _mismatch(task: types.Task, episode: int, where: str, must: str, got: Any) -> EngineMismatch:
    return EngineMismatch(
        f"engine native must play {task.path} as stock does; in episode {episode}, {where}, "
        f"{must}, got {got}; play with engine stock"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else text[:297] + "..."
