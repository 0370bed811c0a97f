"""A PDDL domain and its text grammar, compiled once for all games that share them.

Every action becomes a ``Schema``: a query for its instances that apply in a state, a command
template, and what it does.  Parsing and normal forms are the planner's own, see ``pddl``.
"""

from __future__ import annotations

import collections
import functools
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from evolving_rl_jax.envs.alfworld.engine.pddl import (
    Domain,
    Fact,
    Literals,
    Row,
    Unsupported,
    load_domain,
)
from evolving_rl_jax.envs.alfworld.engine.query import Query, row_getter
from evolving_rl_jax.envs.alfworld.engine.text import Grammar

__all__ = ["CompiledDomain", "Conditional", "Goal", "Schema", "compile_domain", "compile_goal"]

FactGetter = Callable[[Row], Fact]


class Conditional(NamedTuple):
    """An effect that happens only where a further condition holds."""

    static: list[tuple[FactGetter, bool]]  # unchanging facts, and whether they must hold
    fluent: list[tuple[FactGetter, bool]]  # changing facts, the same
    fact: FactGetter
    adds: bool


class Schema:
    """One action in normal form; an action with a disjunction has several.

    Attributes:
      name: of the action.
      query: finds the instances that apply.
      arguments: row of the query -> arguments of the action.
      parameters: (placeholder, type) of each argument.
      template, feedback: text of the command, and what to derive after it.
      template_columns: arguments that the command depends on; None = all of them.
      required, forbidden: changing facts of its condition.
      adds, deletes: its unconditional effects.
      conditionals: the other ones.
      surely_changes: whether it changes something whatever its arguments are.
    """

    def __init__(self, domain: Domain, index: int, grammar: Grammar, prefer: str | None):
        action, condition = domain.actions[index], domain.conditions[index]
        self.name = action.name
        if self.name not in grammar.templates:
            raise Unsupported(f"action {self.name}, for which the grammar has no text")
        self.query = Query(condition, prefer=prefer)
        named = action.parameters[: action.num_external_parameters]
        self.arguments = row_getter([p.name for p in named], self.query.columns)
        self.parameters = [(p.name.strip("?"), p.type_name) for p in named]
        self.template = grammar.templates[self.name]
        self.feedback = grammar.feedback[self.name]
        self.template_columns = _used(grammar.symbols(self.template), self.parameters)
        self.required = [self._getter(*literal) for literal in condition.fluent]
        self.forbidden = [self._getter(*literal) for literal in condition.not_fluent]
        effects = domain.effects[index]
        plain = [literal for extra, literal in effects if not any(extra)]
        self.adds = [self._getter(e.predicate, e.args) for e in plain if not e.negated]
        self.deletes = [self._getter(e.predicate, e.args) for e in plain if e.negated]
        self.conditionals = [self._conditional(*effect) for effect in effects if any(effect[0])]
        self.surely_changes = _surely_changes(condition, plain)

    def _getter(self, predicate: str, arguments: Row) -> FactGetter:
        get = row_getter(arguments, self.query.columns)
        return lambda row: (predicate, get(row))

    def _conditional(self, condition: Literals, literal: Any) -> Conditional:
        def part(positive: list, negative: list) -> list[tuple[FactGetter, bool]]:
            found = [(self._getter(*one), True) for one in positive]
            return found + [(self._getter(*one), False) for one in negative]

        return Conditional(
            part(condition.static, condition.not_static),
            part(condition.fluent, condition.not_fluent),
            self._getter(literal.predicate, literal.args),
            not literal.negated,
        )


def _used(symbols: Sequence[tuple[str, Any]], parameters: list) -> tuple[int, ...] | None:
    """The positions of the parameters that a template reads, or None where that is not plain.

    A query may bind a new placeholder to anything that no parameter stands for, so all parameters
    count as soon as there is one.
    """
    names = [name for name, _ in parameters]
    used: set[str] = set()
    for kind, value in symbols:
        if kind == "text":
            if "{" in value or "}" in value:
                used.update(name for _, name, _, _ in string.Formatter().parse(value) if name)
        elif kind == "eval":
            used.update(value.co_names)
        elif kind == "list" and value[0] == "each" and value[1][0][0] == "eval":
            (_, expression), query = value[1]
            placeholders = {ph for _, _, phs in query for ph in phs}
            if not placeholders <= set(parameters):
                return None
            used.update(expression.co_names, (name for name, _ in placeholders))
        else:
            return None
    if not all(name.isidentifier() for name in used):
        return None
    return tuple(i for i, name in enumerate(names) if name in used)


def _surely_changes(condition: Literals, effects: list[Any]) -> bool:
    """Whether one effect can be seen to differ from the condition under any arguments."""
    required = {predicate for predicate, _ in condition.fluent}
    added = {e.predicate for e in effects if not e.negated}
    return any(
        (e.predicate, e.args) in condition.fluent and e.predicate not in added
        if e.negated
        else e.predicate not in required
        for e in effects
    )


class CompiledDomain:
    """What all games over one domain and one grammar share.

    Attributes:
      domain: in the planner's normal form.
      schemas: by name.
      negations: changing predicates whose ``not_`` facts the grammar asks for.

    Raises:
      pddl.Unsupported: something that cannot be compiled, by name.
    """

    def __init__(self, domain: Domain, grammar: Grammar):
        self.domain = domain
        counts = collections.Counter(
            predicate
            for condition in domain.conditions
            for predicate in {predicate for predicate, _ in condition.fluent}
        )
        prefer = min(counts, key=lambda p: (-counts[p], p)) if counts else None
        schemas = [Schema(domain, i, grammar, prefer) for i in range(len(domain.actions))]
        self.schemas = sorted(schemas, key=lambda schema: schema.name)
        self.negations = {p for p in domain.fluents if f"not_{p}" in grammar.predicates}
        declared = {predicate.name for predicate in domain.predicates}
        for predicate in sorted(self.negations):
            if f"not_{predicate}" in declared:
                raise Unsupported(f"a predicate named not_{predicate}")
        self._refuse_conditional_texts(grammar)

    def _refuse_conditional_texts(self, grammar: Grammar) -> None:
        """The published engine's texts take every conditional effect for one that happened."""
        for action, effects in zip(self.domain.actions, self.domain.effects, strict=True):
            for extra, literal in effects:
                name = literal.predicate
                if any(extra) and grammar.predicates & {name, f"not_{name}"}:
                    raise Unsupported(
                        f"conditional effects of action {action.name} on {name}, "
                        "for which the grammar asks"
                    )


@functools.lru_cache(maxsize=16)
def _compile(text: str, grammar: Grammar) -> CompiledDomain:
    return CompiledDomain(load_domain(text), grammar)


def compile_domain(text: str, grammar: Grammar) -> CompiledDomain:
    """The compiled domain, once for each domain and each grammar apart from its task sentence."""
    return _compile(text, grammar.shared)


class Goal(NamedTuple):
    """A compiled goal.

    Attributes:
      query: has an answer where the goal holds.
      derived: queries of the predicates that it defines on the way.
      possible: queries over unchanging facts; where none has an answer, it can never be reached.
      constants: objects that it names.
      settled: whether it is a list of unchanging facts, which the published engine refuses.
    """

    query: Query
    derived: dict[str, list[Query]]
    possible: list[Query]
    constants: set[str]
    settled: bool


def compile_goal(domain: Domain, goal: Any) -> Goal:
    """Compiles a goal: any formula of conditions that the domain's predicates allow."""
    from fast_downward.translate import normalize, pddl

    task = domain.task([], goal, [])
    normalize.normalize(task)
    names = {axiom.name for axiom in task.axioms}
    derived: dict[str, list[Query]] = {name: [] for name in sorted(names)}
    possible, constants = [], set()
    for axiom in task.axioms:
        if isinstance(axiom.condition, pddl.Falsity):
            continue
        literals = domain.split(axiom.parameters, axiom.condition)
        constants |= _constants(literals)
        given = [p.name for p in axiom.parameters[: axiom.num_external_parameters]]
        derived[axiom.name].append(Query(literals, given, derived=names))
        if axiom.name == getattr(task.goal, "predicate", None):
            possible.append(_unchanging(literals, names))
    literals = domain.split([], task.goal)
    if not names:
        possible.append(_unchanging(literals, names))
    changing = literals.fluent or literals.not_fluent
    settled = not names and not changing and any(literals)
    constants |= _constants(literals)
    return Goal(Query(literals, derived=names), derived, possible, constants, settled)


def _constants(literals: Literals) -> set[str]:
    return {a for part in literals for _, args in part for a in args if a[0] != "?"}


def _unchanging(literals: Literals, derived: set[str]) -> Query:
    static = [literal for literal in literals.static if literal[0] not in derived]
    return Query(Literals(static, [], [], []))
