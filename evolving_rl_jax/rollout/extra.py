"""Further sequences of an update, each with an advantage that is given: what is in a batch beside an iteration's own.

They come from replayed wins, from guided wins read again without their skill, from proven skills, and
from stored extractions (``train.replay``), or they are plays apart from the groups of the skills.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from evolving_rl_jax.types import ROLE_SOLVER, Sample


@dataclasses.dataclass(frozen=True)
class Extra:
    """One sequence with its advantage.

    Attributes:
      sample: its tokens.
      advantage: weighted already.
      role: whose it is.
      detached: see `types.TokenBatch`.
      credit: of the turns of its episode, beside the advantage, see `types.Episode`.
    """

    sample: Sample
    advantage: float
    role: int = ROLE_SOLVER
    detached: bool = True
    credit: Sequence[float] = ()


def deal(extras: Sequence[Extra], parts: int, hosts: int, host: int) -> list[list[Extra]]:
    """What of the extras of an iteration is one host's, for each of its ``parts`` optimizer steps.

    They are dealt out one by one, so each step has as many of them as another, or one more, and in it
    each host: the same sequences in the same steps on any number of hosts.

    >>> [[e.advantage for e in part] for part in deal([Extra(None, a) for a in range(5)], 2, 2, 0)]
    [[0, 4], [1]]
    """
    return [list(extras[part::parts])[host::hosts] for part in range(parts)]


def most_dealt(sequences: int, parts: int, hosts: int) -> int:
    """The most of ``sequences`` that `deal` gives a host for a step."""
    in_a_step = math.ceil(sequences / parts)
    return math.ceil(in_a_step / hosts)
