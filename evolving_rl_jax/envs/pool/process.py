"""The process that plays environments for ``pool.EnvPool``; it must never import jax."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import pickle
import signal
import sys
import time
import traceback
from typing import Any, NamedTuple

from evolving_rl_jax import envs, types
from evolving_rl_jax.envs.base import EngineMismatch, game_name, one_line
from evolving_rl_jax.envs.sound import of_type, sound

__all__ = ["LOAD", "LastWords", "Player", "Request", "failure", "main"]

LOAD = -1  # episode number of requests that belong to no episode

_SEND_EVERY_S = 0.005  # results are sent together, but none waits much longer than this


class Request(NamedTuple):
    """One request of the pool.

    Attributes:
      number: unique over the pool's life; the answer carries it.
      episode: which episode; ``LOAD`` for what is done ahead of time.
      position: how many actions the episode has had before this request.
      action: what to do; None means the first observation.
      task: given when the worker does not hold the episode (yet, or any more).
      history: the actions to repeat before, when ``task`` is given.
    """

    number: int
    episode: int
    position: int = 0
    action: str | None = None
    task: types.Task | None = None
    history: tuple[str, ...] = ()


class LastWords(NamedTuple):
    """Sent in place of answers by a process that ends: why."""

    reason: str


def failure(request: Request, status: str, reason: str) -> types.Observation | types.StepResult:
    """The answer to a request that the environment could not serve."""
    if request.action is None:
        return types.Observation(reason, (), status)
    return types.StepResult(reason, (), 0.0, True, False, status)


@dataclasses.dataclass
class _Episode:
    env: envs.Environment
    path: str
    applied: int = 0
    last: Any = None


class Player:
    """Serves requests, one environment an episode; also used inside the pool's own process."""

    def __init__(self, env: str, options: dict[str, Any]):
        self._make = lambda: envs.make(env, **options)
        self._episodes: dict[int, _Episode] = {}
        self._idle: list[envs.Environment] = []

    def answer(self, request: Request) -> Any:
        """Serves one request; whatever goes wrong with its game becomes a status.

        Returns:
          Observation or StepResult; an ``EngineMismatch`` when no game may be played any more.
        """
        try:
            if request.episode == LOAD:
                return self._ahead(request)
            return sound(self._play(request))
        except KeyboardInterrupt:
            raise
        except EngineMismatch as error:
            return error
        except BaseException as error:  # malformed games raise anything, SystemExit included
            held = self._episodes.get(request.episode)
            self.close(request.episode, reuse=False)
            reason, path = one_line(error), held.path if held else game_name(request.task)
            if path not in reason:
                reason = f"game {path} failed: {reason}"
            return failure(request, types.ENV_ERROR, reason)

    def close(self, episode: int, reuse: bool = True) -> None:
        """Forgets an episode; its environment serves a later one."""
        held = self._episodes.pop(episode, None)
        if held is not None:
            held.env.close()
            if reuse:
                self._idle.append(held.env)

    def _ahead(self, request: Request) -> types.Observation:
        env = self._idle.pop() if self._idle else self._make()
        env.load(request.task)
        self._idle.append(env)
        return types.Observation("", ())

    def _play(self, request: Request) -> types.Observation | types.StepResult:
        if request.task is not None:
            self._start(request)
        held = self._episodes[request.episode]
        if request.action is None:
            return held.last
        if held.applied == request.position:
            held.last = held.env.step(request.action)
            of_type(held.last, types.StepResult)
            held.applied += 1
        elif held.applied != request.position + 1:
            raise envs.EnvError(f"step {request.position} came after {held.applied} steps")
        return held.last

    def _start(self, request: Request) -> None:
        self.close(request.episode)
        env = self._idle.pop() if self._idle else self._make()
        held = self._episodes[request.episode] = _Episode(env, game_name(request.task))
        held.last = env.reset(request.task)
        of_type(held.last, types.Observation)
        for action in request.history:
            held.last = env.step(action)
            held.applied += 1


def main(connection: Any, current: Any, env: str, options: dict[str, Any]) -> None:
    """Runs a worker until the pool closes the connection.

    Args:
      connection: receives ``(closed episodes, requests)`` and sends lists of ``(number, answer)``,
        then None when all requests of the message are answered.
      current: shared integer that always names the request being served, so that the pool knows
        which one a crash or hang belongs to.
      env: environment name.
      options: its options.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = 1
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)  # many objects that live long; what is dropped has no cycles
    try:
        player = Player(env, options)
        while True:
            _serve(connection, current, player, *connection.recv())
    except (EOFError, ConnectionError):  # the pool is gone or has finished
        code = 0
    except BaseException as error:  # not of a game, which would be an answer
        traceback.print_exc()
        with contextlib.suppress(OSError):
            connection.send([LastWords(one_line(error))])
    finally:
        sys.stderr.flush()
        os._exit(code)  # the C library must not be unloaded


def _serve(connection: Any, current: Any, player: Player, closed: list, requests: list) -> None:
    for episode in closed:
        player.close(episode)
    answers: list[tuple[int, Any]] = []
    sent = time.monotonic()
    for request in requests:
        current.value = request.number
        answers.append((request.number, _sendable(request, player.answer(request), player)))
        now = time.monotonic()
        if now - sent > _SEND_EVERY_S:
            connection.send(answers)
            answers, sent = [], now
    current.value = -1
    connection.send([*answers, None])


def _sendable(request: Request, answer: Any, player: Player) -> Any:
    """The answer, or, where what an environment says of a step cannot be sent, a failure of its episode."""
    if getattr(answer, "info", None) is None:  # texts, numbers and flags can be
        return answer
    try:
        pickle.dumps(answer.info)
    except Exception as error:  # objects raise anything
        player.close(request.episode, reuse=False)
        reason = f"StepResult.info must be values that can be pickled: {one_line(error)}"
        return failure(request, types.ENV_ERROR, reason)
    return answer
