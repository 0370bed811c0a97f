"""The teacher of generated sites: a scripted solver and extractor of deliberately mixed quality.

As in ``envs.alfworld.teacher``: the solver errs and does not always follow its skill, and the extractor
states what the attempts revealed only in a share of the cases.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence

from evolving_rl_jax.envs.mind2web import facts as web_facts
from evolving_rl_jax.envs.mind2web.actions import WebAction
from evolving_rl_jax.envs.mind2web.site_kinds import KINDS, choices_of
from evolving_rl_jax.envs.web.compact import compact_text
from evolving_rl_jax.envs.web.page import Element
from evolving_rl_jax.types import Task, Turn

__all__ = ["SKILL_KINDS", "WebExpert", "WebTeacher", "joint_skill", "make_extraction", "make_skill"]

# How often a demonstrated prompt holds: no skill, both facts of the site, one of them, wrong choices,
# facts about other sites.
SKILL_KINDS = {"none": 0.25, "both": 0.35, "one": 0.2, "wrong": 0.15, "other": 0.05}


class WebExpert:
    """Knows the task's steps but not what is right at the habits of its site.

    Args:
      task: a generated one.
      rng: of its guesses.
      beliefs: slot -> choice to make; others are guessed.
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
        plan = self._planned(self._step)
        self._step += 1
        elements = web_facts.page_elements(observation)
        seen = plan["role"], plan["label"], plan["context"]
        ref = next((n for n, e in elements.items() if e == seen), None)
        if ref is None or self._rng.random() < self._noise:  # None: too few tokens to show it
            action = WebAction("CLICK", int(self._rng.choice(sorted(elements) or [1])))
        else:
            action = WebAction(plan["op"], ref, plan["value"])
        self.target = _written(*elements.get(action.ref, ("link", "", "")))
        return action.to_json()

    def _planned(self, step: int) -> dict[str, str]:
        """What is to be done at a step: at a habit what is believed to be right, or any choice."""
        plan = self._task.meta["solution"][step]
        choices = web_facts.choices_at(self._task, step)
        if not choices:
            return plan
        believed = self._beliefs.get(plan["slot"])
        return choices[believed if believed in choices else str(self._rng.choice(sorted(choices)))]


def _written(role: str, label: str, context: str) -> str:
    """An element as compact pages write it: the role tells a field from the text beside it."""
    return compact_text(Element("", role, label, context=context).name)


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
        return joint_skill([(self, won)])

    @property
    def turns(self) -> list[Turn]:
        """What it read and did."""
        return self._turns

    def extraction(self, attempts: Sequence[tuple[Sequence[Turn], bool]]) -> str:
        """The skill that it writes down after attempts at its task, each (turns, won)."""
        facts, ruled_out = web_facts.revealed(
            self._task, *((turns, web_facts.until_error(turns, won)) for turns, won in attempts)
        )
        return make_extraction(self._task, facts, self._rng, self._good, ruled_out)


def joint_skill(attempts: Sequence[tuple[WebTeacher, bool]]) -> str:
    """The skill (JSON text) that the last of several teachers writes of all attempts, each with its outcome."""
    writer = attempts[-1][0]
    return writer.extraction([(teacher.turns, won) for teacher, won in attempts])


def make_skill(task: Task, rng) -> dict[str, str]:
    """The facts (slot -> choice) that the skill of a demonstrated prompt states; none without one."""
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
    """Facts about habits that the task's site does not have."""
    kinds = [k for k in KINDS if not set(k.slots) & set(task.meta["habits"])]
    kind = kinds[rng.integers(len(kinds))]
    choices = choices_of(kind, random.Random(int(rng.integers(1 << 30))))
    return {slot: found[0] for slot, found in choices.items()}


def make_extraction(
    task: Task,
    facts: dict[str, str],
    rng,
    good: float,
    ruled_out: Mapping[str, Collection[str]] | None = None,
) -> str:
    """A skill of mixed quality from what attempts revealed (JSON text).

    With probability ``good`` it is careful: it states all that was revealed, and a guess at what was tried and not
    decided, out of what was not ruled out, under the name of the site.  Otherwise it guesses at all of it, any
    choice of each habit that was met (or of one of the site's, if none), under the name of the domain.  A policy
    that is cloned on both begins a skill with either name, and what it begins with says how it will go on.
    """
    ruled_out = ruled_out or {}
    choices = task.meta["habits"]
    met = [slot for slot in choices if slot in facts or slot in ruled_out]
    if met and rng.random() < good:
        said = {
            slot: facts[slot]
            if slot in facts
            else str(rng.choice(sorted(set(choices[slot]) - set(ruled_out[slot]))))
            for slot in met
        }
        return web_facts.skill_json(task.group, said)
    slots = met or [str(rng.choice(sorted(choices)))]
    said = {slot: str(rng.choice(sorted(choices[slot]))) for slot in slots}
    return web_facts.skill_json(task.task_type.lower(), said)
