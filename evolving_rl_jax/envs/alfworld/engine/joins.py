"""Joins of facts: the data that grounding works on, and the one operation on it."""

from __future__ import annotations

import collections
import operator
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Fact", "Instances", "Literals", "Relations", "Unsupported", "fact_getter", "join"]

Row = tuple[str, ...]
Relations = dict[str, set[Row]]
Fact = tuple[str, Row]

_MAX_ROWS = 500_000  # instances of one action before changing facts are looked at


class Unsupported(Exception):
    """The problem uses something that only the translator handles."""


class Literals(NamedTuple):
    """A condition, split by what can be decided when."""

    static: list[tuple[str, Row]]
    fluent: list[tuple[str, Row]]
    not_static: list[tuple[str, Row]]
    not_fluent: list[tuple[str, Row]]


class Instances(NamedTuple):
    """The ground instances of one action that are not ruled out by unchanging facts alone."""

    columns: dict[str, int]
    rows: list[Row]
    conditions: list[list[Fact]]  # changing facts required, of each row
    reachable: list[bool]


def join(literals: list[tuple[str, Row]], relations: Relations) -> tuple[dict[str, int], list[Row]]:
    """All assignments under which the literals hold: column of each variable, and the rows."""
    left = list(literals)
    columns: dict[str, int] = {}
    rows: list[Row] = [()]
    while left:

        def cost(literal: tuple[str, Row]) -> tuple[bool, int]:
            predicate, args = literal
            free = {a for a in args if a[0] == "?" and a not in columns}
            size = len(relations.get(predicate, ()))
            return bool(free), size if len(free) == len(args) else 0

        literal = min(left, key=cost)
        left.remove(literal)
        rows = _extend(rows, columns, literal[1], relations.get(literal[0], set()))
        if len(rows) > _MAX_ROWS:
            raise Unsupported("an action with too many instances")
    return columns, rows


def _extend(rows: list[Row], columns: dict[str, int], args: Row, relation: set[Row]) -> list[Row]:
    """One step of a join; adds the columns of the variables that the literal binds."""
    new = [a for a in dict.fromkeys(args) if a[0] == "?" and a not in columns]
    if not new:
        get = fact_getter("", args, columns)
        return [row for row in rows if get(row)[1] in relation]
    bound = [(i, columns[a]) for i, a in enumerate(args) if a in columns]
    fixed = [(i, a) for i, a in enumerate(args) if a[0] != "?"]
    same = [(i, args.index(a)) for i, a in enumerate(args) if args.index(a) != i]
    index: dict[Row, list[Row]] = collections.defaultdict(list)
    for fact in relation:
        if all(fact[i] == a for i, a in fixed) and all(fact[i] == fact[j] for i, j in same):
            key = tuple([fact[i] for i, _ in bound])
            index[key].append(tuple([fact[args.index(a)] for a in new]))
    for a in new:
        columns[a] = len(columns)
    key_of = _getter([column for _, column in bound])
    return [row + more for row in rows for more in index.get(key_of(row), ())]


def _getter(columns: list[int]) -> Callable[[Row], Row]:
    """A function that takes the given columns of a row, as a tuple."""
    if not columns:
        return lambda row: ()
    if len(columns) == 1:
        column = columns[0]
        return lambda row: (row[column],)
    return operator.itemgetter(*columns)


def fact_getter(predicate: str, args: Row, columns: dict[str, int]) -> Callable[[Row], Fact]:
    """A function from a row to the fact that a literal becomes under it."""
    if all(a[0] == "?" for a in args):
        take = _getter([columns[a] for a in args])
        return lambda row: (predicate, take(row))
    return lambda row: (predicate, tuple([row[columns[a]] if a[0] == "?" else a for a in args]))
