"""Independent commands side by side, each in a process of its own on its share of the cores.

For models so small that XLA cannot keep several cores busy with one of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import time
from collections.abc import Callable, Collection, Sequence

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.run.console import say
from evolving_rl_jax.run.preemption import EXIT_AGAIN, EXIT_INTERRUPTED, Preempted

# Longer than it takes to save a run, shorter than a machine that is taken away leaves.
GRACE_S = 60.0
_POLL_S = 0.5
_TAIL_BYTES = 4096


class PieceFailed(RuntimeError):
    """A process ended with an error of its own."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """One command.

    Attributes:
      name: for messages.
      command: program and arguments.
      log: file that its output is appended to.
    """

    name: str
    command: tuple[str, ...]
    log: pathlib.Path


def core_shares(jobs: int) -> list[set[int]]:
    """The cores of this process in ``jobs`` disjoint shares; empty sets where cores cannot be chosen.

    Raises:
      ConfigError: there are fewer cores than shares.
    """
    chosen = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = sorted(os.sched_getaffinity(0)) if chosen else list(range(os.cpu_count() or 1))
    if not 1 <= jobs <= len(cores):
        raise ConfigError(f"--jobs must be from 1 to the number of cores, {len(cores)}, got {jobs}")
    cuts = [i * len(cores) // jobs for i in range(jobs + 1)]
    return [set(cores[a:b]) if chosen else set() for a, b in zip(cuts, cuts[1:], strict=False)]


def run_side_by_side(
    pieces: Sequence[Piece],
    shares: Sequence[set[int]],
    ready: Callable[[str, Collection[str], Collection[str]], bool],
    tick: Callable[[], None],
) -> None:
    """Returns when all have ended well.

    Once one has failed no other is started, and those that run are waited for.  However this
    function is left, nothing that it started still runs: it is sent SIGTERM, has `GRACE_S` seconds to
    save itself, and is killed.

    Args:
      pieces: in the order in which they should start.
      shares: of the cores, as `core_shares` returns them; so many run at a time.
      ready: (name, names that run, names that have ended) -> whether it may start now.
      tick: called about twice a second; what it raises ends everything.

    Raises:
      PieceFailed: one ended with an error; its last line is in the message.
      Preempted: one was told to stop and has saved itself; so are the others, then.
    """
    free, waiting, ended, failures = list(shares), list(pieces), [], []
    running: dict[str, tuple[Piece, subprocess.Popen, set[int]]] = {}
    try:
        while waiting or running:
            while free and (piece := _first_ready(waiting, ready, running, ended)):
                waiting.remove(piece)
                share = free.pop(0)
                running[piece.name] = piece, _start(piece, share), share
                say(f"{piece.name}: started; its output is in {piece.log}")
            if not running:
                raise RuntimeError(f"none of {[p.name for p in waiting]} may start")
            time.sleep(_POLL_S)
            tick()
            for name, (piece, process, share) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                free.append(share)
                ended.append(name)
                if process.returncode == 0:
                    say(f"{name}: done")
                elif process.returncode in (EXIT_AGAIN, EXIT_INTERRUPTED):
                    raise Preempted(f"{name} was stopped")
                else:
                    failures.append(_failure(piece, process.returncode))
                    say(failures[-1])
                    waiting.clear()
    finally:
        _end([process for _, process, _ in running.values()])
    if failures:
        raise PieceFailed("; ".join(failures))


def _end(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_S
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.poll() is None:
                say(f"process {process.pid} has not ended within {GRACE_S:g} s and is killed")
                process.kill()
                process.wait()


def _first_ready(waiting, ready, running, ended) -> Piece | None:
    return next((p for p in waiting if ready(p.name, running.keys(), ended)), None)


def _start(piece: Piece, share: set[int]) -> subprocess.Popen:
    """The process; it inherits the cores that this one has while it starts."""
    piece.log.parent.mkdir(parents=True, exist_ok=True)
    own = os.sched_getaffinity(0) if share else set()
    with open(piece.log, "ab") as log:
        try:
            if share:
                os.sched_setaffinity(0, share)
            return subprocess.Popen(
                piece.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        finally:
            if share:
                os.sched_setaffinity(0, own)


def _failure(piece: Piece, code: int) -> str:
    with open(piece.log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "without a word")
    return f"{piece.name} ended with exit code {code}: {last} (all of its output: {piece.log})"
