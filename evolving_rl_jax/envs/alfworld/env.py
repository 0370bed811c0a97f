"""ALFWorld: household tasks in text, played by the published engine or by its fast equivalents."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from evolving_rl_jax import types
from evolving_rl_jax.envs.base import EnvError, Environment, one_line

__all__ = ["Options", "StockAlfworld", "default_cache_dir", "make"]

ENGINES = ("cached", "stock", "native")


def default_cache_dir() -> str:
    """Where translated games are kept unless told otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "evolving_rl_jax", "alfworld")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of ALFWorld environments.

    Attributes:
      engine: ``"cached"`` (the published C library made fast), ``"native"`` (Python alone, faster
        still, compared with ``cached`` on its first games) or ``"stock"`` (the published package,
        untouched); all give the same text, actions, reward and end at every step.  The rest is not
        for ``stock``.
      cache_dir: folder of translated games; None keeps none, ``"default"`` is the user's cache.
        ``native`` translates the games that it is compared on.
      max_games: games kept in memory in one process.
      max_loaded: games loaded in copies of the C library at a time (about 1.6 MB each).
      max_nodes: states and texts remembered for one game.
      max_states: the same for all games of a process together (roughly 1 to 3 KB each).
      check_games: games of each task type on which every process compares ``native`` with
        ``cached`` before it plays them; 0 trusts it.

    Raises:
      ValueError: an option has a wrong value.
    """

    engine: str = "cached"
    cache_dir: str | None = "default"
    max_games: int = 512
    max_loaded: int = 64
    max_nodes: int = 5_000
    max_states: int = 100_000
    check_games: int = 2

    def __post_init__(self):
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {list(ENGINES)}, got {self.engine!r}")
        for name in ("max_games", "max_loaded", "max_nodes", "max_states", "check_games"):
            value, least = getattr(self, name), int(name != "check_games")
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        if self.engine != "stock" and self.folder is not None:
            _check_folder(self.folder)

    @property
    def folder(self) -> str | None:
        """The folder of translated games."""
        return default_cache_dir() if self.cache_dir == "default" else self.cache_dir


def _check_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cache_dir must be a folder that can be made, got {folder!r}") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"cache_dir must be a folder that can be written, got {folder!r}")


_STORES: dict[Options, Any] = {}  # episodes of one process share their games


def make(options: Options) -> Environment:
    """Makes an ALFWorld environment; ``Task.path`` is the folder of the game."""
    if options.engine == "stock":
        return StockAlfworld()
    if options not in _STORES:
        _STORES[options] = (_cached if options.engine == "cached" else _native)(options)
    kind, games = _STORES[options]
    return kind(games)


def _cached(options: Options) -> tuple[Any, Any]:
    from evolving_rl_jax.envs.alfworld.cached import CachedAlfworld, CachedGames

    limits = (options.max_games, options.max_loaded, options.max_nodes, options.max_states)
    return CachedAlfworld, CachedGames(options.folder, *limits)


def _native(options: Options) -> tuple[Any, Any]:
    from evolving_rl_jax.envs.alfworld import check as alfworld_native

    return alfworld_native.NativeAlfworld, alfworld_native.games(options)


class StockAlfworld(Environment):
    """The published engine, one copy of its C library an environment."""

    def __init__(self):
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from textworld.envs.pddl.pddl import PddlEnv

        infos = textworld.EnvInfos(admissible_commands=True, won=True)
        self._env = AlfredDemangler(PddlEnv(infos), shuffle=False)
        self._path = None

    def reset(self, task: types.Task) -> types.Observation:
        path = os.path.join(task.path, "game.tw-pddl")
        try:
            if self._path != path:
                self._path = None
                self._env.load(path)
                self._path = path
            state = self._env.reset()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # malformed games raise anything, SystemExit included
            raise EnvError(f"cannot load game {task.path}: {one_line(error)}") from error
        return types.Observation(state.feedback, tuple(state.admissible_commands))

    def step(self, action: str) -> types.StepResult:
        if self._path is None:
            raise EnvError("step was called before reset")
        state, reward, done = self._env.step(action)
        actions = tuple(state.admissible_commands)
        return types.StepResult(state.feedback, actions, float(reward), done, state.won)
