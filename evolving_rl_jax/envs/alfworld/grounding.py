"""Grounding of ALFWorld problems: what the planner's translator does, several times faster.

Parsing and normal forms are the translator's own, once per domain; only the search for the ground
actions is done here.  The translator evaluates a logic program atom by atom; here each action is
joined with the facts that never change first, and reachability is decided on the few thousand
instances left.  The result is the same task: the same facts, operators, goal rules and initial
state, its variables numbered in the order of their names.

Whatever lies outside this (derived predicates, quantified effects, a metric, nested goal rules, a
goal out of reach) raises ``Unsupported``, and the translator itself does the work.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

from evolving_rl_jax.envs.alfworld import sas_writer
from evolving_rl_jax.envs.alfworld.engine.joins import (
    Fact,
    Instances,
    Literals,
    Relations,
    Unsupported,
    fact_getter,
    join,
)

__all__ = ["Domain", "Grounded", "explore", "ground", "load_domain", "parse_problem", "relations"]


class Grounded(NamedTuple):
    """A grounded problem: its SAS text and the parsed parts that the engine shows as text."""

    sas: str
    objects: list[Any]
    types: list[Any]
    actions: list[Any]
    init: list[Any]


class Domain:
    """A parsed domain in the translator's normal form."""

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
        """A translator task over this domain."""
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
    """Parses a domain; raises ``Unsupported`` as the text of the module says."""
    return Domain(text)


def ground(domain_text: str, problem_text: str) -> Grounded:
    """Grounds one problem.

    Raises:
      Unsupported: see the text of the module.
      BaseException: what the translator raises for text that is not a problem of the domain.
    """
    domain = load_domain(domain_text)
    objects, init, goal, plain = parse_problem(domain, problem_text)
    if not plain:
        raise Unsupported("metric or requirements of the problem")
    static, start = relations(domain, objects, init)
    instances, reached = explore(domain, static, start)
    sas = sas_writer.write(domain, instances, static, reached, start, goal)
    return Grounded(sas, objects, domain.types, domain.actions, init)


def parse_problem(domain: Domain, text: str) -> tuple[list, list, Any, bool]:
    """Objects, initial facts, goal, and whether there is nothing else.

    Raises:
      Unsupported: it is of another domain, or two objects have one name.
    """
    from fast_downward.translate import pddl
    from fast_downward.translate.pddl_parser import lisp_parser, parsing_functions

    tree = lisp_parser.parse_nested_list(text.split("\n"))
    parsed = list(parsing_functions.parse_task_pddl(tree, domain.type_dict, domain.predicate_dict))
    _, domain_name, requirements, objects, init, goal, use_metric = parsed
    if domain_name != domain.name:
        raise Unsupported(f"a problem of another domain, {domain_name}")
    objects = domain.constants + objects
    if len({o.name for o in objects}) != len(objects):
        raise Unsupported("duplicate objects")
    init += [pddl.Atom("=", (o.name, o.name)) for o in objects]
    return objects, init, goal, not (use_metric or requirements.requirements)


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


def explore(
    domain: Domain, static: Relations, start: set[Fact]
) -> tuple[list[Instances], set[Fact]]:
    """Finds the facts and instances that can be reached when nothing ever becomes false."""
    found, rules = [], []
    for condition, effects in zip(domain.conditions, domain.effects, strict=True):
        columns, rows = join(condition.static, static)
        getters = [fact_getter(*literal, columns) for literal in condition.fluent]
        conditions = [[get(row) for get in getters] for row in rows]
        found.append(Instances(columns, rows, conditions, [False] * len(rows)))
        always = [literal for extra, literal in effects if not any(extra)]
        makers = [fact_getter(e.predicate, e.args, columns) for e in always if not e.negated]
        for required, row in zip(conditions, rows, strict=True):
            rules.append((required, [make(row) for make in makers]))
        for extra, literal in effects:
            if any(extra) and not literal.negated:
                rules += _conditional_rules(extra, literal, found[-1], static)
    reached = _closure(start, rules)
    for instances in found:
        instances.reachable[:] = [reached.issuperset(c) for c in instances.conditions]
    return found, reached


def _conditional_rules(
    extra: Literals, literal: Any, instances: Instances, static: Relations
) -> list[tuple[list[Fact], list[Fact]]]:
    """The rules of one conditional effect."""
    columns = instances.columns
    make = fact_getter(literal.predicate, literal.args, columns)
    more = [fact_getter(*part, columns) for part in extra.fluent]
    fixed = [fact_getter(*part, columns) for part in extra.static]
    return [
        (required + [get(row) for get in more], [make(row)])
        for row, required in zip(instances.rows, instances.conditions, strict=True)
        if all(row_fact[1] in static[row_fact[0]] for row_fact in (get(row) for get in fixed))
    ]


def _closure(start: set[Fact], rules: list[tuple[list[Fact], list[Fact]]]) -> set[Fact]:
    """All facts that follow from ``start`` by rules (required facts, new facts)."""
    waiting: dict[Fact, list[int]] = collections.defaultdict(list)
    missing = []
    reached, queue = set(start), list(start)
    for i, (required, new) in enumerate(rules):
        missing.append(len(required))
        for fact in required:
            waiting[fact].append(i)
        if not required:
            queue += [fact for fact in new if fact not in reached]
            reached.update(new)
    while queue:
        for i in waiting.get(queue.pop(), ()):
            missing[i] -= 1
            if not missing[i]:
                queue += [fact for fact in rules[i][1] if fact not in reached]
                reached.update(rules[i][1])
    return reached
