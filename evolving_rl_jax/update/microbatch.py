"""Gradients of a large batch as float32 sums over micro-batches of its rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from evolving_rl_jax import parallel


class MicroResult(NamedTuple):
    """What a micro-batch reports besides its gradient: numbers to add up, numbers to maximise."""

    sums: dict[str, jax.Array]
    maxima: dict[str, jax.Array]


def split_rows(rows: Any, wanted: int, mesh: Mesh) -> tuple[Any, int]:
    """Leaves [B, ...] -> [micro-batches, size, ...]; each micro-batch is spread over the mesh.

    No row moves to another device: micro-batch i holds the i-th part of each device's own rows.  So
    a batch whose used rows come first on every device fills the first micro-batches.  All have the
    same size, the least for their number; the last one is filled up with rows of zeros.

    Args:
      rows: pytree of arrays that share their leading axis B.
      wanted: rows of a micro-batch at most.
      mesh: the device mesh.

    Returns:
      The split rows, and the size of a micro-batch.

    Raises:
      ValueError: a micro-batch does not spread evenly over the data axes of the mesh.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    shards = math.prod(mesh.shape[a] for a in parallel.ROWS)
    size = min(num_rows, wanted)
    if size % shards:
        raise ValueError(
            f"config.train.micro_batch_rows (and the rows of the batch) must be a multiple of the "
            f"mesh's data x fsdp = {shards}, got {wanted} (and {num_rows})"
        )
    if num_rows % shards:
        raise ValueError(
            f"a batch must have a number of rows that data x fsdp = {shards} divides, got {num_rows}"
        )
    of_device = num_rows // shards
    # 20 rows in parts of at most 8 are 7 + 7 + 6: one of zeros, not four.
    count = -(-of_device // (size // shards))
    part = -(-of_device // count)
    by_shard = NamedSharding(mesh, PartitionSpec(parallel.ROWS))
    sharding = NamedSharding(mesh, PartitionSpec(None, parallel.ROWS))

    def split(x):
        x = x.reshape(shards, of_device, *x.shape[1:])
        x = jax.lax.with_sharding_constraint(x, by_shard)
        x = jnp.pad(x, ((0, 0), (0, count * part - of_device)) + ((0, 0),) * (x.ndim - 2))
        x = jnp.moveaxis(x.reshape(shards, count, part, *x.shape[2:]), 1, 0)
        x = x.reshape(count, shards * part, *x.shape[3:])
        return jax.lax.with_sharding_constraint(x, sharding)

    return jax.tree.map(split, rows), shards * part


def join_rows(split: jax.Array, num_rows: int, mesh: Mesh) -> jax.Array:
    """The inverse of `split_rows` for one array: [micro-batches, size, ...] -> [B, ...]."""
    shards = math.prod(mesh.shape[a] for a in parallel.ROWS)
    x = split.reshape(split.shape[0], shards, -1, *split.shape[2:])
    x = jnp.moveaxis(x, 0, 1).reshape(shards, -1, *split.shape[2:])
    x = x[:, : num_rows // shards].reshape(num_rows, *split.shape[2:])
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(parallel.ROWS)))


def count_used(used: jax.Array) -> jax.Array:
    """How many micro-batches must run, []: up to the last with a row in use.

    Args:
      used: [micro-batches, size] bool.
    """
    number = jnp.arange(1, used.shape[0] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(jnp.any(used, axis=1), number, 0), initial=0)


def _at(rows: Any, i: jax.Array) -> Any:
    """Micro-batch ``i`` of what `split_rows` returned."""
    take = jax.lax.dynamic_index_in_dim
    return jax.tree.map(lambda x: take(x, i, keepdims=False), rows)


def map_micro(function: Callable[[Any], jax.Array], rows: Any, num_micro: jax.Array) -> jax.Array:
    """``function`` of each of the first ``num_micro`` micro-batches, 0 for the others.

    Args:
      function: rows of one micro-batch -> an array.
      rows: as `split_rows` returns them.
      num_micro: [] int, a run-time value.

    Returns:
      [number of micro-batches, ...].
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    one = jax.eval_shape(function, _at(rows, 0))

    def body(carry):
        i, out = carry
        return i + 1, out.at[i].set(function(_at(rows, i)))

    start = jnp.zeros((), jnp.int32), jnp.zeros((count, *one.shape), one.dtype)
    return jax.lax.while_loop(lambda c: c[0] < num_micro, body, start)[1]


def accumulate_gradients(
    loss_fn: Callable[[Any, Any], tuple[jax.Array, MicroResult]],
    params: Any,
    rows: Any,
    num_micro: jax.Array,
    mesh: Mesh,
) -> tuple[Any, MicroResult]:
    """Sums gradients of ``loss_fn`` over the first ``num_micro`` micro-batches.

    The trip count is a run-time value: a short batch costs what it holds and nothing recompiles.

    Args:
      loss_fn: (params, rows of one micro-batch) -> (loss as a sum, MicroResult).
      params: the parameters as ``loss_fn`` takes them; gradients in a narrower dtype are summed in
        float32.
      rows: leaves [number of micro-batches, rows of one, ...] as `split_rows` returns them.
      num_micro: [] int, how many micro-batches are in use.
      mesh: the device mesh; gradient sums are sharded like the parameters.

    Returns:
      (gradient sums like ``params`` in float32, sums and maxima over the micro-batches).
    """
    shardings = parallel.shardings(params, mesh)

    def place(grads):
        return jax.tree.map(jax.lax.with_sharding_constraint, grads, shardings)

    def body(carry):
        i, grads, total = carry
        # Differentiated inside the loop: a while_loop has no reverse mode.
        (_, result), new = jax.value_and_grad(loss_fn, has_aux=True)(params, _at(rows, i))
        grads = jax.tree.map(lambda a, b: a + b.astype(jnp.float32), grads, place(new))
        sums = jax.tree.map(jnp.add, total.sums, result.sums)
        maxima = jax.tree.map(jnp.maximum, total.maxima, result.maxima)
        return i + 1, grads, MicroResult(sums, maxima)

    shape = jax.eval_shape(lambda: loss_fn(params, _at(rows, 0))[1])
    start = MicroResult(
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape.sums),
        jax.tree.map(lambda x: jnp.full(x.shape, -jnp.inf, x.dtype), shape.maxima),
    )
    zeros = place(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))
    carry = (jnp.zeros((), jnp.int32), zeros, start)
    _, grads, total = jax.lax.while_loop(lambda c: c[0] < num_micro, body, carry)
    return grads, total
