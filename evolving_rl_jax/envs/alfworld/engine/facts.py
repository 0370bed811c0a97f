"""Facts of a game as bits of one integer, and results that are remembered by the facts they read."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Iterable
from typing import Any

__all__ = ["FactTable", "Group", "Memo", "Reader", "Reads"]

_MAX_RESULTS = 1000  # of one memo and one choice of facts, and of one group


class Reader:
    """Something that depends on whole groups of facts; ``mask`` grows as they grow."""

    __slots__ = ("mask",)

    def __init__(self, groups: Iterable[Group], bits: int = 0):
        self.mask = bits
        for group in groups:
            self.mask |= group.mask
            group.readers.append(self)


class Group:
    """The facts of one pattern: which bits they are, and which of them hold in a state."""

    __slots__ = ("mask", "readers", "_entries", "_known")

    def __init__(self):
        self.mask = 0
        self.readers: list[Reader] = []
        self._entries: list[tuple[tuple, int]] = []  # sorted; bit 0 = always holds
        self._known: dict[int, list[tuple]] = {}

    def insert(self, arguments: tuple, bit: int) -> None:
        """Adds a fact.  What is known stays true: no state seen before had a new bit."""
        bisect.insort(self._entries, (arguments, bit))
        self.mask |= bit
        for reader in self.readers:
            reader.mask |= bit
        if not bit:
            self._known.clear()

    def forget(self) -> None:
        """Drops the readers and what is known."""
        self.readers.clear()
        self._known.clear()

    def holding(self, facts: int) -> list[tuple]:
        """Arguments of the facts of the pattern that are in the set ``facts``, sorted."""
        held = facts & self.mask
        found = self._known.get(held)
        if found is None:
            if len(self._known) >= _MAX_RESULTS:
                self._known.clear()
            found = [arguments for arguments, bit in self._entries if not bit or held & bit]
            self._known[held] = found
        return found


class FactTable:
    """Facts found by relation and by some of their arguments.

    A relation is any key that stands for a predicate.  Facts may be added at any time.

    Attributes:
      num_results: remembered by all memos of this table.
      num_groups: of facts that something asked for.
    """

    def __init__(self):
        self.num_results = self.num_groups = 0
        self._facts: dict[Hashable, dict[tuple, int]] = {}
        self._groups: dict[Hashable, dict[tuple, dict[tuple, Group]]] = {}

    def add(self, relation: Hashable, arguments: tuple, bit: int) -> None:
        """Adds a fact; ``bit`` 0 stands for one that always holds."""
        self._facts.setdefault(relation, {})[arguments] = bit
        for positions, groups in self._groups.get(relation, {}).items():
            values = tuple([arguments[i] for i in positions])
            self._group(groups, values).insert(arguments, bit)

    def forget(self) -> None:
        """Drops all groups and readers; memos that know them must not be used any more."""
        for by_positions in self._groups.values():
            for groups in by_positions.values():
                for group in groups.values():
                    group.forget()  # groups and what reads them hold each other
        self._groups = {}
        self.num_results = self.num_groups = 0

    def group(self, relation: Hashable, positions: tuple[int, ...], values: tuple) -> Group:
        """The facts of a relation whose arguments at ``positions`` are ``values``."""
        by_positions = self._groups.setdefault(relation, {})
        groups = by_positions.get(positions)
        if groups is None:
            groups = by_positions[positions] = {}
            for arguments, bit in self._facts.get(relation, {}).items():
                key = tuple([arguments[i] for i in positions])
                self._group(groups, key).insert(arguments, bit)
        return self._group(groups, values)

    def _group(self, groups: dict[tuple, Group], values: tuple) -> Group:
        group = groups.get(values)
        if group is None:
            group = groups[values] = Group()
            self.num_groups += 1
        return group


class Reads:
    """The facts that a computation has looked at: whole groups, and single bits."""

    __slots__ = ("groups", "bits")

    def __init__(self):
        self.groups: dict[Group, None] = {}
        self.bits = 0

    def update(self, other: Reads) -> None:
        """Adds what another computation has looked at."""
        self.groups.update(other.groups)
        self.bits |= other.bits


class _Record(Reader):
    """Results of one memo that depend on the same groups and bits."""

    __slots__ = ("groups", "bits", "results")

    def __init__(self, groups: frozenset[Group], bits: int):
        super().__init__(groups, bits)
        self.groups, self.bits = groups, bits
        self.results: dict[int, Any] = {}


class Memo:
    """Results of one function of the facts; each is found again while what it read is unchanged.

    A fact that was never met before belongs to no earlier key, and did not hold then: a mask that
    grows leaves all earlier results true.
    """

    __slots__ = ("_table", "_records")

    def __init__(self, table: FactTable):
        self._table = table
        self._records: list[_Record] = []

    def find(self, facts: int) -> Any:
        """The result for a set of facts, or None."""
        for record in self._records:
            found = record.results.get(facts & record.mask)
            if found is not None:
                return found
        return None

    def keep(self, facts: int, reads: Reads, result: Any) -> None:
        """Remembers a result (not None) with the facts that led to it."""
        record = self._record(frozenset(reads.groups), reads.bits)
        if len(record.results) >= _MAX_RESULTS:
            self._table.num_results -= len(record.results)
            record.results.clear()
        record.results[facts & record.mask] = result
        self._table.num_results += 1

    def _record(self, groups: frozenset[Group], bits: int) -> _Record:
        for record in self._records:
            if record.bits == bits and record.groups == groups:
                return record
        self._records.append(_Record(groups, bits))
        return self._records[-1]
