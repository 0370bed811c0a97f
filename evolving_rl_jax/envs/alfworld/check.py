"""The ``native`` engine as an environment, compared with ``cached`` before it is trusted.

In every process, the first games of each task type are first played on both engines, step by step.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Iterator, Sequence
from typing import Any

from evolving_rl_jax import types
from evolving_rl_jax.envs.alfworld import translation
from evolving_rl_jax.envs.alfworld.cached import CachedAlfworld, CachedGames
from evolving_rl_jax.envs.alfworld.engine import game as native
from evolving_rl_jax.envs.alfworld.engine.joins import Unsupported
from evolving_rl_jax.envs.alfworld.games import GameStore, read_game
from evolving_rl_jax.envs.base import EngineMismatch, EnvError, Environment

__all__ = ["CheckedGames", "NativeAlfworld", "compare", "games"]

_INVALID = ("", "look around", "go to nowhere 9", "take nothing 1 from nowhere 1", "drop {r}")
_RANDOM_STEPS = 40  # of each of two random episodes


def _plans(actions: Sequence[str], seed: str) -> Iterator[list[str | None]]:
    """Episodes to compare: expert, and random ones with an invalid action now and then.

    None stands for an admissible action chosen at random.
    """
    yield list(actions)
    rng = random.Random(seed)
    for _ in range(2):
        yield [rng.choice(_INVALID) if rng.random() < 0.1 else None for _ in range(_RANDOM_STEPS)]


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
      EngineMismatch: they differ; names game, step and field.
      EnvError: the reference cannot play the game.
    """
    steps = 0
    for episode, plan in enumerate(_plans(expert, task.path)):
        rng = random.Random(f"{task.path} {episode}")
        expected = reference.reset(task)
        _same(task, episode, "reset", expected, native.reset(task))
        for number, planned in enumerate(plan, start=1):
            action = rng.choice(expected.actions or _INVALID) if planned is None else planned
            expected = reference.step(action)
            _same(task, episode, f"step {number} ({action!r})", expected, native.step(action))
            steps += 1
    return steps


def _same(task: types.Task, episode: int, where: str, expected: Any, got: Any) -> None:
    if got == expected:
        return
    for field in expected._fields:
        a, b = getattr(expected, field), getattr(got, field)
        if a != b:
            raise EngineMismatch(
                f"engine native must play {task.path} as cached does; in episode {episode}, {where}, "
                f"{field} must be {_short(a)}, got {_short(b)}; play with engine cached"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else text[:297] + "..."


class CheckedGames:
    """Games of the native engine, the first of each task type compared with the cached one."""

    def __init__(self, store: GameStore, reference: Environment, num_checked: int):
        """Args:
        store: of ``native.Game``.
        reference: plays the same games.
        num_checked: games compared of each task type.
        """
        self._store, self._reference = store, reference
        self._num_checked = num_checked
        self._checked: dict[str, set[str]] = collections.defaultdict(set)
        self._failed: EngineMismatch | None = None

    def game(self, task: types.Task) -> Any:
        """The game of a task.

        Raises:
          EngineMismatch: the two engines differed on this or an earlier game.
          EnvError: it cannot be read or played.
        """
        if self._failed is not None:
            raise self._failed
        checked = self._checked[task.task_type]
        if len(checked) < self._num_checked and task.path not in checked:
            self._check(task)
            checked.add(task.path)
        return self._store.game(task.path)

    def _check(self, task: types.Task) -> None:
        walkthrough = read_game(task.path).get("walkthrough") or ()
        try:
            compare(_Unchecked(self._store), self._reference, task, walkthrough)
        except EngineMismatch as error:
            self._failed = error
            raise
        finally:
            self._reference.close()


def games(options: Any) -> CheckedGames:
    """The games of one process, with limits as in ``alfworld.Options``."""
    store = GameStore(
        lambda data: _open(data, options.max_nodes), options.max_games, options.max_states
    )
    reference = CachedGames(options.folder, 1, 1, options.max_nodes, options.max_nodes)
    return CheckedGames(store, CachedAlfworld(reference), options.check_games)


def _open(data: dict[str, Any], max_nodes: int) -> native.Game:
    with translation.quiet():
        try:
            return native.Game(data, max_nodes)
        except Unsupported as error:
            raise EnvError(f"engine native cannot compile {error}; play it with cached") from error


class NativeAlfworld(Environment):
    """An episode of a game of ``CheckedGames``; many of them share it."""

    def __init__(self, games: CheckedGames):
        self._games = games
        self._game: Any = None

    def reset(self, task: types.Task) -> types.Observation:
        self._game = None
        game = self._find(task)
        self._game, self._state, self._view = game, game.root, game.view(game.root)
        return types.Observation(game.intro, self._view.actions)

    def step(self, action: str) -> types.StepResult:
        if self._game is None:
            raise EnvError("step was called before reset")
        result, self._state, self._view = self._game.step(self._state, self._view, action.strip())
        return result

    def prepare(self, task: types.Task) -> None:
        self._find(task)

    load = prepare

    def close(self) -> None:
        self._game = None

    def _find(self, task: types.Task) -> Any:
        return self._games.game(task)


class _Unchecked(NativeAlfworld):
    """The same on games that are just being compared."""

    def __init__(self, store: GameStore):
        self._store, self._game = store, None

    def _find(self, task: types.Task) -> Any:
        return self._store.game(task.path)
