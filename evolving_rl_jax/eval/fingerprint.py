"""Which weights played: a short text that differs where any parameter does."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp

_PRIMES = (2654435761, 2246822519, 3266489917, 668265263)


@functools.partial(jax.jit, static_argnames="outer")
def _digest(x: jax.Array, start: int = 0, outer: int = 0) -> jax.Array:
    """A sum over the bits of ``x`` in which every place counts differently; exact in any order.

    Args:
      x: the array.
      start: the index of ``x`` in the stack that it is a part of.
      outer: 1 where it is a part of a stack, else 0.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    place = jnp.full(x.shape, 1 + 2 * jnp.uint32(_PRIMES[0]) * jnp.uint32(start), jnp.uint32)
    for axis in range(x.ndim):
        step = jnp.uint32(_PRIMES[(axis + outer) % len(_PRIMES)])
        place = place + 2 * step * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits * place, dtype=jnp.uint32)


def fingerprint(params: Any) -> str:
    """16 hexadecimal digits of a tree of parameters, wherever they lie and however they are sharded.

    Args:
      params: arrays of at most 32 bits, numpy or jax; of several processes, those of this one.  Layers
        kept apart (`models.by_layer`) count as their stack does.
    """
    layers = params.get("layers")
    if isinstance(layers, tuple):
        params = {**params, "layers": jax.tree.map(lambda *parts: _Stack(parts), *layers)}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sums = jax.device_get([_sum(leaf) for _, leaf in leaves])
    lines = [
        f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {int(total)}"
        for (path, leaf), total in zip(leaves, sums, strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


class _Stack:
    """An array [L, ...] in its L parts."""

    def __init__(self, parts: tuple[Any, ...]):
        self.parts = parts
        self.shape, self.dtype = (len(parts), *parts[0].shape), parts[0].dtype


def _sum(leaf):
    if not isinstance(leaf, _Stack):
        return _digest(leaf)
    return sum(_digest(part, i, outer=1) for i, part in enumerate(leaf.parts))
