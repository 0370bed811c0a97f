"""Shape checks shared by the loss functions: one line that names what was found."""

from __future__ import annotations

import jax.numpy as jnp


def check_rank(name: str, array, axes: str) -> None:
    """Raises ValueError unless ``array`` has one dimension for each letter of ``axes``."""
    if jnp.ndim(array) != len(axes):
        raise ValueError(f"{name} must be [{', '.join(axes)}], got shape {jnp.shape(array)}")


def check_shape(name: str, array, shape: tuple[int, ...], legend: str) -> None:
    """Raises ValueError unless ``array`` has exactly ``shape``; ``legend`` says what that is."""
    if jnp.shape(array) != tuple(shape):
        raise ValueError(f"{name} must be {legend} = {tuple(shape)}, got shape {jnp.shape(array)}")


def trained_tokens(mask, sequence_ids, num_sequences: int):
    """(which tokens are trained, bool; their sequences' ids, int32, safe to index with), shaped like the mask.

    Raises ValueError unless the ids hold integers.
    """
    check_integer("sequence_ids", sequence_ids)
    ids = jnp.asarray(sequence_ids).astype(jnp.int32)  # M itself may be beyond a narrow type
    trained = (jnp.asarray(mask) > 0) & (ids >= 0) & (ids < num_sequences)
    return trained, jnp.where(trained, ids, 0)


def check_integer(name: str, array) -> None:
    """Raises ValueError unless ``array`` holds integers."""
    dtype = jnp.result_type(array)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"{name} must hold integers, got dtype {dtype}")
