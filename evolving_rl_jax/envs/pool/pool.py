"""Hundreds of concurrent episodes over a few worker processes.

Requests are queued, sent in one message a worker, and answered as they get ready::

    with EnvPool("alfworld", num_workers=2) as pool:
        for i, task in enumerate(tasks):
            pool.reset(i, task)
        pool.flush()
        for episode, result in pool.poll(timeout=1.0):
            pool.step(episode, choose(result))

A worker that crashes or hangs is replaced and its other episodes are played again from their
action histories, so they never notice.  A failed request is answered with a status, never with an
exception.  Start the pool before jax is used; this module never imports it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing.connection
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import cachetools

from evolving_rl_jax import envs, types
from evolving_rl_jax.envs.base import EngineMismatch, game_name
from evolving_rl_jax.envs.pool.handle import WorkerHandle
from evolving_rl_jax.envs.pool.local import LocalWorker
from evolving_rl_jax.envs.pool.process import LOAD, Request, failure
from evolving_rl_jax.envs.pool.suspects import Suspects

__all__ = ["EnvPool"]

Result = types.Observation | types.StepResult

_MAX_STARTS = 3  # of a worker that never answers
_MAX_HOMES = 10_000  # games whose worker is remembered
_LEAVE_S = 5.0  # for all workers together to leave by themselves


@dataclasses.dataclass
class _Episode:
    """What the pool must know to play an episode again in another process."""

    task: types.Task
    worker: int
    history: list[str] = dataclasses.field(default_factory=list)
    held_since: int = 0  # the start of the worker that holds it; 0 = none yet
    pending: int = -1  # number of the unanswered request


class EnvPool:
    """Plays many episodes at once; see the text of the module.

    Attributes:
      options: of its environments, as they were given.
      respawns: how often a worker was replaced.
    """

    def __init__(
        self,
        env: str = "alfworld",
        options: dict[str, Any] | None = None,
        num_workers: int = 2,
        deadline_s: float = 60.0,
    ):
        """Args:
          env: name for ``envs.make``.
          options: its options.
          num_workers: processes; 0 plays inside the calling process (tests, debugging), without
            protection against crashes and hangs.
          deadline_s: longest time for one request before its worker is replaced.

        Raises:
          ValueError: a wrong number, environment or option.
        """
        if num_workers < 0:
            raise ValueError(f"num_workers must be >= 0, got {num_workers}")
        if deadline_s <= 0:
            raise ValueError(f"deadline_s must be > 0, got {deadline_s}")
        self.options = options = dict(options or {})
        envs.validate(env, **options)
        self._room = envs.benchmark(env).episodes_per_worker
        self._waiting: dict[int, types.Task] = {}  # until a worker has room
        self.respawns = 0
        self._suspects = Suspects()
        self._deadline_s = deadline_s
        self._number = 0
        self._episodes: dict[int, _Episode] = {}
        self._ready: list[tuple[int, Result]] = []
        self._homes = cachetools.LRUCache(_MAX_HOMES)  # game -> worker
        self._workers: list[WorkerHandle | LocalWorker] = []
        self._over = threading.Event()
        try:
            for _ in range(num_workers):
                self._workers.append(WorkerHandle(env, options))
        except BaseException:
            self.shutdown()
            raise
        if num_workers == 0:
            self._workers = [LocalWorker(env, options)]
        else:
            watched = (weakref.ref(self), self._over, min(deadline_s / 4, 1.0))
            threading.Thread(target=_watch, args=watched, daemon=True).start()

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Task path -> reason, for games that kept ending their worker and are played no more."""
        return self._suspects.quarantined

    def reset(self, episode: int, task: types.Task) -> None:
        """Queues the start of an episode; ``episode`` is a number >= 0 of the caller's choice."""
        if episode < 0:
            raise ValueError(f"episode must be >= 0, got {episode}")
        self.close(episode)
        self._waiting[episode] = task
        self._admit()

    @property
    def num_waiting(self) -> int:
        """Episodes that start when another one is closed: workers hold as many as they can."""
        return len(self._waiting)

    def step(self, episode: int, action: str) -> None:
        """Queues one action of an episode.

        Raises:
          KeyError: the episode was not reset, was closed, or has failed.
          RuntimeError: its previous request is not answered yet.
        """
        if episode not in self._episodes:
            raise KeyError(f"episode {episode} is not running (not reset, closed or failed)")
        if self._episodes[episode].pending >= 0:
            raise RuntimeError(f"episode {episode} still waits for its previous answer")
        self._enqueue(episode, action)

    def close(self, episode: int) -> None:
        """Ends an episode, if it runs; answers still under way are dropped."""
        held = self._episodes.pop(episode, None)
        self._waiting.pop(episode, None)
        self._ready = [(e, r) for e, r in self._ready if e != episode]
        if held is not None:
            self._workers[held.worker].forget(episode)
            self._admit()

    def flush(self) -> None:
        """Sends what is queued, one message a worker; a busy worker gets its message later."""
        for worker in self._workers:
            self._send(worker)

    def poll(self, timeout: float | None = None) -> list[tuple[int, Result]]:
        """Answers that are ready, waiting for the first one; sends what is queued before.

        Args:
          timeout: seconds to wait; None waits as long as anything is under way, 0 not at all.

        Returns:
          ``(episode, Observation or StepResult)`` in the order of arrival; empty when nothing
          arrived in time or nothing is under way.

        Raises:
          EngineMismatch: the engine does not play a game as its reference does.
        """
        end = None if timeout is None else time.monotonic() + timeout
        self._advance(0.0)
        while not self._ready and any(e.pending >= 0 for e in self._episodes.values()):
            left = 1.0 if end is None else end - time.monotonic()
            if left <= 0:
                break
            self._advance(left)
        ready, self._ready = self._ready, []
        return ready

    def load(self, tasks: Iterable[types.Task]) -> None:
        """Loads games that will be reset soon, each in its own worker, while that has nothing to do.

        Returns at once; the work is done while ``poll`` is called.  Failures show at ``reset``.
        """
        for task in tasks:
            # Where a worker holds few episodes, one that is only loaded would be one too many.
            if game_name(task) not in self.quarantined and self._room is None:
                request = self._request(LOAD, 0, None)._replace(task=task)
                self._workers[self._worker_of(task)].ahead.append(request)

    def _admit(self) -> None:
        """Starts those that wait, in their order, as far as there is room."""
        while self._waiting and (
            self._room is None or len(self._episodes) < self._room * len(self._workers)
        ):
            episode, task = next(iter(self._waiting.items()))
            del self._waiting[episode]
            # No call of itself: there may be a thousand of them.
            if reason := self.quarantined.get(game_name(task)):
                lost = failure(self._request(episode, 0, None), types.ENV_ERROR, reason)
                self._ready.append((episode, lost))
                continue
            self._episodes[episode] = _Episode(task, self._worker_of(task))
            self._enqueue(episode, None)

    def _worker_of(self, task: types.Task) -> int:
        """The worker of a game: all its episodes go to one, a new game to the least busy one.

        Where workers hold few episodes, the least busy one at any time.
        """
        key = task.content_hash or game_name(task)
        if key not in self._homes or self._room is not None:
            running = collections.Counter(e.worker for e in self._episodes.values())
            load = [(running[i] + len(w.ahead), i) for i, w in enumerate(self._workers)]
            self._homes[key] = min(load)[1]
        return self._homes[key]

    def worker_pids(self) -> list[int]:
        """Process ids of the workers (for monitoring)."""
        return [w.process.pid for w in self._workers if isinstance(w, WorkerHandle)]

    def shutdown(self) -> None:
        """Ends the workers; the pool cannot be used afterwards.  May be called again."""
        self._over.set()
        workers, self._workers = self._workers, []
        deadline = time.monotonic() + _LEAVE_S  # of all of them together
        with contextlib.ExitStack() as stack:
            for worker in workers:
                stack.callback(worker.stop, deadline)
            for worker in workers:
                worker.hang_up()  # all of them first, so that they leave at the same time
        self._episodes.clear()
        self._waiting.clear()

    def _request(self, episode: int, position: int, action: str | None) -> Request:
        self._number += 1
        return Request(self._number, episode, position, action)

    def _enqueue(self, episode: int, action: str | None) -> None:
        held = self._episodes[episode]
        request = self._request(episode, len(held.history), action)
        held.pending = request.number
        if game_name(held.task) in self.quarantined:
            reason = self.quarantined[game_name(held.task)]
            self._accept(request, failure(request, types.ENV_ERROR, reason))
        else:
            self._workers[held.worker].queue.append(request)

    def _complete(self, request: Request, start: int) -> Request:
        """Adds the task and the history when the worker does not hold the episode."""
        held = self._episodes[request.episode]
        if held.held_since == start:
            return request
        held.held_since = start
        return request._replace(task=held.task, history=tuple(held.history))

    def _send(self, worker: WorkerHandle) -> None:
        if worker.busy:
            return
        requests = [self._complete(request, worker.starts) for request in worker.queue]
        requests.sort(key=lambda request: request.task is not None)  # resets may take long
        worker.queue.clear()
        if not requests and worker.ahead:
            requests = [worker.ahead.popleft()]
        if not requests:
            return
        try:
            worker.send(requests)
        except OSError:
            self._replace(worker, None)

    def _advance(self, timeout: float) -> None:
        """Sends what can be sent, waits for something to arrive, and takes it in."""
        for worker in self._workers:
            self._send(worker)
        waited_on = [c for worker in self._workers for c in worker.connections]
        if waited_on:
            multiprocessing.connection.wait(waited_on, min(timeout, self._deadline_s / 4))
        for worker in self._workers:
            self._receive(worker)
            if worker.overdue(self._deadline_s):
                self._replace(worker, types.TIMEOUT)
            self._send(worker)

    def _receive(self, worker: WorkerHandle) -> None:
        try:
            for number, answer in worker.receive():
                request = worker.sent.pop(number, None)
                if request is not None:
                    self._accept(request, answer)
        except (EOFError, OSError):
            self._replace(worker, types.ENV_ERROR)

    def _accept(self, request: Request, answer: Result) -> None:
        """Takes in an answer, unless its episode was closed or started again meanwhile."""
        if isinstance(answer, EngineMismatch):
            raise answer
        task = request.task or self._task(request)
        if answer.status == types.OK and task is not None:
            self._suspects.clear(game_name(task), request.number, getattr(answer, "done", False))
        held = self._episodes.get(request.episode)
        if held is None or held.pending != request.number:
            return
        held.pending = -1
        if answer.status != types.OK:
            self.close(request.episode)
        elif request.action is not None:
            held.history.append(request.action)
        self._ready.append((request.episode, answer))

    def _replace(self, worker: WorkerHandle, status: str | None) -> None:
        """Starts a worker anew after a crash or hang; only the request that it served can fail."""
        culprit = worker.under_way() if status is not None else None
        how = worker.how_it_ended() if status != types.TIMEOUT else ""
        worker.kill()
        again = [*worker.sent.values(), *worker.queue]
        worker.sent, worker.queue = {}, collections.deque()
        if culprit is not None and self._blame(culprit, status, how):
            again.remove(culprit)
        if culprit is None and worker.fruitless > _MAX_STARTS:
            raise RuntimeError(
                f"an environment worker ended {_MAX_STARTS} times while starting, at last with: {how}"
            )
        worker.start()
        self.respawns += 1
        for request in again:
            self._queue_again(worker, request)

    def _blame(self, request: Request, status: str, how: str) -> bool:
        """Counts a crash or hang against a game; returns whether the request is given up."""
        task = request.task or self._task(request)
        if task is None:  # its episode was closed meanwhile
            return True
        if status == types.TIMEOUT:
            reason = f"game {game_name(task)} did not answer within {self._deadline_s:g} s"
        else:
            reason = f"game {game_name(task)} ended its worker process ({how})"
        given_up = self._suspects.blame(game_name(task), request.number, reason)
        if given_up or status == types.TIMEOUT:
            self._accept(request, failure(request, status, given_up or reason))
            return True
        return False

    def _task(self, request: Request) -> types.Task | None:
        held = self._episodes.get(request.episode)
        return None if held is None else held.task

    def _queue_again(self, worker: WorkerHandle, request: Request) -> None:
        if request.episode == LOAD:
            if game_name(request.task) not in self.quarantined:
                worker.ahead.appendleft(request)
            return
        held = self._episodes.get(request.episode)
        if held is None or held.pending != request.number:
            return
        if game_name(held.task) in self.quarantined:
            reason = self.quarantined[game_name(held.task)]
            self._accept(request, failure(request, types.ENV_ERROR, reason))
        else:
            worker.queue.append(request._replace(task=None, history=()))


def _watch(pool: weakref.ref[EnvPool], over: threading.Event, every_s: float) -> None:
    """Frees the pool from workers that stopped while it reads from or writes to them."""
    while not over.wait(every_s):
        if pool() is None:
            return
        _free(pool())


def _free(pool: EnvPool | None) -> None:
    for worker in [] if pool is None else list(pool._workers):
        if isinstance(worker, WorkerHandle):
            worker.free(pool._deadline_s)
