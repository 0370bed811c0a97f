"""Splash attention, the Pallas kernel for TPUs that comes with jax, on the rows and heads of one
device.

The kernel tiles queries and keys, skips the tiles that causality or the mask leaves empty, and
recomputes scores in its backward pass, so memory is linear in the length of a row.  Interpreted, it
runs on a CPU: slow, but the same arithmetic.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

_LANES = 128  # the width of a TPU vector register: lengths and head sizes are padded to it
_BLOCK = 512  # queries and keys of a tile; fits the vector memory of every chip since v4


def _block(length: int, largest: int) -> int:
    """The largest tile that divides a padded length."""
    return next(n for n in (largest, 256, _LANES) if n <= largest and length % n == 0)


def _kernel(heads: int, length: int, block: int, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv")
    names += ("block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
    mask = splash.MultiHeadMask([splash.CausalMask((length, length)) for _ in range(heads)])
    return splash.make_splash_mha(
        mask,
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(**dict.fromkeys(names, block)),
        residual_checkpoint_name="attention",  # which remat policies keep
        interpret=interpret,
    )


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    *,
    interpret: bool = False,
    block: int = _BLOCK,
) -> jax.Array:
    """Causal attention within segments; shapes as in `attention.attention`.

    Args:
      q: [B, H, T, d].
      k: [B, Hkv, T, d]; Hkv divides H.
      v: [B, Hkv, T, d].
      segment_ids: [B, T] int.
      interpret: run the kernel's program with jax operations instead of compiling it for a TPU.
      block: the largest tile, a multiple of 128.

    Returns:
      [B, H, T, d] in the dtype of ``q``.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    _, heads, length, dim = q.shape
    after, wide = -length % _LANES, -dim % _LANES
    if length > _LANES:  # short rows take small tiles, long ones are padded to a whole large one
        after = -length % min(block, 1 << (length - 1).bit_length())
    pad = functools.partial(jnp.pad, pad_width=((0, 0), (0, 0), (0, after), (0, wide)))
    # Padding comes after the last token, hence is invisible to every real query.
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, after)), constant_values=-1)
    kernel = _kernel(heads, length + after, _block(length + after, block), interpret)

    def one_row(q, k, v, segments):
        return kernel(q, k, v, segment_ids=SegmentIds(segments, segments))

    scaled = (q.astype(jnp.float32) * dim**-0.5).astype(q.dtype)  # the kernel does not scale
    out = jax.vmap(one_row)(pad(scaled), pad(k), pad(v), segment_ids)
    return out[:, :, :length, :dim].astype(q.dtype)
