"""The teacher of generated sites: a scripted solver and extractor of deliberately mixed quality.

As in ``envs.alfworld.teacher``: the solver errs and does not always follow its skill, and the extractor
states what the episode revealed only in a share of the cases.
"""

from __future__ import annotations

from collections.abc import Sequence

from evolving_rl_jax.envs.mind2web import facts as web_facts
from evolving_rl_jax.envs.mind2web.actions import WebAction
from evolving_rl_jax.envs.mind2web.sites import KINDS, PLACES
from evolving_rl_jax.types import Task, Turn

__all__ = ["SKILL_KINDS", "WebExpert", "WebTeacher", "make_extraction", "make_skill"]

# How often a demonstrated prompt holds: no skill, both facts of the site, one of them, wrong places,
# facts about other buttons.
SKILL_KINDS = {"none": 0.25, "both": 0.35, "one": 0.2, "wrong": 0.15, "other": 0.05}


class WebExpert:
    """Knows the task's steps but not where the two ambiguous buttons are right.

    Args:
      task: a generated one.
      rng: of its guesses.
      beliefs: slot -> place to press; others are guessed.
      noise: share of steps with a random element.

    Attributes:
      target: what the element of its last action is called.
    """

    def __init__(self, task: Task, rng, beliefs: dict[str, str], noise: float):
        self._task, self._rng, self._beliefs, self._noise = task, rng, beliefs, noise
        self._step = 0
        self.target = ""

    def act(self, observation: str, actions: Sequence[str] = ()) -> str:
        """The next action (JSON text)."""
        plan = self._task.meta["solution"][self._step]
        self._step += 1
        elements = web_facts.page_elements(observation)
        if self._rng.random() < self._noise:
            action = WebAction("CLICK", int(self._rng.choice(sorted(elements))))
        else:
            seen = plan["role"], plan["label"], self._context(plan)
            ref = next(n for n, e in elements.items() if e == seen)
            action = WebAction(plan["op"], ref, plan["value"])
        self.target = " ".join(part for part in elements[action.ref][1:] if part)
        return action.to_json()

    def _context(self, plan: dict[str, str]) -> str:
        """Where the element of a step is believed to be."""
        if not plan["slot"]:
            return plan["context"]
        places = self._task.meta["habits"][plan["slot"]]
        believed = self._beliefs.get(plan["slot"])
        return believed if believed in places else str(self._rng.choice(sorted(places)))


class WebTeacher:
    """Plays one episode under ``stop_at_error`` and writes a skill after it; see `benchmark.Teacher`.

    Args:
      task: a generated one.
      rng: of its skill, its errors and its guesses.
      quality: ``config.warmstart``.
    """

    def __init__(self, task: Task, rng, quality):
        self._task, self._rng, self._good = task, rng, quality.good_extraction
        facts = make_skill(task, rng)
        self.given = web_facts.skill_json(task.group, facts) if facts else ""
        follows = rng.random() < quality.follow_skill
        self._expert = WebExpert(task, rng, facts if follows else {}, quality.action_noise)
        self._turns: list[Turn] = []

    @property
    def target(self) -> str:
        """What the element of its last action is called."""
        return self._expert.target

    def act(self, observation: str, actions: Sequence[str] = ()) -> str:
        """The next action (JSON text)."""
        action = self._expert.act(observation)
        self._turns.append(Turn(observation, "", action, True))
        return action

    def skill(self, observations: Sequence[str], won: bool) -> str:
        """The skill that it writes down after the episode (JSON text)."""
        facts = web_facts.revealed(self._task, self._turns, won)
        return make_extraction(self._task, facts, self._rng, self._good)


def make_skill(task: Task, rng) -> dict[str, str]:
    """The facts (slot -> place) that the skill of a demonstrated prompt states; none without one."""
    kind = str(rng.choice(list(SKILL_KINDS), p=list(SKILL_KINDS.values())))
    right = web_facts.habits(task)
    if kind == "none":
        return {}
    if kind == "one":
        slot = str(rng.choice(sorted(right)))
        right = {slot: right[slot]}
    elif kind == "wrong":
        right = web_facts.habits(task, wrong=True)
    elif kind == "other":
        right = _other_facts(task, rng)
    return right


def _other_facts(task: Task, rng) -> dict[str, str]:
    """Facts about buttons that the task's site does not have."""
    slots = [k.slots for k in KINDS if not set(k.slots) & set(task.meta["habits"])]
    chosen = slots[rng.integers(len(slots))]
    return {slot: str(rng.choice(PLACES[rng.integers(len(PLACES))])) for slot in chosen}


def make_extraction(task: Task, facts: dict[str, str], rng, good: float) -> str:
    """A skill of mixed quality from what an episode revealed (JSON text).

    With probability ``good`` it states all that the episode revealed.  Otherwise it guesses: for every
    button that the episode pressed (or one of the site's, if none) a place at random.
    """
    if not facts or rng.random() >= good:
        slots = list(facts) or [str(rng.choice(sorted(task.meta["habits"])))]
        facts = {slot: str(rng.choice(sorted(task.meta["habits"][slot]))) for slot in slots}
    return web_facts.skill_json(task.group, facts)
