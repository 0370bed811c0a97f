"""The nouns of the engine: a session, one requested turn, a finished turn; and stop strings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    stop_strings: tuple[str, ...] = ()

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
        if not all(self.stop_strings):
            raise ValueError(f"stop_strings must not be empty texts, got {self.stop_strings}")


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
      turn_reused, prefix_reused: context tokens of the present turn found in its own slot, or in
        some slot when it took one.
      searched: tokens of the present turn that are known to hold no stop string.
    """

    iteration: int
    episode: int
    context: np.ndarray
    turn: int = 0
    slot: int = -1
    request: Request | None = None
    idle_since: int = 0
    turn_reused: int = 0
    prefix_reused: int = 0
    searched: int = 0

    def require_between_turns(self) -> None:
        """Raises ValueError while a turn is being generated or waited for."""
        if self.request is not None:
            raise ValueError(
                f"session must be between turns, got episode {self.episode} generating"
            )


class Generation(NamedTuple):
    """A finished turn.  ``tokens`` includes the stop token when ``reason`` is ``stop``.

    ``logprobs`` are under the full softmax at the temperature of sampling, ``sampling_logprobs`` after
    temperature, top-k and top-p (0 when greedy), ``floor_logprobs`` the border between the tokens
    that those kept and left out, see `sampling.Sampled`.  All are [n].  ``reason`` is ``stop`` (a stop
    token, or the text of a stop string, whose last token is then the last one), ``length``
    (max_new_tokens reached) or ``overflow`` (max_length reached; no token when nothing fits).
    ``version`` is that of the weights that sampled the last token; ``turn_reused`` and
    ``prefix_reused`` say how many tokens of its context were in the cache already, see `Session`.
    """

    session: Session
    tokens: np.ndarray
    logprobs: np.ndarray
    sampling_logprobs: np.ndarray
    reason: str
    version: Any = None
    turn_reused: int = 0
    prefix_reused: int = 0
    floor_logprobs: np.ndarray | None = None


def tokens_to_stop(
    decode: Callable[[Sequence[int]], str],
    tokens: Sequence[int],
    stops: Sequence[str],
    searched: int = 0,
) -> int | None:
    """The fewest leading tokens whose text holds one of ``stops``; None where none does.

    Matched on text because one text has many spellings in tokens, and a stop may begin or end
    inside one.

    Args:
      decode: ids to text.
      tokens: of a turn so far.
      stops: the texts that end it.
      searched: leading tokens whose text is known to hold none; only what comes after them, and
        what a stop may have before, is decoded until something is found.

    >>> tokens_to_stop(lambda ids: "".join(map(chr, ids)), [97, 98, 99, 100], ["bc"])
    3
    """

    def found(count: int) -> bool:
        text = decode(tokens[:count])
        return any(stop in text for stop in stops)

    recent = _last_text(decode, tokens, searched, stops)
    if not any(stop in recent for stop in stops):
        return None
    if not found(len(tokens)):
        return None
    low, high = searched + 1, len(tokens)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) else (middle + 1, high)
    return low


def _last_text(decode, tokens: Sequence[int], searched: int, stops: Sequence[str]) -> str:
    """Text of the tokens after ``searched`` and of enough before them for a stop to begin in.

    A token may have no text, or a part of a character: so many are added that the longest stop and the
    rest of a character (3 bytes at most) fit before what is new.
    """
    longest = max(map(len, stops)) + 3
    new, first = decode(tokens[searched:]), searched
    text, before = new, longest
    while first > 0 and len(text) - len(new) < longest:
        first = max(0, searched - before)
        text, before = decode(tokens[first:]), 2 * before
    return text
