"""Demonstrations for the warm start: a benchmark's teacher plays, and its words become tokens.

What is taught is written by the same functions, with the same arguments, as what the policy will play:
``rollout.contexts`` makes the prompts, and a skill is shown as ``prompts.render_skill`` shows it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from evolving_rl_jax.envs import benchmark
from evolving_rl_jax.envs.benchmark import Teacher
from evolving_rl_jax.rollout.contexts import FullContext, RecentContext, Transcript, make_context
from evolving_rl_jax.skills.schema import parse_skill
from evolving_rl_jax.types import OK, Sample, Task

_DRAWS = 1000  # of teachers, of which a third is given no skill


@dataclasses.dataclass
class Demonstration:
    """One scripted episode.

    Attributes:
      task: that was played.
      won: how it ended.
      episode: the sequences of the solver, see `types.Episode`.
      extraction: the sequence of the extractor, after episodes without a skill only.
    """

    task: Task
    won: bool
    episode: list[Sample]
    extraction: Sample | None

    @property
    def samples(self) -> list[Sample]:
        """All sequences."""
        return self.episode + ([] if self.extraction is None else [self.extraction])


@dataclasses.dataclass
class _Running:
    task: Task
    teacher: Teacher
    context: FullContext | RecentContext
    observations: list[str] = dataclasses.field(default_factory=list)


class Demonstrator:
    """Plays scripted episodes through the environment pool.

    Args:
      pool: an ``EnvPool``.
      prompts: the style in which the demonstrations are written.
      rollout: ``config.rollout``: what of an episode a prompt holds, and how long it may be.
      quality: ``config.warmstart``: how well the teachers play.
      seed: every episode draws from its own generator, keyed by (seed, number).
      fit: cuts a skill to what the prompt may hold.
    """

    def __init__(self, pool, prompts, rollout, quality, seed: int, fit: Callable[[str], str] = str):
        self.pool, self.prompts, self.rollout = pool, prompts, rollout
        self.quality, self.seed, self.fit = quality, seed, fit

    def play(
        self,
        tasks: Sequence[Task],
        *,
        first: int = 0,
        extracted: bool = False,
        concurrent: int = 256,
        progress: Callable[[int], None] | None = None,
    ) -> list[Demonstration]:
        """One demonstration for each task, in order; tasks whose environment failed are left out.

        Args:
          tasks: to play.
          first: number of the first demonstration.
          extracted: each is to have an extraction, so none is given a skill.
          concurrent: most that are under way at a time.
          progress: called with the number of finished ones now and then.
        """
        results: dict[int, Demonstration] = {}
        running: dict[int, _Running] = {}
        queue = list(range(len(tasks)))[::-1]
        while queue or running:
            while queue and len(running) < concurrent:
                i = queue.pop()
                running[i] = self._start(i, tasks[i], self._teacher(first + i, tasks[i], extracted))
            self.pool.flush()
            for i, reply in self.pool.poll(None):
                if reply.status == OK and not self._is_over(running[i], reply):
                    self._advance(i, running[i], reply)
                    continue
                if reply.status == OK:
                    results[i] = self._finish(running[i], reply)
                self.pool.close(i)
                del running[i]
            if progress:
                progress(len(tasks) - len(queue) - len(running))
        return [results[i] for i in sorted(results)]

    def _teacher(self, number: int, task: Task, extracted: bool) -> Teacher:
        """The teacher of a demonstration; with ``extracted`` the first of its draws without a skill."""
        for draw in range(_DRAWS):
            key = [self.seed, number, draw] if extracted else [self.seed, number]
            teacher = benchmark(task.env).teacher(task, np.random.default_rng(key), self.quality)
            if not (extracted and teacher.given):
                return teacher
        raise ValueError(f"a teacher must play some episodes without a skill, got none in {_DRAWS}")

    def _start(self, i: int, task: Task, teacher: Teacher) -> _Running:
        r = self.rollout
        context = make_context(
            r.context, r.recent_turns, self.prompts, task, self._shown(teacher.given)
        )
        self.pool.reset(i, task)
        return _Running(task, teacher, context)

    def _shown(self, given: str) -> str:
        """A teacher's skill as the solver will read skills; empty for none."""
        if not given:
            return ""
        skill, reason = parse_skill(given)
        if skill is None:
            raise ValueError(f"a teacher's skill must be one that can be read, got {reason}")
        return self.fit(self.prompts.render_skill(skill))

    def _is_over(self, run: _Running, reply) -> bool:
        limit = min(self.rollout.max_steps, run.task.step_limit)
        return bool(run.observations) and (reply.done or len(run.observations) >= limit)

    def _advance(self, i: int, run: _Running, reply) -> None:
        """Writes the next turn."""
        run.observations.append(reply.text)
        run.context.observe(reply.text, reply.actions)
        action = run.teacher.act(reply.text, reply.actions)
        run.context.act(*_taught(self.prompts.action_ids(run.teacher.target, action)))
        self.pool.step(i, action)

    def _finish(self, run: _Running, reply) -> Demonstration:
        extraction = None
        if not run.teacher.given:  # source episodes are played without a skill
            text = run.teacher.skill([*run.observations, reply.text], reply.won)
            room = self.rollout.max_length - self.rollout.max_skill_tokens
            ids, request = run.context.extraction(reply.won, reply.text, room)
            transcript = Transcript()
            transcript.append_forced(ids)
            transcript.append_forced(request)
            transcript.append_taught(self.prompts.skill_ids(text))
            extraction = transcript.sample()
        return Demonstration(run.task, reply.won, run.context.samples(), extraction)


def _taught(ids: list[int]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Ids as a policy would have sampled them, without log-probabilities."""
    zeros = np.zeros(len(ids), np.float32)
    return ids, zeros, zeros
