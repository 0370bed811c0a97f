"""ALFWorld as published: the reference that our own engine is compared with."""

from __future__ import annotations

import os

from evolving_rl_jax import types
from evolving_rl_jax.envs.base import EnvError, Environment, one_line, refuse_won

__all__ = ["StockAlfworld"]


class StockAlfworld(Environment):
    """The published engine, untouched; one copy of its C library an environment."""

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
        refuse_won(task, state.won)
        return types.Observation(state.feedback, tuple(state.admissible_commands))

    def step(self, action: str) -> types.StepResult:
        if self._path is None:
            raise EnvError("step was called before reset")
        state, reward, done = self._env.step(action)
        actions = tuple(state.admissible_commands)
        return types.StepResult(state.feedback, actions, float(reward), done, state.won)
