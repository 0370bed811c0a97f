"""The advantages of an update, for every arm, of episodes or of single steps.

Pure functions of the outcomes, used inside the compiled step and by what writes advantages down.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from evolving_rl_jax import losses
from evolving_rl_jax.types import ROLE_EXTRACTOR, ROLE_SOURCE

# The released code of the paper normalises web rewards with this epsilon.
_STEP_EPS = 1e-8

# arm -> (factor on the solver's advantages, factor on the extractor's)
ARM_WEIGHTS = {
    "joint": (1.0, 1.0),
    "solver_only": (1.0, 0.0),
    "extractor_only": (0.0, 1.0),
    "grpo": (1.0, 0.0),
}


def unweighted_advantages(algorithm: Any, outcomes: Any) -> losses.SkillAdvantages:
    """Both advantages with weight 1, so that groups without spread are the same in every arm.

    The arm ``grpo`` has no skills: every episode is a repeat, whatever ``skill_valid`` says.  With
    step scores the reward of a skill is the mean score of its episodes, and the solver's advantages
    are those of single steps.

    Args:
      algorithm: ``config.algorithm``.
      outcomes: a TokenBatch or an Experience: ``wins``, ``episode_mask``, ``skill_valid``, and
        ``scores``, ``step_rewards``, ``step_mask`` or None for these.

    Returns:
      ``extractor`` and ``extractor_reward`` [G, N], ``solver`` [G, K, N, R], or [G, K, N, R, S] with
      step scores.
    """
    valid = outcomes.skill_valid
    if algorithm.arm == "grpo":
        valid = jnp.ones_like(valid)
    steps = outcomes.step_rewards is not None
    result = losses.skill_advantages(
        outcomes.scores if steps else outcomes.wins,
        skill_valid=valid,
        episode_mask=outcomes.episode_mask,
        extractor_weight=1.0,
        solver_weight=1.0,
        solver_reward=algorithm.solver_reward,
        scale=algorithm.advantage,
        **({"eps": _STEP_EPS} if steps else {}),
    )
    if not steps:
        return result
    played = jnp.asarray(outcomes.episode_mask)[..., None] > 0
    solver = losses.step_advantages(
        outcomes.step_rewards,
        jnp.where(played, outcomes.step_mask, 0),
        pool=algorithm.step_pool,
        scale=algorithm.advantage,
    )
    return result._replace(solver=solver)


def source_advantages(algorithm: Any, outcomes: Any) -> jax.Array | None:
    """Those of source episodes, [G, E], or of their steps, [G, E, S], with weight 1.

    The E episodes of one task are a group: played without a skill, they are compared with each other alone.
    None where source episodes are not trained on.
    """
    if outcomes.source_mask is None:
        return None

    def group(x):  # [G, E, ...] -> [G, 1, 1, E, ...]
        return jnp.asarray(x)[:, None, None]

    played = group(outcomes.source_mask)
    if outcomes.source_step_rewards is None:
        wins = group(outcomes.source_wins)
        result = losses.skill_advantages(
            wins,
            skill_valid=jnp.ones(wins.shape[:1] + (1,), jnp.float32),
            episode_mask=played,
            extractor_weight=1.0,
            solver_weight=1.0,
            solver_reward=algorithm.solver_reward,
            scale=algorithm.advantage,
        )
        return result.solver[:, 0, 0]
    taken = jnp.where(played[..., None] > 0, group(outcomes.source_step_mask), 0)
    solver = losses.step_advantages(
        group(outcomes.source_step_rewards), taken, pool="task", scale=algorithm.advantage
    )
    return solver[:, 0, 0]


def with_sources(
    values: jax.Array, sources: jax.Array | None, role: jax.Array, index: jax.Array, step: jax.Array
) -> jax.Array:
    """Values of sequences [M], those of source episodes taken from ``sources``, see `source_advantages`."""
    if sources is None:
        return values
    return jnp.where(role == ROLE_SOURCE, of_sequences(sources, index, step, 2), values)


def spread_of_sequences(algorithm: Any, batch: Any) -> jax.Array:
    """Which sequences belong to a group with spread, bool [M]: those of others learn nothing there."""
    result = unweighted_advantages(algorithm, batch)
    solver = jnp.broadcast_to((result.solver != 0).any((2, 3), keepdims=True), result.solver.shape)
    extractor = jnp.broadcast_to(
        (result.extractor != 0).any(1, keepdims=True), result.extractor.shape
    )
    found = jnp.where(
        batch.role == ROLE_EXTRACTOR,
        of_sequences(extractor, batch.index, batch.step, 2),
        of_sequences(solver, batch.index, batch.step, 4),
    )
    sources = source_advantages(algorithm, batch)
    if sources is not None:
        sources = jnp.broadcast_to((sources != 0).any(1, keepdims=True), sources.shape)
    found = with_sources(found, sources, batch.role, batch.index, batch.step)
    if batch.given is None:
        return found
    return jnp.where(jnp.isnan(batch.given), found, batch.given != 0)


def arm_weights(algorithm: Any) -> tuple[float, float]:
    """(factor on the solver's advantages, factor on the extractor's) of the configured arm."""
    solver_on, extractor_on = ARM_WEIGHTS[algorithm.arm]
    return solver_on * algorithm.solver_weight, extractor_on * algorithm.extractor_weight


def of_sequences(values: jax.Array, index: jax.Array, step: jax.Array, num_axes: int) -> jax.Array:
    """The advantage of each sequence [M].

    Args:
      values: with ``num_axes`` axes that ``index`` counts, and perhaps one of steps after them.
      index: [M], flat over those axes; entries out of range get some value.
      step: [M], the turn that a sequence trains.
      num_axes: of episodes (4), or of skills or source episodes (2).
    """
    if values.ndim > num_axes:
        index = index * values.shape[-1] + step
    return values.reshape(-1)[jnp.clip(index, 0, values.size - 1)]
