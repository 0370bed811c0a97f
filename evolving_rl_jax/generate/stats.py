"""Counters of the engine's work."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Stats:
    """Counters since the last `Engine.reset_stats`.

    Attributes:
      prefilled_tokens: context tokens whose keys and values were computed by prefill.
      prefilled_padding: padding computed with them.
      turn_reused_tokens: context tokens found in a session's own slot when a further turn began.
      prefix_reused_tokens: context tokens found in some slot when a session took one.
      decoded_tokens: sampled tokens that belong to a turn.
      dropped_tokens: sampled tokens after the text that ended a turn, in the same window.
      decode_windows, decode_steps, decode_row_steps: calls, model steps, and steps times rows.
      evictions: idle sessions that lost their slot.
      columns_used, columns_held: cache columns that hold a context, and those of the slots that
        hold one; both summed over decode windows.
      seconds_prefill, seconds_decode: wall time in device work, transfers included.
      seconds_host: the rest of `Engine.step`.
    """

    prefilled_tokens: int = 0
    prefilled_padding: int = 0
    turn_reused_tokens: int = 0
    prefix_reused_tokens: int = 0
    decoded_tokens: int = 0
    dropped_tokens: int = 0
    decode_windows: int = 0
    decode_steps: int = 0
    decode_row_steps: int = 0
    evictions: int = 0
    columns_used: int = 0
    columns_held: int = 0
    seconds_prefill: float = 0.0
    seconds_decode: float = 0.0
    seconds_host: float = 0.0

    @property
    def seconds_device(self) -> float:
        """Wall time in device work."""
        return self.seconds_prefill + self.seconds_decode

    @property
    def reused_tokens(self) -> int:
        """Context tokens that were in the cache already."""
        return self.turn_reused_tokens + self.prefix_reused_tokens
