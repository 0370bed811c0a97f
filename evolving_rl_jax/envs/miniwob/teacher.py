"""The teacher of pages: plays a script, errs now and then, and says in a skill how such a page is used."""

from __future__ import annotations

import json
from collections.abc import Sequence

from evolving_rl_jax.envs.miniwob.skills import HOW, VAGUE
from evolving_rl_jax.envs.miniwob.solvers import SCRIPTS, Lost, View
from evolving_rl_jax.envs.web.actions import WebAction
from evolving_rl_jax.types import Task

__all__ = ["ScriptTeacher", "skill_json"]

# How often a demonstrated prompt holds: no skill, that of the family, that of another one.
_GIVEN = {"none": 0.4, "own": 0.5, "other": 0.1}


def skill_json(family: str, said: str) -> str:
    """A skill as the extractor writes it."""
    return json.dumps({"name": family.replace("-", " "), "description": said})


class ScriptTeacher:
    """Plays one episode; see `benchmark.Teacher`.

    Where its script knows no further, after an error of its own, it presses anything.

    Args:
      task: of a family with a script.
      rng: of its skill and its errors.
      action_noise: share of turns in which it presses anything.
      good_extraction: share of episodes after which it says how the page is used.
    """

    def __init__(self, task: Task, rng, action_noise: float = 0.0, good_extraction: float = 1.0):
        self._family, self._rng = task.meta["family"], rng
        self._text, self._noise, self._good = task.text, action_noise, good_extraction
        self._play = None
        kind = str(rng.choice(list(_GIVEN), p=list(_GIVEN.values())))
        trained = task.meta.get("trained", HOW)  # what families of a test need is in no lesson
        others = sorted(f for f in trained if HOW.get(f, HOW[self._family]) != HOW[self._family])
        other = str(rng.choice(others)) if others else ""
        named = {"own": self._family, "other": other}.get(kind)
        self.given = skill_json(named, HOW[named]) if named else ""
        self.target = "page"

    def act(self, observation: str, actions: Sequence[str] = ()) -> str:
        """The next action (JSON text)."""
        page = View(observation)
        action = self._scripted(page)
        if action is None or self._rng.random() < self._noise:
            refs = [e.ref for e in page.items] or [1]
            action = WebAction("CLICK", int(self._rng.choice(refs)))
        names = [e.label for e in page.items if e.ref == action.ref]
        self.target = " ".join((names[0] if names else "").split()[:4]) or "field"
        return action.to_json()

    def _scripted(self, page: View) -> WebAction | None:
        try:
            if self._play is None:
                self._play = SCRIPTS[self._family](self._text, page)
                return next(self._play)
            return self._play.send(page)
        except (
            Lost,
            StopIteration,
            RuntimeError,
            IndexError,
            ValueError,
            AttributeError,
            TypeError,
        ):
            return None  # a page that no script expects, after an error

    def skill(self, observations: Sequence[str], won: bool) -> str:
        """The skill that it writes down after the episode (JSON text)."""
        good = won and self._rng.random() < self._good
        return skill_json(self._family, HOW[self._family] if good else VAGUE)
