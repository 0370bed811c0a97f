"""How the trainer's log-probabilities agree with the engine's, and weights that correct for it.

Inside the compiled step.  Rows are those of `rows.Rows`, a micro-batch of them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from evolving_rl_jax import losses
from evolving_rl_jax.types import TokenBatch
from evolving_rl_jax.update.rows import Rows, in_use


def scores_first(config: Any) -> bool:
    """Whether the batches of an iteration are scored before its first update, see `update.step.make_scoring`."""
    return config.train.minibatches > 1 and config.algorithm.old_logprobs != "rollout"


def importance(
    algorithm: Any, logprobs: jax.Array, rows: Rows
) -> tuple[jax.Array, jax.Array | None]:
    """(old log-probabilities of the ratio, weights of the policy loss or None), both [B, T].

    Args:
      algorithm: the group ``config.algorithm``.
      logprobs: [B, T], of the policy before the update.
      rows: the rows.
    """
    if algorithm.old_logprobs == "rollout":
        return rows.rollout_logprobs, None
    old = jax.lax.stop_gradient(logprobs)
    if rows.old_logprobs is not None:
        old = jnp.where(jnp.isnan(rows.old_logprobs), old, rows.old_logprobs)
    if algorithm.importance.kind == "none":
        return old, None
    cap = algorithm.importance.cap
    return old, losses.truncated_importance(old, rows.rollout_logprobs, cap=cap)


def centre_of(batch: TokenBatch) -> jax.Array:
    """Mean recorded log-probability of the sampled tokens, [].

    `sums` are taken about it: float32 squares of numbers far from 0 lose their spread.
    """
    sampled = in_use(batch) & (batch.loss_mask > 0)
    total = jnp.sum(jnp.where(sampled, batch.rollout_logprobs, 0.0))
    return total / jnp.maximum(jnp.sum(sampled), 1)


def sums(
    algorithm: Any,
    rows: Rows,
    logprobs: jax.Array,
    weights: jax.Array | None,
    centre: jax.Array,
    clip: tuple[Any, Any],
) -> dict[str, jax.Array]:
    """Sums over the trained tokens of a micro-batch, from which `metrics` follow; ``clip`` is (lower, upper)."""
    trained, cap = rows.mask > 0, algorithm.importance.cap
    new, old = (jnp.where(trained, x - centre, 0.0) for x in (logprobs, rows.rollout_logprobs))
    if weights is None:
        weights, cap = jnp.ones_like(logprobs), jnp.inf
    ratio = jnp.exp(new - old)
    outside = (ratio < 1 - clip[0]) | (ratio > 1 + clip[1])
    weights = jnp.where(trained, weights, 0.0)
    products = {"new": new, "old": old, "new_new": new**2, "old_old": old**2, "new_old": new * old}
    products |= {"importance": weights, "capped": trained & (weights >= cap), "gap": abs(new - old)}
    products |= {"outside": trained & outside}
    return {f"token_{name}": jnp.sum(x, dtype=jnp.float32) for name, x in products.items()}


def metrics(total: dict[str, jax.Array], count: jax.Array) -> dict[str, jax.Array]:
    """Means over ``count`` >= 1 trained tokens and the correlation, from the sums of all of them."""
    mean = {name: total[f"token_{name}"] / count for name in ("new", "old")}
    joint = total["token_new_old"] / count - mean["new"] * mean["old"]
    spread = [total[f"token_{n}_{n}"] / count - mean[n] ** 2 for n in ("new", "old")]
    scale = jnp.sqrt(jnp.maximum(spread[0], 0.0) * jnp.maximum(spread[1], 0.0))
    correlation = jnp.clip(joint / jnp.maximum(scale, 1e-30), -1.0, 1.0)
    return {
        "logprob_gap_mean": total["token_gap"] / count,
        "logprob_outside_clip": total["token_outside"] / count,
        "logprob_correlation": jnp.where(scale > 0, correlation, 0.0),
        "importance_mean": total["token_importance"] / count,
        "importance_capped": total["token_capped"] / count,
    }
