"""ScienceWorld as an environment."""

from __future__ import annotations

import dataclasses

from evolving_rl_jax.envs.base import EnvError, Environment
from evolving_rl_jax.envs.scienceworld.game import Simulator
from evolving_rl_jax.types import Observation, StepResult, Task

__all__ = ["Options", "ScienceWorld"]

_ACTIONS = ("none", "valid")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the environment.

    Attributes:
      actions: which admissible actions are listed: ``none`` (the prompts say their forms), or
        ``valid``, every one that makes sense, up to a thousand.
    """

    actions: str = "none"

    def __post_init__(self):
        if self.actions not in _ACTIONS:
            raise ValueError(f"actions must be one of {', '.join(_ACTIONS)}, got {self.actions!r}")


class ScienceWorld(Environment):
    """One simulator; its Java process starts with the first episode.

    The score is the package's, from 0 to 1: a step's reward is what it adds, and a task is won at 1.
    A score below 0 (a wrong focus) ends the episode, as the package has it.
    """

    def __init__(self, options: Options):
        self._options = options
        self._simulator = Simulator()
        self._score = 0.0

    def load(self, task: Task) -> None:
        """Has the simulator build the task."""
        meta = task.meta
        for key in ("task", "variation"):
            if key not in meta:
                raise EnvError(f"task {task.id} of scienceworld has no {key!r} in its meta")
        self._simulator.load(meta["task"], int(meta["variation"]), meta.get("simplifications", ""))

    def reset(self, task: Task) -> Observation:
        self.load(task)
        self._score = 0.0
        return Observation(self._simulator.reset(), self._actions())

    def step(self, action: str) -> StepResult:
        text, score, completed = self._simulator.step(action)
        reward, self._score = score - self._score, score
        done = completed or score < 0
        won = score >= 1.0
        actions = () if done else self._actions()
        return StepResult(text, actions, reward, done or won, won, info={"score": score})

    def close(self) -> None:
        """Nothing: the simulator is used for the next episode, and ends with its process."""

    def __del__(self):
        self._simulator.close()

    def _actions(self) -> tuple[str, ...]:
        return tuple(self._simulator.valid_actions()) if self._options.actions == "valid" else ()
