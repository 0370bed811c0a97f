"""From the trainer's layout of the weights to the engine's."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from evolving_rl_jax import models, parallel


class Relayout:
    """Casts all weights and takes the layers apart in one compiled function, then moves them to where
    the engine runs.

    Layers apart (`models.by_layer`) are read where they lie, at every token.  The other arrays are
    used as they are where they are there in the right dtype already.

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
          copy: give buffers of the engine's own alone, so that the trainer may donate its arrays
            while the engine still generates with these.
        """
        own = params
        if not copy and not changes(params, self._dtype):
            own = {n: params[n] for n in params if n == "layers" and not is_apart(params)}
        if own:
            params = {**params, **self._cast(own, copy=copy)}
        on_mesh = isinstance(self._place, jax.sharding.Mesh)
        place = parallel.shardings(params, self._place) if on_mesh else self._place
        return jax.device_put(params, place)


def is_apart(params: Any) -> bool:
    """Whether the layers are apart already, as an engine has them."""
    return isinstance(params["layers"], tuple)


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
    params = models.by_layer(parallel.cast(params, dtype))
    return jax.tree.map(jnp.copy, params) if copy else params
