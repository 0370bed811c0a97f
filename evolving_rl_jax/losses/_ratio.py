"""Log-ratios of a policy to a constant, shared by the policy losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_MAX_LOG_RATIO = 20.0


def difference(logprobs, constant):
    """``logprobs - constant`` in float32, without a gradient into the constant."""
    constant = jax.lax.stop_gradient(jnp.asarray(constant, jnp.float32))
    return jnp.asarray(logprobs, jnp.float32) - constant


def log_ratio(logprobs, constant):
    """The same difference, held where its exponential stays finite."""
    return jnp.clip(difference(logprobs, constant), -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
