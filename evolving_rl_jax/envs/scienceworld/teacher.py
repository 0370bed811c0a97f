"""A teacher that plays the package's own solution, and says in a skill how such a task goes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from evolving_rl_jax.types import Task

__all__ = ["GoldTeacher"]

_STEPS = 8  # of a skill, at most
_WITHOUT = re.compile(r"^(look|wait|examine)")


class GoldTeacher:
    """Plays the gold path; now and then it looks around first, which costs a step.

    Args:
      task: with its solution as ``meta["walkthrough"]``.
      rng: of its choices.
      action_noise: share of turns with a step that does nothing.
    """

    given = ""

    def __init__(self, task: Task, rng, action_noise: float = 0.0):
        self._plan, self._rng, self._noise = list(task.meta["walkthrough"]), rng, action_noise
        self._kind, self._at = task.task_type.replace("-", " "), 0

    @property
    def target(self) -> str:
        """What the next action is for: its last words."""
        return " ".join(self._next().split()[-2:])

    def _next(self) -> str:
        return self._plan[self._at] if self._at < len(self._plan) else "look around"

    def act(self, observation: str, actions: Sequence[str]) -> str:
        """The next action of the solution."""
        if self._rng.random() < self._noise:
            return "look around"
        action = self._next()
        self._at += 1
        return action

    def skill(self, observations: Sequence[str], won: bool) -> str:
        """The steps that were taken, in order, without those that only look."""
        steps = [a for a in self._plan[: self._at] if not _WITHOUT.match(a)]
        said = ", ".join(dict.fromkeys(steps[:_STEPS])) or "look around"
        return json.dumps({"name": self._kind, "description": said})
