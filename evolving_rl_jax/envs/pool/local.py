"""Playing in the calling process, behind the interface of ``handle.WorkerHandle``."""

from __future__ import annotations

import collections
from typing import Any

from evolving_rl_jax.envs.pool.process import Player, Request

__all__ = ["LocalWorker"]


class LocalWorker:
    """Serves requests as they are sent: for tests and debugging, without any protection.

    Attributes: those of `handle.WorkerHandle`.
    """

    starts, fruitless, busy = 1, 0, False
    connections = ()

    def __init__(self, env: str, options: dict[str, Any]):
        self.queue: collections.deque[Request] = collections.deque()
        self.sent: dict[int, Request] = {}
        self.ahead: collections.deque[Request] = collections.deque()
        self._player = Player(env, options)
        self._answers: list[tuple[int, Any]] = []

    def forget(self, episode: int) -> None:
        """Ends an episode."""
        self.queue = collections.deque(r for r in self.queue if r.episode != episode)
        self._player.close(episode)

    def send(self, requests: list[Request]) -> None:
        """Serves requests."""
        self.sent = {request.number: request for request in requests}
        self._answers += [(r.number, self._player.answer(r)) for r in requests]

    def receive(self) -> list[tuple[int, Any]]:
        """The answers to what was sent."""
        answers, self._answers = self._answers, []
        return answers

    def overdue(self, _deadline_s: float) -> bool:
        """Never: the caller waited for the answers."""
        return False

    def hang_up(self) -> None:
        """Nothing: there is no process."""

    def stop(self, _deadline: float) -> None:
        """Nothing: there is no process."""
