"""What ends a command in one line instead of a traceback, and the exit code that launchers read."""

from __future__ import annotations

import errno
from collections.abc import Mapping

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.envs.base import EngineMismatch, EnvError, TaskError
from evolving_rl_jax.files import SaveFailed
from evolving_rl_jax.run.preemption import EXIT_AGAIN, EXIT_INTERRUPTED, Preempted

EXIT_FAILED, EXIT_USAGE = 1, 2
# {error: (exit code, what follows its text)}.
KINDS: Mapping[type[BaseException], tuple[int, str]] = {
    ConfigError: (EXIT_USAGE, ""),
    TaskError: (EXIT_USAGE, ""),  # of data that was damaged after it was loaded
    EngineMismatch: (EXIT_FAILED, ""),
    # What plays is missing, or cannot show a task that is to be generated.
    EnvError: (EXIT_FAILED, ""),
    SaveFailed: (EXIT_FAILED, ""),
    Preempted: (EXIT_AGAIN, ": the same command goes on from here"),
    KeyboardInterrupt: (
        EXIT_INTERRUPTED,
        "interrupted; the same training command goes on from the last checkpoint",
    ),
}
# Any file of a run can be the one that a disk has no room for.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# What the runtime says when a collective or a barrier lost a member.
_LOST = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "Gloo", "NCCL", "heartbeat")


def ending(
    error: BaseException, more: Mapping[type[BaseException], tuple[int, str]] | None = None
) -> tuple[int, str] | None:
    """(exit code, one line without line breaks) for an error that needs no traceback; None = it does.

    Args:
      error: that ended a command.
      more: kinds besides `KINDS`.
    """
    text = " ".join(str(error).split())
    for kind, (code, rest) in {**KINDS, **(more or {})}.items():
        if isinstance(error, kind):
            return getattr(error, "exit_code", code), text + rest
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return EXIT_FAILED, (
            f"nothing more can be written ({text}); with room, the same command goes on from the last "
            f"checkpoint"
        )
    return None


def lost_peer(error: BaseException) -> bool:
    """Whether an error of the runtime means that another process is gone."""
    text = str(error)
    return type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and any(
        word in text for word in _LOST
    )
