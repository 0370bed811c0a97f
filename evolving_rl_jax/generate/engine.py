"""Continuous batching over a fixed number of cache slots: many sessions, a few compiled functions.

The engine is synchronous and single-threaded; the caller drives it::

    session = engine.open(iteration, episode)
    engine.submit(session, prompt_ids, max_new_tokens=64, stop_ids=(eos,))
    while engine.busy:
        for generation in engine.step():
            ...  # act in the environment, then submit the observation's ids to generation.session

Between calls the cache of a session holds all but the last token of its context, so the first step
of a decode window feeds that token, be it the end of a prompt or of the previous turn's output.

A session takes a slot when it has something to do and keeps it afterwards.  When others wait and
too few slots are at work, the session that has been idle longest loses its slot; what is lost is
recomputed on its return.  A session that takes a slot first looks for the slot whose tokens share
the longest prefix with its own: that is continued in place, or copied, and only the rest is
prefilled.  This one rule serves forks, common prompts, and the return of a session whose old slot
nobody has overwritten.

Randomness is keyed by (seed, iteration, episode, turn, index of the token in the turn), never by
slot or step.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from evolving_rl_jax import models, parallel
from evolving_rl_jax.generate.cache import SlotTable, padded
from evolving_rl_jax.generate.programs import (
    NUM_INTS,
    POSITION,
    PRODUCED,
    REMAINING,
    SLOT,
    STOP,
    TOKEN,
    Programs,
)
from evolving_rl_jax.generate.sampling import turn_key
from evolving_rl_jax.generate.sessions import Generation, Request, Session, Stats

_LOG = logging.getLogger(__name__)


class Engine:
    """Generates turns for many sessions at once.

    Args:
      cfg: the model's `models.ModelConfig`.
      params: its parameters.  Arrays that are on ``device`` in the right dtype already are used as
        they are, so a caller who donates them must call `set_params` before the next `step`.
      num_slots: S, cache rows.
      max_length: C, most tokens of a session, prompts and outputs together.
      prefill_chunk: sizes of prefill chunks.
      decode_window: most tokens a row samples per `step`.
      pad_id: what padding is fed; never seen by a real token.
      seed: of all sampling.
      dtype: of weights, cache and computation; default ``cfg.dtype``.
      device: where to run; default the first local device.
      mesh: devices of this host that share weights and heads, see `parallel.generation_mesh`.
      row_buckets, column_buckets: sizes that calls are padded to, see `programs.Programs`.
      evict_below: an idle session loses its slot to a waiting one only while less than this share
        of the slots is at work.
    """

    def __init__(
        self,
        cfg: models.ModelConfig,
        params,
        *,
        num_slots: int,
        max_length: int,
        prefill_chunk: Sequence[int] = (16, 64, 256),
        decode_window: int = 16,
        pad_id: int = 0,
        seed: int = 0,
        dtype=None,
        device=None,
        mesh=None,
        row_buckets: Sequence[int] | None = None,
        column_buckets: Sequence[int] | None = None,
        evict_below: float = 0.25,
    ):
        for name, value in (("num_slots", num_slots), ("decode_window", decode_window)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if max_length < max(2, decode_window):
            raise ValueError(
                "max_length must be at least 2 and at least decode_window = "
                f"{decode_window}, got {max_length}"
            )
        self.cfg = cfg if dtype is None else dataclasses.replace(cfg, dtype=jnp.dtype(dtype).name)
        self.num_slots, self.max_length, self.window = num_slots, max_length, decode_window
        self._pad_id, self._seed, self._evict_below = pad_id, seed, evict_below
        self._device = device or (mesh.devices.flat[0] if mesh else jax.local_devices()[0])
        self._mesh = mesh
        self._programs = Programs(
            self.cfg,
            num_slots=num_slots,
            max_length=max_length,
            chunks=prefill_chunk,
            window=decode_window,
            rows=row_buckets,
            columns=column_buckets,
            on_cpu=self._device.platform == "cpu",
        )
        # Per slot: what its row holds, its session, and its row of the arrays that decoding takes.
        self._table = SlotTable(num_slots, max_length)
        self._owner: list[Session | None] = [None] * num_slots
        self._active = np.zeros(num_slots, bool)
        self._ints = np.full((num_slots, NUM_INTS), -1, np.int32)
        self._floats = np.ones((num_slots, 2), np.float32)
        self._logprobs = np.zeros((2, num_slots, max_length), np.float32)
        self._copies: dict[int, tuple[int, int]] = {}  # slot -> (source slot, tokens), to be done
        self._waiting: collections.deque[Session] = collections.deque()
        self._finished: list[Generation] = []
        self._open: set[tuple[int, int]] = set()
        self._step = 0
        self._poisoned = False
        self.version = None
        self.stats = Stats()
        self._cache = self._new_cache()
        self.set_params(params, None)

    # -- weights and compilation -----------------------------------------------------------------

    def set_params(self, params, version) -> None:
        """Takes new weights; what is cached is invalid from here on and recomputed where needed."""
        dtype = self.cfg.dtype
        cast = jax.tree.map(lambda x: x if x.dtype == dtype else x.astype(dtype), params)
        place = parallel.shardings(cast, self._mesh) if self._mesh else self._device
        self._params = jax.device_put(cast, place)
        self.version = version
        self._invalidate()

    def _invalidate(self) -> None:
        self._table.forget()
        self._table.planned[self._active] = self._ints[self._active, POSITION]
        if self._poisoned:
            self._cache, self._poisoned = None, False
            self._cache = self._new_cache()

    def _new_cache(self):
        cache = models.init_cache(self.cfg, self.num_slots, self.max_length)
        place = parallel.cache_sharding(self._mesh) if self._mesh else self._device
        return jax.device_put(cache, place)

    @property
    def compile_count(self) -> int:
        """How many programs have been compiled."""
        return self._programs.compile_count

    def warmup(self) -> None:
        """Compiles all that the engine can ever need; later compilations log a warning."""
        self._programs.warmup(self._params, self._cache)

    # -- sessions --------------------------------------------------------------------------------

    def open(self, iteration: int, episode: int, token_ids: Sequence[int] = ()) -> Session:
        """A new session, with an initial context if given; takes no slot yet."""
        name = iteration, episode
        if name in self._open:
            raise ValueError(f"(iteration, episode) of open sessions must differ, got {name} twice")
        context = self._checked(token_ids)
        self._open.add(name)
        return Session(iteration, episode, context)

    def fork(self, session: Session, n: int, episodes: Sequence[int]) -> list[Session]:
        """``n`` sessions with the context of ``session``, whose cached part they will copy."""
        if len(episodes) != n:
            raise ValueError(f"episodes must hold n = {n} ids, got {len(episodes)}")
        session.require_between_turns()
        forks = [self.open(session.iteration, episode) for episode in episodes]
        for fork in forks:
            fork.context, fork.turn = session.context, session.turn
        return forks

    def close(self, session: Session) -> None:
        """Ends a session, generating or not, and frees its slot."""
        self._open.discard((session.iteration, session.episode))
        if session in self._waiting:
            self._waiting.remove(session)
        session.request = None
        self._release(session)

    def _release(self, session: Session) -> None:
        slot, session.slot = session.slot, -1
        if slot >= 0:
            self._active[slot] = False
            self._owner[slot] = None
            self._table.release(slot)

    def _checked(self, token_ids) -> np.ndarray:
        ids = np.asarray(token_ids, np.int32).reshape(-1)
        if len(ids) and not (0 <= ids.min() and ids.max() < self.cfg.vocab_size):
            raise ValueError(
                f"token_ids must be in [0, {self.cfg.vocab_size}), got {ids.min()} to {ids.max()}"
            )
        return ids

    def submit(
        self,
        session: Session,
        token_ids: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stop_ids: Sequence[int] = (),
        turn: int | None = None,
    ) -> None:
        """Appends tokens to the session's context and asks for one turn.

        Args:
          session: an open session between turns.
          token_ids: what to append; may be empty when the context is not.
          max_new_tokens: most tokens to sample, at least 1.
          temperature: 0 takes the most likely token.
          top_p, top_k: restrict the distribution; 1 and 0 do not.
          stop_ids: up to 8 tokens that end the turn, themselves included.
          turn: names the turn's randomness; default the number of turns so far.
        """
        session.require_between_turns()
        context = np.concatenate([session.context, self._checked(token_ids)])
        if not len(context):
            raise ValueError("token_ids must not be empty in the first turn of a session")
        room = self.max_length - len(context)
        request = Request(
            max_new_tokens,
            min(max_new_tokens, room),
            temperature,
            top_p,
            top_k,
            tuple(stop_ids),
            session.turn if turn is None else turn,
        )
        if room <= 0:
            nothing = np.zeros(0, np.float32)
            overflow = Generation(session, np.zeros(0, np.int32), nothing, nothing, "overflow")
            self._finished.append(overflow)
            return
        session.context, session.request = context, request
        if session.slot < 0:
            self._waiting.append(session)
        else:
            cached = int(self._table.cached[session.slot])
            self.stats.turn_reused_tokens += cached
            self._start(session, session.slot, cached)

    def _start(self, session: Session, slot: int, cached: int) -> None:
        """Puts a session to work in a slot that holds ``cached`` tokens of its context."""
        context, request = session.context, session.request
        session.slot = slot
        self._owner[slot] = session
        self._active[slot] = True
        self._table.hold(slot, context, cached)
        key = turn_key(self._seed, session.iteration, session.episode, request.turn).view(np.int32)
        row = (
            slot,
            context[-1],
            len(context) - 1,
            request.limit,
            0,
            *key,
            request.top_k,
            *request.stop_ids,
        )
        self._ints[slot] = -1
        self._ints[slot, : len(row)] = row
        self._floats[slot] = request.temperature, request.top_p

    # -- the scheduler ---------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._finished or self._waiting or self._active.any())

    def reset_stats(self) -> Stats:
        """Returns the counters and starts new ones."""
        stats, self.stats = self.stats, Stats()
        return stats

    def step(self) -> list[Generation]:
        """Fills slots, prefills, decodes one window a working slot; returns the finished turns."""
        began, device = time.perf_counter(), self.stats.seconds_device
        self._step += 1
        self._admit()
        self._prefill()
        self._decode()
        if self._poisoned:
            _LOG.warning("generation engine: log-probabilities are not finite; cache made anew")
            self._invalidate()
        finished, self._finished = self._finished, []
        host = time.perf_counter() - began - (self.stats.seconds_device - device)
        self.stats.seconds_host += host
        return finished

    def _admit(self) -> None:
        self._evict()
        while self._waiting and self._table.free:
            session = self._waiting.popleft()
            slot, source, count = self._table.find(session.context[:-1])
            if any(slot == other for other, _ in self._copies.values()):
                self._copy_ready()  # before the slot is overwritten
            if source != slot:
                self._copies[slot] = source, count
            self.stats.prefix_reused_tokens += count
            self._start(session, slot, count if source == slot else 0)

    def _evict(self) -> None:
        """Takes slots from the longest idle sessions while others wait and too few slots work."""
        lacking = math.ceil(self._evict_below * self.num_slots) - int(self._active.sum())
        wanted = min(len(self._waiting), lacking) - len(self._table.free)
        if wanted <= 0:
            return
        idle = [s for s in self._owner if s is not None and s.request is None]
        for session in sorted(idle, key=lambda s: s.idle_since)[:wanted]:
            self._release(session)
            self.stats.evictions += 1

    def _copy_ready(self) -> None:
        """Makes the ordered copies whose source is complete."""
        ready = [
            (slot, source, count)
            for slot, (source, count) in self._copies.items()
            if self._table.cached[source] >= count
        ]
        for batch in self._batches(np.array(ready, np.int32), "copy", 0):
            targets, sources, counts = batch.T
            run, rows = self._program("copy", len(batch), 0, counts.max())
            self._cache = run(
                self._cache, padded(sources, rows, 0), padded(targets, rows, self.num_slots)
            )
            self._table.cached[targets] = counts
        for slot, _, _ in ready:
            del self._copies[slot]

    def _program(self, *sizes):
        return self._programs.get(self._params, self._cache, *sizes)

    def _batches(self, items: np.ndarray, kind: str, size: int) -> list[np.ndarray]:
        """``items`` cut to the most rows of one call."""
        most = self._programs.row_sizes(kind, size)[-1]
        return [items[first : first + most] for first in range(0, len(items), most)]

    def _prefill(self) -> None:
        """Prefills every working slot up to the last token of its context."""
        began, table = time.perf_counter(), self._table
        while True:
            self._copy_ready()
            pending = self._active & (table.cached < table.planned)
            pending[list(self._copies)] = False
            slots = np.flatnonzero(pending)
            if not len(slots):
                if not self._copies:
                    break
                continue  # a copy may have made the source of another complete
            sizes = self._programs.chunk_sizes(table.planned[slots] - table.cached[slots])
            for size in np.unique(sizes).tolist():
                for batch in self._batches(slots[sizes == size], "prefill", size):
                    self._prefill_chunk(batch, size)
        jax.block_until_ready(self._cache)
        self.stats.seconds_prefill += time.perf_counter() - began

    def _prefill_chunk(self, slots: np.ndarray, size: int) -> None:
        table = self._table
        columns = table.cached[slots][:, None] + np.arange(size)
        real = columns < table.planned[slots][:, None]
        tokens = table.tokens[slots[:, None], np.minimum(columns, self.max_length - 1)]
        tokens = np.where(real, tokens, self._pad_id).astype(np.int32)
        positions = np.where(real, columns, -1).astype(np.int32)
        run, rows = self._program("prefill", len(slots), size, positions.max() + 1)
        self._cache = run(
            self._params,
            self._cache,
            padded(slots.astype(np.int32), rows, self.num_slots),
            padded(tokens, rows, self._pad_id),
            padded(positions, rows, -1),
        )
        counts = real.sum(axis=1)
        table.cached[slots] += counts
        self.stats.prefilled_tokens += int(counts.sum())
        self.stats.prefilled_padding += rows * size - int(counts.sum())

    def _decode(self) -> None:
        """One window for every working slot, rows of similar length together."""
        slots = np.flatnonzero(self._active)
        slots = slots[np.argsort(self._ints[slots, POSITION], kind="stable")]
        for batch in self._batches(slots, "decode", self.window):
            self._decode_window(batch)

    def _decode_window(self, slots: np.ndarray) -> None:
        began = time.perf_counter()
        ints = self._ints[slots]
        columns = (ints[:, POSITION] + np.minimum(ints[:, REMAINING], self.window)).max()
        run, rows = self._program("decode", len(slots), self.window, columns)
        ints = padded(ints, rows, 0)
        ints[len(slots) :, SLOT] = self.num_slots
        floats = padded(self._floats[slots], rows, 1)
        self._cache, *out = run(self._params, self._cache, ints, floats)
        tokens, *logprobs = (array.T[: len(slots)] for array in jax.device_get(out))
        self.stats.seconds_decode += time.perf_counter() - began
        steps = int((tokens >= 0).any(axis=0).sum())
        self.stats.decode_windows += 1
        self.stats.decode_steps += steps
        self.stats.decode_row_steps += steps * rows
        self._record(slots, tokens, np.stack(logprobs))

    def _record(self, slots: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Books a window: tokens [R, W] (-1 after a row's end), the two logprobs [2, R, W]."""
        ints, table = self._ints, self._table
        made = tokens >= 0
        counts = made.sum(axis=1, dtype=np.int32)
        row, index = np.nonzero(made)
        columns = ints[slots[row], POSITION] + 1 + index
        table.tokens[slots[row], columns] = tokens[made]
        self._logprobs[:, slots[row], columns] = logprobs[:, made]
        # A NaN would outlive its session: a masked column has weight 0, and 0 * NaN is NaN.
        self._poisoned |= not np.isfinite(logprobs).all()
        ints[slots, TOKEN] = tokens[np.arange(len(slots)), counts - 1]
        ints[slots, POSITION] += counts
        ints[slots, REMAINING] -= counts
        ints[slots, PRODUCED] += counts
        table.cached[slots] = table.planned[slots] = ints[slots, POSITION]
        self.stats.decoded_tokens += int(counts.sum())
        stopped = (ints[slots, STOP:] == ints[slots, TOKEN, None]).any(axis=1)
        for i in np.flatnonzero(stopped | (ints[slots, REMAINING] == 0)):
            self._finish(self._owner[slots[i]], bool(stopped[i]))

    def _finish(self, session: Session, stopped: bool) -> None:
        slot, request, start = session.slot, session.request, len(session.context)
        end = start + int(self._ints[slot, PRODUCED])
        tokens = self._table.tokens[slot, start:end].copy()
        logprobs = self._logprobs[:, slot, start:end].copy()
        cut = "length" if request.limit == request.max_new_tokens else "overflow"
        self._finished.append(Generation(session, tokens, *logprobs, "stop" if stopped else cut))
        self._active[slot] = False
        session.context = np.concatenate([session.context, tokens])
        session.turn, session.request = request.turn + 1, None
        session.idle_since = self._step
