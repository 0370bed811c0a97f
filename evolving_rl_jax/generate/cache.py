"""KV cache rows on the device.

The cache has one row a slot (``models.init_cache``: per layer ``[S, Hkv, C, d]``).  On GPUs
compiled functions use it where it lies (`models.cached`).  Elsewhere they work on a copy of the rows
and columns that they need and write back only the columns that they changed: the copy is made once
per prefill chunk or decode window and pays for itself within a step or two by attention over fewer
columns and rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from evolving_rl_jax.models import ModelConfig
from evolving_rl_jax.models.cached import read_block

_COPIED = 1024  # columns that a copy in place moves at a time


def cache_bytes(cfg: ModelConfig, num_slots: int, max_length: int, dtype=None) -> int:
    """Bytes of the KV cache of ``num_slots`` rows of ``max_length`` columns."""
    width = cfg.num_kv_heads * cfg.head_dim * jnp.dtype(dtype or cfg.dtype).itemsize
    return 2 * cfg.num_layers * num_slots * max_length * width


def gather_rows(cache, slots: jax.Array, columns: int):
    """The first ``columns`` columns of rows ``slots`` [R]; out of range gives some row."""
    return jax.tree.map(lambda a: a[:, :, :columns].at[slots].get(mode="clip"), cache)


def scatter_columns(cache, rows, slots: jax.Array, starts: jax.Array, count: int):
    """Writes columns ``starts[r] .. starts[r] + count - 1`` of ``rows`` into cache rows ``slots``.

    A window that would pass the last column of ``rows`` is moved back, which rewrites what is there
    already.  Rows whose slot number is out of range are dropped.

    Args:
      cache: pytree of [S, H, C, d].
      rows: pytree of [R, H, C', d], C' <= C, as `gather_rows` gave it and the model updated it.
      slots: [R] int32, distinct where in range.
      starts: [R] int32.
      count: static number of columns.
    """

    def write(target, source):
        _, heads, length, width = source.shape
        first = jnp.clip(starts, 0, length - count)

        def window(row, at):
            return jax.lax.dynamic_slice(row, (0, at, 0), (heads, count, width))

        return _scatter(target, jax.vmap(window)(source, first), slots, first)

    return jax.tree.map(write, cache, rows)


def _scatter(target, values, slots, first):
    """Values [R, H, n, d] into rows ``slots`` [R] of target [S, H, C, d], from columns ``first``
    [R]."""
    dims = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0, 2)
    )
    return jax.lax.scatter(
        target,
        jnp.stack([slots, first], axis=1),
        values,
        dims,
        mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
    )


def copy_in_place(cache, sources: jax.Array, targets: jax.Array, columns: int):
    """Copies the first ``columns`` columns of rows ``sources`` [R] to ``targets`` [R], block by block.

    Rows whose target is out of range are dropped.
    """
    block = min(columns, _COPIED)

    def move(i, cache):
        start = jnp.minimum(i * block, columns - block)  # the last block is moved back
        first = jnp.full(targets.shape, start, targets.dtype)
        return jax.tree.map(
            lambda a: _scatter(a, read_block(a, sources, start, block), targets, first), cache
        )

    return jax.lax.fori_loop(0, -(-columns // block), move, cache)


def bucket(sizes: tuple[int, ...], needed: int) -> int:
    """The smallest of the ascending ``sizes`` that is at least ``needed``, else the largest."""
    return next((size for size in sizes if size >= needed), sizes[-1])


def padded(array: np.ndarray, rows: int, value) -> np.ndarray:
    """``array`` with rows of ``value`` appended up to ``rows``."""
    out = np.full((rows, *array.shape[1:]), value, array.dtype)
    out[: len(array)] = array
    return out
