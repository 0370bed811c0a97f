"""Environments: text in, text out.

One folder holds all that is particular to a benchmark; ``base`` is what they have in common and
``pool`` plays them in worker processes.  Import ``make``, ``check`` and the errors from here, pools
from ``envs.pool``.  Nothing here imports jax, so workers never claim a device, and nothing of
``data``, ``rollout`` or above.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from evolving_rl_jax.envs.base import EngineMismatch, EnvError, Environment, Progress
from evolving_rl_jax.types import Task

__all__ = ["EngineMismatch", "EnvError", "Environment", "check", "make", "validate"]


def make(name: str, **options: Any) -> Environment:
    """Makes an environment.

    Args:
      name: ``"alfworld"`` or ``"mind2web"``.
      **options: of that environment, see ``Options`` of ``envs.alfworld.env`` and
        ``envs.mind2web.env``.

    Raises:
      ValueError: unknown name or option, or a wrong value.
    """
    return _module(name).make(validate(name, **options))


def validate(name: str, **options: Any) -> Any:
    """Checks what ``make`` would be given, without loading an engine; returns the options.

    Raises:
      ValueError: as ``make``.
    """
    accepted = _module(name).Options
    known = {field.name for field in dataclasses.fields(accepted)}
    for key in options:
        if key not in known:
            raise ValueError(f"option of {name} must be one of {sorted(known)}, got {key!r}")
    return accepted(**options)


def check(name: str, tasks: Sequence[Task], progress: Progress, **options: Any) -> str:
    """Compares an engine that must play like another one with that one, before a run trusts it.

    Args:
      name, **options: as ``make``.
      tasks: of the run; some of them are played.
      progress: makes a progress bar.

    Returns:
      A line for people; empty where there is nothing to compare.

    Raises:
      EngineMismatch: they differ.
    """
    compare = getattr(_module(name), "check", None)
    return compare(validate(name, **options), tasks, progress) if compare else ""


def _module(name: str) -> ModuleType:
    if name not in _MODULES:
        raise ValueError(f"environment must be one of {sorted(_MODULES)}, got {name!r}")
    return importlib.import_module(_MODULES[name])


_MODULES = {
    "alfworld": "evolving_rl_jax.envs.alfworld.env",
    "alfworld_check": "evolving_rl_jax.envs.alfworld.check",  # both its engines at once
    "mind2web": "evolving_rl_jax.envs.mind2web.env",
}
