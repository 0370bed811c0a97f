"""PDDL read by the planner's own parser: a domain in normal form, and what a problem says.

Nothing is grounded and no C library is involved; conditions are split into literals that
``query`` compiles.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

__all__ = [
    "Domain",
    "Fact",
    "Literals",
    "Relations",
    "Row",
    "Unsupported",
    "initial_fact",
    "load_domain",
    "parse_problem",
    "quiet",
    "relations",
]

Row = tuple[str, ...]
Fact = tuple[str, Row]
Relations = dict[str, set[Row]]


class Unsupported(Exception):
    """Something that cannot be compiled, by name."""


class Literals(NamedTuple):
    """A condition, split by what can be decided when."""

    static: list[Fact]
    fluent: list[Fact]
    not_static: list[Fact]
    not_fluent: list[Fact]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what the parser prints and undoes its change of ``sys.argv``."""
    argv = sys.argv
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _set_up_parser()
            yield
    finally:
        sys.argv = argv


@functools.cache
def _set_up_parser() -> None:
    """It reads ``sys.argv`` when it is first imported."""
    sys.argv = ["translate.py", "domain", "task"]
    import fast_downward.translate.options  # noqa: F401


class Domain:
    """A parsed domain in the planner's normal form.

    Attributes:
      actions: in normal form; an action with a disjunction has become several.
      fluents: predicates that some action changes.
      conditions: of each action.
      effects: (further condition, literal) of each action.

    Raises:
      Unsupported: derived predicates or quantified effects.
    """

    def __init__(self, text: str):
        from fast_downward.translate import normalize, pddl
        from fast_downward.translate.pddl_parser import lisp_parser, parsing_functions

        tree = lisp_parser.parse_nested_list(text.split("\n"))
        parts = list(parsing_functions.parse_domain_pddl(tree))
        self.name, self.requirements, self.types, self.type_dict, self.constants = parts[:5]
        self.predicates, self.predicate_dict, self.functions, self.actions, axioms = parts[5:]
        if axioms:
            raise Unsupported("derived predicates")
        task = self.task([], pddl.Atom("=", ()), self.actions)
        normalize.normalize(task)
        if task.axioms or any(e.parameters for a in self.actions for e in a.effects):
            raise Unsupported("universal quantifiers in actions")
        self.fluents = {e.literal.predicate for a in self.actions for e in a.effects}
        self.conditions = [self.split(a.parameters, a.precondition) for a in self.actions]
        self.effects = [
            [(self.split([], e.condition), e.literal) for e in a.effects] for a in self.actions
        ]

    def task(self, init: list, goal: Any, actions: list) -> Any:
        """A task of the planner over this domain."""
        from fast_downward.translate import pddl

        parts = (self.types, [], list(self.predicates), self.functions, init, goal, actions, [])
        return pddl.Task(self.name, "", self.requirements, *parts, False)

    def split(self, parameters: Iterable[Any], condition: Any) -> Literals:
        """A conjunctive condition with its typed parameters, split into literals."""
        from fast_downward.translate import pddl

        parts = Literals([], [], [], [])
        parts.static.extend((f"type@{p.type_name}", (p.name,)) for p in parameters)
        if isinstance(condition, pddl.Truth):
            return parts
        for literal in condition.parts if isinstance(condition, pddl.Conjunction) else [condition]:
            if not isinstance(literal, pddl.Literal):
                raise Unsupported(f"condition {type(literal).__name__}")
            kind = (2 if literal.negated else 0) + (literal.predicate in self.fluents)
            parts[kind].append((literal.predicate, literal.args))
        return parts


@functools.lru_cache(maxsize=8)
def load_domain(text: str) -> Domain:
    """Parses a domain; raises ``Unsupported`` as ``Domain``."""
    return Domain(text)


def parse_problem(domain: Domain, text: str) -> tuple[list, list, Any]:
    """Objects, initial facts and goal.

    Raises:
      Unsupported: it is of another domain, or two objects have one name.
      BaseException: what the parser raises for text that is not a problem of the domain.
    """
    from fast_downward.translate import pddl
    from fast_downward.translate.pddl_parser import lisp_parser, parsing_functions

    tree = lisp_parser.parse_nested_list(text.split("\n"))
    parsed = list(parsing_functions.parse_task_pddl(tree, domain.type_dict, domain.predicate_dict))
    _, domain_name, _, objects, init, goal, _ = parsed
    if domain_name != domain.name:
        raise Unsupported(f"a problem of another domain, {domain_name}")
    objects = domain.constants + objects
    if len({o.name for o in objects}) != len(objects):
        raise Unsupported("duplicate objects")
    init += [pddl.Atom("=", (o.name, o.name)) for o in objects]
    return objects, init, goal


def relations(domain: Domain, objects: list, init: list) -> tuple[Relations, set[Fact]]:
    """The facts that never change, by predicate, and the changing facts that hold at the start."""
    static: Relations = collections.defaultdict(set)
    start = set()
    for item in objects:
        for name in [item.type_name, *domain.type_dict[item.type_name].supertype_names]:
            static[f"type@{name}"].add((item.name,))
    for fact in init:
        if not hasattr(fact, "predicate"):
            continue  # costs and distances
        if fact.predicate in domain.fluents:
            start.add((fact.predicate, fact.args))
        else:
            static[fact.predicate].add(fact.args)
    return static, start


def initial_fact(element: Any) -> Fact | None:
    """An initial fact; None for equality, costs and distances, which no text shows."""
    if hasattr(element, "predicate"):
        return None if element.predicate == "=" else (element.predicate, tuple(element.args))
    value = str(element.expression.value)
    if element.fluent.symbol == "total-cost" or value.isdigit():
        return None
    return value, tuple(element.fluent.args)
