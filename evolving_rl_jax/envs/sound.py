"""Whether an answer of an environment is one that the rest can take; what is wrong is said, the episode has failed."""

from __future__ import annotations

import math
import numbers

import numpy as np

from evolving_rl_jax.envs.base import EnvError
from evolving_rl_jax.files import encodable
from evolving_rl_jax.types import Observation, StepResult

__all__ = ["MOST_REWARD", "of_type", "sound"]

MOST_REWARD = 1e6  # squares of far larger ones are beyond float32, and advantages nothing


def of_type(found, kind: type) -> None:
    """Raises EnvError unless ``found`` is an Observation (of reset) or a StepResult (of step)."""
    if not isinstance(found, kind):
        asked = "reset" if kind is Observation else "step"
        raise EnvError(f"{asked} must return types.{kind.__name__}, got {found!r:.80}")


def sound(found: Observation | StepResult) -> Observation | StepResult:
    """The answer without what no file, tokenizer or endpoint could take.

    Raises:
      EnvError: a field has another type than it must have, or a reward is no number that can be compared.
    """
    if not isinstance(found.text, str):
        raise EnvError(f"text must be a str, got {found.text!r:.80}")
    actions = found.actions
    if not isinstance(actions, tuple | list) or not all(isinstance(a, str) for a in actions):
        raise EnvError(f"actions must be a tuple of texts, got {actions!r:.80}")
    if isinstance(found, StepResult):
        _check_step(found)
    if type(actions) is tuple and found.text.isascii() and all(map(str.isascii, actions)):
        return found
    return found._replace(text=encodable(found.text), actions=tuple(map(encodable, actions)))


def _check_step(found: StepResult) -> None:
    reward = found.reward
    if not isinstance(reward, numbers.Real | np.bool_) or not math.isfinite(reward):
        raise EnvError(f"a reward must be a finite number, got {reward!r:.80}")
    if abs(reward) > MOST_REWARD:
        raise EnvError(f"a reward must be within +-{MOST_REWARD:g}, got {reward:g}")
    for name in ("done", "won"):
        value = getattr(found, name)
        if not isinstance(value, bool | np.bool_):
            raise EnvError(f"{name} must be True or False, got {value!r:.80}")
    if not isinstance(found.info, dict | None):
        raise EnvError(f"info must be a dict or None, got {found.info!r:.80}")
