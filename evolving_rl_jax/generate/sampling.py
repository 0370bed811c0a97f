"""Sampling one token a row from logits, with per-row temperature, top-k and top-p given as arrays.

No sort: the smallest kept weight is found by bisection over the bits of a float32, which is exact,
costs some sixty cheap passes whatever the vocabulary, and is skipped while no row restricts its
distribution.  The draw needs two uniforms a row instead of a noise value per vocabulary entry: the
first picks a block of the vocabulary by its mass, the second the token inside the block.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Weights are exp(x - max) in [0, 1]; such floats order like their bit patterns, and this is 1.0.
_ONE_BITS = 0x3F800000


class Sampled(NamedTuple):
    """One token a row: its id, its log-probability under two distributions, what was kept; all [S].

    ``logprobs`` are under the full softmax at the row's temperature (1 for a greedy row);
    ``sampling_logprobs`` under the distribution that the token was drawn from, top-k and top-p
    applied (0 for a greedy row).  ``floor_logprobs`` tell the two apart: tokens whose full
    log-probability lies above it were kept, the others left out.  It lies halfway between the least
    likely token kept and the most likely one left out, so that who computes the distribution again
    and rounds differently still finds the same tokens on either side; -inf where nothing was left
    out, inf for a greedy row, which kept its token alone.
    """

    tokens: jax.Array
    logprobs: jax.Array
    sampling_logprobs: jax.Array
    floor_logprobs: jax.Array


def turn_key(seed: int, iteration: int, episode: int, turn: int) -> np.ndarray:
    """The key of one turn's randomness, two words [2] uint32; its slot plays no part."""
    name = struct.pack("<4q", seed, iteration, episode, turn)
    return np.frombuffer(hashlib.blake2b(name, digest_size=8).digest(), "<u4")


def token_uniforms(keys: jax.Array, first: jax.Array, count: int) -> jax.Array:
    """Two uniforms in [0, 1) for every row and token index ``first .. first + count - 1``.

    Args:
      keys: [S, 2] uint32, see `turn_key`.
      first: [S] int32, index in its turn of the next token of every row.
      count: static.

    Returns:
      [count, S, 2] float32, multiples of 2^-24.
    """
    keys = jax.random.wrap_key_data(keys, impl="threefry2x32")
    indices = first + jnp.arange(count, dtype=first.dtype)[:, None]
    words = jax.vmap(jax.vmap(jax.random.fold_in), in_axes=(None, 0))(keys, indices)
    return (jax.random.key_data(words) >> 8).astype(jnp.float32) * 2.0**-24


def sample(
    logits: jax.Array,
    uniforms: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    top_k: jax.Array,
) -> Sampled:
    """Draws one token a row.

    Top-k is applied first and top-p to what it leaves, renormalised.  Tokens that tie with the last
    kept one are kept too.

    Args:
      logits: [S, V] float32.
      uniforms: [S, 2] in [0, 1), see `token_uniforms`.
      temperature: [S] float32; 0 takes the most likely token.
      top_p: [S] float32 in (0, 1]; 1 keeps everything.
      top_k: [S] int32; 0 keeps everything.

    Returns:
      `Sampled`.
    """
    greedy = temperature <= 0
    centred = logits - jnp.max(logits, axis=-1, keepdims=True)
    tempered = centred / jnp.where(greedy, 1, temperature)[:, None]
    weights = jnp.exp(tempered)
    log_total = jnp.log(jnp.sum(weights, axis=-1))
    restricted = ~greedy & ((top_p < 1) | (top_k > 0))
    weights, log_floor = jax.lax.cond(
        jnp.any(restricted), _restrict, _keep_all, weights, top_p, top_k
    )
    tokens = jnp.where(greedy, _first(centred == 0), _draw(weights, uniforms))
    tokens = jnp.clip(tokens, 0, logits.shape[-1] - 1)  # a row of NaN has nothing to draw from
    logprobs = _pick(tempered, tokens) - log_total
    sampling = jnp.log(_pick(weights, tokens)) - jnp.log(jnp.sum(weights, axis=-1))
    floor = jnp.where(greedy, jnp.inf, log_floor - log_total)
    return Sampled(tokens, logprobs, jnp.where(greedy, 0.0, sampling), floor)


def _first(marked):
    """Index [S] of the first true entry of [S, n], n if none; XLA on CPU is slow at argmax."""
    length = marked.shape[-1]
    return jnp.min(jnp.where(marked, jnp.arange(length, dtype=jnp.int32), length), axis=-1)


def _pick(values, tokens):
    return jnp.take_along_axis(values, tokens[:, None], axis=-1)[:, 0]


def _keep_all(weights, top_p, top_k):
    """`_restrict` where nothing is restricted."""
    return weights, jnp.full_like(top_p, -jnp.inf)


def _restrict(weights, top_p, top_k):
    """Zeroes what top-k and top-p exclude: weights [S, V] in [0, 1], top_p and top_k [S].

    Returns:
      The weights, and the logarithm [S] of the border between those kept and those left out.
    """
    given, vocab = weights, weights.shape[-1]
    k = jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab)
    kth = _largest_threshold(lambda t: jnp.sum(weights >= t, axis=-1) >= k, weights)
    weights = jnp.where(weights >= kth, weights, 0)
    # The mass needed is computed as the bisection sums it, so that top_p = 1 keeps every token.
    mass = jnp.where(top_p < 1, top_p, 0) * jnp.sum(weights, axis=-1)
    nucleus = _largest_threshold(
        lambda t: jnp.sum(jnp.where(weights >= t, weights, 0), axis=-1) >= mass, weights
    )
    weights = jnp.where((weights >= nucleus) | (top_p >= 1)[:, None], weights, 0)
    least = jnp.min(jnp.where(weights > 0, weights, 1), axis=-1)
    next_one = jnp.max(jnp.where(weights > 0, 0, given), axis=-1)  # 0: nothing was left out
    return weights, 0.5 * (jnp.log(least) + jnp.log(next_one))


def _largest_threshold(enough, weights):
    """The largest t [S, 1] in [0, 1] with ``enough(t)`` [S] true, as it is at 0 and then not."""
    low = jnp.zeros((weights.shape[0],), jnp.int32)  # enough holds here
    high = jnp.full_like(low, _ONE_BITS + 1)  # and not here

    def body(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        holds = enough(jax.lax.bitcast_convert_type(middle, jnp.float32)[:, None])
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    low, _ = jax.lax.fori_loop(0, 30, body, (low, high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)[:, None]


def _draw(weights, uniforms):
    """Indices [S] drawn in proportion to weights [S, V] with two uniforms [S, 2]."""
    vocab = weights.shape[-1]
    size = 1 << max(2, (vocab - 1).bit_length() // 2)
    blocks = jnp.pad(weights, ((0, 0), (0, -vocab % size))).reshape(weights.shape[0], -1, size)
    block = _draw_flat(jnp.sum(blocks, axis=-1), uniforms[:, 0])
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * size + _draw_flat(inside, uniforms[:, 1])


def _draw_flat(weights, uniform):
    """Inverse-CDF draw of an index [S] from weights [S, n]; never one of weight 0 by rounding."""
    cumulative = jnp.cumsum(weights, axis=-1)
    positive = weights > 0
    reached = positive & (cumulative > uniform[:, None] * cumulative[:, -1:])
    last = weights.shape[-1] - 1 - _first(positive[:, ::-1])
    return jnp.minimum(_first(reached), last)
