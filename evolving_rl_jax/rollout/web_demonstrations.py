"""Demonstrations on generated sites for the warm start, of deliberately mixed quality.

As in ``rollout.demonstrations``: the scripted solver errs and does not always follow its skill, and the
scripted extractor states what the episode revealed only in a share of the cases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from evolving_rl_jax.envs.mind2web import facts as web_facts
from evolving_rl_jax.envs.mind2web.actions import WebAction
from evolving_rl_jax.envs.mind2web.sites import KINDS, PLACES
from evolving_rl_jax.rollout.contexts import RecentContext, Transcript
from evolving_rl_jax.types import OK, Sample, Task, Turn

# How often a demonstrated prompt holds: no skill, both facts of the site, one of them, wrong places,
# facts about other buttons.
SKILL_KINDS = {"none": 0.25, "both": 0.35, "one": 0.2, "wrong": 0.15, "other": 0.05}


@dataclasses.dataclass
class WebDemonstration:
    """One scripted episode: a sequence for every step, and the extraction after those without skill."""

    task: Task
    won: bool
    samples: list[Sample]


class WebExpert:
    """Knows the task's steps but not where the two ambiguous buttons are right.

    Args:
      task: a generated one.
      rng: of its guesses.
      beliefs: slot -> place to press; others are guessed.
      noise: share of steps with a random element.
    """

    def __init__(self, task: Task, rng, beliefs: dict[str, str], noise: float):
        self._task, self._rng, self._beliefs, self._noise = task, rng, beliefs, noise

    def act(self, observation: str, step: int) -> tuple[str, WebAction]:
        """(what the element is called, the action)."""
        plan = self._task.meta["solution"][step]
        elements = web_facts.page_elements(observation)
        if self._rng.random() < self._noise:
            ref = int(self._rng.choice(sorted(elements)))
            return _called(elements[ref]), WebAction("CLICK", ref)
        context = plan["context"]
        if plan["slot"]:
            places = self._task.meta["habits"][plan["slot"]]
            believed = self._beliefs.get(plan["slot"])
            context = believed if believed in places else str(self._rng.choice(sorted(places)))
        ref = next(n for n, e in elements.items() if e[1:] == (plan["label"], context))
        return _called(elements[ref]), WebAction(plan["op"], ref, plan["value"])


def _called(element: tuple[str, str, str]) -> str:
    return " ".join(part for part in element[1:] if part)


@dataclasses.dataclass
class _Running:
    task: Task
    rng: np.random.Generator
    expert: WebExpert
    skill_text: str
    context: RecentContext
    turns: list[Turn] = dataclasses.field(default_factory=list)


class WebDemonstrator:
    """Plays scripted episodes through the environment pool.

    Args:
      pool: an ``EnvPool`` of ``mind2web`` with the protocol ``stop_at_error``.
      prompts: the style in which the demonstrations are written.
      settings: ``config.warmstart``.
      seed: every episode draws from its own generator, keyed by (seed, number).
    """

    def __init__(self, pool, prompts, settings, seed: int):
        self.pool, self.prompts, self.settings, self.seed = pool, prompts, settings, seed

    def play(
        self,
        tasks: list[Task],
        *,
        concurrent: int = 256,
        progress: Callable[[int], None] | None = None,
    ) -> list[WebDemonstration]:
        """One demonstration for each task, in order; tasks whose environment failed are left out."""
        results: dict[int, WebDemonstration] = {}
        running: dict[int, _Running] = {}
        queue = list(range(len(tasks)))[::-1]
        while queue or running:
            while queue and len(running) < concurrent:
                i = queue.pop()
                running[i] = self._start(i, tasks[i])
            self.pool.flush()
            for i, reply in self.pool.poll(None):
                finished = reply.status != OK or getattr(reply, "done", False)
                if reply.status == OK and finished:
                    results[i] = self._finish(running[i], reply)
                elif not finished:
                    self._advance(i, running[i], reply)
                if finished:
                    self.pool.close(i)
                    del running[i]
            if progress:
                progress(len(tasks) - len(queue) - len(running))
        return [results[i] for i in sorted(results)]

    def _start(self, i: int, task: Task) -> _Running:
        rng = np.random.default_rng([self.seed, i])
        skill, beliefs = make_skill(task, rng)
        follows = rng.random() < self.settings.follow_skill
        expert = WebExpert(task, rng, beliefs if follows else {}, self.settings.action_noise)
        self.pool.reset(i, task)
        return _Running(task, rng, expert, skill, RecentContext(self.prompts, task, skill, 0))

    def _advance(self, i: int, run: _Running, reply) -> None:
        name, action = run.expert.act(reply.text, len(run.turns))
        run.context.observe(reply.text, reply.actions)
        ids = self.prompts.action_ids(name, action)
        run.context.act(ids, np.zeros(len(ids)), np.zeros(len(ids)))
        run.turns.append(Turn(reply.text, "", action.to_json(), True))
        self.pool.step(i, action.to_json())

    def _finish(self, run: _Running, reply) -> WebDemonstration:
        samples = list(run.context.samples())
        if not run.skill_text:  # source episodes are played without a skill
            facts = web_facts.revealed(run.task, run.turns, reply.won)
            text = make_extraction(run.task, facts, run.rng, self.settings.good_extraction)
            ids, request = run.context.extraction(reply.won, reply.text, 1 << 30)
            transcript = Transcript()
            transcript.append_forced(ids + request)
            taught = self.prompts.skill_ids(text)
            transcript.append_sampled(taught, np.zeros(len(taught)), np.zeros(len(taught)))
            samples.append(transcript.sample())
        return WebDemonstration(run.task, reply.won, samples)


def make_skill(task: Task, rng) -> tuple[str, dict[str, str]]:
    """A skill text for a demonstrated prompt, with what it makes the reader believe."""
    kind = str(rng.choice(list(SKILL_KINDS), p=list(SKILL_KINDS.values())))
    right = web_facts.habits(task)
    if kind == "none":
        return "", {}
    if kind == "one":
        slot = str(rng.choice(sorted(right)))
        right = {slot: right[slot]}
    elif kind == "wrong":
        right = web_facts.habits(task, wrong=True)
    elif kind == "other":
        right = _other_facts(task, rng)
    return web_facts.facts_text(right), right


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
