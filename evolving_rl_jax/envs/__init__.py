"""Environments: text in, text out.

One folder holds all that is particular to a benchmark, as text.  They have in common ``base`` (the
environment), ``benchmark`` (what else a run asks of one), ``texts`` and ``answers`` (prompts), ``corpus``
(of a tokenizer); ``web`` is shared by those that are played on pages, ``pool`` plays them in worker
processes, ``custom`` takes somebody's own, and ``conformance`` checks any of them.  Import ``make``, ``check``, ``benchmark`` and the errors from here, pools
from ``envs.pool``; what is in a benchmark's folder is for its own tests and commands.  Nothing here
imports jax, so workers never claim a device, and nothing of ``data``, ``rollout`` or above.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from evolving_rl_jax.config.accepted import names_attribute
from evolving_rl_jax.envs.base import EngineMismatch, EnvError, Environment, Progress
from evolving_rl_jax.envs.benchmark import Benchmark
from evolving_rl_jax.envs.custom import load
from evolving_rl_jax.types import Task

__all__ = [
    "Benchmark",
    "EngineMismatch",
    "EnvError",
    "Environment",
    "benchmark",
    "check",
    "make",
    "validate",
]

# Name of an environment -> module and attribute of its benchmark.
_BENCHMARKS = {
    "alfworld": "evolving_rl_jax.envs.alfworld.benchmark:BENCHMARK",
    "alfworld_check": "evolving_rl_jax.envs.alfworld.benchmark:COMPARISON",  # both its engines at once
    "mind2web": "evolving_rl_jax.envs.mind2web.benchmark:BENCHMARK",
    "miniwob": "evolving_rl_jax.envs.miniwob.benchmark:BENCHMARK",
    "scienceworld": "evolving_rl_jax.envs.scienceworld.benchmark:BENCHMARK",
}


def benchmark(name: str) -> Benchmark:
    """The benchmark of an environment: one of the table, or of somebody's own.

    Args:
      name: of the table, or ``package.module:attribute`` (`envs.custom`).

    Raises:
      ValueError: unknown name, or an object that does not keep the contract.
    """
    if name in _BENCHMARKS:
        module, attribute = _BENCHMARKS[name].split(":")
        return getattr(importlib.import_module(module), attribute)
    if names_attribute(name):
        return load(name)
    raise ValueError(
        f"environment must be one of {sorted(_BENCHMARKS)} or package.module:attribute, got {name!r}"
    )


def make(name: str, **options: Any) -> Environment:
    """Makes an environment.

    Args:
      name: ``"alfworld"``, ``"mind2web"``, ``"miniwob"``, ``"scienceworld"`` or ``"package.module:attribute"``.
      **options: of that environment, see ``Options`` of ``envs.alfworld.env`` and
        ``envs.mind2web.env``, and ``make`` of one's own.

    Raises:
      ValueError: unknown name or option, or a wrong value.
    """
    return benchmark(name).make_environment(validate(name, **options))


def validate(name: str, **options: Any) -> Any:
    """Checks what ``make`` would be given, without loading an engine; returns the options.

    Raises:
      ValueError: as ``make``.
    """
    return benchmark(name).options(**options)


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
      EnvError: something is missing or does not fit.
    """
    return benchmark(name).check(validate(name, **options), tasks, progress)
