"""What the host knows of every cache slot: the tokens of its row, its session, its turn's state."""

from __future__ import annotations

import numpy as np

from evolving_rl_jax.generate.programs import (
    NUM_INTS,
    POSITION,
    PRODUCED,
    REMAINING,
    STOP,
    TOKEN,
)
from evolving_rl_jax.generate.sessions import Session

# A shorter common prefix is cheaper to prefill again than to copy.
_MIN_COPY = 16


class Slots:
    """S slots of C cache columns.

    Attributes:
      tokens: [S, C] int32, the context of the slot's present or last session.
      planned: [S] how many leading tokens the cache will hold after this step's prefill.
      cached: [S] how many are in the cache now.
      free: the slots without a session, the one that has been free longest first.
      owner: the session of every slot, or None.
      active: [S] bool, which slots have a turn under way.
      ints, floats: what decoding takes for every slot, see `programs`.
      logprobs: [3, S, C] float32, those of the sampled tokens in the order of `sampling.Sampled`.
    """

    def __init__(self, num_slots: int, max_length: int):
        self.tokens = np.zeros((num_slots, max_length), np.int32)
        self.planned = np.zeros(num_slots, np.int64)
        self.cached = np.zeros(num_slots, np.int64)
        self.free = dict.fromkeys(range(num_slots))  # an ordered set
        self.owner: list[Session | None] = [None] * num_slots
        self.active = np.zeros(num_slots, bool)
        self.ints = np.full((num_slots, NUM_INTS), -1, np.int32)
        self.floats = np.ones((num_slots, 2), np.float32)
        self.logprobs = np.zeros((3, num_slots, max_length), np.float32)

    def _shared_prefix(self, context: np.ndarray) -> np.ndarray:
        """[S] how many leading tokens of ``context`` each slot holds or will hold."""
        if not len(context):
            return np.zeros_like(self.planned)
        equal = self.tokens[:, : len(context)] == context
        lengths = np.where(equal.all(axis=1), len(context), equal.argmin(axis=1))
        return np.minimum(lengths, self.planned)

    def find(self, context: np.ndarray, *, share: bool = True) -> tuple[int, int, int]:
        """A free slot for a context of n tokens, and how to come by the most of them.

        Without ``share`` all of them are computed.

        Returns:
          (slot, source, count): the first ``count`` tokens are in ``source``, which is ``slot``
          itself unless they have to be copied from another.
        """
        if not share:
            slot = next(iter(self.free))
            return slot, slot, 0
        shared = self._shared_prefix(context)
        free = np.fromiter(self.free, np.int64)
        slot, source = int(free[shared[free].argmax()]), int(shared.argmax())
        if shared[source] <= max(shared[slot], _MIN_COPY - 1):
            return slot, slot, int(shared[slot])
        return int(free[0]), source, int(shared[source])

    def start(self, session: Session, slot: int, cached: int, key: np.ndarray) -> None:
        """Puts a session to work in a slot that holds ``cached`` tokens of its context.

        Args:
          session: with a request.
          slot: free, or its own.
          cached: valid tokens in the cache now; the others follow by prefill or copy.
          key: [2] uint32, see `sampling.turn_key`.
        """
        context, request = session.context, session.request
        session.slot = slot
        self.free.pop(slot, None)
        self.owner[slot], self.active[slot] = session, True
        self.tokens[slot, : len(context)] = context
        self.cached[slot], self.planned[slot] = cached, len(context) - 1
        row = (
            slot,
            context[-1],
            len(context) - 1,
            request.limit,
            0,
            *key.view(np.int32),
            request.top_k,
            *request.stop_ids,
        )
        self.ints[slot] = -1
        self.ints[slot, : len(row)] = row
        self.floats[slot] = request.temperature, request.top_p

    def release(self, session: Session) -> None:
        """Takes the slot of a session; what is cached there may still serve another one."""
        slot, session.slot = session.slot, -1
        if slot >= 0:
            self.active[slot], self.owner[slot] = False, None
            self.free[slot] = None
            self.planned[slot] = self.cached[slot]

    def forget(self) -> None:
        """The weights changed: nothing in the cache is valid any more; turns under way go on."""
        self.cached[:] = self.planned[:] = 0
        self.planned[self.active] = self.ints[self.active, POSITION]

    def idle(self) -> list[Session]:
        """Sessions that keep a slot while they have nothing to do, the longest idle first."""
        idle = [s for s in self.owner if s is not None and s.request is None]
        return sorted(idle, key=lambda s: s.idle_since)

    def record(self, slots: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> np.ndarray:
        """Books a decoded window.

        Args:
          slots: [R], distinct.
          tokens: [R, W] int32, -1 after a row's end.
          logprobs: [3, R, W] float32.

        Returns:
          [R] bool, which of them sampled one of their stop tokens.
        """
        ints = self.ints
        made = tokens >= 0
        counts = made.sum(axis=1, dtype=np.int32)
        row, index = np.nonzero(made)
        columns = ints[slots[row], POSITION] + 1 + index
        self.tokens[slots[row], columns] = tokens[made]
        self.logprobs[:, slots[row], columns] = logprobs[:, made]
        ints[slots, TOKEN] = tokens[np.arange(len(slots)), counts - 1]
        ints[slots, POSITION] += counts
        ints[slots, REMAINING] -= counts
        ints[slots, PRODUCED] += counts
        self.cached[slots] = self.planned[slots] = ints[slots, POSITION]
        return (ints[slots, STOP:] == ints[slots, TOKEN, None]).any(axis=1)

    def turn_tokens(self, slot: int) -> np.ndarray:
        """[n] what the turn under way has sampled so far."""
        start = len(self.owner[slot].context)
        return self.tokens[slot, start : start + self.ints[slot, PRODUCED]]

    def cut_turn(self, slot: int, count: int) -> None:
        """Keeps the first ``count`` tokens of the turn under way, in the cache as well."""
        start = len(self.owner[slot].context)
        self.ints[slot, PRODUCED] = count
        self.ints[slot, TOKEN] = self.tokens[slot, start + count - 1]
        self.ints[slot, POSITION] = start + count - 1
        self.cached[slot] = self.planned[slot] = start + count - 1

    def end_turn(self, slot: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [n], logprobs [3, n]) of the turn; its session keeps the slot."""
        tokens = self.turn_tokens(slot).copy()
        start = len(self.owner[slot].context)
        self.active[slot] = False
        return tokens, self.logprobs[:, slot, start : start + len(tokens)].copy()
