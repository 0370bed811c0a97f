"""The TPU chips that a program can be compiled for without having one.

Sources: the Cloud TPU pages of each generation (peak, memory bandwidth, interconnect); the memory is
what the compiler accepts, a little less than what is on the chip.  Figures are per jax device: a
chip, or on v4 one of its two cores, as the compile-only client presents them.
"""

from __future__ import annotations

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """What bounds a program on one device.

    Attributes:
      name: as in a topology name.
      memory: bytes of HBM that a program may use.
      flops: bfloat16 products and sums a second, at best.
      bandwidth: bytes a second between the device and its HBM.
      link: bytes a second that it sends in a ring along one axis of the torus, both ways together:
        the two links of an axis out of the four (2D) or six (3D) that the chip has.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float


_GIB = 2**30
CHIPS = {
    "v4": Chip("v4", 15.25 * _GIB, 137.5e12, 614e9, 50e9),
    "v5e": Chip("v5e", 15.75 * _GIB, 197e12, 819e9, 100e9),
    "v5p": Chip("v5p", 95.74 * _GIB, 459e12, 2765e9, 200e9),
    "v6e": Chip("v6e", 31.25 * _GIB, 918e12, 1638e9, 200e9),
}
_NAME = re.compile(r"(\w+):(\d+(?:x\d+){1,2})")


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """The chip and the sides of a slice named like ``v5p:2x2x4``.

    Raises:
      ValueError: another form, an unknown chip, or a wrong number of sides for it.
    """
    found = _NAME.fullmatch(name)
    chip = CHIPS.get(found[1]) if found else None
    sides = tuple(int(n) for n in found[2].split("x")) if found else ()
    dimensions = len(usual_host(chip).split("x")) if chip else 2
    if chip is None or len(sides) != dimensions or min(sides) < 1:
        raise ValueError(
            f"must be CHIP:SIDES with a chip of {', '.join(CHIPS)}, three sides for v4 and v5p "
            f"(v5p:2x2x4) and two for v5e and v6e (v5e:4x4), got {name!r}"
        )
    return chip, sides


def usual_host(chip: Chip) -> str:
    """The sides of the four chips of a host: three-dimensional on v4 and v5p."""
    return "2x2x1" if chip.name in ("v4", "v5p") else "2x2"


def host_bounds(sides: tuple[int, ...]) -> tuple[int, int, int] | None:
    """The chips of a host where the slice is smaller than a host's usual four, else None."""
    return (*sides, 1, 1)[:3] if math.prod(sides) < 4 else None
