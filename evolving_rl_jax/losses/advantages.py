"""Advantages: how wins become learning signals for the extractor and for the solver.

Axis letters: G source tasks, K retrieved tasks per source, N skills per source, R repeats, S steps.

Where this differs from the released implementation of the paper (arXiv 2605.10663):

1. A group with fewer than two valid members, or without spread, gives exactly 0.  Released: a lone
   member keeps its raw reward, and rounding noise on a constant group is divided by itself.
2. Masked members (infrastructure failures) are left out of every mean instead of scoring 0.
3. Step groups are per task by default; ``pool="all"`` gives the released grouping.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from evolving_rl_jax.losses._checks import check_rank, check_shape

# A spread of this many float32 rounding steps, relative to the largest member, is rounding noise.
_NOISE_STEPS = 8
_POOLS = ("task", "all")
_SCALES = ("std", "none", "leave_one_out")


class SkillAdvantages(NamedTuple):
    """What ``skill_advantages`` returns, all float32.

    Attributes:
      extractor: [G, N], weighted advantage of each skill.
      solver: [G, K, N, R], weighted advantage of each episode.
      extractor_reward: [G, N], mean score of each skill, 0 for an invalid one.
    """

    extractor: jax.Array
    solver: jax.Array
    extractor_reward: jax.Array


def group_normalize(
    rewards: jax.Array,
    mask: jax.Array | None = None,
    *,
    axis: int | Sequence[int],
    eps: float = 1e-6,
    scale: str = "std",
) -> jax.Array:
    """Group-relative advantage: how far each reward lies from the mean of its group.

    ``(x - mean) / (population std + eps)``, where mean and std run over ``axis`` among the members
    whose mask is 1.  A group with fewer than two such members, or with no spread, gives exactly 0:
    a spread within float32 rounding of the members' size counts as none.

    Args:
      rewards: any shape and any unit.
      mask: same shape, 1 = member, 0 = left out of mean and std and given 0; None = all members.
      axis: axis or axes that form a group.
      eps: added to the standard deviation, in the unit of the rewards.
      scale: ``"std"`` divides by the standard deviation (GRPO); ``"none"`` leaves the unit of the
        rewards (Dr. GRPO); ``"leave_one_out"`` takes the mean of the *other* members, ``n / (n - 1)``
        times the same (RLOO).

    Returns:
      Advantages, float32, same shape as ``rewards``; nan in a group with a member that is no finite number.

    Raises:
      ValueError: mask of another shape, an axis that ``rewards`` does not have, or an unknown scale.

    Example:
      >>> import jax.numpy as jnp
      >>> rewards = jnp.array([[1.0, 0.0, 1.0, 0.0], [0.1, 0.1, 0.1, 0.1]])
      >>> group_normalize(rewards, axis=1).round(3).tolist()
      [[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]]
      >>> mask = jnp.array([[1, 1, 0, 0], [1, 0, 0, 0]])
      >>> group_normalize(rewards, mask, axis=1).round(3).tolist()
      [[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]

    Source: GRPO, arXiv 2402.03300, outcome supervision; Dr. GRPO, arXiv 2503.20783, section 3.2;
    RLOO, arXiv 2402.14740, equation 8.
    """
    if scale not in _SCALES:
        raise ValueError(f"scale must be one of {_SCALES}, got {scale!r}")
    rewards = jnp.asarray(rewards, jnp.float32)
    axes = _group_axes(axis, rewards.shape)
    if mask is None:
        member = jnp.ones(rewards.shape, bool)
    else:
        check_shape("mask", mask, rewards.shape, "shaped like rewards")
        member = jnp.asarray(mask) > 0
    count = jnp.sum(member, axes, keepdims=True)
    divisor = jnp.maximum(count, 1).astype(jnp.float32)
    low = jnp.min(rewards, axes, keepdims=True, where=member, initial=jnp.inf)
    high = jnp.max(rewards, axes, keepdims=True, where=member, initial=-jnp.inf)
    noise = _NOISE_STEPS * jnp.finfo(jnp.float32).eps * jnp.maximum(abs(low), abs(high))
    # Measured from the smallest member, so that a large common offset costs no precision.
    offset = jnp.where(member, rewards - jax.lax.stop_gradient(low), 0.0)
    mean = jnp.sum(offset, axes, keepdims=True) / divisor
    centred = jnp.where(member, offset - mean, 0.0)
    variance = jnp.sum(centred**2, axes, keepdims=True) / divisor
    usable = (count >= 2) & (high - low > noise) & (variance > 0)
    # A reward that is no number must not look like a group without spread, which trains nothing and says nothing.
    broken = (count > 0) & ~(jnp.isfinite(low) & jnp.isfinite(high))
    rest = jnp.where(broken & member, jnp.nan, 0.0)
    if scale != "std":
        others = divisor / jnp.maximum(divisor - 1.0, 1.0) if scale == "leave_one_out" else 1.0
        return jnp.where(usable & member, centred * others, rest)
    # The inner where keeps the gradient of sqrt finite in the groups that the outer one discards.
    std = jnp.sqrt(jnp.where(usable, variance, 1.0))
    return jnp.where(usable & member, centred / (std + eps), rest)


def skill_advantages(
    wins: jax.Array,
    *,
    skill_valid: jax.Array,
    episode_mask: jax.Array | None = None,
    extractor_weight: float,
    solver_weight: float = 1.0,
    solver_reward: float = 10.0,
    eps: float = 1e-6,
    scale: str = "std",
) -> SkillAdvantages:
    """Both learning signals of Evolving-RL from one table of outcomes.

    The reward of skill n is the mean of its scores over tasks k and repeats r, 0 if the skill is
    invalid; its advantage is normalised over the N skills of the same source.  An episode's reward
    is ``solver_reward * wins``; its advantage is normalised over the N*R episodes of the same task
    (with ``scale="std"`` the factor matters only against ``eps``; otherwise it is a weight).

    A valid skill without one valid episode tells nothing about itself: it is left out of its group.
    An invalid skill is a member with reward 0 whether or not it was played.

    Args:
      wins: [G, K, N, R], 1 = won and 0 = lost, or any score.
      skill_valid: [G, N], 1 = the skill passed format and audit.
      episode_mask: [G, K, N, R], 0 = infrastructure failure or never played; None = all count.
      extractor_weight: factor on the extractor advantages.
      solver_weight: factor on the solver advantages.
      solver_reward: reward of a win for the solver.
      eps: added to the standard deviations.
      scale: see ``group_normalize``.

    Returns:
      ``SkillAdvantages(extractor [G, N], solver [G, K, N, R], extractor_reward [G, N])``.

    Raises:
      ValueError: a shape that does not fit ``wins``.

    Example:
      One source, two tasks, two skills; skill 0 wins both tasks, skill 1 wins one.

      >>> import jax.numpy as jnp
      >>> wins = jnp.array([[[[1], [0]], [[1], [1]]]])
      >>> a = skill_advantages(wins, skill_valid=jnp.ones((1, 2)), extractor_weight=0.2)
      >>> a.extractor_reward.tolist(), a.extractor.round(3).tolist()
      ([[1.0, 0.5]], [[0.20000000298023224, -0.20000000298023224]])
      >>> a.solver[0, :, :, 0].round(3).tolist()
      [[1.0, -1.0], [0.0, 0.0]]

    Source: Evolving-RL, arXiv 2605.10663.
    """
    check_rank("wins", wins, "GKNR")
    sources, _, skills, _ = jnp.shape(wins)
    check_shape("skill_valid", skill_valid, (sources, skills), "[G, N]")
    if episode_mask is None:
        episode_mask = jnp.ones(jnp.shape(wins), bool)
    check_shape("episode_mask", episode_mask, jnp.shape(wins), "[G, K, N, R]")
    wins = jnp.asarray(wins, jnp.float32)
    played = jnp.asarray(episode_mask) > 0
    valid = jnp.asarray(skill_valid) > 0

    episodes = jnp.sum(played, (1, 3))
    total = jnp.sum(jnp.where(played, wins, 0.0), (1, 3))
    reward = jnp.where(valid, total / jnp.maximum(episodes, 1), 0.0)
    judged = ~valid | (episodes > 0)
    extractor = extractor_weight * group_normalize(reward, judged, axis=1, eps=eps, scale=scale)
    solver = solver_weight * group_normalize(
        solver_reward * wins, played, axis=(2, 3), eps=eps, scale=scale
    )
    return SkillAdvantages(extractor, solver, reward)


def step_advantages(
    rewards: jax.Array,
    mask: jax.Array,
    *,
    solver_weight: float = 1.0,
    pool: str = "task",
    eps: float = 1e-8,
    scale: str = "std",
) -> jax.Array:
    """Advantage of every step of every episode, for tasks that score each step.

    Each step is normalised among the steps of the same index: those of the same task
    (``pool="task"``, the equation of the paper), or those of all tasks of the source
    (``pool="all"``, the released implementation).  With ``"all"`` a step that is alone at its index
    gets -1 if it failed (score <= 0), else the value of its episode's step before it, else +1;
    with ``"task"`` a lone step gets 0 like every group of one.

    Args:
      rewards: [G, K, N, R, S], score of each step, > 0 = correct.
      mask: [G, K, N, R, S], 1 = the step was taken.
      solver_weight: factor on the result.
      pool: ``"task"`` or ``"all"``.
      eps: added to the standard deviation.
      scale: see ``group_normalize``.

    Returns:
      Advantages, float32 [G, K, N, R, S], 0 where the mask is 0.

    Raises:
      ValueError: a wrong shape or an unknown pool.

    Example:
      Two skills on one task; the second episode survives its first step and then stands alone.

      >>> import jax.numpy as jnp
      >>> rewards = jnp.array([[0.0, 0.0], [1.0, 1.0]]).reshape(1, 1, 2, 1, 2)
      >>> mask = jnp.array([[1, 0], [1, 1]]).reshape(1, 1, 2, 1, 2)
      >>> step_advantages(rewards, mask).reshape(2, 2).round(3).tolist()
      [[-1.0, 0.0], [1.0, 0.0]]
      >>> step_advantages(rewards, mask, pool="all").reshape(2, 2).round(3).tolist()
      [[-1.0, 0.0], [1.0, 1.0]]

    Source: Evolving-RL, arXiv 2605.10663, step-level solver advantage.
    """
    if pool not in _POOLS:
        raise ValueError(f"pool must be one of {_POOLS}, got {pool!r}")
    check_rank("rewards", rewards, "GKNRS")
    check_shape("mask", mask, jnp.shape(rewards), "[G, K, N, R, S]")
    rewards = jnp.asarray(rewards, jnp.float32)
    taken = jnp.asarray(mask) > 0
    axes = (2, 3) if pool == "task" else (1, 2, 3)
    values = group_normalize(rewards, taken, axis=axes, eps=eps, scale=scale)
    if pool == "all":
        lone = taken & (jnp.sum(taken, axes, keepdims=True) == 1)
        values = _value_lone_steps(values, rewards, taken, lone)
    return solver_weight * values


def _value_lone_steps(values, rewards, taken, lone):
    """Values of lone steps, in step order because one may copy another that was lone itself."""

    def step(before, now):
        value_before, taken_before = before
        value, reward, is_taken, is_lone = now
        correct = jnp.where(taken_before, value_before, 1.0)
        value = jnp.where(is_lone, jnp.where(reward > 0, correct, -1.0), value)
        return (value, is_taken), value

    by_step = [jnp.moveaxis(x, -1, 0) for x in (values, rewards, taken, lone)]
    start = (jnp.zeros_like(by_step[0][0]), jnp.zeros_like(by_step[2][0]))
    return jnp.moveaxis(jax.lax.scan(step, start, tuple(by_step))[1], 0, -1)


def _group_axes(axis: int | Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    axes = (axis,) if isinstance(axis, numbers.Integral) else tuple(axis)
    if not axes or any(not -len(shape) <= a < len(shape) for a in axes):
        raise ValueError(f"axis must name axes of rewards, got {axis} for shape {shape}")
    return axes
