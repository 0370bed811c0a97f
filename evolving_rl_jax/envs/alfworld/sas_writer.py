"""Writes a grounded problem as SAS, the text that the planner's C library reads.

Every changing fact becomes a variable with the values 0 (true) and 1 (false), as the translator
writes it when its search for invariants is off.  Operators with conditional effects, and goal
rules, go through the translator's own functions.
"""

from __future__ import annotations

from typing import Any

from evolving_rl_jax.envs.alfworld.engine.joins import (
    Fact,
    Instances,
    Literals,
    Relations,
    Unsupported,
    fact_getter,
    join,
)

__all__ = ["write"]

_TRUE, _FALSE = 0, 1


class _Dictionary:
    """Atom of the translator -> its (variable, value) pairs; only what is asked for."""

    def __init__(self, numbers: dict[Fact, int]):
        self._numbers = numbers

    def get(self, atom: Any, default: Any = None) -> Any:
        number = self._numbers.get((atom.predicate, atom.args))
        return default if number is None else [(number, _TRUE)]

    __getitem__ = get


def write(
    domain: Any,
    found: list[Instances],
    static: Relations,
    reached: set[Fact],
    start: set[Fact],
    goal: Any,
) -> str:
    """The SAS text.

    Args:
      domain: the parsed domain.
      found: instances of each of its actions.
      static: facts that never change, by predicate.
      reached: changing facts that can ever hold.
      start: those that hold at the start.
      goal: the parsed goal.

    Raises:
      joins.Unsupported: a goal that only the translator handles.
    """
    numbers = {fact: i for i, fact in enumerate(sorted(reached))}
    rules = _goal_rules(domain, goal, static, numbers)
    operators = []
    for index, instances in enumerate(found):
        operators += _operators(domain, index, instances, static, numbers)
    operators.sort()
    variables = [(fact, -1) for fact in numbers] + [(("goal@", ()), 0)]
    lines = ["begin_version", "3", "end_version", "begin_metric", "0", "end_metric"]
    lines.append(str(len(variables)))
    for i, ((predicate, args), layer) in enumerate(variables):
        atom = f"{predicate}({', '.join(args)})"
        lines.append(
            f"begin_variable\nvar{i}\n{layer}\n2\nAtom {atom}\nNegatedAtom {atom}\nend_variable"
        )
    lines += ["0", "begin_state"]
    lines += [str(_TRUE if fact in start else _FALSE) for fact, _ in variables]
    lines += ["end_state", "begin_goal", "1", f"{len(numbers)} {_TRUE}", "end_goal"]
    lines.append(str(len(operators)))
    lines += [_operator_text(*operator) for operator in operators]
    lines.append(str(len(rules)))
    for rule in rules:
        body = "".join(f"{var} {value}\n" for var, value in rule)
        lines.append(f"begin_rule\n{len(rule)}\n{body}{len(numbers)} {_FALSE} {_TRUE}\nend_rule")
    return "\n".join(lines) + "\n"


def _operator_text(name: str, prevail: list, pre_post: list) -> str:
    lines = ["begin_operator", name, str(len(prevail))]
    lines += [f"{var} {value}" for var, value in prevail]
    lines.append(str(len(pre_post)))
    for var, before, after, condition in pre_post:
        extra = "".join(f"{cvar} {cvalue} " for cvar, cvalue in condition)
        lines.append(f"{len(condition)} {extra}{var} {before} {after}")
    lines.append("1\nend_operator")
    return "\n".join(lines)


def _operators(
    domain: Any, index: int, found: Instances, static: Relations, numbers: dict[Fact, int]
) -> list[tuple[str, list, list]]:
    """(name, prevail conditions, effects) of the instances of one action that can be reached."""
    action, condition = domain.actions[index], domain.conditions[index]
    effects = domain.effects[index]
    columns = found.columns
    never = [fact_getter(*literal, columns) for literal in condition.not_static]
    negative = [fact_getter(*literal, columns) for literal in condition.not_fluent]
    named = [p.name for p in action.parameters[: action.num_external_parameters]]
    name_of = fact_getter(action.name, tuple(named), columns)
    simple = _simple_effects(effects)
    makers = [
        (fact_getter(e.predicate, e.args, columns), _FALSE if e.negated else _TRUE)
        for _, e in effects
    ]
    result = []
    for row, required, reachable in zip(*found[1:], strict=True):
        if not reachable or any(row_args in static[p] for p, row_args in (g(row) for g in never)):
            continue
        before = {numbers[fact]: _TRUE for fact in required}
        forbidden = [numbers[f] for f in (get(row) for get in negative) if f in numbers]
        if any(number in before for number in forbidden):
            continue
        before.update(dict.fromkeys(forbidden, _FALSE))
        name = " ".join((action.name, *name_of(row)[1]))
        changes = {}
        if simple:
            for make, value in makers:
                number = numbers.get(make(row))
                if number is not None and changes.setdefault(number, value) != value:
                    break  # added and deleted at once
            else:
                result += _plain(name, before, changes)
                continue
        result += _by_translator(action, row, columns, static, numbers)
    return result


def _simple_effects(effects: list[tuple[Literals, Any]]) -> bool:
    return not any(any(condition) for condition, _ in effects)


def _plain(name: str, before: dict[int, int], changes: dict[int, int]) -> list:
    """An operator without conditional effects; none when it changes nothing."""
    effects = [
        (var, before.get(var, -1), value, [])
        for var, value in sorted(changes.items())
        if before.get(var) != value
    ]
    if not effects:
        return []
    changed = {effect[0] for effect in effects}
    return [(name, sorted(item for item in before.items() if item[0] not in changed), effects)]


class _Member:
    """``in`` for the translator: whether an atom is one of the given facts."""

    def __init__(self, contains: Any):
        self._contains = contains

    def __contains__(self, atom: Any) -> bool:
        return self._contains((atom.predicate, atom.args))


def _by_translator(
    action: Any, row: tuple, columns: dict[str, int], static: Relations, numbers: dict[Fact, int]
) -> list[tuple[str, list, list]]:
    """The same for an instance with conditional effects."""
    from fast_downward.translate import options, translate

    options.add_implied_preconditions = False
    mapping = {variable: row[column] for variable, column in columns.items()}
    unchanging = _Member(lambda fact: fact[1] in static.get(fact[0], ()))
    instance = action.instantiate(mapping, unchanging, {}, _Member(numbers.__contains__), {}, False)
    if instance is None:
        return []
    dictionary, ranges = _Dictionary(numbers), [2] * len(numbers)
    translated = translate.translate_strips_operator(
        instance, dictionary, ranges, dictionary, ranges, {}
    )
    return [(op.name[1:-1], op.prevail, op.pre_post) for op in translated]


def _goal_rules(
    domain: Any, goal: Any, static: Relations, numbers: dict[Fact, int]
) -> list[list[tuple[int, int]]]:
    """The ways to reach the goal, each a list of (variable, value).

    Raises:
      Unsupported: not an existential goal over plain facts, or never or always reached.
    """
    from fast_downward.translate import axiom_rules, normalize, pddl

    task = domain.task([], goal, [])
    normalize.normalize(task)
    if len({axiom.name for axiom in task.axioms}) != 1 or not isinstance(task.goal, pddl.Atom):
        raise Unsupported("a goal that is not one existential formula")
    relations = dict(static)
    for predicate, args in numbers:
        relations.setdefault(predicate, set()).add(args)
    axioms = []
    for axiom in task.axioms:
        literals = domain.split(axiom.parameters, axiom.condition)
        columns, rows = join(literals.static + literals.fluent, relations)
        for row in rows:
            mapping = {variable: row[column] for variable, column in columns.items()}
            axioms.append(_instance(axiom, mapping, static, numbers))
    axioms = sorted(axiom for axiom in axioms if axiom is not None)
    if not axioms:
        raise Unsupported("a goal out of reach")
    axioms, _ = axiom_rules.handle_axioms([], axioms, [task.goal], "min")
    if not all(axiom.condition for axiom in axioms):
        raise Unsupported("a goal that always holds")
    return _translated(axioms, numbers)


def _instance(axiom: Any, mapping: dict, static: Relations, numbers: dict[Fact, int]) -> Any:
    unchanging = _Member(lambda fact: fact[1] in static.get(fact[0], ()))
    return axiom.instantiate(mapping, unchanging, _Member(numbers.__contains__))


def _translated(axioms: list, numbers: dict[Fact, int]) -> list[list[tuple[int, int]]]:
    rules = []
    for axiom in axioms:
        rule = {}
        for literal in axiom.condition:
            number = numbers[literal.predicate, literal.args]
            value = _FALSE if literal.negated else _TRUE
            if rule.setdefault(number, value) != value:
                break  # required and forbidden at once
        else:
            rules.append(sorted(rule.items()))
    return sorted(rules)
