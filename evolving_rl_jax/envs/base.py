"""What every environment offers: reset to a task, act in it, close."""

from __future__ import annotations

import abc
import os
from collections.abc import Callable
from contextlib import AbstractContextManager

from evolving_rl_jax import types

__all__ = [
    "EngineMismatch",
    "EnvError",
    "Environment",
    "Progress",
    "TaskError",
    "cores",
    "game_name",
    "one_line",
    "refuse_won",
]

# Makes a progress bar: (title, total) -> context of a function of the number done so far.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class EnvError(RuntimeError):
    """An environment cannot load or play a task; the agent is not at fault.  One line."""


def game_name(task: types.Task) -> str:
    """What failures of a game are counted by and called: its path; of an environment of one's own, whose paths may
    be empty or shared, the task's id."""
    return task.id if ":" in task.env else task.path


class TaskError(ValueError):
    """Data of tasks on disk that cannot be used; the message names the file."""


class EngineMismatch(RuntimeError):
    """An engine does not play a game as it must.  Not one game's failure: nothing may be trusted."""


def one_line(error: BaseException) -> str:
    """An exception as one line of text, with its type unless it is an ``EnvError``."""
    text = str(error) if isinstance(error, EnvError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def refuse_won(task: types.Task, won: bool) -> None:
    """Raises ``EnvError`` for a game that is won before the first action: nobody has won it."""
    if won:
        raise EnvError(f"game {task.path} must not be won before the first action, it is")


class Environment(abc.ABC):
    """One episode at a time of one task at a time.

    Implementations are deterministic: the same task and the same actions give the same texts, which
    lets a crashed episode be replayed from its action history.
    """

    @abc.abstractmethod
    def reset(self, task: types.Task) -> types.Observation:
        """Starts an episode of ``task``.

        Raises:
          EnvError: the task's data is missing, malformed or not playable.
        """

    @abc.abstractmethod
    def step(self, action: str) -> types.StepResult:
        """Executes one action text, valid or not.  The caller enforces the step limit.

        Raises:
          EnvError: the environment itself failed.
        """

    def load(self, task: types.Task) -> None:  # noqa: B027
        """Does ahead of time what makes the first ``reset`` to a task slow; optional."""

    def close(self) -> None:  # noqa: B027
        """Releases what the episode holds; ``reset`` may be called again afterwards."""


def cores() -> int:
    """How many processors this process may use; all of them where the system does not say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
