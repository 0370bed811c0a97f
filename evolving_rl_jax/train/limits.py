"""When a run goes on without learning anything: it ends, with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterable

from evolving_rl_jax.config import ConfigError


class DivergedError(ConfigError):
    """A run whose gradients have been useless for too long; the message says what to change."""


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
