"""Demonstrations for the warm start: scripted solvers and extractors of deliberately mixed quality.

The cloned policy must be able to act and to write skills, with clear room to improve: the scripted solver
errs and does not always follow the skill it is given, and the scripted extractor states the decisive fact
only in a share of the cases in which it could.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from evolving_rl_jax.envs.alfworld import facts
from evolving_rl_jax.envs.alfworld.experts import SearchingExpert
from evolving_rl_jax.envs.alfworld.households.scenes import usual_places
from evolving_rl_jax.rollout.episode import Transcript
from evolving_rl_jax.types import OK, Sample, Task

# How often a demonstrated prompt holds: no skill, a true one, a wrong place, a fact on another object,
# a place that the object is not in.
SKILL_KINDS = {"none": 0.35, "true": 0.3, "wrong": 0.12, "other": 0.13, "excluded": 0.1}


@dataclasses.dataclass
class Demonstration:
    """One scripted episode: what the solver is trained on, and the extraction that follows it."""

    task: Task
    won: bool
    solver: Sample
    extraction: Sample | None

    @property
    def samples(self) -> list[Sample]:
        """All sequences."""
        return [s for s in (self.solver, self.extraction) if s is not None]


@dataclasses.dataclass
class _Running:
    task: Task
    rng: np.random.Generator
    expert: SearchingExpert
    skill_text: str
    transcript: Transcript
    observations: list[str]
    steps: int = 0


class Demonstrator:
    """Plays scripted episodes through the environment pool.

    Args:
      pool: an ``EnvPool``.
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
    ) -> list[Demonstration]:
        """One demonstration for each task, in order; tasks whose environment failed are left out."""
        results: dict[int, Demonstration] = {}
        running: dict[int, _Running] = {}
        queue = list(range(len(tasks)))[::-1]
        while queue or running:
            while queue and len(running) < concurrent:
                i = queue.pop()
                running[i] = self._start(i, tasks[i])
            self.pool.flush()
            for i, reply in self.pool.poll(None):
                demonstration = self._advance(i, running[i], reply)
                if demonstration is not None or reply.status != OK:
                    self.pool.close(i)
                    del running[i]
                if demonstration is not None:
                    results[i] = demonstration
            if progress:
                progress(len(tasks) - len(queue) - len(running))
        return [results[i] for i in sorted(results)]

    def _start(self, i: int, task: Task) -> _Running:
        rng = np.random.default_rng([self.seed, i])
        text, beliefs, excluded = make_skill(task, rng)
        follow = rng.random() < self.settings.follow_skill
        expert = SearchingExpert(
            task,
            rng,
            beliefs if follow else {},
            excluded=excluded if follow else {},
            usual=usual_places() if "scene" in task.meta else None,
            noise=self.settings.action_noise,
        )
        self.pool.reset(i, task)
        return _Running(task, rng, expert, text, Transcript(), [])

    def _advance(self, i: int, run: _Running, reply) -> Demonstration | None:
        """Writes the next turn, or returns the finished demonstration."""
        if reply.status != OK:
            return None
        first = not run.observations
        run.observations.append(reply.text)
        if not first and (reply.done or run.steps >= run.task.step_limit):
            return self._finish(run, won=reply.won)
        ids = (
            self.prompts.solver_prompt(run.task, run.skill_text, reply.text)
            if first
            else self.prompts.next_turn(reply.text)
        )
        action = run.expert.act(reply.text, reply.actions)
        run.transcript.append_forced(ids)
        _append_taught(run.transcript, self.prompts.action_ids(run.expert.target, action))
        run.steps += 1
        self.pool.step(i, action)
        return None

    def _finish(self, run: _Running, *, won: bool) -> Demonstration:
        solver = run.transcript.sample()
        extraction = None
        if not run.skill_text:  # source episodes are played without a skill
            text = make_extraction(
                run.task, run.observations, run.rng, self.settings.good_extraction
            )
            context = Transcript()
            context.append_forced(solver.tokens)
            context.append_forced(self.prompts.extractor_prompt(won, run.observations[-1]))
            _append_taught(context, self.prompts.skill_ids(text))
            extraction = context.sample()
        return Demonstration(run.task, won, solver, extraction)


def _append_taught(transcript: Transcript, ids: list[int]) -> None:
    zeros = np.zeros(len(ids), np.float32)
    transcript.append_sampled(ids, zeros, zeros)


def make_skill(task: Task, rng) -> tuple[str, dict[str, str], dict[str, set[str]]]:
    """A skill text for a demonstrated prompt, with what it makes the reader believe."""
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


def make_extraction(task: Task, observations: list[str], rng, good: float) -> str:
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
