"""Which games keep ending their workers: counted, forgiven, and in the end played no more."""

from __future__ import annotations

import collections
import logging

__all__ = ["MAX_FAILURES", "Suspects"]

MAX_FAILURES = 3  # of one game, without a success between them, before it is quarantined

log = logging.getLogger(__name__)


class Suspects:
    """Games whose worker crashed or hung while it served them.

    The same happens to an innocent game when the machine runs out of memory, so a game is cleared
    by a success: the request that a worker ended at is answered by the next one, or an episode
    reaches its end.

    Attributes:
      quarantined: task path -> reason, for games that are played no more.
    """

    def __init__(self) -> None:
        self.quarantined: dict[str, str] = {}
        self._failures: collections.Counter[str] = collections.Counter()  # by path
        self._tries: collections.Counter[int] = collections.Counter()  # by number of a request

    def blame(self, path: str, number: int, reason: str) -> str:
        """Counts a failure of a game; returns why it is quarantined, or "" while it is not.

        Args:
          path: of the game.
          number: of the request that was being served.
          reason: what happened.
        """
        self._failures[path] += 1
        self._tries[number] += 1
        if max(self._failures[path], self._tries[number]) < MAX_FAILURES:
            return ""
        reason += f" ({MAX_FAILURES} failures: not played any more)"
        if path not in self.quarantined:
            log.warning("%s", reason)
        self.quarantined[path] = reason
        return reason

    def clear(self, path: str, number: int, ended: bool) -> None:
        """Forgets the failures of a game that has answered a request.

        Args:
          path: of the game.
          number: of the request.
          ended: whether that was the last one of an episode.
        """
        if self._tries.pop(number, 0) or ended:
            self._failures.pop(path, None)
