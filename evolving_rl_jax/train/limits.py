"""When a run goes on without learning anything: it ends, with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.rollout.evolve import Experience
from evolving_rl_jax.types import Episode


class NothingLearned(ConfigError):
    """A run that has learned nothing for too long; the message says why and what to change."""


class DivergedError(NothingLearned):
    """A run whose gradients have been useless for too long."""


class UnscoredError(NothingLearned):
    """A run whose episodes the infrastructure has failed for too long."""


class Limits:
    """Both limits of a run.

    Args:
      config: of the run.
    """

    def __init__(self, config: Any):
        self._skips = SkipLimit(config.optimizer.max_skipped)
        self._unscored = UnscoredLimit(config.train.max_unscored, config.train.num_iterations)

    def check(self, experience: Experience, steps: Sequence[Mapping[str, float]]) -> None:
        """Takes what an iteration has learned from, and the metrics of its optimizer steps.

        Raises:
          NothingLearned: now it has been too much.
        """
        self._unscored.check(experience)
        self._skips.check([step["grad_norm"] for step in steps])


class SkipLimit:
    """Ends a run after ``limit`` updates in a row that were left out: it learns nothing any more.

    Args:
      limit: ``config.optimizer.max_skipped``.
    """

    def __init__(self, limit: int):
        self._limit, self._in_a_row = limit, 0

    def check(self, grad_norms: Iterable[float]) -> None:
        """Takes the gradient norms of the updates since the last call, in order.

        Raises:
          DivergedError: now ``limit`` updates in a row had no finite gradient.
        """
        for norm in grad_norms:
            self._in_a_row = 0 if math.isfinite(norm) else self._in_a_row + 1
            if self._in_a_row >= self._limit:
                raise DivergedError(
                    f"gradients must be finite, got {self._in_a_row} updates in a row that were "
                    f"left out because theirs was not (config.optimizer.max_skipped = "
                    f"{self._limit}): the weights are as before them and checkpoints are kept; "
                    f"likely causes are a high optimizer.learning_rate, optimizer.clip_norm = 0, "
                    f"or damaged weights in model.hf_path"
                )


class UnscoredLimit:
    """Ends a run after ``limit`` iterations in a row without a scored episode, or when it has no more.

    An iteration counts when the infrastructure failed all that was played with a skill, or (so that
    nothing could be) all source episodes.  One whose skills were all invalid does not: that is
    something to learn from.

    Args:
      limit: ``config.train.max_unscored``.
      num_iterations: of the run: a shorter one has the limit of its length.
    """

    def __init__(self, limit: int, num_iterations: int):
        self._limit, self._in_a_row = min(limit, num_iterations), 0

    def check(self, experience: Experience) -> None:
        """Takes what was played in an iteration.

        Raises:
          UnscoredError: now ``limit`` iterations in a row had no scored episode.
        """
        played = [e for s in experience.sources for e in s.episodes.values()]
        sources = [s for s in experience.sources if s.episode is not None]
        played = played or [s.episode for s in sources if s.candidates or not s.episode.scored]
        if any(e.scored for e in played):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row >= self._limit:
            raise UnscoredError(
                f"some episodes must be played to their end, got {self._in_a_row} iterations in a "
                f"row without any (config.train.max_unscored): {_reason(played)}; nothing was "
                f"learned in them, and earlier checkpoints are kept"
            )


def _reason(played: Sequence[Episode]) -> str:
    if not played:
        return (
            "no skill was written, see config.rollout.deadline_s, and whether config.rollout.max_length "
            "has room for config.rollout.max_skill_tokens after an episode"
        )
    first = played[0]
    where = f"{first.task.id}: {first.status}" + (f", {first.error}" if first.error else "")
    return f"{len(played)} of {len(played)} failed in the last, first {where}"
