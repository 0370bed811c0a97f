"""The text that a tokenizer is trained on: what tasks say, and what their episodes say and accept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evolving_rl_jax.envs.base import TaskError
from evolving_rl_jax.envs.pool.play import play_all
from evolving_rl_jax.types import OK, Task

__all__ = ["collect_texts"]


class _Anyone:
    """Plays without a plan: any of the admissible actions."""

    def __init__(self, task: Task, rng):
        self._rng = rng

    def act(self, observation: str, actions: Sequence[str]) -> str:
        return str(self._rng.choice(list(actions))) if actions else "look"


_MOST_STEPS = 200  # of an episode: more of them say little that is new


def collect_texts(
    pool, tasks: Sequence[Task], teacher: Callable[..., Any] | None, num_tasks: int = 96
) -> list[str]:
    """Texts of all tasks, and of one episode of some of them.

    Args:
      pool: plays.
      tasks: what a run trains on.
      teacher: ``teacher(task, rng)`` that plays them and writes a skill; None = random actions.
      num_tasks: how many of them, at most, spread over all.

    Raises:
      TaskError: none of them can be played.
    """
    texts = [t.text for t in tasks]
    chosen = list(tasks)[:: max(1, len(tasks) // num_tasks)]
    players = {
        i: (teacher or _Anyone)(task, np.random.default_rng(i)) for i, task in enumerate(chosen)
    }
    left = {i: min(task.step_limit, _MOST_STEPS) for i, task in enumerate(chosen)}
    read: dict[int, list[str]] = {i: [] for i in players}
    failures: dict[int, str] = {}

    def turn(i, reply):
        if reply.status != OK:
            failures[i] = reply.text
            return None
        read[i].append(reply.text)
        texts.extend(reply.actions)
        if left[i] <= 0 or getattr(reply, "done", False):
            if teacher:
                texts.append(players[i].skill(read[i], bool(getattr(reply, "won", False))))
            return None
        left[i] -= 1
        texts.append(players[i].act(reply.text, reply.actions))
        return texts[-1]

    play_all(pool, chosen, turn)
    if len(failures) == len(chosen):
        first = min(failures)
        raise TaskError(f"no task can be played; the first, {chosen[first].id}: {failures[first]}")
    spoken = [text for i in sorted(read) for text in read[i]]
    # Replies arrive in any order; the tokenizer must not depend on it.
    return [" " + " ".join(text.split()) for text in sorted(texts) + spoken] + [
        " success failure"
    ] * 8
