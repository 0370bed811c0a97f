"""Device work of the engine: weights, cache, and the compiled programs run over the slots."""

from __future__ import annotations

import time

import jax
import numpy as np

from evolving_rl_jax import models, parallel
from evolving_rl_jax.generate.cache import padded
from evolving_rl_jax.generate.programs import POSITION, REMAINING, SLOT, Programs
from evolving_rl_jax.generate.slots import Slots
from evolving_rl_jax.generate.stats import Stats
from evolving_rl_jax.generate.weights import Relayout


class Runner:
    """Copies, prefills and decodes what the slots ask for.

    Attributes:
      params, cache: as the programs take them; the cache stays allocated while weights change.
      copies: {slot: (source slot, tokens)} ordered and not made yet.
      poisoned: a log-probability was not finite, so the cache may hold NaN.
      stats: counters.

    Args:
      programs: the compiled functions.
      slots: what the host knows of the cache.
      max_length: C.
      pad_id: what padding is fed.
      place: the device, or the mesh of several.
    """

    def __init__(self, programs: Programs, slots: Slots, max_length: int, pad_id: int, place):
        self.programs, self._slots = programs, slots
        self._max_length, self._pad_id, self._place = max_length, pad_id, place
        self._num_slots = len(slots.owner)
        self._relayout = Relayout(programs.cfg.dtype, place)
        self.params = None
        self.cache = self._new_cache()
        self.copies: dict[int, tuple[int, int]] = {}
        self.poisoned = False
        self.stats = Stats()

    def set_params(self, params, copy: bool) -> None:
        """Takes new weights; nothing in the cache is valid any more."""
        self.params = None  # before the new ones are made: there is never a third copy
        self.params = self._relayout(params, copy=copy)
        self.invalidate()

    def invalidate(self) -> None:
        """Forgets what is cached; after NaN the cache is made anew."""
        self._slots.forget()
        if self.poisoned:
            self.cache, self.poisoned = None, False
            self.cache = self._new_cache()

    def _new_cache(self):
        on_mesh = isinstance(self._place, jax.sharding.Mesh)
        place = parallel.cache_sharding(self._place) if on_mesh else self._place
        return models.init_cache(self.programs.cfg, self._num_slots, self._max_length, device=place)

    def warmup(self) -> None:
        """Compiles all that can ever be needed."""
        self.programs.warmup(self.params, self.cache)

    def _program(self, *sizes):
        program, rows = self.programs.get(self.params, self.cache, *sizes)
        return parallel.in_order(program), rows

    def _batches(self, items: np.ndarray, kind: str, size: int, reach=None) -> list[np.ndarray]:
        """``items`` cut to the most rows of one call.

        While rows are fixed, those of a call also take the same columns, by what each reaches: the
        shape that computes a row then follows from the row alone.
        """
        if self.programs.fixed and reach is not None:
            columns = self.programs.column_sizes(size, reach)
            groups = [items[columns == c] for c in np.unique(columns)]
        else:
            groups = [items]
        most = self.programs.row_sizes(kind, size)[-1]
        return [g[first : first + most] for g in groups for first in range(0, len(g), most)]

    def copy_ready(self) -> None:
        """Makes the ordered copies whose source is complete."""
        ready = [
            (slot, source, count)
            for slot, (source, count) in self.copies.items()
            if self._slots.cached[source] >= count
        ]
        for batch in self._batches(np.array(ready, np.int32), "copy", 0):
            targets, sources, counts = batch.T
            run, rows = self._program("copy", len(batch), 0, counts.max())
            self.cache = run(
                self.cache, padded(sources, rows, 0), padded(targets, rows, self._num_slots)
            )
            self._slots.cached[targets] = counts
        for slot, _, _ in ready:
            del self.copies[slot]

    def prefill(self) -> None:
        """Prefills every working slot up to the last token of its context."""
        began, table = time.perf_counter(), self._slots
        while True:
            self.copy_ready()
            pending = table.active & (table.cached < table.planned)
            pending[list(self.copies)] = False
            slots = np.flatnonzero(pending)
            if not len(slots):
                if not self.copies:
                    break
                continue  # a copy may have made the source of another complete
            sizes = self.programs.chunk_sizes(table.planned[slots] - table.cached[slots])
            for size in np.unique(sizes).tolist():
                some = slots[sizes == size]
                reach = np.minimum(table.cached[some] + size, table.planned[some])
                for batch in self._batches(some, "prefill", size, reach):
                    self._prefill_chunk(batch, size)
        jax.block_until_ready(self.cache)
        self.stats.seconds_prefill += time.perf_counter() - began

    def _prefill_chunk(self, slots: np.ndarray, size: int) -> None:
        table = self._slots
        columns = table.cached[slots][:, None] + np.arange(size)
        real = columns < table.planned[slots][:, None]
        tokens = table.tokens[slots[:, None], np.minimum(columns, self._max_length - 1)]
        tokens = np.where(real, tokens, self._pad_id).astype(np.int32)
        positions = np.where(real, columns, -1).astype(np.int32)
        run, rows = self._program("prefill", len(slots), size, positions.max() + 1)
        self.cache = run(
            self.params,
            self.cache,
            padded(slots.astype(np.int32), rows, self._num_slots),
            padded(tokens, rows, self._pad_id),
            padded(positions, rows, -1),
        )
        counts = real.sum(axis=1)
        table.cached[slots] += counts
        self.stats.prefilled_tokens += int(counts.sum())
        self.stats.prefilled_padding += rows * size - int(counts.sum())

    def decode(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """One window for every working slot, rows of similar length together.

        Returns:
          For every call: (slots [R], [R] bool whether each sampled one of its stop tokens).
        """
        slots = np.flatnonzero(self._slots.active)
        slots = slots[np.argsort(self._slots.ints[slots, POSITION], kind="stable")]
        reach = self._reach(slots)
        began = time.perf_counter()
        batches = self._batches(slots, "decode", self.programs.window, reach)
        # All calls are under way before the first is read: the host books one while the device runs
        # the next.  No call needs what another one of the same step gives: their slots differ.
        started = [self._start_window(batch) for batch in batches]
        done = [(b, self._read_window(b, *s)) for b, s in zip(batches, started, strict=True)]
        self.stats.seconds_decode += time.perf_counter() - began
        held = self._slots.cached > 0
        self.stats.columns_used += int(self._slots.cached[held].sum())
        self.stats.columns_held += int(held.sum()) * self._max_length
        return done

    def _reach(self, slots: np.ndarray) -> np.ndarray:
        """How many columns the next window of each slot reaches."""
        ints = self._slots.ints[slots]
        return ints[:, POSITION] + np.minimum(ints[:, REMAINING], self.programs.window)

    def _start_window(self, slots: np.ndarray) -> tuple[int, list[jax.Array]]:
        """(rows of the call with its padding, what it gives beside the cache: not waited for)."""
        reach = self._reach(slots).max()
        run, rows = self._program("decode", len(slots), self.programs.window, reach)
        ints = padded(self._slots.ints[slots], rows, 0)
        ints[len(slots) :, SLOT] = self._num_slots
        floats = padded(self._slots.floats[slots], rows, 1)
        self.cache, *out = run(self.params, self.cache, ints, floats)
        return rows, out

    def _read_window(self, slots: np.ndarray, rows: int, out: list[jax.Array]) -> np.ndarray:
        """Waits for a window and books it; [R] bool, which rows sampled one of their stop tokens."""
        tokens, *logprobs = (array.T[: len(slots)] for array in jax.device_get(out))
        steps = int((tokens >= 0).any(axis=0).sum())
        self.stats.decode_windows += 1
        self.stats.decode_steps += steps
        self.stats.decode_row_steps += steps * rows
        self.stats.decoded_tokens += int((tokens >= 0).sum())
        # A NaN would outlive its session: a masked column has weight 0, and 0 * NaN is NaN.
        # The floor is -inf where nothing was left out.
        self.poisoned |= not np.isfinite(logprobs[:2]).all()
        return self._slots.record(slots, tokens, np.stack(logprobs))
