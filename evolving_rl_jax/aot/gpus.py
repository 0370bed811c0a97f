"""The GPUs that a program can be compiled for without having one.

XLA compiles for a card that it is told about in its own text format (`target_config`).  Sources: the
architecture white papers and data sheets of NVIDIA (A100, H100, H200, L4, GeForce RTX 4090), table
"technical specifications per compute capability" of the CUDA programming guide, and what the driver
reports as the memory of such a card.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from evolving_rl_jax.aot.chips import Chip

_GIB = 2**30
# What launch/ lets jax take of a card; the rest is the driver's and the libraries'.
SHARE = 0.92
NOTE = (
    f"memory: {SHARE:.0%} of the card, which jax takes with XLA_PYTHON_CLIENT_MEM_FRACTION={SHARE}, as the "
    "scripts of launch/ set it; unset it takes 75%"
)
# Tiles of Triton's matrix products are tuned by running them; most shapes have a default, some do not.
# Without a device those go to cuBLAS.
UNTUNED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
PLUGIN = "jax_cuda13_plugin"


@dataclasses.dataclass(frozen=True)
class Card:
    """One kind of GPU.

    Attributes:
      description: as the driver names it.
      capability: compute capability, (major, minor).
      cores: streaming multiprocessors.
      lanes: float32 units of a multiprocessor.
      threads: that a multiprocessor holds at most.
      shared: KiB of shared memory of a multiprocessor; a block may take all but one of them.
      cache: MiB of L2.
      clock: GHz, boost.
      bandwidth: bytes a second of its memory.
      memory: bytes that the driver reports.
      flops: bfloat16 products and sums a second of its tensor cores, without sparsity.
    """

    description: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    threads: int
    shared: int
    cache: int
    clock: float
    bandwidth: float
    memory: float
    flops: float

    def chip(self, name: str) -> Chip:
        """What a program has on it."""
        return Chip(name, SHARE * self.memory, self.flops)


CARDS = {
    "a100": Card("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 2048, 164, 40, 1.41,
                 2.039e12, 79.25 * _GIB, 312e12),
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 2048, 228, 50, 1.98,
                 3.35e12, 79.1 * _GIB, 989e12),
    "h200": Card("NVIDIA H200", (9, 0), 132, 128, 2048, 228, 60, 1.98,
                 4.8e12, 139.8 * _GIB, 989e12),
    "l4": Card("NVIDIA L4", (8, 9), 58, 128, 1536, 100, 48, 2.04,
               0.3e12, 22.05 * _GIB, 121e12),
    "rtx4090": Card("NVIDIA GeForce RTX 4090", (8, 9), 128, 128, 1536, 100, 72, 2.52,
                    1.008e12, 23.64 * _GIB, 165e12),
}  # fmt: skip
_NAME = re.compile(r"(\w+):([1-9]\d*)")


def parse_topology(name: str) -> tuple[Card, str, int] | None:
    """The card, its name and how many of them ``h100:8`` means; None where it names no card here."""
    found = _NAME.fullmatch(name)
    if not found or found[1] not in CARDS:
        return None
    return CARDS[found[1]], found[1], int(found[2])


def target_config(card: Card) -> str:
    """The card in the text form of XLA's ``GpuTargetConfigProto``."""
    major, minor = card.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: {card.threads}
  shared_memory_per_block: {48 * 1024}
  shared_memory_per_block_optin: {(card.shared - 1) * 1024}
  shared_memory_per_core: {card.shared * 1024}
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  core_count: {card.cores}
  fpus_per_core: {card.lanes}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {card.bandwidth:.0f}
  l2_cache_size: {card.cache * 2**20}
  clock_rate_ghz: {card.clock}
  device_memory_size: {card.memory:.0f}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{card.description}"
"""


def devices(card: Card) -> list[Any]:
    """The compile-only device that a card is."""
    from jax.experimental import topologies

    jax.devices()  # finds the plugins
    found = topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        topology="1x1x1",
        target_config=target_config(card),
    )
    return list(found.devices)


def lowering_for(devices: Sequence[Any]) -> AbstractContextManager:
    """What kernels written for GPUs are lowered in: from jax 0.11 on they ask which one, and none is here."""
    if devices[0].platform != "gpu":
        return contextlib.nullcontext()
    kind = AbstractDevice(device_kind=devices[0].device_kind, num_cores=None, platform="gpu")
    mesh = AbstractMesh((1,), ("kernel",), axis_types=(AxisType.Auto,), abstract_device=kind)
    return use_abstract_mesh(mesh)
