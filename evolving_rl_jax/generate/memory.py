"""What generation keeps on a device: planned before anything is allocated, then as the compiler says."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from evolving_rl_jax import parallel
from evolving_rl_jax.generate.cache import cache_bytes
from evolving_rl_jax.generate.weights import changes, is_apart
from evolving_rl_jax.models import ModelConfig


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one device.

    Attributes:
      cache: the KV cache, slots x length x layers x 2 x kv heads x head size x bytes.
      working: what the largest call needs beside its inputs.  Before anything is compiled, the copy
        of the rows and columns that it works on, a lower bound (0 where it works in place); after the
        warm-up, what the compiler says.
      weights: of the engine's own copy; 0 when it uses the trainer's arrays.
      num_slots, max_length: S and C.
      devices: how many share the heads and weights.
    """

    cache: int
    working: int
    weights: int
    num_slots: int
    max_length: int
    devices: int = 1
    compiled: bool = False  # whether ``working`` is what the compiler says

    @classmethod
    def of(
        cls,
        cfg: ModelConfig,
        *,
        num_slots: int,
        max_length: int,
        rows: int,
        weights: int = 0,
        devices: int = 1,
    ) -> MemoryPlan:
        """The plan of an engine on ``devices`` devices that share heads and weights.

        Args:
          cfg: the model in the dtype of generation.
          num_slots, max_length: S and C.
          rows: most rows that one call copies.
          weights: bytes of the engine's own copy of the weights, all devices together.
          devices: how many.
        """
        whole = cache_bytes(cfg, num_slots, max_length)
        part = whole * rows // num_slots
        return cls(
            whole // devices, part // devices, weights // devices, num_slots, max_length, devices
        )

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.cache + self.working + self.weights

    def check(self, free: float | None, name: str) -> None:
        """Raises ValueError, saying what to change, when ``free`` bytes of a device are too few.

        Args:
          free: None when nobody knows.
          name: whose limit it is, for the message.
        """
        if free is None or self.total <= free:
            return
        each = (self.cache + self.working) / self.num_slots
        fitting = max(0, int((free - self.weights) // each))
        advice = f"at most {fitting} slots of this length fit" if fitting else "not one slot fits"
        raise ValueError(
            f"num_slots x max_length must fit what {name} leaves, {free / 1e9:.3g} GB a device, got "
            f"{self.num_slots} x {self.max_length}: {self.cache / 1e9:.3g} GB of cache, "
            f"{self.working / 1e9:.3g} GB of working {'memory' if self.compiled else 'rows'}, "
            f"{self.weights / 1e9:.3g} GB of weights; "
            f"{advice}: lower num_slots, max_length or row_buckets, or take bfloat16"
        )


def free_bytes(device: jax.Device) -> int | None:
    """What a device says that it has left; None for backends that do not say (CPU)."""
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def own_weights(params: Any, dtype, copy: bool = False, place: Any = None) -> int:
    """Bytes of the weights in ``dtype`` that an engine keeps beside the trainer's.

    Args:
      params: the trainer's.
      dtype: of generation; where it differs for any of them, all are made anew.  The layers, which
        an engine keeps apart, are in any case.
      copy: whether the engine is asked to keep buffers of its own.
      place: the engine's device or mesh; what lies elsewhere, or shared out in another way, is
        copied.  None = where it is.
    """
    kinds = jax.tree.leaves(parallel.cast_dtypes(params, dtype))
    leaves = jax.tree.leaves(params)
    moved = [True] * len(leaves)
    if not copy and not changes(params, dtype):
        moved = [False] * len(leaves) if place is None else _moved(params, place)
        if not is_apart(params):
            first = [path[0].key for path, _ in jax.tree.leaves_with_path(params)]
            moved = [name == "layers" or m for name, m in zip(first, moved, strict=True)]
    return sum(
        x.size * kind.itemsize for x, kind, own in zip(leaves, kinds, moved, strict=True) if own
    )


def _moved(params: Any, place: Any) -> list[bool]:
    """Of every leaf, whether it lies otherwise than an engine at ``place`` wants it."""
    on_mesh = isinstance(place, jax.sharding.Mesh)
    leaves = jax.tree.leaves(params)
    one_device = None if on_mesh else jax.sharding.SingleDeviceSharding(place)
    wanted = (
        jax.tree.leaves(parallel.shardings(params, place))
        if on_mesh
        else [one_device] * len(leaves)
    )
    return [
        not (isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim))
        for x, sharding in zip(leaves, wanted, strict=True)
    ]
