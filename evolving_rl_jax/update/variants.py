"""Which loss of the field: what ``config.algorithm`` chooses, as arguments of the loss.

Inside the compiled step.  With the defaults nothing is computed here.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from evolving_rl_jax import losses
from evolving_rl_jax.types import ROLE_EXTRACTOR, TokenBatch
from evolving_rl_jax.update import given
from evolving_rl_jax.update.rows import Rows, gather, in_use


class Variant:
    """Options of `losses.evolving_rl_loss` for the micro-batches of one batch.

    Args:
      algorithm: the group ``config.algorithm``.
      batch: the whole batch: means and limits are over all its micro-batches.
      advantages: [M].
    """

    def __init__(self, algorithm: Any, batch: TokenBatch, advantages: jax.Array):
        self._algorithm = algorithm
        self._advantages, self._batch = advantages, batch
        # The first token of a sequence has nothing that predicts it.
        self._trained = sampled = in_use(batch) & (batch.loss_mask > 0) & (batch.positions > 0)
        counted = given.counted(algorithm, batch)
        if batch.detached is not None or algorithm.empty_groups == "drop":
            self._trained &= gather(counted, batch.sequence_ids)
        self._same = {"ratio": algorithm.ratio, "dual_clip": algorithm.dual_clip or None}
        for bound in ("low", "high"):
            solver, extractor = algorithm[f"clip_{bound}"], algorithm.extractor_clip[bound]
            if extractor:
                solver = jnp.where(batch.role == ROLE_EXTRACTOR, extractor, solver)
            self._same[f"clip_{bound}"] = solver
        if algorithm.aggregate == "token":
            averaged = given.averaged(algorithm, batch)
            tokens = jnp.sum(sampled & gather(averaged, batch.sequence_ids))
            self._same["token_divisor"] = jnp.maximum(tokens, 1) / jnp.maximum(averaged.sum(), 1)
        elif algorithm.aggregate == "constant":
            self._same["token_divisor"] = algorithm.aggregate_length
        self._limits = self._covariance_limits(batch)

    def clip(self, rows: Rows) -> tuple[Any, Any]:
        """(lower, upper) clip bound of the tokens of a micro-batch: a number, or [B, T]."""
        bounds = (self._same[f"clip_{bound}"] for bound in ("low", "high"))
        return tuple(b if jnp.ndim(b) == 0 else gather(b, rows.sequence_ids) for b in bounds)

    def options(self, rows: Rows, weights: jax.Array | None) -> dict[str, Any]:
        """Keyword arguments of the loss of one micro-batch.

        Args:
          rows: of the micro-batch.
          weights: [B, T] importance weights of its tokens, or None.
        """
        options = {**self._same, "importance_weights": weights}
        if self._limits is None:
            return options
        outliers = losses.covariance_outliers(
            rows.rollout_logprobs,
            self._of_tokens(rows),
            given.own_rows(given.detached_tokens(self._batch, rows.sequence_ids), rows).mask,
            self._limits,
        )
        if self._algorithm.covariance.kind == "kl":
            return options | {"log_ratio_coef": outliers * self._algorithm.covariance.coef}
        ones = jnp.ones_like(rows.mask) if weights is None else weights
        return options | {"importance_weights": jnp.where(outliers, 0.0, ones)}

    def _of_tokens(self, rows: Rows | TokenBatch) -> jax.Array:
        """The advantage of every token, [B, T]."""
        found = gather(self._advantages, rows.sequence_ids)
        return found if rows.step_credit is None else found + rows.step_credit

    def _covariance_limits(self, batch):
        wanted = self._algorithm.covariance
        if wanted.kind == "none":
            return None
        bounds = {"low": wanted.low, "high": wanted.high} if wanted.kind == "clip" else {}
        return losses.covariance_limits(
            batch.rollout_logprobs,
            self._of_tokens(batch),
            self._trained,
            share=wanted.share,
            **bounds,
        )
