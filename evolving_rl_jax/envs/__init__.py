"""Environments: text in, text out.  Nothing here imports jax, so workers never claim a device."""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType
from typing import Any

from evolving_rl_jax.envs.base import EnvError, Environment

__all__ = ["EnvError", "Environment", "make", "validate"]


def make(name: str, **options: Any) -> Environment:
    """Makes an environment.

    Args:
      name: ``"alfworld"`` or ``"mind2web"``.
      **options: of that environment, see ``Options`` of ``envs.alfworld`` and ``envs.mind2web``.

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


def _module(name: str) -> ModuleType:
    if name not in _MODULES:
        raise ValueError(f"environment must be one of {sorted(_MODULES)}, got {name!r}")
    return importlib.import_module(_MODULES[name])


_MODULES = {
    "alfworld": "evolving_rl_jax.envs.alfworld.env",
    "mind2web": "evolving_rl_jax.envs.mind2web.env",
}
