"""Which of equally similar tasks are taken: by lot, and none again before all had their turn.

Where many tasks share one sentence, similarity decides little: of ALFRED's 4,839 training tasks 637
texts differ, and ties broken by id would leave every second game out for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import cachetools
import numpy as np

from evolving_rl_jax.types import Task

__all__ = ["Lots", "Rotation"]


class Lots:
    """Draws among equals: those that were taken least often so far, and of these by lot.

    Args:
      seed: of the draws.
    """

    def __init__(self, *seed: int) -> None:
        self._seed = seed
        self._taken: Counter[str] = Counter()
        self._draws = 0

    def draw(self, ids: Sequence[str], number: int) -> list[int]:
        """Which ``number`` of the ids, as positions in the sequence; see `take`."""
        lots = np.random.default_rng([*self._seed, self._draws]).random(len(ids))
        taken = np.array([self._taken[i] for i in ids])
        return np.lexsort((lots, taken))[:number].tolist()

    def take(self, ids: Sequence[str]) -> None:
        """Notes what was found, drawn or not; the next draw has other lots."""
        self._taken.update(ids)
        self._draws += 1


class Rotation:
    """The tasks that the sources of training are evaluated on.

    Ties are drawn without replacement over an epoch.  A pure function of the pool, the order of the
    sources and the seed: a resumed run, or another number of hosts, finds the same.

    Args:
      retrieve: (source, lots) -> its K tasks, most similar first; see ``Retriever.retrieve``.
      source_at: position in the endless order of sources -> the source.
      epoch: number of sources in an epoch.
      seed: of the run.
    """

    def __init__(
        self,
        retrieve: Callable[[Task, Lots], list[Task]],
        source_at: Callable[[int], Task],
        epoch: int,
        seed: int,
    ) -> None:
        self._retrieve, self._source_at = retrieve, source_at
        self._epoch, self._seed = epoch, seed
        # An iteration may lie in two epochs, and the next one is asked for while it is played.
        self._found: cachetools.LRUCache = cachetools.LRUCache(3)

    def at(self, position: int) -> list[Task]:
        """The tasks of the source at a position of the endless order."""
        epoch, rank = divmod(position, self._epoch)
        if epoch not in self._found:
            self._found[epoch] = Lots(self._seed, epoch), []
        lots, found = self._found[epoch]
        while len(found) <= rank:  # those before it decide what has been taken
            source = self._source_at(epoch * self._epoch + len(found))
            found.append(self._retrieve(source, lots))
        return found[rank]
