"""Policy losses: the clipped surrogate, the KL estimators, and the whole Evolving-RL objective.

Axis letters: B rows, T tokens a row, M sequences in a training batch.

Where this differs from the released implementation of the paper (arXiv 2605.10663):

1. ``exp`` of a log-ratio beyond +-20 is held at +-20 with no gradient, so that one stray token
   cannot turn a batch into inf or nan.
2. Old and reference log-probabilities and advantages are constants: no gradient flows into them.
"""

from __future__ import annotations

import numbers

import jax
import jax.numpy as jnp

from evolving_rl_jax.losses import variants
from evolving_rl_jax.losses._checks import check_rank, check_shape, trained_tokens
from evolving_rl_jax.losses._ratio import clip_bound, difference, log_ratio

_MAX_LOW_VAR_KL = 10.0
_KL_KINDS = ("k1", "k2", "k3", "low_var_kl")
_TOKEN_INPUTS = "old_logprobs ref_logprobs entropy mask"
_OPTIONAL_INPUTS = "importance_weights log_ratio_coef kl_logprobs token_advantages"
_SEQUENCE_INPUTS = "advantages entropy_coef kl_coef"
_RATIOS = ("ppo", "cispo", "gspo")


def clipped_policy_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    *,
    clip_low: float | jax.Array = 0.1,
    clip_high: float | jax.Array = 0.15,
    dual_clip: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """PPO's clipped surrogate loss of each token.

    ``max(-r * A, -clip(r, 1 - clip_low, 1 + clip_high) * A)`` with ``r = exp(logprobs - old)``.

    Args:
      logprobs: any shape, log-probability of each sampled token under the policy being trained.
      old_logprobs: same shape, the same under the policy that sampled; a constant.
      advantages: same shape; a constant.
      clip_low: how far the ratio may fall below 1; a number, or an array of that shape.
      clip_high: how far the ratio may rise above 1, likewise.
      dual_clip: a number above 1: where the advantage is negative the loss is at most
        ``-dual_clip * A``, however large the ratio; None = no such bound.

    Returns:
      ``(loss, clipped)``, float32, same shape: the loss, and 1 where clipping removed the gradient.

    Raises:
      ValueError: shapes that differ, or a ``dual_clip`` that is not above 1.

    Example:
      >>> import jax.numpy as jnp
      >>> new, old = jnp.log(jnp.array([0.5, 0.6])), jnp.log(jnp.array([0.5, 0.3]))
      >>> loss, clipped = clipped_policy_loss(new, old, jnp.array([1.0, 2.0]), clip_high=0.25)
      >>> loss.round(3).tolist(), clipped.tolist()
      ([-1.0, -2.5], [0.0, 1.0])

    Source: PPO, arXiv 1707.06347, equation 7; separate bounds as in DAPO, arXiv 2503.14476; dual clip,
    arXiv 1912.09729, equation 5.
    """
    if isinstance(dual_clip, numbers.Real) and not dual_clip > 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip}")
    shape = jnp.shape(logprobs)
    check_shape("old_logprobs", old_logprobs, shape, "shaped like logprobs")
    check_shape("advantages", advantages, shape, "shaped like logprobs")
    clip_low = clip_bound("clip_low", clip_low, shape)
    clip_high = clip_bound("clip_high", clip_high, shape)
    advantages = jax.lax.stop_gradient(jnp.asarray(advantages, jnp.float32))
    ratio = jnp.exp(log_ratio(logprobs, old_logprobs))
    unclipped = -ratio * advantages
    clipped = -jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantages
    loss, cut = jnp.maximum(unclipped, clipped), clipped > unclipped
    if dual_clip is not None:
        most = jnp.where(advantages < 0, -dual_clip * advantages, jnp.inf)
        loss, cut = jnp.minimum(loss, most), cut | (loss > most)
    return loss, cut.astype(jnp.float32)


def kl_estimate(
    logprobs: jax.Array, ref_logprobs: jax.Array, *, kind: str = "low_var_kl"
) -> jax.Array:
    """Estimate of KL(policy || reference) from one sampled token, element-wise.

    With ``d = logprobs - ref_logprobs``: ``k1 = d``, ``k2 = d^2 / 2``, ``k3 = exp(-d) - 1 + d``,
    and ``low_var_kl`` = k3 clamped to +-10 (no gradient where it is clamped).

    Args:
      logprobs: any shape, log-probability of each sampled token under the policy.
      ref_logprobs: same shape, the same under the reference policy; a constant.
      kind: ``"k1"``, ``"k2"``, ``"k3"`` or ``"low_var_kl"``.

    Returns:
      The estimate in nats, float32, same shape.

    Raises:
      ValueError: shapes that differ, or an unknown kind.

    Example:
      >>> import jax.numpy as jnp
      >>> kl_estimate(jnp.array([-1.0, -5.0]), jnp.array([-1.0, -1.0])).tolist()
      [0.0, 10.0]
      >>> kl_estimate(jnp.array([-1.0]), jnp.array([-1.5]), kind="k2").tolist()
      [0.125]

    Source: J. Schulman, "Approximating KL divergence", 2020; the penalty of GRPO.
    """
    if kind not in _KL_KINDS:
        raise ValueError(f"kind must be one of {_KL_KINDS}, got {kind!r}")
    check_shape("ref_logprobs", ref_logprobs, jnp.shape(logprobs), "shaped like logprobs")
    if kind == "low_var_kl":
        # Both ends of the log-ratio's range already lie in the clamped region, where exp must not
        # overflow: inf times the clamp's zero gradient would be nan.
        d = log_ratio(logprobs, ref_logprobs)
        return jnp.clip(jnp.expm1(-d) + d, -_MAX_LOW_VAR_KL, _MAX_LOW_VAR_KL)
    d = difference(logprobs, ref_logprobs)
    if kind == "k3":
        # Held where the exponential would overflow, d far below 0, and only there.
        held = log_ratio(logprobs, ref_logprobs)
        return jnp.expm1(-held) + jnp.maximum(d, held)
    return d if kind == "k1" else 0.5 * d**2


def truncated_importance(
    logprobs: jax.Array, rollout_logprobs: jax.Array, *, cap: float = 2.0
) -> jax.Array:
    """Truncated importance weights of tokens that another policy sampled than the one trained.

    ``min(exp(logprobs - rollout_logprobs), cap)``, a constant: it multiplies the loss of a token
    and no gradient flows through it.

    Args:
      logprobs: any shape, log-probability of each sampled token as the trainer computes it, under
        the policy before the update.
      rollout_logprobs: same shape, the same as the sampler recorded it: older weights, another
        precision or another implementation.
      cap: largest weight; bounds the variance at the price of a bias.

    Returns:
      The weights, float32, same shape.

    Raises:
      ValueError: shapes that differ, or a cap that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> new, old = jnp.log(jnp.array([0.2, 0.8])), jnp.log(jnp.array([0.4, 0.1]))
      >>> truncated_importance(new, old).round(3).tolist()
      [0.5, 2.0]

    Source: IMPALA, arXiv 1802.01561, equation 1, here for single tokens.
    """
    check_shape("rollout_logprobs", rollout_logprobs, jnp.shape(logprobs), "shaped like logprobs")
    if isinstance(cap, numbers.Real) and not cap > 0:
        raise ValueError(f"cap must be positive, got {cap}")
    weights = jnp.minimum(jnp.exp(log_ratio(logprobs, rollout_logprobs)), cap)
    return jax.lax.stop_gradient(weights)


def evolving_rl_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    ref_logprobs: jax.Array,
    entropy: jax.Array,
    mask: jax.Array,
    *,
    sequence_ids: jax.Array,
    num_sequences: int,
    advantages: jax.Array,
    entropy_coef: jax.Array,
    kl_coef: jax.Array,
    clip_low: float | jax.Array = 0.1,
    clip_high: float | jax.Array = 0.15,
    kl_kind: str = "low_var_kl",
    importance_weights: jax.Array | None = None,
    ratio: str = "ppo",
    dual_clip: float | None = None,
    token_divisor: float | jax.Array | None = None,
    log_ratio_coef: jax.Array | None = None,
    kl_logprobs: jax.Array | None = None,
    token_advantages: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The Evolving-RL objective of a batch of packed sequences, as a sum over sequences.

    ``sum over sequences of mean over its tokens of (policy - entropy_coef * H + kl_coef * KL)``.
    The caller divides once, by the number of sequences of the whole batch over all devices and
    micro-batches.  A sequence without a trained token adds 0 and still counts in that number.  All
    tokens of one sequence must be in the same call.  Values on untrained tokens are never read, so
    padding may hold anything, nan included.

    Args:
      logprobs: [B, T], log-probability of each token under the policy being trained.
      old_logprobs: [B, T], the same under the policy that sampled.
      ref_logprobs: [B, T], the same under the reference policy.
      entropy: [B, T], entropy of the policy at each token, nats.
      mask: [B, T], 1 = the policy sampled this token.
      sequence_ids: [B, T] integers in [0, M), -1 = padding.
      num_sequences: M, a Python integer.
      advantages: [M], the advantage of each sequence.
      entropy_coef: [M], > 0 rewards entropy, < 0 pushes it down.
      kl_coef: [M], weight of the KL penalty.
      clip_low: see ``clipped_policy_loss``; a number, or one for each sequence [M].
      clip_high: likewise.
      kl_kind: see ``kl_estimate``.
      importance_weights: [B, T], factor of each token's policy loss (not of its entropy and KL), see
        ``truncated_importance``; None = 1.
      ratio: the policy loss: ``"ppo"`` = ``clipped_policy_loss``; ``"gspo"`` the same with the ratio of
        the whole sequence, see ``sequence_logprobs``; ``"cispo"`` = ``cispo_loss``.
      dual_clip: see ``clipped_policy_loss``; not with ``"cispo"``.
      token_divisor: what the sum over a sequence's tokens is divided by; None = how many it trains
        (GRPO).  The mean of that over all sequences of the whole batch makes the loss the mean over
        tokens (DAPO); a constant, for example the longest answer, is Dr. GRPO's.
      log_ratio_coef: [B, T], weight of ``|logprobs - old_logprobs|`` of each token (KL-Cov, see
        ``covariance_outliers``); None = 0.
      kl_logprobs: [B, T], what the KL compares with ``ref_logprobs``; None = ``logprobs``.  For
        ``logprobs`` that are renormalised over kept tokens (``kept_token_logprobs``): the reference
        kept others, so the two are compared under the full softmax.
      token_advantages: [B, T], what the advantage of each token has beside that of its sequence (the
        credit of single steps, GiGPO); None = 0.

    Returns:
      ``(loss_sum, metrics)``.  In metrics, ``loss``, ``policy_loss``, ``entropy``, ``kl``,
      ``clip_fraction``, ``ratio_deviation`` (|ratio - 1|) and ``approx_kl`` (old - new
      log-probability) are sums over sequences of token means, to be added up and divided like the
      loss; ``sequences`` (with a trained token) and ``tokens`` (trained) are counts.  With a
      ``token_divisor``, ``loss`` and ``policy_loss`` are divided by it as the loss is.

    Raises:
      ValueError: a wrong shape or a missing array, a non-integer ``sequence_ids``, an unknown ``kl_kind`` or
        ``ratio``, a ``dual_clip`` with ``"cispo"``, a ``token_divisor`` that is not above 0.

    Example:
      Two sequences in one row, then padding.

      >>> import jax.numpy as jnp
      >>> logprobs = jnp.array([[-1.0, -2.0, -0.5, jnp.nan]])
      >>> loss_sum, metrics = evolving_rl_loss(
      ...     logprobs, logprobs, logprobs, jnp.ones((1, 4)), jnp.array([[1, 1, 1, 0]]),
      ...     sequence_ids=jnp.array([[0, 0, 1, -1]]), num_sequences=2,
      ...     advantages=jnp.array([1.0, -0.5]), entropy_coef=jnp.zeros(2), kl_coef=jnp.ones(2))
      >>> float(loss_sum), float(metrics["tokens"]), float(metrics["entropy"])
      (-0.5, 3.0, 2.0)

    Source: Evolving-RL, arXiv 2605.10663; aggregation per sequence as in GRPO, arXiv 2402.03300.
    """
    _check_options(ratio, dual_clip, token_divisor)
    check_rank("logprobs", logprobs, "BT")
    tokens = (old_logprobs, ref_logprobs, entropy, mask)
    optional = (importance_weights, log_ratio_coef, kl_logprobs, token_advantages)
    sequences = (advantages, entropy_coef, kl_coef)
    _check_shapes(_TOKEN_INPUTS, tokens, jnp.shape(logprobs), "[B, T]")
    _check_shapes(_OPTIONAL_INPUTS, optional, jnp.shape(logprobs), "[B, T]", optional=True)
    _check_shapes(_SEQUENCE_INPUTS, sequences, (num_sequences,), "[M]")
    weights, ids, counts = _token_weights(mask, sequence_ids, num_sequences)
    # Untrained tokens are replaced before any arithmetic: a nan times a zero weight is still nan.
    full = logprobs if kl_logprobs is None else kl_logprobs
    new, old, ref, entropy, full = (
        jnp.where(weights > 0, jnp.asarray(x, jnp.float32), 0.0)
        for x in (logprobs, old_logprobs, ref_logprobs, entropy, full)
    )
    advantage, entropy_coef, kl_coef = _coefficients(sequences, token_advantages, weights > 0, ids)
    bounds = {"clip_low": clip_low, "clip_high": clip_high}
    clip = {n: _of_tokens(n, bound, ids, num_sequences) for n, bound in bounds.items()}
    if ratio == "cispo":
        policy, clipped = variants.cispo_loss(new, old, advantage, **clip)
    else:
        compared = _compared(ratio, new, old, weights > 0, ids, num_sequences)
        policy, clipped = clipped_policy_loss(compared, old, advantage, dual_clip=dual_clip, **clip)
    if importance_weights is not None:
        policy = policy * jnp.where(weights > 0, importance_weights, 0.0)
    if log_ratio_coef is not None:
        policy += jnp.where(weights > 0, log_ratio_coef, 0.0) * jnp.abs(difference(new, old))
    kl = kl_estimate(full, ref, kind=kl_kind)
    divided = weights if token_divisor is None else jnp.sign(weights) / token_divisor
    loss_sum = jnp.sum(divided * (policy - entropy_coef * entropy + kl_coef * kl))

    means = {"entropy": entropy, "kl": kl, "clip_fraction": clipped}
    means["approx_kl"] = -difference(new, old)
    means["ratio_deviation"] = jnp.abs(jnp.exp(log_ratio(new, old)) - 1.0)
    metrics = {name: jnp.sum(weights * value) for name, value in means.items()}
    metrics |= {"policy_loss": jnp.sum(divided * policy), "loss": loss_sum}
    metrics |= {"sequences": jnp.sum((counts > 0).astype(jnp.float32)), "tokens": jnp.sum(counts)}
    return loss_sum, jax.lax.stop_gradient(metrics)


def _coefficients(sequences, token_advantages, trained, ids):
    """Arrays of sequences [M] -> of their trained tokens [B, T]; the first, advantages, with the tokens' own."""
    advantage, *others = (
        jnp.where(trained, jnp.asarray(x, jnp.float32)[ids], 0.0) for x in sequences
    )
    if token_advantages is not None:
        advantage += jnp.where(trained, jnp.asarray(token_advantages, jnp.float32), 0.0)
    return advantage, *others


def _of_tokens(name, bound, ids, num_sequences):
    """A number as it is; one for each sequence [M] -> one for each token [B, T]."""
    if jnp.ndim(bound) == 0:
        return bound
    check_shape(name, bound, (num_sequences,), "a number or [M]")
    return jnp.asarray(bound, jnp.float32)[ids]


def _compared(ratio, new, old, trained, ids, num_sequences):
    """The log-probabilities whose ratio to the old ones the clip sees."""
    if ratio == "ppo":
        return new
    return variants.sequence_logprobs(
        new, old, trained, sequence_ids=ids, num_sequences=num_sequences
    )


def _check_shapes(names, arrays, shape, legend, *, optional=False):
    for name, array in zip(names.split(), arrays, strict=True):
        if array is not None:
            check_shape(name, array, shape, legend)
        elif not optional:
            raise ValueError(f"{name} must be {legend} = {tuple(shape)}, got None")


def _check_options(ratio, dual_clip, token_divisor):
    if ratio not in _RATIOS:
        raise ValueError(f"ratio must be one of {_RATIOS}, got {ratio!r}")
    if ratio == "cispo" and dual_clip is not None:
        raise ValueError(f"dual_clip must be None with ratio 'cispo', got {dual_clip}")
    if token_divisor is not None:
        check_shape("token_divisor", token_divisor, (), "a number")
        if isinstance(token_divisor, numbers.Real) and not token_divisor > 0:
            raise ValueError(f"token_divisor must be above 0, got {token_divisor}")


def _token_weights(mask, sequence_ids, num_sequences):
    """Weights [B, T], ids made safe to index with [B, T], trained tokens of each sequence [M].

    The weights make a sum over tokens the sum over sequences of their token means.  Only the integer
    token counts are summed by index, so the result does not depend on the order in which a device adds.
    """
    check_rank("mask", mask, "BT")
    check_shape("sequence_ids", sequence_ids, jnp.shape(mask), "[B, T]")
    trained, ids = trained_tokens(mask, sequence_ids, num_sequences)
    ones = trained.astype(jnp.float32)
    counts = jax.ops.segment_sum(ones.ravel(), ids.ravel(), num_sequences)
    return ones / jnp.maximum(counts, 1.0)[ids], ids, counts
