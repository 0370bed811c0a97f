"""The teacher of household tasks: a scripted solver and extractor of deliberately mixed quality.

The cloned policy must be able to act and to write skills, with clear room to improve: the scripted solver
errs and does not always follow the skill it is given, and the scripted extractor states the decisive fact
only in a share of the cases in which it could.
"""

from __future__ import annotations

from collections.abc import Sequence

from evolving_rl_jax.envs.alfworld import facts
from evolving_rl_jax.envs.alfworld.experts import SearchingExpert
from evolving_rl_jax.envs.alfworld.households.scenes import usual_places
from evolving_rl_jax.types import Task

__all__ = ["SKILL_KINDS", "HouseholdTeacher", "make_extraction", "make_skill"]

# How often a demonstrated prompt holds: no skill, a true one, a wrong place, a fact on another object,
# a place that the object is not in.
SKILL_KINDS = {"none": 0.35, "true": 0.3, "wrong": 0.12, "other": 0.13, "excluded": 0.1}


class HouseholdTeacher:
    """Plays one episode and writes a skill after it; see `benchmark.Teacher`.

    Args:
      task: a generated one.
      rng: of its skill, its errors and its guesses.
      quality: ``config.warmstart``.
    """

    def __init__(self, task: Task, rng, quality):
        self._task, self._rng, self._good = task, rng, quality.good_extraction
        sentence, beliefs, excluded = make_skill(task, rng)
        self.given = facts.skill_json(task.meta["object"], sentence) if sentence else ""
        follow = rng.random() < quality.follow_skill
        self._expert = SearchingExpert(
            task,
            rng,
            beliefs if follow else {},
            excluded=excluded if follow else {},
            usual=usual_places() if "scene" in task.meta else None,
            noise=quality.action_noise,
        )
        self.target = self._expert.target

    def act(self, observation: str, actions: Sequence[str]) -> str:
        """The next action."""
        return self._expert.act(observation, actions)

    def skill(self, observations: Sequence[str], won: bool) -> str:
        """The skill that it writes down after the episode (JSON text)."""
        return make_extraction(self._task, observations, self._rng, self._good)


def make_skill(task: Task, rng) -> tuple[str, dict[str, str], dict[str, set[str]]]:
    """The sentence of a skill for a demonstrated prompt, with what it makes the reader believe."""
    kind = rng.choice(list(SKILL_KINDS), p=list(SKILL_KINDS.values()))
    obj, place, kept = task.meta["object"], task.meta["place"], task.meta["habits"]
    others = sorted(o for o in kept if o != obj)
    wrong = sorted(p for p in kept.values() if p != place)
    if kind == "none":
        return "", {}, {}
    if kind == "true":
        return facts.fact_sentence(obj, place), {obj: place}, {}
    if kind == "excluded":
        out = str(rng.choice(wrong))
        return facts.fact_sentence(obj, out, negated=True), {}, {obj: {out}}
    if kind == "wrong":
        belief = {obj: str(rng.choice(wrong))}
    else:
        other = str(rng.choice(others))
        belief = {other: kept[other]}
    ((o, p),) = belief.items()
    return facts.fact_sentence(o, p), belief, {}


def make_extraction(task: Task, observations: Sequence[str], rng, good: float) -> str:
    """A skill of mixed quality from what an episode saw (JSON text).

    With probability ``good`` it states the most useful thing that the episode revealed: where the task's
    own object is kept, or else a place that it is not in.  Otherwise it states something else: another
    object that was seen, or a guess.
    """
    obj, habits = task.meta["object"], task.meta["habits"]
    places = sorted(habits.values())
    seen = {p: c for p, c in facts.seen_contents(observations).items() if p in places}
    own = [p for p, classes in seen.items() if obj in classes]
    others = sorted(
        (c, p) for p, classes in seen.items() for c in classes if c in habits and c != obj
    )
    empty = sorted(p for p in seen if p not in own)
    draw = rng.random()
    if draw < good and own:
        sentence = facts.fact_sentence(obj, own[0])
    elif draw < good and empty:
        sentence = facts.fact_sentence(obj, str(rng.choice(empty)), negated=True)
    elif others and rng.random() < 0.5:
        other, place = others[rng.integers(len(others))]
        sentence = facts.fact_sentence(other, place)
    else:
        sentence = facts.fact_sentence(obj, str(rng.choice(places)))
    return facts.skill_json(obj, sentence)
