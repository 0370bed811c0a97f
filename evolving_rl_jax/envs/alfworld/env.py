"""ALFWorld: household tasks in text, played by our own engine or by the published one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from evolving_rl_jax import types
from evolving_rl_jax.envs.alfworld.games import GameStore
from evolving_rl_jax.envs.base import EnvError, Environment, Progress, refuse_won

__all__ = ["ENGINES", "NativeAlfworld", "Options", "check", "make"]

ENGINES = ("native", "stock")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of ALFWorld environments.

    Attributes:
      engine: ``"native"`` (Python alone, see ``engine``) or ``"stock"`` (the published package,
        untouched); both give the same text, actions, reward and end at every step.  The rest is of
        ``native``.
      memory_mb: most megabytes that the games of one process take, besides those that are being
        played: 2 to 8 a game that has been played often.
      check_games: games of each task type on which ``check`` compares it with ``stock``; 0 trusts it.

    Raises:
      ValueError: an option has a wrong value.
    """

    engine: str = "native"
    memory_mb: float = 256.0
    check_games: int = 2

    def __post_init__(self):
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {list(ENGINES)}, got {self.engine!r}")
        size, number = self.memory_mb, self.check_games
        if not isinstance(size, int | float) or isinstance(size, bool) or not size > 0:
            raise ValueError(f"memory_mb must be a number above 0, got {size!r}")
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(f"check_games must be an integer of at least 0, got {number!r}")


_STORES: dict[Options, GameStore] = {}  # episodes of one process share their games


def make(options: Options) -> Environment:
    """Makes an ALFWorld environment; ``Task.path`` is the folder of the game."""
    if options.engine == "stock":
        from evolving_rl_jax.envs.alfworld.stock import StockAlfworld

        return StockAlfworld()
    if options not in _STORES:
        _STORES[options] = _games(options)
    return NativeAlfworld(_STORES[options])


def check(options: Options, tasks: Sequence[types.Task], progress: Progress) -> str:
    """As ``envs.check``: compares ``native`` with ``stock``."""
    if options.engine == "stock" or not options.check_games:
        return ""
    from evolving_rl_jax.envs.alfworld.check import check_engine

    return check_engine(tasks, options.check_games, progress)


def _games(options: Options) -> GameStore:
    from evolving_rl_jax.envs.alfworld.engine.game import open_game

    max_bytes = int(options.memory_mb * 1e6)
    return GameStore(lambda data: open_game(data, max_bytes // 4), max_bytes)


class NativeAlfworld(Environment):
    """An episode of a game of a store; many of them share it."""

    def __init__(self, games: GameStore):
        self._games = games
        self._game: Any = None

    def reset(self, task: types.Task) -> types.Observation:
        self.close()
        game, self._path = self._games.game(task.path), task.path
        refuse_won(task, game.won_at_start)
        self._game, self._state, self._view = game, game.root, game.view(game.root)
        return types.Observation(game.intro, self._view.actions)

    def step(self, action: str) -> types.StepResult:
        if self._game is None:
            raise EnvError("step was called before reset")
        result, self._state, self._view = self._game.step(self._state, self._view, action.strip())
        return result

    def load(self, task: types.Task) -> None:
        self._games.game(task.path)

    def close(self) -> None:
        if self._game is not None:
            self._games.weigh(self._path, self._game)
        self._game = None
