"""The teacher of tasks split by object: it knows no usual places, and follows what a skill says.

So the cloned policy knows nothing of where things are kept, reads skills of either form, and writes
them in either form: which form is worth more is left to the reward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evolving_rl_jax.envs.alfworld import facts
from evolving_rl_jax.envs.alfworld.experts import SearchingExpert
from evolving_rl_jax.envs.alfworld.objects.claims import sentence
from evolving_rl_jax.envs.alfworld.objects.truth import kind_of
from evolving_rl_jax.types import Task

__all__ = ["LESSONS", "ObjectTeacher"]

_MOVED = re.compile(r"(?:take|move) (\w+) \d+ ")
# How often a demonstrated prompt holds: no skill, a place where the object is, another place of the
# room.  What is said of it has a number or not, half and half.
LESSONS = {"none": 0.35, "true": 0.4, "wrong": 0.25}


class ObjectTeacher:
    """Plays one episode and writes a skill after it; see `benchmark.Teacher`.

    Args:
      task: with its truth (``kept``).
      rng: of its skill, its errors and its guesses.
      quality: ``config.warmstart``; its ``action_noise`` is the probability of a whim where something
        can be taken.  Whims teach to name and take things that no task of the warm start is about.
    """

    def __init__(self, task: Task, rng, quality):
        self._task, self._rng, self._good = task, rng, quality.good_extraction
        obj = task.meta["object"]
        lesson = rng.choice(list(LESSONS), p=list(LESSONS.values()))
        beliefs = {}
        if lesson != "none":
            kept = task.meta["kept"]
            wrong = [p for p in task.meta["places"] if p not in kept]
            places = kept if lesson == "true" or not wrong else wrong
            beliefs = {obj: self._either_form(str(rng.choice(places)))}
        self.given = facts.skill_json(obj, sentence(obj, beliefs[obj])) if beliefs else ""
        follow = rng.random() < quality.follow_skill
        self._expert = SearchingExpert(task, rng, beliefs if follow else {})
        self._whims = quality.action_noise
        self.target = self._expert.target

    def act(self, observation: str, actions: Sequence[str]) -> str:
        """The next action; by a whim it takes whatever is there, and says so."""
        action = self._expert.act(observation, actions)
        self.target = self._expert.target
        takes = [a for a in actions if a.startswith("take ")]
        if takes and self._rng.random() < self._whims:
            action = str(self._rng.choice(takes))
        moved = _MOVED.match(action)
        if moved:
            self.target = moved[1]
        return action

    def skill(self, observations: Sequence[str], won: bool) -> str:
        """The skill that it writes down after the episode (JSON text), in either form.

        With probability ``quality.good_extraction`` it says where the episode saw the object, where it
        did; otherwise it names a place that the episode saw, or any of the room.
        """
        obj = self._task.meta["object"]
        seen = facts.seen_contents(list(observations))
        own = [place for place, classes in seen.items()
               if obj in classes and kind_of(place) != self._task.meta["target"]]  # fmt: skip
        if own and self._rng.random() < self._good:
            place = own[0]
        else:
            place = str(self._rng.choice(sorted(seen) or self._task.meta["places"]))
        return facts.skill_json(obj, sentence(obj, self._either_form(place)))

    def _either_form(self, place: str) -> str:
        return kind_of(place) if self._rng.random() < 0.5 else place
