"""Two halves of a set of classes of objects, alike in games and in where things are kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["draw_halves"]

_DRAWS = 4000


def draw_halves(
    kinds: Mapping[str, Mapping[str, int]], seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The most balanced of many random halves.

    Of two halves are compared: their shares of the games, and the shares of each kind of place among
    the games of each (half the sum of the differences).  The sum of both is made small.

    Args:
      kinds: class word -> kind of place -> games that have the object there; at least two classes.
      seed: of the draws; a pure function of it and of ``kinds``.

    Returns:
      The classes of both halves, sorted; the first has one more where their number is odd.

    Raises:
      ValueError: fewer than two classes.

    >>> draw_halves({"pen": {"desk": 2}, "cup": {"shelf": 2}, "pan": {"shelf": 1}, "key": {"desk": 1}}, 0)
    (('pan', 'pen'), ('cup', 'key'))
    """
    names = sorted(kinds)
    if len(names) < 2:
        raise ValueError(f"games must be about two classes of objects or more, got {names}")
    places = sorted({place for found in kinds.values() for place in found})
    counts = np.array([[kinds[n].get(p, 0) for p in places] for n in names], np.float64)
    first = np.zeros((_DRAWS, len(names)), bool)
    rng = np.random.default_rng(seed)
    for row in first:
        row[rng.permutation(len(names))[: (len(names) + 1) // 2]] = True
    halves = first @ counts, ~first @ counts  # [draws, places]
    sizes = [np.maximum(half.sum(1, keepdims=True), 1) for half in halves]
    uneven = np.abs(sizes[0] - sizes[1])[:, 0] / counts.sum()
    unlike = np.abs(halves[0] / sizes[0] - halves[1] / sizes[1]).sum(1) / 2
    best = first[int(np.argmin(uneven + unlike))]
    chosen = [tuple(n for n, is_first in zip(names, best, strict=True) if is_first == side)
              for side in (True, False)]  # fmt: skip
    return chosen[0], chosen[1]
