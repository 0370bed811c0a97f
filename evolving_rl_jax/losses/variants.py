"""Policy losses of kindred methods: CISPO, GSPO's sequence ratio, the covariance of Clip- and KL-Cov.

Axis letters: B rows, T tokens a row, M sequences in a training batch.  ``docs/losses.md`` says which
to take when; `policy.evolving_rl_loss` takes each of them by a keyword.
"""

from __future__ import annotations

import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evolving_rl_jax.losses._checks import check_shape, trained_tokens
from evolving_rl_jax.losses._ratio import clip_bound, log_ratio


def cispo_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    *,
    clip_low: float | jax.Array = 0.1,
    clip_high: float | jax.Array = 0.15,
) -> tuple[jax.Array, jax.Array]:
    """CISPO: the log-likelihood weighted by the clipped ratio, so that no token loses its gradient.

    ``-sg(clip(r, 1 - clip_low, 1 + clip_high)) * A * logprobs`` with ``r = exp(logprobs - old)``.

    Args:
      logprobs: any shape, log-probability of each sampled token under the policy being trained.
      old_logprobs: same shape, the same under the policy that sampled; a constant.
      advantages: same shape; a constant.
      clip_low: how far the weight may fall below 1; a number, or an array of that shape.
      clip_high: how far the weight may rise above 1, likewise.

    Returns:
      ``(loss, clipped)``, float32, same shape: the loss, and 1 where the weight was cut.

    Raises:
      ValueError: shapes that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> new, old = jnp.log(jnp.array([0.5, 0.6])), jnp.log(jnp.array([0.5, 0.3]))
      >>> loss, clipped = cispo_loss(new, old, jnp.array([1.0, 2.0]), clip_high=0.5)
      >>> loss.round(2).tolist(), clipped.tolist()
      ([0.6899999976158142, 1.5299999713897705], [0.0, 1.0])

    Source: MiniMax-M1, arXiv 2506.13585, equations 4 and 5.
    """
    shape = jnp.shape(logprobs)
    check_shape("old_logprobs", old_logprobs, shape, "shaped like logprobs")
    check_shape("advantages", advantages, shape, "shaped like logprobs")
    clip_low = clip_bound("clip_low", clip_low, shape)
    clip_high = clip_bound("clip_high", clip_high, shape)
    advantages = jax.lax.stop_gradient(jnp.asarray(advantages, jnp.float32))
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratio(logprobs, old_logprobs)))
    weight = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    loss = -weight * advantages * jnp.asarray(logprobs, jnp.float32)
    return loss, (weight != ratio).astype(jnp.float32)


def sequence_logprobs(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    mask: jax.Array,
    *,
    sequence_ids: jax.Array,
    num_sequences: int,
) -> jax.Array:
    """Log-probabilities whose ratio to the old ones is that of the whole sequence, in each token.

    The ratio of GSPO is the geometric mean of a sequence's token ratios.  Given to
    ``clipped_policy_loss`` in place of ``logprobs``, a sequence is clipped as a whole and each of its
    tokens has its own gradient (the paper's GSPO-token).

    Args:
      logprobs: [B, T], log-probability of each sampled token under the policy being trained.
      old_logprobs: [B, T], the same under the policy that sampled; a constant.
      mask: [B, T], 1 = the policy sampled this token.
      sequence_ids: [B, T] integers in [0, M), -1 = padding.
      num_sequences: M, a Python integer.

    Returns:
      float32 [B, T]; the old ones where the mask is 0.

    Raises:
      ValueError: a wrong shape, or ``sequence_ids`` that are no integers.

    Example:
      >>> import jax.numpy as jnp
      >>> old = jnp.array([[-1.0, -2.0, -0.5]])
      >>> ids, ones = jnp.array([[0, 0, 1]]), jnp.ones((1, 3))
      >>> new = jnp.array([[-0.5, -1.75, -0.5]])
      >>> sequence_logprobs(new, old, ones, sequence_ids=ids, num_sequences=2).tolist()
      [[-0.625, -1.625, -0.5]]

    Source: GSPO, arXiv 2507.18071, equations 7, 14 and 15.
    """
    shape = jnp.shape(logprobs)
    for name, array in (("old_logprobs", old_logprobs), ("mask", mask)):
        check_shape(name, array, shape, "shaped like logprobs")
    check_shape("sequence_ids", sequence_ids, shape, "shaped like logprobs")
    trained, ids = trained_tokens(mask, sequence_ids, num_sequences)
    old = jax.lax.stop_gradient(jnp.asarray(old_logprobs, jnp.float32))
    change = log_ratio(jnp.where(trained, logprobs, 0.0), jnp.where(trained, old, 0.0))

    def total(values):
        return jax.ops.segment_sum(values.ravel(), ids.ravel(), num_sequences)

    count = total(trained.astype(jnp.float32))
    mean = total(jax.lax.stop_gradient(change)) / jnp.maximum(count, 1.0)
    own = change - jax.lax.stop_gradient(change)  # 0, with the gradient of the token
    return jnp.where(trained, old + mean[ids] + own, old)


class CovarianceLimits(NamedTuple):
    """What ``covariance_limits`` returns, all float32 scalars.

    Attributes:
      logprob: mean log-probability of the trained tokens.
      advantage: mean advantage of the trained tokens.
      least: covariance from which on a token is an outlier.
      most: covariance up to which it is one.
    """

    logprob: jax.Array
    advantage: jax.Array
    least: jax.Array
    most: jax.Array


def covariance_limits(
    logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    share: float,
    low: float = -jnp.inf,
    high: float = jnp.inf,
) -> CovarianceLimits:
    """Finds the tokens that drive the entropy down most: those of largest covariance.

    The covariance of a token is ``(A - mean A) * (logprob - mean logprob)``, means over the trained
    tokens of the whole batch.  Among those within [low, high] the largest are taken, ``share`` of all
    trained tokens, at least one; equal ones together.  The released Clip-Cov draws them at random:
    the largest need no random numbers and are the same on any number of devices.

    Args:
      logprobs: any shape, of the whole batch: the policy's, before the update.
      advantages: same shape, of each token.
      mask: same shape, 1 = trained.
      share: of the trained tokens, 0 to 1.
      low: smallest covariance of an outlier.
      high: largest.

    Returns:
      The limits, for ``covariance_outliers`` of any part of the batch.

    Raises:
      ValueError: shapes that differ, or a share outside 0 to 1.

    Example:
      >>> import jax.numpy as jnp
      >>> new, a = jnp.array([-0.5, -4.5, -0.5, -0.5]), jnp.array([1.0, -1.0, -1.0, 1.0])
      >>> limits = covariance_limits(new, a, jnp.ones(4), share=0.25)
      >>> float(limits.logprob), float(limits.least)
      (-1.5, 3.0)

    Source: The Entropy Mechanism, arXiv 2505.22617, equations 10 to 13.
    """
    shape = jnp.shape(logprobs)
    check_shape("advantages", advantages, shape, "shaped like logprobs")
    check_shape("mask", mask, shape, "shaped like logprobs")
    if isinstance(share, numbers.Real) and not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    trained = jnp.asarray(mask) > 0
    count = jnp.sum(trained)
    logprobs, advantages = (jnp.asarray(x, jnp.float32) for x in (logprobs, advantages))

    def mean(x):
        return jnp.sum(jnp.where(trained, x, 0.0)) / jnp.maximum(count, 1)

    limits = CovarianceLimits(mean(logprobs), mean(advantages), jnp.float32(low), jnp.float32(high))
    candidates = covariance_outliers(logprobs, advantages, trained, limits)
    values = _ordered_bits(_covariance(logprobs, advantages, trained, limits))
    wanted = jnp.maximum(jnp.floor(share * count), 1.0)

    def halve(_, ends):  # the largest bound that still leaves as many as wanted
        lowest, highest = ends
        middle = lowest + (highest - lowest) // 2 + (highest - lowest) % 2
        enough = jnp.sum(candidates & (values >= middle)) >= wanted
        return jnp.where(enough, middle, lowest), jnp.where(enough, highest, middle - 1)

    first = jnp.min(values, initial=_MOST_BITS, where=candidates)
    last = jnp.max(values, initial=np.uint32(0), where=candidates)
    found = jax.lax.fori_loop(0, 32, halve, (first, jnp.maximum(first, last)))[0]
    least = jnp.where(candidates.any(), _from_ordered_bits(found), jnp.inf)
    return jax.lax.stop_gradient(limits._replace(least=least))


def covariance_outliers(
    logprobs: jax.Array, advantages: jax.Array, mask: jax.Array, limits: CovarianceLimits
) -> jax.Array:
    """Which tokens lie within the limits: Clip-Cov takes their gradient, KL-Cov pulls them back.

    Args:
      logprobs: any shape, a part of the batch that the limits are of.
      advantages: same shape.
      mask: same shape, 1 = trained.
      limits: of ``covariance_limits``.

    Returns:
      bool, same shape; False where the mask is 0.

    Raises:
      ValueError: shapes that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> new, a = jnp.array([-0.1, -4.0, -0.1, -0.1]), jnp.array([1.0, -1.0, -1.0, 1.0])
      >>> limits = covariance_limits(new, a, jnp.ones(4), share=0.25)
      >>> covariance_outliers(new, a, jnp.ones(4), limits).tolist()
      [False, True, False, False]
    """
    check_shape("advantages", advantages, jnp.shape(logprobs), "shaped like logprobs")
    check_shape("mask", mask, jnp.shape(logprobs), "shaped like logprobs")
    trained = jnp.asarray(mask) > 0
    value = _covariance(logprobs, advantages, trained, limits)
    return trained & (value >= limits.least) & (value <= limits.most)


def _covariance(logprobs, advantages, trained, limits):
    product = (advantages - limits.advantage) * (logprobs - limits.logprob)
    return jnp.where(trained, product, 0.0).astype(jnp.float32)


# Finite float32 numbers as unsigned integers of the same order, so that halving finds a bound exactly.
_SIGN = np.uint32(0x80000000)
_MOST_BITS = np.uint32(0xFFFFFFFF)


def _ordered_bits(values):
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    return jnp.where(bits >= _SIGN, ~bits, bits | _SIGN)


def _from_ordered_bits(bits):
    bits = jnp.where(bits >= _SIGN, bits ^ _SIGN, ~bits)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
