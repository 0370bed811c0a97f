"""Log-probabilities and entropies straight from hidden states, a chunk of tokens at a time.

The logits of a whole batch, [B, T, V], are the largest array of a training step: 40 GB for 64 k
tokens of a 152 k vocabulary.  Here they exist for one chunk only, forward and backward.

Axis letters: B rows, T tokens a row, D model width, V vocabulary, C chunks, P tokens of a chunk.
"""

from __future__ import annotations

import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp

from evolving_rl_jax.losses._checks import check_integer, check_rank, check_shape


def token_logprobs(
    hidden: jax.Array,
    unembedding: jax.Array,
    targets: jax.Array,
    *,
    temperature: float = 1.0,
    chunk_size: int = 512,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target and entropy of each distribution, never holding [B, T, V].

    ``z = hidden @ unembedding^T / temperature``; ``logprob = z[target] - logsumexp(z)``;
    ``entropy = logsumexp(z) - sum(softmax(z) * z)`` over the whole vocabulary.

    At most ``B * chunk_size * V`` logits exist at a time, in the backward pass too, which computes
    each chunk's logits again.  Reductions over V are sums and maxima, so V may be sharded over a
    mesh axis.  Products run in the wider dtype of the two inputs and are accumulated in float32;
    cast ``unembedding`` to the dtype of ``hidden`` for a bfloat16 product.

    Args:
      hidden: [B, T, D], final hidden states; the state at t predicts ``targets[:, t]``.
      unembedding: [V, D].
      targets: [B, T] integers of any dtype in [0, V).  Elsewhere (padding) the result is finite and
        meaningless.
      temperature: divides the logits, > 0; a constant for gradients.
      chunk_size: most tokens of a row in a chunk; T need not be a multiple of it.
      mask: [B, T]; a chunk in which it is 0 everywhere is skipped, at run time, and its results are
        0.  So sort wanted tokens to the front.  None computes all.

    Returns:
      ``(logprobs, entropy)``, both float32 [B, T], nats.  Where neither is used further on (their
      cotangents are 0) the hidden state reaches no gradient, whatever it holds.  The gradient of
      an ``unembedding`` that is not differentiated is not computed.

    Raises:
      ValueError: a wrong shape or dtype, a chunk size below 1, a temperature that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> hidden, unembedding = jnp.zeros((1, 3, 2)), jnp.ones((4, 2))
      >>> logprobs, entropy = token_logprobs(hidden, unembedding, jnp.array([[0, 1, 2]]))
      >>> logprobs.round(4).tolist() == (-entropy).round(4).tolist()  # uniform over 4 tokens
      True
      >>> round(float(entropy[0, 0]), 4)
      1.3863
    """
    outputs = _all_tokens(hidden, unembedding, targets, None, temperature, chunk_size, mask)
    return tuple(outputs)


class KeptLogprobs(NamedTuple):
    """What `kept_token_logprobs` gives, all float32 [B, T], nats.

    ``logprobs`` and ``entropy`` as of `token_logprobs`, over the whole vocabulary; ``log_kept`` the
    logarithm of the probability of all tokens kept, or None where all were.
    """

    logprobs: jax.Array
    entropy: jax.Array
    log_kept: jax.Array | None

    @property
    def of_kept(self) -> jax.Array:
        """Log-probabilities [B, T] under the distribution renormalised over the tokens kept."""
        return self.logprobs if self.log_kept is None else self.logprobs - self.log_kept


def kept_token_logprobs(
    hidden: jax.Array,
    unembedding: jax.Array,
    targets: jax.Array,
    floor: jax.Array,
    *,
    temperature: float = 1.0,
    chunk_size: int = 512,
    mask: jax.Array | None = None,
) -> KeptLogprobs:
    """`token_logprobs`, and the probability of the tokens that sampling kept (top-p, top-k).

    A token is kept where its log-probability (of the whole vocabulary, at ``temperature``) is at
    least ``floor``; so no sort is needed.  The target is always kept: it was sampled, whatever
    another rounding says now.  Which tokens are kept is a constant for gradients.

    Args:
      hidden, unembedding, targets, temperature, chunk_size, mask: as for `token_logprobs`.
      floor: [B, T], best halfway between the least likely token kept and the most likely one left
        out, so that rounding moves none across; -inf keeps all, inf the target alone.

    Returns:
      `KeptLogprobs`; its ``of_kept`` is the log-probability that top-p or top-k sampled with.

    Raises:
      ValueError: as `token_logprobs`, or a wrong shape of ``floor``.

    Example:
      Probabilities 0.5, 0.3 and 0.2; the last token was left out.

      >>> import jax.numpy as jnp
      >>> p = jnp.array([0.5, 0.3, 0.2])
      >>> found = kept_token_logprobs(
      ...     jnp.ones((1, 1, 1)), jnp.log(p)[:, None], jnp.array([[0]]), jnp.log(jnp.array([[0.25]])))
      >>> jnp.exp(found.of_kept).round(4).tolist(), jnp.exp(found.logprobs).round(4).tolist()
      ([[0.625]], [[0.5]])

    Source: "Keep Sampling Mask" of DeepSeek-V3.2, arXiv 2512.02556.
    """
    outputs = _all_tokens(hidden, unembedding, targets, floor, temperature, chunk_size, mask)
    return KeptLogprobs(*outputs)


def _all_tokens(hidden, unembedding, targets, floor, temperature, chunk_size, mask):
    """[logprobs, entropy], and log_kept with a floor."""
    check_rank("hidden", hidden, "BTD")
    rows, length, width = jnp.shape(hidden)
    check_rank("unembedding", unembedding, "VD")
    check_shape("unembedding", unembedding, (jnp.shape(unembedding)[0], width), "[V, D]")
    check_shape("targets", targets, (rows, length), "[B, T]")
    check_integer("targets", targets)
    if not isinstance(chunk_size, numbers.Integral) or chunk_size < 1:
        raise ValueError(f"chunk_size must be an integer >= 1, got {chunk_size!r}")
    if isinstance(temperature, numbers.Real) and not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature!r}")

    chunks = max(1, -(-length // chunk_size))
    used = None
    if mask is not None:
        check_shape("mask", mask, (rows, length), "[B, T]")
        used = jnp.any(_split(jnp.asarray(mask), chunks) != 0, axis=1)
    if floor is not None:
        check_shape("floor", floor, (rows, length), "[B, T]")
        floor = _split(jnp.asarray(floor, jnp.float32), chunks)
    scale = 1.0 / jnp.asarray(temperature, jnp.float32)
    # Narrow integers cannot count to V.
    targets = jnp.asarray(targets).astype(jnp.int32)
    hidden, targets = _split(jnp.asarray(hidden), chunks), _split(targets, chunks)
    inputs = _equally_varying(hidden, jnp.asarray(unembedding), targets, scale, used, floor)
    return [_join(x, rows, length) for x in _chunked(*inputs)]


@jax.custom_vjp
def _chunked(hidden, unembedding, targets, scale, used, floor):
    """hidden [C, P, D], unembedding [V, D], targets [C, P], used [C] or None, floor [C, P] or None
    -> logprobs and entropy [C, P], and log_kept [C, P] with a floor."""
    return _forward(hidden, unembedding, targets, scale, used, floor)[0]


def _forward(hidden, unembedding, targets, scale, used, floor):
    """Of plain arrays, or (to be differentiated) of pairs: a value, and whether it is varied."""
    inputs = (hidden, unembedding, targets, scale, used, floor)
    trained = getattr(unembedding, "perturbed", True)
    hidden, unembedding, targets, scale, used, floor = (getattr(x, "value", x) for x in inputs)

    def compute(states, target, floor):
        given = _logits(states, unembedding, scale)
        peak = jnp.max(given, -1, keepdims=True)
        logits = given - peak
        exp = jnp.exp(logits)
        total = jnp.sum(exp, -1)
        log_total = jnp.log(total)
        # A masked sum instead of a gather: it stays local when V is sharded.
        chosen = jnp.sum(jnp.where(_is_target(target, logits), logits, 0.0), -1)
        entropy = log_total - jnp.sum(exp * logits, -1) / total
        norm = log_total + peak[:, 0]
        if floor is None:
            return chosen - log_total, entropy, norm
        kept = _is_kept(given - norm[:, None], target, floor)
        # The target is kept even where its probability is too small for a float32.
        log_sum = jnp.maximum(jnp.log(jnp.sum(jnp.where(kept, exp, 0.0), -1)), chosen)
        return chosen - log_total, entropy, norm, log_sum - log_total

    def skip(states, target, floor):
        return (jnp.zeros_like(target, jnp.float32),) * (3 if floor is None else 4)

    def chunk(_, inputs):
        wanted, *inputs = inputs
        return None, _where(wanted, compute, skip, *inputs)

    _, found = jax.lax.scan(chunk, None, (used, hidden, targets, floor))
    logprobs, entropy, log_norm, *log_kept = found
    # Where the matrix's gradient is summed, in float32 whatever its dtype; () = nobody asks for it.
    start = jnp.zeros_like(unembedding, jnp.float32) if trained else ()
    saved = (hidden, unembedding, targets, scale, used, floor, entropy, log_norm, log_kept, start)
    return (logprobs, entropy, *log_kept), saved


def _backward(saved, cotangents):
    hidden, unembedding, targets, scale, used, floor, entropy, log_norm, log_kept, start = saved
    trained = not isinstance(start, tuple)
    cotangents = [
        jnp.zeros_like(entropy) if isinstance(c, jax.custom_derivatives.SymbolicZero) else c
        for c in cotangents
    ]

    def compute(grad_unembedding, states, target, h, norm, kept, grad_logprob, grad_entropy):
        # A state whose results nobody uses may hold anything: 0 * nan would reach every weight.
        live = ((grad_logprob != 0) | (grad_entropy != 0))[:, None]
        if kept:
            floor, log_mass, grad_mass = kept
            live = live | (grad_mass != 0)[:, None]
        states = jnp.where(live, states, 0)
        logp = _logits(states, unembedding, scale) - norm[:, None]
        # d logprob / dz = onehot - p;  d entropy / dz = -p * (log p + entropy)
        slope = grad_logprob[:, None] + grad_entropy[:, None] * (logp + h[:, None])
        grad = jnp.where(_is_target(target, logp), grad_logprob[:, None], 0.0)
        if kept:  # d log_kept / dz = p / (sum of p kept) where kept, - p everywhere
            slope = slope + grad_mass[:, None]
            share = jnp.where(_is_kept(logp, target, floor), jnp.exp(logp - log_mass[:, None]), 0.0)
            grad = grad + share * grad_mass[:, None]
        grad = jnp.where(live, scale * (grad - jnp.exp(logp) * slope), 0.0)
        dtype = jnp.promote_types(states.dtype, unembedding.dtype)
        grad = grad.astype(dtype)
        grad_states = _dot(grad, unembedding.astype(dtype), (1, 0)).astype(states.dtype)
        if trained:
            grad_unembedding = grad_unembedding + _dot(grad, states.astype(dtype), (0, 0))
        return grad_unembedding, grad_states

    def skip(grad_unembedding, states, *_):
        return grad_unembedding, jnp.zeros_like(states)

    def chunk(grad_unembedding, inputs):
        wanted, *inputs = inputs
        return _where(wanted, compute, skip, grad_unembedding, *inputs)

    grad_logprob, grad_entropy, *grad_mass = cotangents
    kept = (floor, *log_kept, *grad_mass) if log_kept else ()
    inputs = (used, hidden, targets, entropy, log_norm, kept, grad_logprob, grad_entropy)
    grad_unembedding, grad_hidden = jax.lax.scan(chunk, start, inputs)
    grad_unembedding = grad_unembedding.astype(unembedding.dtype) if trained else None
    return grad_hidden, grad_unembedding, None, jnp.zeros_like(scale), None, None


def _where(wanted, compute, skip, *inputs):
    """``compute`` or ``skip`` by a run-time flag; None always computes."""
    if wanted is None:
        return compute(*inputs)
    return jax.lax.cond(wanted, compute, skip, *inputs)


_chunked.defvjp(_forward, _backward, symbolic_zeros=True)


def _equally_varying(*arrays):
    """The arrays (or None), all varying over the same axes of a `jax.shard_map` around them.

    What is the same on all devices (the matrix) and what is not (the states) meet in the carry of a
    scan, whose type must not change.  A selection that compiles to nothing changes it beforehand.
    """
    given = [x for x in arrays if x is not None]
    zero = sum(jnp.zeros_like(x, jnp.float32, shape=()) for x in given)
    return [None if x is None else jnp.where(zero > 0, x, x) for x in arrays]


def _logits(states, unembedding, scale):
    """[P, D] and [V, D] -> float32 [P, V], divided by the temperature."""
    dtype = jnp.promote_types(states.dtype, unembedding.dtype)
    return scale * _dot(states.astype(dtype), unembedding.astype(dtype), (1, 1))


def _dot(a, b, contract):
    # Accelerators multiply float32 in fewer bits unless told otherwise.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def _is_target(target, logits):
    return jax.lax.broadcasted_iota(target.dtype, logits.shape, 1) == target[:, None]


def _is_kept(logp, target, floor):
    """[P, V]: at least the floor [P], or the target, which was sampled."""
    return (logp >= floor[:, None]) | _is_target(target, logp)


def _split(x, chunks):
    """[B, T, ...] -> [C, B * T / C, ...]: padded to even chunks, which keep all rows together.

    Chunks run along T so that a batch sharded over its rows stays sharded, and are flattened
    because compilers turn 2-D products into their fastest kernels.
    """
    rows, length = x.shape[:2]
    size = -(-length // chunks)
    padding = [(0, 0), (0, chunks * size - length)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, padding).reshape(rows, chunks, size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0).reshape(chunks, rows * size, *x.shape[3:])


def _join(x, rows, length):
    """The inverse of ``_split`` for [C, P], without the padding."""
    chunks, size = x.shape[0], -(-length // x.shape[0])
    x = jnp.moveaxis(x.reshape(chunks, rows, size), 0, 1)
    return x.reshape(rows, chunks * size)[:, :length]
