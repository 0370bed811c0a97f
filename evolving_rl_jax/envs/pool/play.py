"""One episode of each of some tasks through a pool, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from evolving_rl_jax.types import Observation, StepResult, Task

__all__ = ["play_all"]


def play_all(
    pool,
    tasks: Sequence[Task],
    turn: Callable[[int, Observation | StepResult], str | None],
    *,
    seconds: float | None = None,
) -> set[int]:
    """Plays until every episode has ended.

    Args:
      pool: an ``EnvPool``.
      tasks: the episode of task i has the number i.
      turn: takes the number of an episode and what answered it, in the order of the answers; gives the
        next action, or None where the episode is to end.
      seconds: longest time; None = as long as it takes.

    Returns:
      The numbers of the episodes that had not ended by then.
    """
    running = set(range(len(tasks)))
    for i, task in enumerate(tasks):
        pool.reset(i, task)
    end = None if seconds is None else time.monotonic() + seconds
    while running and (end is None or time.monotonic() < end):
        pool.flush()
        for i, reply in pool.poll(None if end is None else 1.0):
            action = turn(i, reply)
            if action is None:
                pool.close(i)
                running.remove(i)
            else:
                pool.step(i, action)
    return running
