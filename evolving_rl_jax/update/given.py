"""Sequences whose advantage the host gives: what an update does otherwise with them.

Inside the compiled step.  A batch without any (``given`` None) passes through untouched.  A detached
sequence is learned from as if the policy of this very moment had written it: its ratio and its weight
are 1, so that its loss has the gradient of ``-advantage * log-probability``, token by token.  It has no
entropy term and a KL weight of its own, and the divisor of the loss does not count it: what is added
to a batch changes nothing of what the batch teaches already.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from evolving_rl_jax.types import ROLE_NONE, TokenBatch
from evolving_rl_jax.update.advantages import spread_of_sequences
from evolving_rl_jax.update.rows import Rows, gather

# The metrics that a step has beside STEP_METRICS where the host gives advantages.
GIVEN_METRICS: dict[str, str] = {
    "sequences_given": "sequences whose advantage the host gave, of those that count in the divisor",
    "sequences_detached": "detached sequences: replayed, rendered again, or taught by likelihood",
    "detached_nll": "negative log-probability of their tokens, mean, nats",
}


def counted(algorithm: Any, batch: TokenBatch) -> jax.Array:
    """Which sequences the divisor of the loss counts, bool [M]; see ``config.algorithm.empty_groups``."""
    used = batch.role != ROLE_NONE
    if algorithm.empty_groups == "drop":
        used &= spread_of_sequences(algorithm, batch)
    return used if batch.detached is None else used & (batch.detached == 0)


def averaged(algorithm: Any, batch: TokenBatch) -> jax.Array:
    """The sequences [M] over which the loss is a mean, bool: those that `counted` counts.

    Where it counts none, every group being dropped, detached sequences have the weight that they have beside the
    groups that were dropped, or beside each other: not that of a whole batch.
    """
    some = counted(algorithm, batch)
    if batch.detached is None:
        return some
    used = batch.role != ROLE_NONE
    own = used & (batch.detached == 0)
    return jnp.where(some.any(), some, jnp.where(own.any(), own, used))


def computed(of_role: jax.Array, batch: TokenBatch) -> jax.Array:
    """Those of ``of_role`` [M] whose advantage follows from the wins."""
    return of_role if batch.given is None else of_role & jnp.isnan(batch.given)


def usable(batch: TokenBatch, count: jax.Array) -> jax.Array:
    """Whether there is anything to learn from, ``count`` being what `counted` comes to."""
    if batch.detached is None:
        return count > 0
    return (count > 0) | jnp.any((batch.role != ROLE_NONE) & (batch.detached > 0))


def advantages(found: jax.Array, batch: TokenBatch) -> jax.Array:
    """``found`` [M] with those that are given in their place."""
    if batch.given is None:
        return found
    return jnp.where(jnp.isnan(batch.given), found, batch.given)


def coefficients(config: Any, batch: TokenBatch, kl: jax.Array, entropy: jax.Array):
    """(KL, entropy) coefficients [M], detached sequences' own; `kept_rows` leaves dropped groups out."""
    if batch.detached is None:
        return kl, entropy
    free = batch.detached > 0
    return jnp.where(free, config.replay.kl_coef, kl), jnp.where(free, 0.0, entropy)


def detached_tokens(batch: TokenBatch, sequence_ids: jax.Array) -> jax.Array | None:
    """Which tokens belong to detached sequences, bool of the shape of the ids; None = none can."""
    if batch.detached is None:
        return None
    return (sequence_ids >= 0) & (gather(batch.detached, sequence_ids) > 0)


def detach(
    free: jax.Array | None, logprobs: jax.Array, old: jax.Array, weights: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """(old log-probabilities, importance weights) with ratio and weight 1 at the tokens ``free``."""
    if free is None:
        return old, weights
    old = jnp.where(free, jax.lax.stop_gradient(logprobs), old)
    return old, None if weights is None else jnp.where(free, 1.0, weights)


def kept_rows(algorithm: Any, batch: TokenBatch, rows: Rows) -> Rows:
    """The rows with nothing trained in groups that `counted` drops: they are in no figure of the loss."""
    if algorithm.empty_groups != "drop":
        return rows
    kept = counted(algorithm, batch)
    if batch.detached is not None:
        kept |= batch.detached > 0
    return rows._replace(mask=jnp.where(gather(kept, rows.sequence_ids), rows.mask, 0.0))


def own_rows(free: jax.Array | None, rows: Rows) -> Rows:
    """The rows with nothing trained at the tokens ``free``: what was recorded of those is not compared."""
    return rows if free is None else rows._replace(mask=jnp.where(free, 0.0, rows.mask))


def sums(free: jax.Array | None, rows: Rows, logprobs: jax.Array) -> dict[str, jax.Array]:
    """Sums over the detached tokens of a micro-batch, for `metrics`."""
    if free is None:
        return {}
    trained = free & (rows.mask > 0)
    nll = -jnp.sum(jnp.where(trained, logprobs, 0.0))
    return {"detached_tokens": jnp.sum(trained).astype(jnp.float32), "detached_nll": nll}


def metrics(total: dict[str, jax.Array], batch: TokenBatch) -> dict[str, jax.Array]:
    """`GIVEN_METRICS`; {} for a batch without given advantages."""
    if batch.given is None:
        return {}
    used = batch.role != ROLE_NONE
    return {
        "sequences_given": jnp.sum(used & ~jnp.isnan(batch.given) & (batch.detached == 0)),
        "sequences_detached": jnp.sum(used & (batch.detached > 0)),
        "detached_nll": total["detached_nll"] / jnp.maximum(total["detached_tokens"], 1.0),
    }
