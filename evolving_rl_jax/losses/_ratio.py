"""Log-ratios of a policy to a constant, shared by the policy losses."""

from __future__ import annotations

import numbers

import jax
import jax.numpy as jnp

from evolving_rl_jax.losses._checks import check_shape

_MAX_LOG_RATIO = 20.0
_LEAST = -1e30  # in place of -inf, whose difference to itself is nan


def difference(logprobs, constant):
    """``logprobs - constant`` in float32, without a gradient into the constant; -inf is a large number."""
    constant = jax.lax.stop_gradient(jnp.asarray(constant, jnp.float32))
    return jnp.maximum(jnp.asarray(logprobs, jnp.float32), _LEAST) - jnp.maximum(constant, _LEAST)


def log_ratio(logprobs, constant):
    """The same difference, held where its exponential stays finite."""
    return jnp.clip(difference(logprobs, constant), -_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def clip_bound(name, bound, shape):
    """A number as it is (so that 1 + 0.15 is rounded once); an array, of ``shape`` or (), in float32."""
    if isinstance(bound, numbers.Real):
        return float(bound)
    if jnp.ndim(bound):
        check_shape(name, bound, shape, "a number or shaped like logprobs")
    return jnp.asarray(bound, jnp.float32)
