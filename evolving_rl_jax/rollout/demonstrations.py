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
from evolving_rl_jax.rollout.attempts import Attempt, read_attempts, reading_order
from evolving_rl_jax.rollout.contexts import FullContext, RecentContext, Transcript, make_context
from evolving_rl_jax.skills.schema import parse_skill
from evolving_rl_jax.types import OK, Episode, Sample, Task, worth

_DRAWS = 1000  # of teachers, of which a third is given no skill
_ATTEMPTS = 1_000_000  # the draws of further attempts come after those of the first


@dataclasses.dataclass
class Demonstration:
    """One scripted episode.

    Attributes:
      task: that was played.
      won: how it ended.
      episode: the sequences of the solver, see `types.Episode`.
      extraction: the sequence of the extractor, after episodes without a skill only; of several
        attempts where sources are played several times, of which ``episode`` is the first.
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
    rewards: list[float] = dataclasses.field(default_factory=list)
    infos: list[dict | None] = dataclasses.field(default_factory=list)
    won: bool = False

    def episode(self) -> Episode:
        """As `attempts.reading_order` looks at it."""
        reward = worth(self.rewards, self.won)
        return Episode(
            self.task, [], self.won, OK, [], reward, rewards=self.rewards, infos=self.infos
        )


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
        # (task, what its environment said) of the last `play`.
        self.failures: list[tuple[str, str]] = []

    def play(
        self,
        tasks: Sequence[Task],
        *,
        first: int = 0,
        extracted: bool = False,
        concurrent: int = 64,
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
        self.failures = []
        ended: dict[int, dict[int, _Running | None]] = {}  # of each demonstration by attempt
        running: dict[int, _Running] = {}
        # Numbers of (demonstration, attempt); those of one demonstration follow on each other.
        count = self.rollout.num_source_episodes
        queue = [i * count for i in range(len(tasks))][::-1]
        results: dict[int, Demonstration | None] = {}
        while queue or running:
            while queue and len(running) < concurrent:
                key = queue.pop()
                i, attempt = divmod(key, count)
                teacher = self._teacher(first + i, tasks[i], extracted or attempt > 0, attempt)
                running[key] = self._start(key, tasks[i], teacher)
                if attempt == 0:
                    read = 1 if teacher.given else count
                    ended[i] = dict.fromkeys(range(read))
                    queue += range(key + read - 1, key, -1)
            self.pool.flush()
            for key, reply in self.pool.poll(None):
                run, (i, attempt) = running[key], divmod(key, count)
                self._note(run, reply)
                if reply.status == OK and not self._is_over(run, reply):
                    self._advance(key, run, reply)
                    continue
                self.pool.close(key)
                del running[key]
                if reply.status == OK:
                    ended[i][attempt] = self._end(run, reply)
                else:
                    results[i] = None  # all of it is left out
                    self.failures.append((tasks[i].id, reply.text))
                if None not in ended[i].values():
                    results.setdefault(i, self._finish(list(ended[i].values())))
            if progress:
                progress(len(results))
        return [found for _, found in sorted(results.items()) if found is not None]

    def _teacher(self, number: int, task: Task, extracted: bool, attempt: int = 0) -> Teacher:
        """The teacher of a demonstration; with ``extracted`` the first of its draws without a skill.

        ``attempt`` counts those after the first.
        """
        for draw in range(_DRAWS):
            drawn = draw + attempt * _ATTEMPTS
            key = [self.seed, number, drawn] if extracted else [self.seed, number]
            teacher = benchmark(task.env).teacher(task, np.random.default_rng(key), self.quality)
            if not (extracted and teacher.given):
                return teacher
        raise ValueError(f"a teacher must play some episodes without a skill, got none in {_DRAWS}")

    def _start(self, i: int, task: Task, teacher: Teacher) -> _Running:
        r = self.rollout
        context = make_context(
            r.context,
            r.recent_turns,
            self.prompts,
            task,
            self._shown(teacher.given),
            r.extraction_lines,
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

    @staticmethod
    def _note(run: _Running, reply) -> None:
        """Keeps what a step was worth; the first reply is that of a reset."""
        if run.observations and reply.status == OK:
            run.rewards.append(reply.reward)
            run.infos.append(reply.info)

    @staticmethod
    def _end(run: _Running, reply) -> _Running:
        run.observations.append(reply.text)
        run.won = bool(reply.won)
        return run

    def _advance(self, i: int, run: _Running, reply) -> None:
        """Writes the next turn."""
        run.observations.append(reply.text)
        run.context.observe(reply.text, reply.actions)
        action = run.teacher.act(reply.text, reply.actions)
        taught = self.prompts.action_ids(run.teacher.target, action, reply.text)
        run.context.act(*_taught(taught))
        run.context.acted(action)
        self.pool.step(i, action)

    def _finish(self, runs: Sequence[_Running]) -> Demonstration:
        first, extraction = runs[0], None
        if not first.teacher.given:  # source episodes are played without a skill
            order = reading_order([run.episode() for run in runs])
            runs = [runs[i] for i in order]
            told = [(run.teacher, run.observations, run.won) for run in runs]
            text = benchmark(first.task.env).skill_after(told)
            length = self.rollout.max_length - self.rollout.max_skill_tokens
            attempts = [Attempt(run.context, run.won, run.observations[-1]) for run in runs]
            reading = read_attempts(self.prompts, attempts, length)
            transcript = Transcript()
            transcript.append_forced(reading.ids)
            transcript.append_forced(reading.request)
            transcript.append_taught(self.prompts.skill_ids(text))
            extraction = transcript.sample()
        return Demonstration(first.task, first.won, first.context.samples(), extraction)


def _taught(ids: list[int]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Ids as a policy would have sampled them, without log-probabilities."""
    zeros = np.zeros(len(ids), np.float32)
    return ids, zeros, zeros
