"""The nouns of the engine: a session, one requested turn, a finished turn, and the counters."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

MAX_STOP_IDS = 8


@dataclasses.dataclass(frozen=True)
class Request:
    """One turn to generate; ``limit`` is ``max_new_tokens`` or the room left in the slot."""

    max_new_tokens: int
    limit: int
    temperature: float
    top_p: float
    top_k: int
    stop_ids: tuple[int, ...]
    turn: int

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.top_k >= 0):
            raise ValueError(
                "temperature and top_k must be >= 0 and top_p in (0, 1], "
                f"got {self.temperature}, {self.top_k} and {self.top_p}"
            )
        if len(self.stop_ids) > MAX_STOP_IDS:
            raise ValueError(f"stop_ids must be at most {MAX_STOP_IDS}, got {len(self.stop_ids)}")


@dataclasses.dataclass(eq=False)
class Session:
    """A growing context: what was submitted and what was sampled.

    Attributes:
      iteration, episode: name its randomness; unique among open sessions.
      context: [n] int32, all tokens so far, without those of an unfinished turn.
      turn: number of the next turn.
      slot: cache slot, -1 while it has none.
      request: the turn being generated or waited for, or None.
      idle_since: engine step of its last finished turn.
    """

    iteration: int
    episode: int
    context: np.ndarray
    turn: int = 0
    slot: int = -1
    request: Request | None = None
    idle_since: int = 0

    def require_between_turns(self) -> None:
        """Raises ValueError while a turn is being generated or waited for."""
        if self.request is not None:
            raise ValueError(
                f"session must be between turns, got episode {self.episode} generating"
            )


class Generation(NamedTuple):
    """A finished turn.  ``tokens`` includes the stop token when ``reason`` is ``stop``.

    ``logprobs`` are under the full softmax at temperature 1, ``sampling_logprobs`` after
    temperature, top-k and top-p (0 when greedy).  All are [n].  ``reason`` is ``stop``, ``length``
    (max_new_tokens reached) or ``overflow`` (max_length reached; no token when nothing fits).
    """

    session: Session
    tokens: np.ndarray
    logprobs: np.ndarray
    sampling_logprobs: np.ndarray
    reason: str


@dataclasses.dataclass
class Stats:
    """Counters since the last `Engine.reset_stats`.

    Attributes:
      prefilled_tokens: context tokens whose keys and values were computed by prefill.
      prefilled_padding: padding computed with them.
      turn_reused_tokens: context tokens found in a session's own slot when a further turn began.
      prefix_reused_tokens: context tokens found in some slot when a session took one.
      decoded_tokens: sampled tokens.
      decode_windows, decode_steps, decode_row_steps: calls, model steps, and steps times rows.
      evictions: idle sessions that lost their slot.
      seconds_prefill, seconds_decode: wall time in device work, transfers included.
      seconds_host: the rest of `Engine.step`.
    """

    prefilled_tokens: int = 0
    prefilled_padding: int = 0
    turn_reused_tokens: int = 0
    prefix_reused_tokens: int = 0
    decoded_tokens: int = 0
    decode_windows: int = 0
    decode_steps: int = 0
    decode_row_steps: int = 0
    evictions: int = 0
    seconds_prefill: float = 0.0
    seconds_decode: float = 0.0
    seconds_host: float = 0.0

    @property
    def seconds_device(self) -> float:
        """Wall time in device work."""
        return self.seconds_prefill + self.seconds_decode
