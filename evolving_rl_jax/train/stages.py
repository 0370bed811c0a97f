"""The tasks of an iteration, and the four stages on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from evolving_rl_jax.rollout.episode import Driver
from evolving_rl_jax.rollout.evolve import Evolver, Experience, StepScoring
from evolving_rl_jax.run.parts import Parts
from evolving_rl_jax.run.skills import audit_rules, fit_to_prompt, make_retriever
from evolving_rl_jax.types import Task


class Stages:
    """What this host plays in an iteration.

    Args:
      parts: of the run.
      sources: numbers of the source tasks, out of the iteration's G, that are this host's.
    """

    def __init__(self, parts: Parts, sources: Sequence[int]):
        self._parts, self._sources = parts, sources
        self._retriever = make_retriever(parts, parts.train_tasks)
        self._grpo = parts.config.algorithm.arm == "grpo"

    def collect(self, driver: Driver, iteration: int, stop: Callable[[], str]) -> Experience:
        """The four stages for this iteration's source tasks (or G x K groups in the grpo arm).

        Args:
          driver: plays them.
          iteration: whose tasks.
          stop: see `Driver.run`; so does a notice or ``config.rollout.deadline_s``.
        """
        config = self._parts.config
        evolver = Evolver(
            driver, self._retriever, self._parts.prompts, config.rollout, self._stopping(stop),
            StepScoring.from_config(config), audit_rules(config),
            fit_to_prompt(config, self._parts.tokenizer),
        )  # fmt: skip
        play = evolver.collect_groups if self._grpo else evolver.collect
        return play(self._tasks(iteration), self._sources)

    def coming(self, iteration: int) -> list[Task]:
        """The games of an iteration on this host, each once; none after the last iteration."""
        config = self._parts.config
        if iteration >= config.train.num_iterations:
            return []
        tasks = self._tasks(iteration)
        if not self._grpo:
            num = config.rollout.num_retrieved
            tasks = [*tasks, *(t for s in tasks for t in self._retriever.retrieve(s, num))]
        return list({task.id: task for task in tasks}.values())

    def _tasks(self, iteration: int) -> list[Task]:
        rollout = self._parts.config.rollout
        size = rollout.num_retrieved if self._grpo else 1  # tasks of one source
        tasks = self._parts.order.take(iteration, rollout.num_sources * size)
        return [task for g in self._sources for task in tasks[g * size : (g + 1) * size]]

    def _stopping(self, stop: Callable[[], str]) -> Callable[[], str]:
        """When to leave what is unfinished: a notice, or the deadline of an iteration."""
        seconds, preemption = self._parts.config.rollout.deadline_s, self._parts.preemption
        end = time.monotonic() + seconds

        def reason() -> str:
            late = f"not finished within config.rollout.deadline_s = {seconds:g}"
            return preemption.reason or (late if time.monotonic() > end else "") or stop()

        return reason
