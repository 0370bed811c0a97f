"""Collecting experience for the training loop: the tasks of an iteration, and the stages on them.

It is done in its own thread where that may overlap training.

With ``config.rollout.overlap`` 0 an iteration is played when it is asked for, by the newest weights.
With 1 the next iteration is played by the weights of before the update while the update runs, so it
is one iteration off-policy.  It is not played ahead over a checkpoint: what a run does after one
follows from the checkpoint alone, whether it was interrupted there or not.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evolving_rl_jax.data.tasks import TaskOrder
from evolving_rl_jax.generate import Engine, Stats
from evolving_rl_jax.record.episodes import sequence_advantages
from evolving_rl_jax.rollout.beside import beside_extras
from evolving_rl_jax.rollout.episode import Driver
from evolving_rl_jax.rollout.evolve import Evolver, Experience, StepScoring
from evolving_rl_jax.rollout.step_credit import add_credit
from evolving_rl_jax.run.engine import make_driver, on_this_host
from evolving_rl_jax.run.parts import Parts
from evolving_rl_jax.run.skills import audit_rules, fit_to_prompt, make_retriever
from evolving_rl_jax.skills.rotation import Lots, Rotation
from evolving_rl_jax.train.memory import Memory, tasks_drawn
from evolving_rl_jax.types import Task
from evolving_rl_jax.update.advantages import arm_weights, source_advantages


@dataclasses.dataclass
class Rollout:
    """The experience of one iteration and what it took.

    Attributes:
      iteration: whose experience it is.
      version: iterations that the weights that sampled it were trained for.
      experience: of this host's sources.
      driver: that played it, for its counts.
      stats: of the engine.
      seconds: wall time.
      waited: seconds of it that the training loop waited for.
    """

    iteration: int
    version: int
    experience: Experience
    driver: Driver
    stats: Stats
    seconds: float
    waited: float = 0.0

    @property
    def overlapped(self) -> float:
        """Seconds of the rollout during which the training loop did something else."""
        return max(0.0, self.seconds - self.waited)

    @property
    def lag(self) -> int:
        """Iterations of training between the weights that sampled it and those it is learned by."""
        return self.iteration - self.version


def make_collector(
    parts: Parts,
    engine: Engine,
    sources: Sequence[int],
    weights: Callable[[Any], Any],
    memory: Memory,
) -> Collector:
    """The collector of a run.

    Args:
      parts: of the run.
      engine: plays the iterations.
      sources: numbers of the source tasks, out of the iteration's G, that are this host's.
      weights: training state -> the policy's whole weights on the training mesh.
      memory: what the run remembers beside them.
    """
    stages, temperature = Stages(parts, sources, memory), parts.config.rollout.temperature
    replay = parts.config.replay
    return Collector(
        engine,
        lambda iteration: make_driver(
            parts, engine, iteration, temperature, keeps_unguided=bool(replay.guided.weight)
        ),
        stages.collect,
        stages.coming,
        lambda state: on_this_host(parts, weights(state)),
    )


class Collector:
    """Plays iterations one after the other, each now or ahead of time.

    Args:
      engine: plays them; nobody else may use it or the environments while one is being played.
      make_driver: (iteration) -> a new driver on that engine.
      play: (driver, iteration, stop) -> the experience; ``stop`` is for `Driver.run`.
      coming: (iteration) -> its tasks; the environments load them while the iteration before it is
        played.
      weights: training state -> the policy's whole weights on this host.
    """

    def __init__(
        self,
        engine: Engine,
        make_driver: Callable[[int], Driver],
        play: Callable[[Driver, int, Callable[[], str]], Experience],
        coming: Callable[[int], Sequence[Task]] = lambda _iteration: (),
        weights: Callable[[Any], Any] = lambda state: state,
    ):
        self.engine, self._make_driver, self._play = engine, make_driver, play
        self._coming, self._weights = coming, weights
        self._ahead: _Background | None = None
        self._closed = False

    def take(self, iteration: int, state: Any) -> Rollout:
        """The rollout of an iteration: the one that was started, or one played now.

        Args:
          iteration: of the training loop.
          state: of the training; not read when the iteration was played ahead.

        Raises:
          Exception: whatever ended a rollout that was played ahead.
        """
        began = time.perf_counter()
        if self._ahead is None:
            self._load(iteration, state, copy=False)
            rollout = self._collect(iteration, iteration, began)
        else:
            ahead, self._ahead = self._ahead, None
            rollout = ahead.result()
        if rollout.iteration != iteration:
            raise RuntimeError(f"iteration {iteration} must be next, got {rollout.iteration}")
        rollout.waited = time.perf_counter() - began
        return rollout

    def start(self, iteration: int, version: int, state: Any) -> None:
        """Begins to play an iteration in a thread, with a copy of the weights.

        Args:
          iteration: to play.
          version: iterations that ``state`` was trained for.
          state: of the training; may be donated as soon as this returns.
        """
        began = time.perf_counter()
        self._load(version, state, copy=True)
        self._ahead = _Background(lambda: self._collect(iteration, version, began))

    def wait(self) -> None:
        """Returns when nothing is being played; what was is kept for `take`."""
        if self._ahead is not None:
            self._ahead.wait()

    def drop(self) -> None:
        """Forgets what was played ahead, if anything was.

        Raises:
          Exception: whatever ended it.
        """
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            ahead.result()

    def close(self) -> None:
        """Ends what is being played ahead; nobody will take it."""
        self._closed = True
        self.wait()

    def _load(self, version: int, state: Any, *, copy: bool) -> None:
        self.engine.warmup()
        self.engine.set_params(self._weights(state), version, copy=copy)
        self.engine.reset_stats()

    def _collect(self, iteration: int, version: int, began: float) -> Rollout:
        driver = self._make_driver(iteration)
        if coming := self._coming(iteration + 1):
            driver.pool.load(coming)
        experience = self._play(driver, iteration, lambda: "closed" if self._closed else "")
        seconds = time.perf_counter() - began
        return Rollout(iteration, version, experience, driver, self.engine.reset_stats(), seconds)


class _Background:
    """One call in a thread of its own."""

    def __init__(self, function: Callable[[], Any]):
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        # A daemon: a process that ends by an exception must not wait for the last episode.
        self._thread = threading.Thread(target=self._run, name="rollout", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as e:  # raised again where the result is wanted
            self._error = e

    def wait(self) -> None:
        self._thread.join()

    def result(self) -> Any:
        self.wait()
        if self._error is not None:
            raise self._error
        return self._value


class Stages:
    """What this host plays in an iteration.

    Args:
      parts: of the run.
      sources: numbers of the source tasks, out of the iteration's G, that are this host's.
      memory: of the run; it chooses the tasks where a curriculum does.
    """

    def __init__(self, parts: Parts, sources: Sequence[int], memory: Memory):
        self._parts, self._sources, self._memory = parts, sources, memory
        # Of the tasks that take the place of others.
        self._others = TaskOrder(parts.train_tasks, parts.config.seed + 1_000_003)
        self._grpo = parts.config.algorithm.arm == "grpo"
        self._retriever = make_retriever(parts, parts.train_tasks)
        num_retrieved = parts.config.rollout.num_retrieved
        self._rotation = Rotation(
            lambda task, lots: self._retriever.retrieve(task, num_retrieved, lots=lots),
            lambda position: parts.order.take(position, 1)[0],
            epoch=len(parts.train_tasks),
            seed=parts.config.seed,
        )

    def collect(self, driver: Driver, iteration: int, stop: Callable[[], str]) -> Experience:
        """The four stages for this iteration's source tasks (or G x K groups in the grpo arm).

        Args:
          driver: plays them.
          iteration: whose tasks.
          stop: see `Driver.run`; so does a notice or ``config.rollout.deadline_s``.
        """
        config = self._parts.config
        beside = self._memory.beside()
        evolver = Evolver(
            driver, self._retriever, self._parts.prompts, config.rollout, self._stopping(stop),
            StepScoring.from_config(config), audit_rules(config),
            fit_to_prompt(config, self._parts.tokenizer),
            beside=beside and beside.start,
        )  # fmt: skip
        experience = self._play(evolver, iteration, 0, self._sources)
        refilled = 0
        for again in range(1, config.rollout.refill_rounds + 1):
            self._add_credit(experience)
            empty = np.flatnonzero(~self._teaches(experience))
            if not len(empty) or evolver.stop():
                break
            refilled += len(empty)
            new = self._play(evolver, iteration, again, [self._sources[i] for i in empty])
            for i, source in zip(empty, new.sources, strict=True):
                experience.sources[i] = source
            for name, values in experience.arrays().items():
                values[empty] = getattr(new, name)
        self._memory.refilled[iteration] = refilled
        self._add_credit(experience)
        return experience

    def _add_credit(self, experience: Experience) -> None:
        algorithm = self._parts.config.algorithm
        if algorithm.step_credit.weight:
            add_credit(experience, algorithm, arm_weights(algorithm)[0])

    def _teaches(self, experience: Experience) -> np.ndarray:
        """Whether any group that the arm trains has a spread, bool [G]."""
        algorithm = self._parts.config.algorithm
        weight = arm_weights(algorithm)[0]
        found = sequence_advantages(experience, algorithm)
        groups = [found.solver, found.extractor]
        if (attempts := source_advantages(algorithm, experience)) is not None:
            groups.append(np.asarray(attempts) * weight)
        scoring = StepScoring.from_config(self._parts.config)
        beside = beside_extras(experience, algorithm, weight, scoring)
        taught = np.array([any(extra.advantage for extra in extras) for extras in beside])
        for g, source in enumerate(experience.sources):
            played = [*source.episodes.values(), *source.beside.values(), *source.attempts]
            taught[g] |= any(any(episode.credit) for episode in played)
        return np.any([x.reshape(len(x), -1).any(1) for x in groups], axis=0) | taught

    def _play(
        self, evolver: Evolver, iteration: int, again: int, sources: Sequence[int]
    ) -> Experience:
        """The stages for some of this host's sources; ``again`` counts how often they were replaced."""
        tasks = self._tasks(iteration, again, sources)
        numbers = [g + again * self._parts.config.rollout.num_sources for g in sources]
        if self._grpo:
            return evolver.collect_groups(tasks, numbers)
        found = None if again else self._retrieved(iteration)
        return evolver.collect(tasks, numbers, found)

    def coming(self, iteration: int) -> list[Task]:
        """The games of an iteration on this host, each once; none after the last iteration."""
        config = self._parts.config
        if iteration >= config.train.num_iterations or self._memory.curriculum is not None:
            return []  # a curriculum knows them when the iteration before has been learned from
        tasks = self._tasks(iteration)
        if not self._grpo:
            tasks = [*tasks, *(t for found in self._retrieved(iteration) for t in found)]
        return list({task.id: task for task in tasks}.values())

    def _retrieved(self, iteration: int) -> list[list[Task]]:
        rollout = self._parts.config.rollout
        if self._memory.curriculum is None:
            first = iteration * rollout.num_sources
            return [self._rotation.at(first + g) for g in self._sources]
        lots = Lots(self._parts.config.seed, iteration)  # the sources are in no order known before
        found = [
            self._retriever.retrieve(task, rollout.num_retrieved, lots=lots)
            for task in self._tasks(iteration, 0, range(rollout.num_sources))
        ]
        return [found[g] for g in self._sources]

    def _tasks(
        self, iteration: int, again: int = 0, sources: Sequence[int] | None = None
    ) -> list[Task]:
        rollout = self._parts.config.rollout
        size = rollout.num_retrieved if self._grpo else 1  # tasks of one source
        count = rollout.num_sources * size
        if (curriculum := self._memory.curriculum) is not None:
            drawn = curriculum.draw(iteration, tasks_drawn(self._parts.config))
            tasks = drawn[again * count : (again + 1) * count]
        elif again:
            rounds = rollout.refill_rounds
            tasks = self._others.take(iteration * rounds + again - 1, count)
        else:
            tasks = self._parts.order.take(iteration, count)
        sources = self._sources if sources is None else sources
        return [task for g in sources for task in tasks[g * size : (g + 1) * size]]

    def _stopping(self, stop: Callable[[], str]) -> Callable[[], str]:
        """When to leave what is unfinished: a notice, or the deadline of an iteration."""
        seconds, preemption = self._parts.config.rollout.deadline_s, self._parts.preemption
        end = time.monotonic() + seconds

        def reason() -> str:
            late = f"not finished within config.rollout.deadline_s = {seconds:g}"
            return preemption.reason or (late if time.monotonic() > end else "") or stop()

        return reason
