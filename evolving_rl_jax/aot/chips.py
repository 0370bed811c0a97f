"""The TPU chips that a program can be compiled for without having one.

Sources: the Cloud TPU pages of each generation (peak); the memory is what the compiler accepts, a
little less than what is on the chip.  Figures are per jax device: a
chip, or on v4 one of its two cores, as the compile-only client presents them.
"""

from __future__ import annotations

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a program has on one device.

    Attributes:
      name: as in a topology name.
      memory: bytes of HBM that a program may use.
      flops: bfloat16 products and sums a second, at best.
    """

    name: str
    memory: float
    flops: float


_GIB = 2**30
CHIPS = {
    "v4": Chip("v4", 15.25 * _GIB, 137.5e12),
    "v5e": Chip("v5e", 15.75 * _GIB, 197e12),
    "v5p": Chip("v5p", 95.74 * _GIB, 459e12),
    "v6e": Chip("v6e", 31.25 * _GIB, 918e12),
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
