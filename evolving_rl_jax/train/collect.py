"""Collecting experience for the training loop, in its own thread where that may overlap training.

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

from evolving_rl_jax.generate import Engine, Stats
from evolving_rl_jax.rollout.episode import Driver
from evolving_rl_jax.rollout.evolve import Experience
from evolving_rl_jax.types import Task


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


class Collector:
    """Plays iterations one after the other, each now or ahead of time.

    Args:
      engine: plays them; nobody else may use it or the environments while one is being played.
      make_driver: (iteration) -> a new driver on that engine.
      play: (driver, iteration, stop) -> the experience; ``stop`` is for `Driver.run`.
      coming: (iteration) -> its tasks; the environments load them while the iteration before it is
        played.
    """

    def __init__(
        self,
        engine: Engine,
        make_driver: Callable[[int], Driver],
        play: Callable[[Driver, int, Callable[[], str]], Experience],
        coming: Callable[[int], Sequence[Task]] = lambda _iteration: (),
    ):
        self.engine, self._make_driver, self._play = engine, make_driver, play
        self._coming = coming
        self._ahead: _Background | None = None
        self._closed = False

    def take(self, iteration: int, params: Callable[[], Any]) -> Rollout:
        """The rollout of an iteration: the one that was started, or one played now.

        Args:
          iteration: of the training loop.
          params: gives the policy's present weights; not called when it was played ahead.

        Raises:
          Exception: whatever ended a rollout that was played ahead.
        """
        began = time.perf_counter()
        if self._ahead is None:
            self._load(iteration, params(), copy=False)
            rollout = self._collect(iteration, iteration, began)
        else:
            ahead, self._ahead = self._ahead, None
            rollout = ahead.result()
        if rollout.iteration != iteration:
            raise RuntimeError(f"iteration {iteration} must be next, got {rollout.iteration}")
        rollout.waited = time.perf_counter() - began
        return rollout

    def start(self, iteration: int, version: int, params: Any) -> None:
        """Begins to play an iteration in a thread, with a copy of the weights.

        Args:
          iteration: to play.
          version: iterations that ``params`` were trained for.
          params: the policy's weights; may be donated as soon as this returns.
        """
        began = time.perf_counter()
        self._load(version, params, copy=True)
        self._ahead = _Background(lambda: self._collect(iteration, version, began))

    def wait(self) -> None:
        """Returns when nothing is being played; what was is kept for `take`."""
        if self._ahead is not None:
            self._ahead.wait()

    def close(self) -> None:
        """Ends what is being played ahead; nobody will take it."""
        self._closed = True
        self.wait()

    def _load(self, version: int, params: Any, *, copy: bool) -> None:
        self.engine.warmup()
        self.engine.set_params(params, version, copy=copy)
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
