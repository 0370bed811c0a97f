"""Advantages in groups on the host, in numpy: for what is decided there, of shapes that change.

The update's own are those of ``losses``; these agree with them, and compile nothing.
"""

from __future__ import annotations

import numpy as np

from evolving_rl_jax.rollout.evolve import Experience

_ROUNDING = 8 * np.finfo(np.float32).eps  # a spread within it is none, as in losses


def normalized(
    rewards: np.ndarray, mask: np.ndarray, axis: tuple[int, ...], scale: str = "std"
) -> np.ndarray:
    """Advantages of the members of each group, 0 for a group without spread.

    Args:
      rewards: of any shape.
      mask: of the same: 1 = a member.
      axis: the axes that a group extends over.
      scale: ``std``, ``none`` or ``leave_one_out``, as ``config.algorithm.advantage``.
    """
    mask = np.asarray(mask) > 0
    values = np.where(mask, np.asarray(rewards, np.float64), 0.0)
    count = np.maximum(mask.sum(axis, keepdims=True), 1)
    centred = np.where(mask, values - values.sum(axis, keepdims=True) / count, 0.0)
    std = np.sqrt((centred**2).sum(axis, keepdims=True) / count)
    largest = np.abs(values).max(axis, keepdims=True, initial=0.0)
    spread = (count > 1) & (std > _ROUNDING * largest)
    if scale == "std":
        centred = centred / (std + 1e-6)
    elif scale == "leave_one_out":
        centred = centred * count / np.maximum(count - 1, 1)
    return np.where(spread, centred, 0.0).astype(np.float32)


def solver_rewards(experience: Experience) -> np.ndarray:
    """What the episodes of an iteration are compared by, [G, K, N, R]."""
    return experience.wins if experience.scores is None else experience.scores


def solver_advantages(experience: Experience) -> np.ndarray:
    """Standardised in each group [G, K, N, R], whatever the arm and its weights."""
    return normalized(solver_rewards(experience), experience.episode_mask, (2, 3))
