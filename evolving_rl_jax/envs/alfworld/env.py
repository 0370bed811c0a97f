"""ALFWorld: household tasks in text, played by our own engine or by the published one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from evolving_rl_jax import types
from evolving_rl_jax.envs.alfworld.games import GameStore
from evolving_rl_jax.envs.base import EnvError, Environment, Progress

__all__ = ["ENGINES", "NativeAlfworld", "Options", "check", "make"]

ENGINES = ("native", "stock")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of ALFWorld environments.

    Attributes:
      engine: ``"native"`` (Python alone, see ``engine``) or ``"stock"`` (the published package,
        untouched); both give the same text, actions, reward and end at every step.  The rest is of
        ``native``.
      max_games: games kept in memory in one process.
      max_nodes: states and texts remembered for one game.
      max_states: the same for all games of a process together (roughly 1 to 3 KB each).
      check_games: games of each task type on which ``check`` compares it with ``stock``; 0 trusts it.

    Raises:
      ValueError: an option has a wrong value.
    """

    engine: str = "native"
    max_games: int = 512
    max_nodes: int = 5_000
    max_states: int = 100_000
    check_games: int = 2

    def __post_init__(self):
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {list(ENGINES)}, got {self.engine!r}")
        for name in ("max_games", "max_nodes", "max_states", "check_games"):
            value, least = getattr(self, name), int(name != "check_games")
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


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

    return GameStore(
        lambda data: open_game(data, options.max_nodes), options.max_games, options.max_states
    )


def refuse_won(task: types.Task, won: bool) -> None:
    """Raises ``EnvError`` for a game that is won before the first action: nobody has won it."""
    if won:
        raise EnvError(f"game {task.path} must not be won before the first action, it is")


class NativeAlfworld(Environment):
    """An episode of a game of a store; many of them share it."""

    def __init__(self, games: GameStore):
        self._games = games
        self._game: Any = None

    def reset(self, task: types.Task) -> types.Observation:
        self._game = None
        game = self._games.game(task.path)
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
        self._game = None
