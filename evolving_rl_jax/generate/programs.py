"""The compiled functions of the engine: prefill a chunk, decode a window, copy cache rows.

On GPUs they read and write the cache where it lies; elsewhere they work on a copy of the
rows and columns that they need, see `cache`.  All are pure and of fixed shape; what differs between rows (lengths, limits, temperatures, stop
tokens, random keys) is in arrays.  A row whose slot number is out of range is padding: it computes
garbage that is written nowhere.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np

from evolving_rl_jax import models
from evolving_rl_jax.generate.cache import bucket, copy_in_place, gather_rows, scatter_columns
from evolving_rl_jax.generate.sampling import sample, token_uniforms
from evolving_rl_jax.generate.sessions import MAX_STOP_IDS

_LOG = logging.getLogger(__name__)
# Columns of the integer array that describes decoding rows; KEY takes two, and the stop tokens
# (-1 = none) follow from STOP.
SLOT, TOKEN, POSITION, REMAINING, PRODUCED, KEY, _, TOP_K, STOP = range(9)
NUM_INTS = STOP + MAX_STOP_IDS
# Columns of the float array.
TEMPERATURE, TOP_P = range(2)
# Where a second copy of the rows at work costs more, in memory and in traffic, than it saves.  Not a
# TPU as long as no compiler for one has shown that it holds there too.
_IN_PLACE = ("gpu",)


def prefill(params, cache, slots, tokens, positions, *, cfg, columns, in_place=False):
    """Adds a chunk of tokens to R cache rows.

    Args:
      params, cache: the model's; the cache is donated.
      slots: [R] int32.
      tokens: [R, T] int32.
      positions: [R, T] int32, consecutive cache columns below ``columns``, then -1 for padding.
      cfg: static model config.
      columns: static; how many cache columns take part.
      in_place: static; use the cache where it lies.

    Returns:
      The cache.
    """
    if in_place:
        return models.apply(
            params, cfg, tokens, positions=positions, cache=cache, slots=slots, kv_limit=columns
        )[1]
    rows = gather_rows(cache, slots, columns)
    _, rows = models.apply(params, cfg, tokens, positions=positions, cache=rows)
    return scatter_columns(cache, rows, slots, positions[:, 0], tokens.shape[1])


def decode(params, cache, ints, floats, *, cfg, window, columns, in_place=False):
    """Samples up to ``window`` tokens for each of R rows; ends early once all rows are done.

    Args:
      params, cache: the model's; the cache is donated.
      ints: [R, NUM_INTS] int32, see the column names above.  TOKEN is fed first, at cache column
        POSITION; REMAINING is how many tokens the row may still sample; PRODUCED how many this turn
        has; KEY the bits of `sampling.turn_key`.
      floats: [R, 2] float32.
      cfg, window, columns, in_place: static.

    Returns:
      (cache, tokens [window, R] with -1 after a row's end, logprobs, sampling_logprobs,
      floor_logprobs), see `sampling.Sampled`.
    """
    slots, start = ints[:, SLOT], ints[:, POSITION]
    rows = cache if in_place else gather_rows(cache, slots, columns)
    where = {"slots": slots, "kv_limit": columns} if in_place else {}
    keys = jax.lax.bitcast_convert_type(ints[:, KEY : KEY + 2], jnp.uint32)
    uniforms = token_uniforms(keys, ints[:, PRODUCED], window)
    zeros = jnp.zeros((window, slots.shape[0]), jnp.float32)
    out = jnp.full(zeros.shape, -1, jnp.int32), zeros, zeros, zeros

    def going(state):
        step, _, _, active, _ = state
        return (step < window) & jnp.any(active)

    def body(state):
        step, rows, token, active, out = state
        positions = jnp.where(active, start + step, -1)[:, None]
        hidden, rows = models.apply(
            params, cfg, token[:, None], positions=positions, cache=rows, **where
        )
        drawn = sample(
            models.logits(params, cfg, hidden[:, 0]),
            uniforms[step],
            floats[:, TEMPERATURE],
            floats[:, TOP_P],
            ints[:, TOP_K],
        )
        out = tuple(
            o.at[step].set(jnp.where(active, new, o[step]))
            for o, new in zip(out, drawn, strict=True)
        )
        stopped = jnp.any(ints[:, STOP:] == drawn.tokens[:, None], axis=1)
        active &= ~stopped & (step + 1 < ints[:, REMAINING])
        return step + 1, rows, drawn.tokens, active, out

    state = jnp.int32(0), rows, ints[:, TOKEN], ints[:, REMAINING] > 0, out
    _, rows, _, _, out = jax.lax.while_loop(going, body, state)
    return rows if in_place else scatter_columns(cache, rows, slots, start, window), *out


def copy_rows(cache, sources, targets, *, columns, in_place=False):
    """Copies the first ``columns`` columns of cache rows ``sources`` [R] to ``targets`` [R]."""
    if in_place:
        return copy_in_place(cache, sources, targets, columns)
    rows = gather_rows(cache, sources, columns)
    return scatter_columns(cache, rows, targets, jnp.zeros_like(targets), columns)


def _geometric(first: int, factor: int, last: int) -> list[int]:
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(factor * sizes[-1])
    return sizes


def check_sizes(num_slots: int, max_length: int, decode_window: int) -> None:
    """Raises ValueError on sizes of an engine that cannot work."""
    for name, value in (("num_slots", num_slots), ("decode_window", decode_window)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if max_length < max(2, decode_window):
        least = f"at least 2 and at least decode_window = {decode_window}"
        raise ValueError(f"max_length must be {least}, got {max_length}")


def _ascending(sizes: Sequence[int], largest: int) -> tuple[int, ...]:
    if min(sizes) < 1:
        raise ValueError(f"bucket sizes must be at least 1, got {tuple(sizes)}")
    return tuple(sorted({min(size, largest) for size in sizes}))


class Programs:
    """The compiled programs of one engine, made ahead of time, so that none is made unnoticed.

    Args:
      cfg: the model.
      num_slots, max_length: sizes of the cache.
      window: tokens of a decode window.
      chunks, rows, columns: sizes that the tokens of a prefill chunk, the rows and the cache
        columns of a call are padded to; more rows than the largest size take several calls.
        Defaults of rows by device: on a CPU small calls win, as what they compute stays in the
        processor's cache (16 rows measured 2 to 5 times faster per token than 128).
      platform: of the devices that it runs on: ``cpu``, ``gpu`` or ``tpu``.
      fixed_rows: rows of every call while ``fixed`` is set; 0 = it never is.

    Attributes:
      chunks, rows, columns: the same, ascending and within the KV cache.
      in_place: whether the cache is used where it lies.
      fixed: every call has ``fixed_rows`` rows, however many of them are in use.
    """

    def __init__(
        self,
        cfg,
        *,
        num_slots: int,
        max_length: int,
        window: int,
        chunks: Sequence[int],
        rows: Sequence[int] | None,
        columns: Sequence[int] | None,
        platform: str,
        fixed_rows: int = 0,
    ):
        on_cpu, self.in_place = platform == "cpu", platform in _IN_PLACE
        self.cfg, self.window = cfg, window
        self.fixed_rows, self.fixed = fixed_rows, False
        self.chunks = _ascending(chunks, max_length)
        default_rows = (16,) if on_cpu else _geometric(8, 4, num_slots)
        self.rows = _ascending(rows or default_rows, num_slots)
        columns = columns or _geometric(128, 2, max_length)
        self.columns = _ascending((*columns, max_length), max_length)
        most = 1024 if on_cpu else 8192  # tokens of one prefill call
        self._prefill_rows = {
            size: tuple(r for r in self.rows if r * size <= most) or self.rows[:1]
            for size in self.chunks
        }
        self._compiled: dict[tuple, jax.stages.Compiled] = {}
        self._warm = False

    @property
    def compile_count(self) -> int:
        """How many programs have been compiled."""
        return len(self._compiled)

    def row_sizes(self, kind: str, size: int) -> tuple[int, ...]:
        """Ascending numbers of rows of calls of one kind; ``size`` is the chunk of a prefill."""
        if self.fixed:
            return (self.fixed_rows,)
        return self._prefill_rows[size] if kind == "prefill" else self.rows

    def _all_row_sizes(self, kind: str, size: int) -> set[int]:
        always = self._prefill_rows[size] if kind == "prefill" else self.rows
        return {*always, *((self.fixed_rows,) if self.fixed_rows and kind != "copy" else ())}

    @property
    def most_rows(self) -> int:
        """The most rows of any call."""
        return max(self.rows[-1], self.fixed_rows)

    def chunk_sizes(self, lengths: np.ndarray) -> np.ndarray:
        """The next chunk for each length: the smallest that takes it all, if half full, else the
        largest that is full."""
        sizes = np.array(self.chunks)
        covering = sizes[np.minimum(np.searchsorted(sizes, lengths), len(sizes) - 1)]
        filled = sizes[np.maximum(np.searchsorted(sizes, lengths, side="right") - 1, 0)]
        return np.where(covering <= 2 * lengths, covering, filled)

    def column_sizes(self, size: int, columns) -> np.ndarray:
        """How many columns take part in calls of ``size`` that reach ``columns``, one or an array."""
        found = np.searchsorted(self.columns, np.maximum(size, columns))
        return np.array(self.columns)[np.minimum(found, len(self.columns) - 1)]

    def warmup(self, params, cache) -> None:
        """Compiles every program for which `get` can be asked."""
        sizes = ("decode", self.window), *(("prefill", size) for size in self.chunks), ("copy", 0)
        keys = [
            (kind, rows, size, columns)
            for kind, size in sizes
            for rows in sorted(self._all_row_sizes(kind, size))
            for columns in self.columns
        ]
        lowered = {
            key: self.lower(params, cache, key)
            for key in keys
            if key[3] >= key[2] and key not in self._compiled
        }
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = pool.map(lambda low: low.compile(), lowered.values())
            self._compiled.update(zip(lowered, compiled, strict=True))
        self._warm = True

    def working_bytes(self) -> int | None:
        """What the largest compiled program needs on a device beside its inputs; None where the
        backend does not say."""
        found = [compiled.memory_analysis() for compiled in self._compiled.values()]
        if not found or any(analysis is None for analysis in found):
            return None
        return max(analysis.temp_size_in_bytes for analysis in found)

    def get(self, params, cache, kind: str, rows: int, size: int, columns: int):
        """The smallest program of ``kind`` that takes these sizes, and its number of rows."""
        rows = bucket(self.row_sizes(kind, size), rows)
        key = kind, rows, size, int(self.column_sizes(size, columns))
        if key not in self._compiled:
            if self._warm:
                _LOG.warning("generation engine: compiling the cold shape %s", key)
            self._compiled[key] = self.lower(params, cache, key).compile()
        return self._compiled[key], rows

    def lower(self, params, cache, key) -> jax.stages.Lowered:
        """One program before compilation.

        Args:
          params, cache: the model's, or ShapeDtypeStructs with the shardings that they will have.
          key: (kind, rows, size, columns) with kind ``prefill``, ``decode`` or ``copy``.
        """
        kind, rows, size, columns = key
        # A cache over several devices is given back as it came, so that it can be donated again.
        as_given = jax.tree.map(lambda a: a.sharding, cache)
        common = {"cfg": self.cfg, "in_place": self.in_place}
        slots, grid = np.zeros(rows, np.int32), np.zeros((rows, size), np.int32)
        if kind == "copy":
            function = functools.partial(copy_rows, columns=columns, in_place=self.in_place)
            jitted = jax.jit(function, donate_argnums=0, out_shardings=as_given)
            return jitted.lower(cache, slots, slots)
        if kind == "prefill":
            function = functools.partial(prefill, columns=columns, **common)
            jitted = jax.jit(function, donate_argnums=1, out_shardings=as_given)
            return jitted.lower(params, cache, slots, grid, grid)
        function = functools.partial(decode, window=size, columns=columns, **common)
        ints, floats = np.zeros((rows, NUM_INTS), np.int32), np.zeros((rows, 2), np.float32)
        out_shardings = as_given, None, None, None, None
        jitted = jax.jit(function, donate_argnums=1, out_shardings=out_shardings)
        return jitted.lower(params, cache, ints, floats)
