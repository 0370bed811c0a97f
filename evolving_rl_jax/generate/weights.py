"""From the trainer's layout of the weights to the engine's."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from evolving_rl_jax import parallel


class Relayout:
    """Casts all weights in one compiled function, then moves them to where the engine runs.

    Arrays that are there in the right dtype already are used as they are: no copy is made.

    Args:
      dtype: of the weights in generation.
      place: the engine's device, or its mesh.
    """

    def __init__(self, dtype, place: jax.Device | jax.sharding.Mesh):
        self._dtype, self._place = jnp.dtype(dtype), place
        self._cast = jax.jit(functools.partial(_cast, dtype=self._dtype), static_argnames="copy")

    def __call__(self, params: Any, *, copy: bool = False) -> Any:
        """The weights for the engine.

        Args:
          params: the trainer's, on any sharding of this process's devices, or numpy arrays.
          copy: give buffers of the engine's own, so that the trainer may donate its arrays while
            the engine still generates with these.
        """
        if copy or changes(params, self._dtype):
            params = self._cast(params, copy=copy)
        on_mesh = isinstance(self._place, jax.sharding.Mesh)
        place = parallel.shardings(params, self._place) if on_mesh else self._place
        return jax.device_put(params, place)


def changes(params: Any, dtype: Any) -> bool:
    """Whether a cast to ``dtype`` (`parallel.cast`) changes any array; nothing is traced."""
    return any(
        leaf.dtype != wanted
        for leaf, wanted in zip(
            jax.tree.leaves(params),
            jax.tree.leaves(parallel.cast_dtypes(params, dtype)),
            strict=True,
        )
    )


def _cast(params, *, dtype, copy):
    params = parallel.cast(params, dtype)
    return jax.tree.map(jnp.copy, params) if copy else params
