"""Which weights played: a short text that differs where any parameter does."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp

_PRIMES = (2654435761, 2246822519, 3266489917, 668265263)


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
    """A sum over the bits of ``x`` in which every place counts differently; exact in any order."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    place = jnp.ones(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        step = jnp.uint32(_PRIMES[axis % len(_PRIMES)])
        place = place + 2 * step * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits * place, dtype=jnp.uint32)


def fingerprint(params: Any) -> str:
    """16 hexadecimal digits of a tree of parameters, wherever they lie and however they are sharded.

    Args:
      params: arrays of at most 32 bits, numpy or jax; of several processes, those of this one.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sums = jax.device_get([_digest(leaf) for _, leaf in leaves])
    lines = [
        f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {int(total)}"
        for (path, leaf), total in zip(leaves, sums, strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
