"""Conjunctive conditions of PDDL, compiled once into a sequence of joins over the current facts.

A condition is compiled for its variables, before any game is known.  Each literal becomes a closure
that takes the assignments found so far and extends or filters them, in an order in which every
literal is looked up by what is already bound.  While it runs, it notes which changing facts it
looked at, so that its result can be remembered until one of those changes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

from evolving_rl_jax.envs.alfworld.engine.facts import FactTable, Reads
from evolving_rl_jax.envs.alfworld.engine.pddl import Domain, Fact, Literals, Relations, Row

__all__ = ["Query", "World", "reachable", "row_getter"]

Step = Callable[[list[Row], "World", int, Reads], list[Row]]


class World:
    """The facts of one game, each changing one a bit that is given out when it is first met.

    Attributes:
      static: predicate -> argument tuples of the facts that never change.
      table: the changing facts by predicate, for queries; and by (predicate, types) the facts,
        unchanging ones included, that texts ask for.
      derived: defined predicate -> the queries of which one must have an answer.
    """

    def __init__(
        self, static: Relations, objects: dict[str, tuple[str, str]], shown: Collection[str]
    ):
        """Args:
        static: as the attribute.
        objects: name -> (name, type).
        shown: predicates that texts ask for, negated ones with ``not_`` before them.
        """
        self.static = static
        self.table = FactTable()
        self.derived: dict[str, list[Query]] = {}
        self._objects, self._shown = objects, shown
        self._bits: dict[tuple[str, Row], int] = {}
        self._indexes: dict[tuple, dict[Row, list[Row]]] = {}

    def bit(self, predicate: str, arguments: Row) -> int:
        """The bit of a changing fact."""
        bit = self._bits.get((predicate, arguments))
        if bit is None:
            bit = self._bits[predicate, arguments] = 1 << len(self._bits)
            self.table.add(predicate, arguments, bit)
            if predicate in self._shown:
                self.show(predicate, arguments, bit)
        return bit

    @property
    def num_bits(self) -> int:
        """Changing facts that were met."""
        return len(self._bits)

    def facts(self, state: int) -> set[Fact]:
        """The changing facts that hold in a state."""
        return {fact for fact, bit in self._bits.items() if state & bit}

    def show(self, predicate: str, arguments: Row, bit: int) -> None:
        """Makes a fact known to texts; bit 0 for one that never changes."""
        typed = tuple([self._objects[name] for name in arguments])
        self.table.add((predicate, tuple([kind for _, kind in typed])), typed, bit)

    def index(self, predicate: str, bound: tuple[int, ...], new: tuple[int, ...], same: tuple):
        """Unchanging facts: values at the ``bound`` positions -> values at the ``new`` ones."""
        key = (predicate, bound, new, same)
        found = self._indexes.get(key)
        if found is None:
            found = self._indexes[key] = {}
            for fact in self.static.get(predicate, ()):
                if all(fact[i] == fact[j] for i, j in same):
                    values = tuple([fact[i] for i in bound])
                    found.setdefault(values, []).append(tuple([fact[i] for i in new]))
        return found


class Query:
    """A compiled conjunction.

    Attributes:
      columns: variable -> its position in the rows.
      first: the predicate whose facts are looked at first, or None.
    """

    def __init__(
        self,
        literals: Literals,
        given: Sequence[str] = (),
        prefer: str | None = None,
        derived: Sequence[str] = (),
    ):
        """Args:
        literals: the condition.
        given: variables that are bound from the start, the first columns of the rows.
        prefer: a changing predicate to look at first where the condition has it.
        derived: predicates that are defined by queries of the ``World``.
        """
        self.columns = {name: i for i, name in enumerate(given)}
        self.first: str | None = None
        self._steps: list[Step] = []
        fluent = [("fluent", *literal) for literal in literals.fluent]
        left = [("derived" if p in derived else "static", p, a) for p, a in literals.static]
        left += [*fluent, *(("not_fluent", *literal) for literal in literals.not_fluent)]
        left += [
            ("not_derived" if p in derived else "not_static", p, a) for p, a in literals.not_static
        ]
        while left:
            chosen = min(left, key=lambda literal: self._cost(literal, prefer))
            left.remove(chosen)
            if chosen[0] == "fluent" and not self._steps and not self.columns:
                self.first = chosen[1]
            self._steps.append(self._compile(*chosen))

    def _cost(self, literal: tuple[str, str, Row], prefer: str | None) -> int:
        """Order of looking things up: what filters first, then what is narrowed down most."""
        kind, predicate, arguments = literal
        free = [a for a in arguments if a[0] == "?" and a not in self.columns]
        if not free:
            return 0
        if kind.startswith("not_") or kind == "derived":
            return 9
        if predicate == prefer:
            return 1
        if len(free) < len(arguments):
            return 2 if kind == "fluent" else 3
        if kind == "fluent":
            return 4
        return 6 if predicate.startswith("type@") else 5

    def run(self, world: World, state: int, reads: Reads, given: Row = ()) -> list[Row]:
        """All assignments under which the condition holds; ``reads`` is added to."""
        rows = [given]
        for step in self._steps:
            rows = step(rows, world, state, reads)
            if not rows:
                break
        return rows

    def _compile(self, kind: str, predicate: str, arguments: Row) -> Step:
        new = [a for a in dict.fromkeys(arguments) if a[0] == "?" and a not in self.columns]
        if not new:
            return _CHECKS[kind](predicate, row_getter(arguments, self.columns))
        if kind not in ("static", "fluent"):
            raise AssertionError(f"variable {new[0]} has no type")  # the parser gives each one
        bound = tuple([i for i, a in enumerate(arguments) if a not in new])
        key = row_getter([arguments[i] for i in bound], self.columns)
        first = tuple([arguments.index(a) for a in new])
        same = [(i, arguments.index(a)) for i, a in enumerate(arguments) if a in new]
        same = tuple([(i, j) for i, j in same if i != j])
        for a in new:
            self.columns[a] = len(self.columns)
        scan = _scan_static if kind == "static" else _scan_fluent
        return scan(predicate, bound, key, first, same)


def row_getter(terms: Sequence[str], columns: dict[str, int]) -> Callable[[Row], Row]:
    """A function from a row to the values of terms: its columns, or constants."""
    if not terms:
        return lambda row: ()
    if all(term[0] == "?" for term in terms):
        places = [columns[term] for term in terms]
        if len(places) == 1:
            (place,) = places
            return lambda row: (row[place],)
        return operator.itemgetter(*places)
    return lambda row: tuple([row[columns[t]] if t[0] == "?" else t for t in terms])


def reachable(
    domain: Domain, static: Relations, objects: dict[str, tuple[str, str]], start: set[Fact]
) -> set[Fact]:
    """The changing facts that can ever hold, if nothing became false and no "not" were looked at."""
    world, rules = World(static, objects, ()), []
    for condition, effects in zip(domain.conditions, domain.effects, strict=True):
        for extra, literal in effects:
            if not literal.negated:
                needed = condition.static + extra.static, condition.fluent + extra.fluent
                query = Query(Literals(*needed, [], []))
                rules.append((query, literal.predicate, row_getter(literal.args, query.columns)))
    state, before = sum(world.bit(*fact) for fact in start), -1
    while state != before:
        before = state
        for query, predicate, arguments in rules:
            for row in query.run(world, state, Reads()):
                state |= world.bit(predicate, arguments(row))
    return world.facts(state)


def _scan_static(predicate: str, bound: tuple, key: Callable, new: tuple, same: tuple) -> Step:
    def step(rows: list[Row], world: World, state: int, reads: Reads) -> list[Row]:
        index = world.index(predicate, bound, new, same)
        return [row + more for row in rows for more in index.get(key(row), ())]

    return step


def _scan_fluent(predicate: str, bound: tuple, key: Callable, new: tuple, same: tuple) -> Step:
    def step(rows: list[Row], world: World, state: int, reads: Reads) -> list[Row]:
        result = []
        for row in rows:
            group = world.table.group(predicate, bound, key(row))
            reads.groups[group] = None
            for fact in group.holding(state):
                if all(fact[i] == fact[j] for i, j in same):
                    result.append(row + tuple([fact[i] for i in new]))
        return result

    return step


def _check_static(predicate: str, key: Callable, wanted: bool) -> Step:
    def step(rows: list[Row], world: World, state: int, reads: Reads) -> list[Row]:
        facts = world.static.get(predicate, ())
        return [row for row in rows if (key(row) in facts) is wanted]

    return step


def _check_fluent(predicate: str, key: Callable, wanted: bool) -> Step:
    def step(rows: list[Row], world: World, state: int, reads: Reads) -> list[Row]:
        result = []
        for row in rows:
            bit = world.bit(predicate, key(row))
            reads.bits |= bit
            if bool(state & bit) is wanted:
                result.append(row)
        return result

    return step


def _check_derived(predicate: str, key: Callable, wanted: bool) -> Step:
    def step(rows: list[Row], world: World, state: int, reads: Reads) -> list[Row]:
        queries = world.derived[predicate]

        def holds(row: Row) -> bool:
            return any(query.run(world, state, reads, key(row)) for query in queries)

        return [row for row in rows if holds(row) is wanted]

    return step


_CHECKS: dict[str, Any] = {
    "static": lambda predicate, key: _check_static(predicate, key, True),
    "not_static": lambda predicate, key: _check_static(predicate, key, False),
    "fluent": lambda predicate, key: _check_fluent(predicate, key, True),
    "not_fluent": lambda predicate, key: _check_fluent(predicate, key, False),
    "derived": lambda predicate, key: _check_derived(predicate, key, True),
    "not_derived": lambda predicate, key: _check_derived(predicate, key, False),
}
