"""Mesh, path pattern -> PartitionSpec rules, and host-local -> global arrays.

Mesh axes: ``data`` (rows of a batch; parameters repeated), ``fsdp`` (rows of a batch, and
parameters sharded), ``tensor`` (heads, MLP width, vocabulary).
"""

from __future__ import annotations

import functools
import math
import re
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that share out the rows of a batch

# First match wins.  Patterns are searched in paths like "layers/mlp/up_proj/kernel", so they find
# the same leaf under any prefix: optimizer state that mirrors the parameters
# ("opt_state/0/mu/layers/...") is sharded as they are.
PARAM_RULES = (
    (r"(^|/)(un)?embedding$", P("tensor", "fsdp")),
    (r"[qkv]_proj/kernel$", P(None, "fsdp", "tensor")),
    (r"[qkv]_proj/bias$", P(None, "tensor")),
    (r"o_proj/kernel$", P(None, "tensor", "fsdp")),
    (r"(gate|up)_proj/kernel$", P(None, "fsdp", "tensor")),
    (r"down_proj/kernel$", P(None, "tensor", "fsdp")),
    # Adapters: the long side as in their kernel; the rank is too short to share out.
    (r"([qkv]|gate|up)_proj/lora_a$", P(None, "fsdp")),
    (r"([qkv]|gate|up)_proj/lora_b$", P(None, None, "tensor")),
    (r"(o|down)_proj/lora_a$", P(None, "tensor")),
    (r"(o|down)_proj/lora_b$", P(None, None, "fsdp")),
    (r"norm$", P()),
)
BATCH_RULES = (
    (
        r"(^|/)(tokens|positions|segment_ids|sequence_ids|loss_mask|(rollout|old|floor)_logprobs|step_credit)$",
        P(ROWS),
    ),
    (r"", P()),
)


_starting = threading.RLock()


def in_order(program: Callable[..., Any]) -> Callable[..., Any]:
    """``program``, which only one thread at a time starts; it returns as soon as `program` does.

    Devices run what is queued on them in its order.  Where two threads start programs over several
    devices at once (rollouts that overlap the update), one device may get them in another order than
    the next, and both then wait for each other for ever.
    """

    def start(*args, **options):
        with _starting:
            return program(*args, **options)

    return start


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, *, devices=None) -> Mesh:
    """A mesh with axes ``data``, ``fsdp`` and ``tensor`` over all devices.

    One size may be -1: whatever the others leave.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
    given = [size for size in sizes.values() if size != -1]
    if min(given, default=1) < 1 or len(given) < len(AXES) - 1:
        raise ValueError(f"mesh axis sizes must be positive, at most one -1, got {shown}")
    rest = len(devices) // math.prod(given)
    shape = tuple(rest if size == -1 else size for size in sizes.values())
    if math.prod(shape) != len(devices):
        raise ValueError(
            f"mesh axis sizes must multiply to the number of devices, {len(devices)}, got {shown}"
        )
    # A torus of 4 x 4 chips has no side of 2: its sides may be split where sizes ask for it.
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh, rules) -> P:
    """The first rule's spec, without the mesh axes that do not divide their dimension."""
    if not shape:
        return P()
    spec = next((spec for pattern, spec in rules if re.search(pattern, path)), None)
    if spec is None:
        known = ", ".join(pattern for pattern, _ in rules)
        raise ValueError(f"{path} {shape} must match a sharding rule, got none of: {known}")
    if len(spec) > len(shape):
        raise ValueError(f"{path} must have {len(spec)} dimensions as {spec}, got shape {shape}")

    return P(*(fitting(axes, size, mesh) for size, axes in zip(shape, spec, strict=False)))


def fitting(axes: str | tuple[str, ...] | None, size: int, mesh: Mesh):
    """``axes`` where their devices divide a dimension of ``size``, else None: keep it whole."""
    return axes if axes is not None and size % _axes_size(mesh, axes) == 0 else None


def _axes_size(mesh, axes) -> int:
    return math.prod(mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes))


def constrain_rows(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Keeps the leading axis of ``x`` over ``data`` and ``fsdp`` and every other axis whole.

    Left to itself the compiler may follow the sharding of a weight instead, and gather the rows of
    the activations on every device.
    """
    if mesh is None or mesh.size == 1:
        return x
    spec = P(fitting(ROWS, x.shape[0], mesh))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def cast(params: Any, dtype: Any) -> Any:
    """Parameters in the dtype of a computation, which they do not change.

    The scales of norms act in float32 whatever that dtype is, so they stay as they are.
    """

    def one(x, wanted):
        return x if x.dtype == wanted else x.astype(wanted)

    return jax.tree.map(one, params, cast_dtypes(params, dtype))


def cast_dtypes(params: Any, dtype: Any) -> Any:
    """The dtype of every leaf after `cast`."""
    dtype = jnp.dtype(dtype)

    def one(path, x):
        is_scale = jax.tree_util.keystr(path, simple=True, separator="/").endswith("norm")
        return jnp.dtype(x.dtype) if is_scale else dtype

    return jax.tree_util.tree_map_with_path(one, params)


def gather_weights(layer: Any, stacked: Any, dtype: Any) -> Any:
    """The weights of one layer, whole over ``fsdp`` and in the type that they are multiplied in.

    Without it the TPU compiler turns each product with a sharded weight into a ring of partial
    products: their sums are rounded to ``dtype`` at every turn and pass through memory each time.
    Gradients are still summed straight into shards.

    Args:
      layer: parameters of one layer, as a scan over the stacked ones gives them.
      stacked: `shardings` of the stacked ones, so with a leading layer axis.
      dtype: what sharded weights are cast to before they are sent.
    """

    def one(weight, sharding):
        spec = sharding.spec[1:]
        if "fsdp" not in spec or sharding.mesh.shape["fsdp"] == 1:
            return weight
        whole = P(*(None if axis == "fsdp" else axis for axis in spec))
        shards = NamedSharding(sharding.mesh, P(*spec))
        return _gather(weight.astype(dtype), NamedSharding(sharding.mesh, whole), shards)

    return jax.tree.map(one, layer, stacked)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(weight, whole, shards):
    return jax.lax.with_sharding_constraint(weight, whole)


def _gather_forward(weight, whole, shards):
    # Not by way of `_gather`: a remat policy must see the constraint, to refuse keeping its result.
    return jax.lax.with_sharding_constraint(weight, whole), None


def _gather_backward(whole, shards, _, gradient):
    return (jax.lax.with_sharding_constraint(gradient, shards),)


_gather.defvjp(_gather_forward, _gather_backward)


def shardings(tree: Any, mesh: Mesh, *, rules=PARAM_RULES) -> Any:
    """NamedSharding of every leaf, by its path.

    A dimension that its mesh axes do not divide is kept whole (a vocabulary of 750 over 4 devices).
    Scalars are replicated.  Layers that are apart (``layers/3/...``) are sharded as in their stack.

    Args:
      tree: arrays or shapes (``jax.eval_shape``), parameters or a state that mirrors them.
      mesh: from `make_mesh`.
      rules: (regular expression, PartitionSpec) pairs.

    Raises:
      ValueError: no rule matches a leaf, or the rule has more dimensions than it.
    """

    def one(key, leaf):
        path = jax.tree_util.keystr(key, simple=True, separator="/")
        if re.search(r"(^|/)layers/\d+/", path):
            spec = _spec(path, (1, *leaf.shape), mesh, rules)
            return NamedSharding(mesh, P(*spec[1:]))
        return NamedSharding(mesh, _spec(path, tuple(leaf.shape), mesh, rules))

    return jax.tree_util.tree_map_with_path(one, tree)


def generation_mesh(num_kv_heads: int, devices) -> Mesh:
    """The devices of one host that generate together, as a mesh with ``tensor`` only.

    As many as the key heads can be shared out over: weights by the rules of training, the cache by
    heads (`cache_sharding`).
    """
    devices = list(devices)
    count = max(n for n in range(1, len(devices) + 1) if num_kv_heads % n == 0)
    return Mesh(
        np.array(devices[:count]).reshape(1, 1, count),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
    )


def cache_sharding(mesh: Mesh) -> NamedSharding:
    """Of KV cache arrays [S, Hkv, C, d]: heads over ``tensor``."""
    return NamedSharding(mesh, P(None, "tensor"))


def on_this_host(params: Any, local: Mesh, dtype: Any) -> Any:
    """Parameters whole on the devices of each host, whatever their layout over all hosts.

    Every process must call it at the same time: it is the one re-layout in which weights cross
    hosts.  Arrays of a single process are returned as they are.

    Args:
      params: laid out over the mesh of training.
      local: of this process's devices, from `generation_mesh`; of the same size on every host.
      dtype: of what crosses hosts.

    Returns:
      The same values in ``dtype``, laid out over ``local`` by the rules of training.
    """
    if all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(params)):
        return params
    everywhere = _copies_mesh(local.size)
    params = _cast(params, jnp.dtype(dtype))
    placed = jax.device_put(params, shardings(params, everywhere))
    wanted = shardings(params, local)

    def own(x, sharding):
        shards = {s.device: s.data for s in x.addressable_shards}
        parts = sharding.devices_indices_map(x.shape)
        if everywhere.shape["tensor"] == 1:  # every device has everything
            shards = {d: shards[d][index] for d, index in parts.items()}
        return jax.make_array_from_single_device_arrays(
            x.shape, sharding, [shards[d] for d in parts]
        )

    return jax.tree.map(own, placed, wanted)


_cast = jax.jit(cast, static_argnums=1)  # one function: a new one would be compiled at each call


def _copies_mesh(tensor: int) -> Mesh:
    """All devices as groups of ``tensor``, none across hosts; each group holds everything once.

    Where the devices of a host cannot be grouped so, every device is a group of its own.
    """
    hosts = [
        sorted((d for d in jax.devices() if d.process_index == p), key=lambda d: d.id)
        for p in range(jax.process_count())
    ]
    grid = np.array(hosts).reshape(-1, 1, 1 if len(hosts[0]) % tensor else tensor)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_rows_of_hosts(mesh: Mesh) -> None:
    """Raises ValueError where two hosts would hold the same rows of a batch.

    Each host brings rows of its own, so the ``tensor`` axis must lie within a host.
    """
    owners = np.vectorize(lambda d: d.process_index)(mesh.devices)
    if (owners != owners[:, :, :1]).any():
        per_host = (owners == owners.flat[0]).sum()
        raise ValueError(
            f"mesh axis tensor must stay within a host of {per_host} devices, got "
            f"tensor={mesh.shape['tensor']}"
        )


def whole_to_global(tree: Any, placement: Any) -> Any:
    """Numpy arrays that every process has whole -> arrays laid out as ``placement`` says.

    Args:
      tree: numpy arrays, the same on every process.
      placement: one sharding for all leaves.
    """

    def one(leaf):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, placement, lambda index: leaf[index])

    return jax.tree.map(one, tree)


def host_local_to_global(batch: Any, mesh: Mesh, *, rules=BATCH_RULES) -> Any:
    """Puts a host's batch on the mesh: rows over ``data`` and ``fsdp``, the rest on every device.

    Each process passes its own rows; together they are the global batch in process order.  What is
    not row-wise must be the same on every process.

    Args:
      batch: tree of numpy arrays, for instance a `types.TokenBatch`.
      mesh: from `make_mesh`.
      rules: which leaves are row-wise.

    Raises:
      ValueError: the rows cannot be shared out evenly.
    """

    def one(key, leaf):
        leaf = np.asarray(leaf)
        path = jax.tree_util.keystr(key, simple=True, separator="/")
        shape = leaf.shape
        spec = next(spec for pattern, spec in rules if re.search(pattern, path)) if shape else P()
        parts = _axes_size(mesh, spec[0]) if len(spec) else 1
        if shape and shape[0] * jax.process_count() % parts:
            raise ValueError(
                f"{path} must have a number of rows that data x fsdp = {parts} divides, "
                f"got {shape[0]} rows on each of {jax.process_count()} processes"
            )
        return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), leaf)

    return jax.tree_util.tree_map_with_path(one, batch)
