"""The Pallas attention kernel for GPUs that comes with jax, on the rows and heads of one device.

The kernel tiles queries and keys and recomputes scores in its backward pass, so memory is linear in
the length of a row.  It skips tiles above the diagonal, but not those between segments, and knows
no grouped heads: keys and values are repeated for it.  Interpreted, it runs on a CPU: slow, but the
same arithmetic.
"""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

_BACKWARD = (32, 32, 32, 32)  # the backward kernels' tiles, the kernel's own choice
_BLOCK = 128  # queries and keys of the forward kernel's tiles; rows are padded to a multiple


def _kernel():
    with warnings.catch_warnings():
        # jax 0.11 announces that the kernel moves to a package of its own; it is still there.
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha
    return mha, BlockSizes


def pallas_gpu_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention within segments; shapes as in `attention.attention`.

    Args:
      q: [B, H, T, d].
      k: [B, Hkv, T, d]; Hkv divides H.
      v: [B, Hkv, T, d].
      segment_ids: [B, T] int.
      interpret: run the kernel's program with jax operations instead of compiling it for a GPU.

    Returns:
      [B, H, T, d] in the dtype of ``q``.
    """
    _, heads, length, dim = q.shape
    extra = -length % _BLOCK
    # Padding comes after the last token, hence is invisible to every real query.
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, extra)), constant_values=-1)

    def prepared(x):  # [B, n, T, d] -> [B, T + extra, H, d]
        x = jnp.repeat(x, heads // x.shape[1], axis=1).transpose(0, 2, 1, 3)
        return jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0)))

    kernel, sizes = _kernel()
    # Tiles of 128 keys of 128 float32 are more than the shared memory of an H200 (232,448 bytes) holds.
    keys = _BLOCK // 2 if q.dtype.itemsize > 2 and dim > 64 else _BLOCK
    out = kernel(
        prepared(q),
        prepared(k),
        prepared(v),
        segment_ids.astype(jnp.int32),
        sm_scale=dim**-0.5,
        causal=True,
        block_sizes=sizes(_BLOCK, keys, *_BACKWARD),
        interpret=interpret,
    )
    out = out[:, :length].transpose(0, 2, 1, 3).astype(q.dtype)
    return checkpoint_name(out, "attention")  # which remat policies keep
