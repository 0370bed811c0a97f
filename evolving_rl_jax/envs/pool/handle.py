"""A worker process as ``pool.EnvPool`` sees it: talk to it, see that it hangs, end it."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from evolving_rl_jax import envs
from evolving_rl_jax.envs.pool import process as worker_process
from evolving_rl_jax.envs.pool.process import LastWords, Request
from evolving_rl_jax.envs.pool.spawn import CONTEXT, spawn

__all__ = ["WorkerHandle"]

_REAPED_S = 1.0  # longest wait for the exit status of a process that closed its pipe
_START_GRACE_S = 60.0  # imports of a fresh process, on top of the deadline of its first request


class WorkerHandle:
    """One worker process and the requests that it has not answered.

    At most one message of requests is under way; the worker reads only after it has answered all
    of the previous one, so neither side can block the other with a full pipe.

    Attributes:
      queue: requests to send.
      sent: request number -> request under way.
      starts: how often the process was started.
      fruitless: starts since the last answer.
      busy: whether a message is under way.
      ahead: requests of this worker's games that wait until it has nothing else to do.
    """

    def __init__(self, env: str, options: dict[str, Any]):
        self._arguments = (env, options)
        self._preload = envs.benchmark(env).preload
        self.queue: collections.deque[Request] = collections.deque()
        self.sent: dict[int, Request] = {}
        self.ahead: collections.deque[Request] = collections.deque()
        self._blocked_since: float | None = None  # in a read or write of the pipe
        self.starts = 0
        self.fruitless = 0
        self.busy = False
        self._closed: list[int] = []
        self._last_seen = (-1, 0.0)  # the request seen under way, and since when
        self.start()

    def start(self) -> None:
        """Starts the process (again).  What was under way must have been taken over before."""
        self.connection, theirs = CONTEXT.Pipe()
        self._current = CONTEXT.RawValue(ctypes.c_longlong, -1)
        arguments = (theirs, self._current, *self._arguments)
        self.process = spawn(
            worker_process.main, arguments, [worker_process.__name__, *self._preload]
        )
        theirs.close()
        self._ended, self._last_words = False, ""
        self._closed = []
        self.busy = False
        self.starts += 1
        self.fruitless += 1

    def forget(self, episode: int) -> None:
        """Tells the worker, with the next message, that an episode is over."""
        self.queue = collections.deque(r for r in self.queue if r.episode != episode)
        self._closed.append(episode)

    def send(self, requests: list[Request]) -> None:
        """Sends requests to an idle worker.

        Raises:
          OSError: the process is gone.
        """
        self.sent = {request.number: request for request in requests}
        self.busy = True
        self._last_seen = (-1, time.monotonic())
        with self._blocking():
            self.connection.send((self._closed, requests))
        self._closed = []

    def receive(self) -> list[tuple[int, Any]]:
        """The answers that have arrived, without waiting.

        Raises:
          EOFError, OSError: the process is gone, and nothing of it is left to read.
        """
        answers = []
        try:
            while self.connection.poll(0):
                with self._blocking():
                    message = self.connection.recv()
                for answer in message:
                    if answer is None:
                        self.busy = False
                    elif isinstance(answer, LastWords):
                        self._last_words = answer.reason
                    else:
                        answers.append(answer)
        except (EOFError, OSError):
            if not answers:
                raise
        if answers:
            self.fruitless = 0
            self._last_seen = (-2, time.monotonic())
        return answers

    @property
    def connections(self) -> list[Connection]:
        """What to wait on for answers."""
        return [self.connection]

    def under_way(self) -> Request | None:
        """The request that the worker is serving, or was when it stopped."""
        return self.sent.get(self._current.value)

    def overdue(self, deadline_s: float) -> bool:
        """Whether the worker has served one request for longer than the deadline."""
        number, since = self._last_seen
        if self._current.value != number:
            self._last_seen = (self._current.value, time.monotonic())
            return False
        limit = deadline_s + (_START_GRACE_S if self.fruitless else 0.0)
        return self.busy and time.monotonic() - since > limit

    @contextlib.contextmanager
    def _blocking(self) -> Iterator[None]:
        self._blocked_since = time.monotonic()
        try:
            yield
        finally:
            self._blocked_since = None

    def free(self, deadline_s: float) -> None:
        """Ends a process that left the caller's thread waiting in its pipe; called by another one.

        A process that stops in the middle of a message, or before it has read one that is larger
        than the pipe, would otherwise block its pool for ever.
        """
        since = self._blocked_since
        if since is not None and time.monotonic() - since > deadline_s:
            with contextlib.suppress(OSError, ValueError):
                os.kill(self.process.pid, signal.SIGKILL)

    def how_it_ended(self) -> str:
        """Why a process whose pipe is closed is gone: what it said of it, or its exit status."""
        with contextlib.suppress(EOFError, OSError):
            self.receive()  # what came before the end
        if self._last_words:
            return self._last_words
        self.process.join(_REAPED_S)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"exit status {code}"
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
        return f"signal {-code}"

    def kill(self) -> None:
        """Ends the process at once."""
        self.hang_up()
        if not self._ended:
            self.process.kill()
            self._end()

    def hang_up(self) -> None:
        """Closes the pipe: a process that serves nothing leaves by itself."""
        self.connection.close()

    def stop(self, deadline: float) -> None:
        """Lets the process leave by itself until a time of ``time.monotonic``, or ends it then."""
        self.hang_up()
        if self._ended:
            return
        self.process.join(max(deadline - time.monotonic(), 0.0))
        if self.process.is_alive():
            self.process.kill()
        self._end()

    def _end(self) -> None:
        self._ended = True
        self.process.join()
        self.process.close()
