"""Attention over rows of a KV cache where they lie, addressed by index.

The cache ``[S, Hkv, C, d]`` is neither gathered nor cut: new keys and values are scattered into it,
and the queries walk over blocks of columns of their rows, keeping the maximum and the sum of the
softmax so far (arXiv 2205.14135).  Beside the cache exist one block of one layer's rows and its
scores, however many columns there are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_MASKED = -1e30  # large and finite: a block that a query sees nothing of must not give NaN
_BLOCK_BYTES = 64 << 20  # keys, or float32 scores, of a block
_LEAST = 128  # columns of a block: fewer would leave matrix units idle


def write_rows(
    cache: jax.Array, values: jax.Array, slots: jax.Array, positions: jax.Array
) -> jax.Array:
    """Writes values [R, Hkv, T, d] into rows ``slots`` [R] of a cache [S, Hkv, C, d].

    ``positions`` [R, T] are the columns; -1 writes nothing, nor does a row out of range.
    """
    columns = jnp.where(positions < 0, cache.shape[2], positions)  # out of bounds, so dropped
    values = values.astype(cache.dtype).transpose(0, 2, 1, 3)
    return cache.at[slots[:, None], :, columns].set(values, mode="drop")


def read_block(cache: jax.Array, slots: jax.Array, first, count: int) -> jax.Array:
    """[R, Hkv, count, d]: columns ``first .. first + count - 1`` of rows ``slots`` [R]; out of range
    gives some row."""
    size = 1, cache.shape[1], count, cache.shape[3]

    def one(slot):
        return jax.lax.dynamic_slice(cache, (slot, 0, first, 0), size)[0]

    return jax.vmap(one)(slots)


def rows_attention(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    slots: jax.Array,
    positions: jax.Array,
    *,
    columns: int,
) -> jax.Array:
    """Attention of q over the columns ``j <= position`` of its rows of the cache.

    Args:
      q: [R, H, T, d].
      k_cache, v_cache: [S, Hkv, C, d]; Hkv divides H.
      slots: [R] int, the row of the cache that each row of ``q`` reads.
      positions: [R, T] int; -1 = padding, whose result means nothing.
      columns: static; none of ``positions`` reaches it.

    Returns:
      [R, H, T, d] in the dtype of ``q``.
    """
    batch, heads, length, dim = q.shape
    kv_heads = k_cache.shape[1]
    block = _block(columns, batch * kv_heads * dim * k_cache.dtype.itemsize, 4 * q.size // dim)
    # Query heads that share a key head side by side: [R, Hkv, H / Hkv * T, d].
    grouped = q.reshape(batch, kv_heads, -1, dim)
    reach = jnp.tile(positions, (1, heads // kv_heads))[:, None, :, None]

    def attend(i, carry):
        top, total, out = carry
        start = jnp.minimum(i * block, columns - block)  # the last block is moved back
        at = start + jnp.arange(block)
        keys = read_block(k_cache, slots, start, block)
        scores = jnp.einsum("rhqd,rhkd->rhqk", grouped, keys, preferred_element_type=jnp.float32)
        seen = (at <= reach) & (at >= i * block)
        scores = jnp.where(seen, scores * dim**-0.5, _MASKED)
        higher = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
        weights, shrink = jnp.exp(scores - higher), jnp.exp(top - higher)
        values = read_block(v_cache, slots, start, block)
        part = jnp.einsum(
            "rhqk,rhkd->rhqd",
            weights.astype(values.dtype),
            values,
            preferred_element_type=jnp.float32,
        )
        total = total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
        return higher, total, out * shrink + part

    one = jnp.zeros((*grouped.shape[:3], 1), jnp.float32)
    # Not -inf: the first block holds column 0, which every real query sees.
    carry = one + _MASKED, one, jnp.zeros(grouped.shape, jnp.float32)
    # A static number of blocks: a GPU's loop with one that it computes waits for the host each time.
    _, total, out = jax.lax.fori_loop(0, -(-columns // block), attend, carry)
    return (out / total).reshape(q.shape).astype(q.dtype)


def _block(columns: int, key_bytes: int, score_bytes: int) -> int:
    """Columns of a block: as many as fit, at least ``_LEAST``, of all ``columns`` at most."""
    fitting = _BLOCK_BYTES // max(key_bytes, score_bytes) // _LEAST * _LEAST
    return min(columns, max(_LEAST, fitting))
