"""KV cache rows on the device, and what each of them holds as the host knows it.

The cache has one row a slot (``models.init_cache``: per layer ``[S, Hkv, C, d]``).  Compiled
functions work on a copy of the rows and columns that they need and write back only the columns that
they changed.  The copy is made once per prefill chunk or decode window and pays for itself within a
step or two by attention over fewer columns and rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from evolving_rl_jax.models import ModelConfig

# A shorter common prefix is cheaper to prefill again than to copy.
_MIN_COPY = 16


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

    dims = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0, 2)
    )

    def write(target, source):
        _, heads, length, width = source.shape
        first = jnp.clip(starts, 0, length - count)

        def window(row, at):
            return jax.lax.dynamic_slice(row, (0, at, 0), (heads, count, width))

        return jax.lax.scatter(
            target,
            jnp.stack([slots, first], axis=1),
            jax.vmap(window)(source, first),
            dims,
            mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
        )

    return jax.tree.map(write, cache, rows)


def bucket(sizes: tuple[int, ...], needed: int) -> int:
    """The smallest of the ascending ``sizes`` that is at least ``needed``, else the largest."""
    return next((size for size in sizes if size >= needed), sizes[-1])


def padded(array: np.ndarray, rows: int, value) -> np.ndarray:
    """``array`` with rows of ``value`` appended up to ``rows``."""
    out = np.full((rows, *array.shape[1:]), value, array.dtype)
    out[: len(array)] = array
    return out


class SlotTable:
    """What the host knows of every slot: its tokens and how many of them are in the cache.

    Attributes:
      tokens: [S, C] int32, the context of the slot's present or last session.
      planned: [S] how many leading tokens the cache will hold after this step's prefill.
      cached: [S] how many are in the cache now.
      free: the slots without a session, the one that has been free longest first.
    """

    def __init__(self, num_slots: int, max_length: int):
        self.tokens = np.zeros((num_slots, max_length), np.int32)
        self.planned = np.zeros(num_slots, np.int64)
        self.cached = np.zeros(num_slots, np.int64)
        self.free = dict.fromkeys(range(num_slots))  # an ordered set

    def shared_prefix(self, context: np.ndarray) -> np.ndarray:
        """[S] how many leading tokens of ``context`` each slot holds or will hold."""
        if not len(context):
            return np.zeros_like(self.planned)
        equal = self.tokens[:, : len(context)] == context
        lengths = np.where(equal.all(axis=1), len(context), equal.argmin(axis=1))
        return np.minimum(lengths, self.planned)

    def find(self, context: np.ndarray) -> tuple[int, int, int]:
        """A free slot for a context of n tokens, and how to come by the most of them.

        Returns:
          (slot, source, count): the first ``count`` tokens are in ``source``, which is ``slot``
          itself unless they have to be copied from another.
        """
        shared = self.shared_prefix(context)
        free = np.fromiter(self.free, np.int64)
        slot, source = int(free[shared[free].argmax()]), int(shared.argmax())
        if shared[source] <= max(shared[slot], _MIN_COPY - 1):
            return slot, slot, int(shared[slot])
        return int(free[0]), source, int(shared[source])

    def release(self, slot: int) -> None:
        """Frees a slot; what is cached there may still serve another session."""
        self.free[slot] = None
        self.planned[slot] = self.cached[slot]

    def hold(self, slot: int, context: np.ndarray, cached: int) -> None:
        """Gives the slot a new context, of which ``cached`` tokens are valid already."""
        self.free.pop(slot, None)
        self.tokens[slot, : len(context)] = context
        self.cached[slot] = cached
        self.planned[slot] = len(context) - 1

    def forget(self) -> None:
        """The weights changed: nothing in the cache is valid any more."""
        self.planned[:] = 0
        self.cached[:] = 0
