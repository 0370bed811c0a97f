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
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from evolving_rl_jax import models
from evolving_rl_jax.generate.memory import MemoryPlan, free_bytes, own_weights
from evolving_rl_jax.generate.programs import REMAINING, Programs, check_sizes
from evolving_rl_jax.generate.runner import Runner
from evolving_rl_jax.generate.sampling import turn_key
from evolving_rl_jax.generate.sessions import Generation, Request, Session, tokens_to_stop
from evolving_rl_jax.generate.slots import Slots
from evolving_rl_jax.generate.stats import Stats

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
      decode: text of token ids; needed for stop strings only.
      copies_weights: `set_params` will be called with ``copy``; for the memory plan.
      memory_limit: bytes that generation may take on all devices; 0 = what the device has free.
      fixed_rows: rows of every call while `independent` is set.

    Raises:
      ValueError: sizes that cannot work, or that do not fit the device's memory.
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
        decode: Callable[[Sequence[int]], str] | None = None,
        copies_weights: bool = False,
        memory_limit: float = 0.0,
        fixed_rows: int = 0,
    ):
        check_sizes(num_slots, max_length, decode_window)
        self.cfg = cfg if dtype is None else dataclasses.replace(cfg, dtype=jnp.dtype(dtype).name)
        self.num_slots, self.max_length, self.window = num_slots, max_length, decode_window
        self._seed, self._evict_below = seed, evict_below
        self._decode_text = decode
        device = device or (mesh.devices.flat[0] if mesh else jax.local_devices()[0])
        programs = Programs(
            self.cfg,
            num_slots=num_slots,
            max_length=max_length,
            chunks=prefill_chunk,
            window=decode_window,
            rows=row_buckets,
            columns=column_buckets,
            platform=device.platform,
            fixed_rows=fixed_rows,
        )
        self.memory = MemoryPlan.of(
            self.cfg,
            num_slots=num_slots,
            max_length=max_length,
            rows=0 if programs.in_place else programs.most_rows,
            weights=own_weights(params, self.cfg.dtype, copies_weights, mesh or device),
            devices=mesh.size if mesh else 1,
        )
        self._limits = [(free_bytes(device), f"{device}")]
        if memory_limit:
            self._limits.append((memory_limit / self.memory.devices, "memory_limit"))
        self._check_memory()
        self._slots = Slots(num_slots, max_length)
        self._runner = Runner(programs, self._slots, max_length, pad_id, mesh or device)
        self._waiting: collections.deque[Session] = collections.deque()
        self._finished: list[Generation] = []
        self._open: set[tuple[int, int]] = set()
        self._step = 0
        self.version = None
        self.set_params(params, None)

    # -- weights, compilation, counters ----------------------------------------------------------

    def set_params(self, params, version, *, copy: bool = False) -> None:
        """Takes new weights; what is cached is invalid from here on and recomputed where needed.

        Args:
          params: the trainer's, in its layout; `weights.Relayout` brings them into the engine's.
          version: names them in every `Generation` from here on.
          copy: keep buffers of the engine's own, so that ``params`` may be donated meanwhile.
        """
        self._runner.set_params(params, copy)
        self.version = version

    @property
    def params(self):
        """The weights that play, in the engine's own layout."""
        return self._runner.params

    @property
    def independent(self) -> bool:
        """Whether what a session samples depends on nothing but the session, to the last bit.

        Every call then has ``fixed_rows`` rows, of a shape that follows from the row alone; no session
        continues or copies what another one computed, and none loses its slot unless it is parked.
        """
        return self._runner.programs.fixed

    @independent.setter
    def independent(self, value: bool) -> None:
        programs = self._runner.programs
        if value and not programs.fixed_rows:
            raise ValueError("independent needs an Engine with fixed_rows >= 1, got 0")
        if value != programs.fixed and (n := len(self._open)):
            raise ValueError(f"independent must be set while no session is open, got {n} open")
        programs.fixed = value

    @property
    def compile_count(self) -> int:
        """How many programs have been compiled."""
        return self._runner.programs.compile_count

    def warmup(self) -> None:
        """Compiles all that the engine can ever need; later compilations log a warning.

        Raises ValueError where the compiler says that it does not fit the memory after all."""
        before, programs = self.compile_count, self._runner.programs
        self._runner.warmup()
        if programs.compile_count > before and (working := programs.working_bytes()) is not None:
            self.memory = dataclasses.replace(self.memory, working=working, compiled=True)
            self._check_memory()

    def _check_memory(self) -> None:
        for limit, name in self._limits:
            self.memory.check(limit, name)

    @property
    def stats(self) -> Stats:
        """The counters since the last `reset_stats`."""
        return self._runner.stats

    def reset_stats(self) -> Stats:
        """Returns the counters and starts new ones."""
        stats, self._runner.stats = self._runner.stats, Stats()
        return stats

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
        """Ends a session, generating or not, and frees its slot; nothing more is told of it."""
        self._open.discard((session.iteration, session.episode))
        self._finished = [g for g in self._finished if g.session is not session]
        if session in self._waiting:
            self._waiting.remove(session)
        session.request = None
        self._slots.release(session)

    def park(self, session: Session) -> None:
        """Frees the slot of a session whose context alone will be read from now on.

        Where sessions are `independent` a fork copies nothing that is cached and nobody is evicted: an open
        session that only waits to be forked would keep others from ever starting.  Else it keeps its slot.
        """
        session.require_between_turns()
        if self.independent:
            self._slots.release(session)

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
        stop_strings: Sequence[str] = (),
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
          stop_strings: texts that end the turn, with the token that completes them; looked for on
            the host after every window, and what the window sampled beyond is dropped.
          turn: names the turn's randomness; default the number of turns so far.
        """
        session.require_between_turns()
        context = np.concatenate([session.context, self._checked(token_ids)])
        if not len(context):
            raise ValueError("token_ids must not be empty in the first turn of a session")
        if stop_strings and self._decode_text is None:
            raise ValueError(f"stop_strings need an Engine with decode, got {stop_strings}")
        room = self.max_length - len(context)
        request = Request(
            max_new_tokens,
            min(max_new_tokens, room),
            temperature,
            top_p,
            top_k,
            tuple(stop_ids),
            session.turn if turn is None else turn,
            tuple(stop_strings),
        )
        if room <= 0:
            nothing = np.zeros(0, np.float32)
            overflow = Generation(session, np.zeros(0, np.int32), nothing, nothing, "overflow")
            self._finished.append(overflow._replace(version=self.version, floor_logprobs=nothing))
            return
        session.context, session.request = context, request
        session.turn_reused = session.prefix_reused = session.searched = 0
        if session.slot < 0:
            self._waiting.append(session)
        else:
            cached = int(self._slots.cached[session.slot])
            session.turn_reused = cached
            self.stats.turn_reused_tokens += cached
            self._start(session, session.slot, cached)

    def _start(self, session: Session, slot: int, cached: int) -> None:
        turn = session.request.turn
        key = turn_key(self._seed, session.iteration, session.episode, turn)
        self._slots.start(session, slot, cached, key)

    # -- the scheduler ---------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._finished or self._waiting or self._slots.active.any())

    def step(self) -> list[Generation]:
        """Fills slots, prefills, decodes one window a working slot; returns the finished turns."""
        began, device = time.perf_counter(), self.stats.seconds_device
        self._step += 1
        self._admit()
        self._runner.prefill()
        for slots, stopped in self._runner.decode():
            self._match_stop_strings(slots, stopped)
            for i in np.flatnonzero(stopped | (self._slots.ints[slots, REMAINING] == 0)):
                self._finish(slots[i], bool(stopped[i]))
        if self._runner.poisoned:
            _LOG.warning("generation engine: log-probabilities are not finite; cache made anew")
            self._runner.invalidate()
        finished, self._finished = self._finished, []
        host = time.perf_counter() - began - (self.stats.seconds_device - device)
        self.stats.seconds_host += host
        return finished

    def _admit(self) -> None:
        self._evict()
        while self._waiting and self._slots.free:
            session = self._waiting.popleft()
            slot, source, count = self._slots.find(session.context[:-1], share=not self.independent)
            copies = self._runner.copies
            if any(slot == other for other, _ in copies.values()):
                self._runner.copy_ready()  # before the slot is overwritten
            if source != slot:
                copies[slot] = source, count
            session.prefix_reused = count
            self.stats.prefix_reused_tokens += count
            self._start(session, slot, count if source == slot else 0)

    def _evict(self) -> None:
        """Takes slots from the longest idle sessions while others wait and too few slots work."""
        if self.independent:
            return  # computed again, by prefill, it would not be the same
        lacking = math.ceil(self._evict_below * self.num_slots) - int(self._slots.active.sum())
        wanted = min(len(self._waiting), lacking) - len(self._slots.free)
        if wanted <= 0:
            return
        for session in self._slots.idle()[:wanted]:
            self._slots.release(session)
            self.stats.evictions += 1

    def _match_stop_strings(self, slots: np.ndarray, stopped: np.ndarray) -> None:
        """Cuts turns whose text now holds a stop string, and marks them in ``stopped`` [R]."""
        for i, slot in enumerate(slots):
            session = self._slots.owner[slot]
            stops = session.request.stop_strings
            if not stops:
                continue
            tokens = self._slots.turn_tokens(slot)
            count = tokens_to_stop(self._decode_text, tokens, stops, session.searched)
            session.searched = len(tokens)
            if count is not None:
                self._slots.cut_turn(slot, count)
                self.stats.decoded_tokens -= len(tokens) - count
                self.stats.dropped_tokens += len(tokens) - count
                stopped[i] = True

    def _finish(self, slot: int, stopped: bool) -> None:
        session = self._slots.owner[slot]
        request = session.request
        tokens, (*logprobs, floors) = self._slots.end_turn(slot)
        cut = "length" if request.limit == request.max_new_tokens else "overflow"
        self._finished.append(
            Generation(
                session,
                tokens,
                *logprobs,
                "stop" if stopped else cut,
                self.version,
                *(session.turn_reused, session.prefix_reused, floors),
            )
        )
        session.context = np.concatenate([session.context, tokens])
        session.turn, session.request = request.turn + 1, None
        session.idle_since = self._step
