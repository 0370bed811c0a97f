"""Several attempts at one source task: played by different draws, and read together by the extractor.

An extraction shows them from the one that failed first to the one that got furthest, each with its
outcome.  Where all do not fit its prompt, the two that contrast most are shown: the furthest and the
one that failed first; where even these do not fit, the furthest alone.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from evolving_rl_jax.rollout.contexts import FullContext, RecentContext
from evolving_rl_jax.types import Episode, Task

__all__ = [
    "Attempt",
    "Attempts",
    "Reading",
    "attempt_key",
    "play_attempts",
    "read_attempts",
    "reading_order",
]

# Between the keys of a source's attempts: as many as config.rollout.num_source_episodes accepts (16) lie
# below the keys of anything else.
_KEYS_APART = 50_000


class Attempt(NamedTuple):
    """One attempt as an extraction shows it: what was played, how it ended, what its last action did."""

    context: FullContext | RecentContext
    won: bool
    observation: str


class Reading(NamedTuple):
    """The prompt of an extraction.

    Attributes:
      ids: of the attempts.
      request: that ask for a skill after them.
      first: the attempt that ``ids`` begin with.
      counts: turns of the attempts and how they were shown, and attempts; for `Driver.extracted`.
    """

    ids: list[int]
    request: list[int]
    first: Attempt
    counts: dict[str, int]


def read_attempts(prompts, attempts: Sequence[Attempt], length: int) -> Reading:
    """The prompt of an extraction from attempts at one task, in ``length`` tokens where that can be.

    Args:
      prompts: a style of ``rollout.prompts``.
      attempts: from the one that failed first to the furthest.
      length: most tokens of the trajectories and the request together.
    """
    for shown, shares in (
        (list(attempts), False),
        (_pair(attempts), False),
        (_pair(attempts), True),
    ):
        if len(shown) == 1:
            break
        request = _request(prompts, shown)
        room = length - len(request)
        ids = _joined(prompts, shown, _rooms(prompts, shown, room) if shares else None)
        if len(ids) <= room:
            return Reading(ids, request, shown[0], _counts(attempts, shown))
    last = attempts[-1]
    request = _request(prompts, [last])
    ids = last.context.told(length - len(request))
    return Reading(ids, request, last, _counts(attempts, [last]))


def _pair(attempts: Sequence[Attempt]) -> list[Attempt]:
    return [attempts[0], attempts[-1]] if len(attempts) > 1 else list(attempts)


def _request(prompts, shown: Sequence[Attempt]) -> list[int]:
    last, more = shown[-1], {"attempts": len(shown)} if len(shown) > 1 else {}
    return prompts.extractor_prompt(
        last.won, last.observation, last_id=last.context.last_id, **more
    )


def _joined(prompts, shown: Sequence[Attempt], rooms: Sequence[int] | None = None) -> list[int]:
    """The trajectories one after the other, each in its room; None = whole."""
    rooms = rooms or [sys.maxsize] * len(shown)
    ids = shown[0].context.told(rooms[0])
    for (before, after), room in zip(itertools.pairwise(shown), rooms[1:], strict=True):
        ids = ids + after.context.told(room, _opening(prompts, before, after, ids))
    return ids


def _opening(prompts, before: Attempt, after: Attempt, ids: Sequence[int]):
    last_id = ids[-1] if ids else None
    return lambda text, actions: prompts.next_attempt(
        before.won, before.observation, after.context.task, text, actions, last_id=last_id
    )


def _rooms(prompts, shown: Sequence[Attempt], room: int) -> tuple[int, int]:
    """Half of the room for each of two, and to each what the other leaves."""
    first = len(shown[0].context.told(sys.maxsize))
    second = len(_joined(prompts, shown)) - first
    least = min(first, max(room // 2, room - second))
    return least, room - least


def _counts(attempts: Sequence[Attempt], shown: Sequence[Attempt]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for attempt in shown:
        for name, value in attempt.context.extracted.items():
            counts[name] = counts.get(name, 0) + value
    if len(attempts) > 1:
        counts |= {"attempts": len(attempts), "attempts_dropped": len(attempts) - len(shown)}
    return counts


class Attempts:
    """The episodes of one source, once all have ended.

    Args:
      driver: that played them.
      ended: (episode, handle or None) of each, in the order of their keys.

    Attributes:
      episodes: in the order of their keys.
      best: the one that counts as the source's: of those that are scored the furthest, the first of equals.
      readable: whether a skill can be asked for: something was played, and nothing was cut off.
    """

    def __init__(self, driver, ended: Sequence[tuple[Episode, object]]):
        self._driver, self._ended = driver, ended
        self.episodes = [episode for episode, _ in ended]
        live = [pair for pair in ended if pair[1] is not None]
        # Nothing is to be read of one that was never played, as long as there is another.
        shown = [pair for pair in live if pair[0].turns] or live[:1]
        self._shown = [shown[i] for i in reading_order([episode for episode, _ in shown])]
        self.best = self._shown[-1][0] if self._shown else self.episodes[0]
        played = bool(self._shown and self.best.turns)
        self.readable = played and not any(e.cut for e in self.episodes)

    @property
    def read(self) -> list[Episode]:
        """Those that a skill can be of, the furthest last."""
        return [episode for episode, _ in self._shown]

    def extract(self, keys: list[int], on_done: Callable) -> None:
        """`Driver.extract` from all of them."""
        *before, (episode, handle) = self._shown
        self._driver.extract(
            handle, episode.won, keys, on_done, before=[(h, e.won) for e, h in before]
        )

    def release(self) -> None:
        """Gives back their sessions."""
        for _, handle in self._ended:
            if handle is not None:
                self._driver.release(handle)


def reading_order(episodes: Sequence[Episode]) -> list[int]:
    """Numbers of attempts from the one that failed first to the furthest; of equals the first is the furthest."""
    order = sorted(range(len(episodes)), key=lambda i: _progress(episodes[i]))
    furthest = [i for i in order if _progress(episodes[i]) == _progress(episodes[order[-1]])][:1]
    return [i for i in order if i not in furthest] + furthest


def _progress(episode: Episode) -> tuple[bool, float, float]:
    """How far an attempt got: won, then the share of its steps that were right, then its score."""
    return bool(episode.won), episode.score, float(episode.reward)


def attempt_key(first: int, number: int) -> int:
    """The sampling key of attempt ``number`` of the source whose first has the key ``first``.

    Those of different sources differ for up to 50,000 of them, and number 0 has the key itself.
    """
    return first + number * _KEYS_APART


def play_attempts(
    driver, task: Task, first: int, count: int, on_done: Callable[[Attempts], None]
) -> None:
    """Plays a task ``count`` times without a skill; ``on_done(attempts)`` when all have ended.

    Args:
      driver: plays them, and keeps their sessions until they are released.
      task: of the source.
      first: key of the first attempt, see `attempt_key`.
      count: S.
      on_done: called once.
    """
    ended: list[tuple[Episode, object] | None] = [None] * count

    def after(i: int):
        def done(episode: Episode, handle) -> None:
            ended[i] = episode, handle
            if None not in ended:
                on_done(Attempts(driver, ended))

        return done

    for i in range(count):
        driver.play(attempt_key(first, i), task, "", after(i), keep_session=True)
