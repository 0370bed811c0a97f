"""Plays a walkthrough by the rules of the game's own PDDL, to prove that the game can be won.

A small interpreter of the domain's actions: conditions made of and, or, not, exists, = and facts;
effects made of and, not, when and facts.  It shares nothing with the code that writes the problems
or with the engines, and takes milliseconds a game.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["PlanChecker", "PlanError"]

_TOKEN = re.compile(r"[()]|[^\s()]+")
_COMMANDS = (  # what the agent writes -> action and the parameters that it names
    (re.compile(r"go to (?P<r>.+)"), "gotolocation"),
    (re.compile(r"open (?P<r>.+)"), "openobject"),
    (re.compile(r"close (?P<r>.+)"), "closeobject"),
    (re.compile(r"take (?P<o>.+) from (?P<r>.+)"), "pickupobject"),
    (re.compile(r"move (?P<o>.+) to (?P<r>.+)"), "putobject"),
    (re.compile(r"clean (?P<o>.+) with (?P<r>.+)"), "cleanobject"),
    (re.compile(r"heat (?P<o>.+) with (?P<r>.+)"), "heatobject"),
    (re.compile(r"cool (?P<o>.+) with (?P<r>.+)"), "coolobject"),
    (re.compile(r"use (?P<o>.+)"), "toggleobject"),
)

Facts = dict[str, set[tuple[str, ...]]]
Bindings = dict[str, str]


class PlanError(ValueError):
    """A walkthrough that does not win its game, or PDDL that this interpreter does not read."""


class PlanChecker:
    """Checks walkthroughs of the games of one domain.

    Args:
      domain: text of the PDDL domain.
    """

    def __init__(self, domain: str):
        self._actions: dict[str, tuple[Any, Any]] = {}
        for part in _parse(domain)[2:]:
            if part[0] == ":action":
                fields = dict(zip(part[2::2], part[3::2], strict=True))
                self._actions[part[1]] = fields[":precondition"], fields[":effect"]

    def check(self, problem: str, walkthrough: Sequence[str]) -> None:
        """Plays ``walkthrough`` from the start of ``problem``.

        Raises:
          PlanError: a command is not possible where it comes, or the goal does not hold after the
            last command, or holds before it.
        """
        sections = {part[0]: part[1:] for part in _parse(problem)[1:] if part[0] != ":domain"}
        names = _agent_names(sections[":objects"])
        goal = sections[":goal"][0]
        facts: Facts = {}
        for fact in sections[":init"]:
            if fact[0] != "=":
                facts.setdefault(fact[0], set()).add(tuple(fact[1:]))
        for number, command in enumerate(walkthrough, start=1):
            if _holds(goal, {}, facts):
                raise PlanError(
                    f"goal must not hold before command {number} ({command!r}), it does"
                )
            self._step(command, names, facts)
        if not _holds(goal, {}, facts):
            raise PlanError(f"goal must hold after {len(walkthrough)} commands, it does not")

    def _step(self, command: str, names: dict[str, str], facts: Facts) -> None:
        matches = [(p.fullmatch(command), action) for p, action in _COMMANDS]
        match, action = next((m for m in matches if m[0]), (None, ""))
        if match is None:
            raise PlanError(f"command must be one of ALFWorld's, got {command!r}")
        bound = {}
        for variable, name in match.groupdict().items():
            if name not in names:
                raise PlanError(
                    f"command {command!r} must name things of the game, {name!r} is none"
                )
            bound[f"?{variable}"] = names[name]
        condition, effect = self._actions[action]
        found = next(_solve(condition, bound, facts), None)
        if found is None:
            raise PlanError(f"command {command!r} must be possible where it comes, it is not")
        add: list[tuple[str, tuple[str, ...]]] = []
        delete: list[tuple[str, tuple[str, ...]]] = []
        _collect(effect, found, facts, add, delete)
        lost = any(v in facts.get(n, ()) for n, v in delete if (n, v) not in add)
        if not lost and all(v in facts.get(n, ()) for n, v in add):
            # Such as going where one is already: the engine leaves it out of the possible commands.
            raise PlanError(
                f"command {command!r} must change something where it comes, it does not"
            )
        for name, values in delete:
            facts.get(name, set()).discard(values)
        for name, values in add:
            facts.setdefault(name, set()).add(values)


def _parse(text: str) -> list:
    """Nested lists of lower-case words."""
    stack: list[list] = [[]]
    for token in _TOKEN.findall(re.sub(r";[^\n]*", "", text).lower()):
        if token == "(":
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                raise PlanError("PDDL must have a '(' for every ')'")
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    if len(stack) != 1 or len(stack[0]) != 1:
        raise PlanError("PDDL must be one expression with a ')' for every '('")
    return stack[0][0]


def _agent_names(objects: list[str]) -> dict[str, str]:
    """What the agent reads -> id: numbered within a class, downwards in the order of the ids."""
    ids = sorted(i for i in objects if "_bar_" in i and not i.startswith("loc_"))
    words = {i: i.split("_bar_")[0] + ("basin" if "basin" in i else "") for i in ids}
    left = Counter(words.values())
    names = {}
    for i in ids:
        names[f"{words[i]} {left[words[i]]}"] = i
        left[words[i]] -= 1
    return names


def _holds(formula: list, bound: Bindings, facts: Facts) -> bool:
    return next(_solve(formula, bound, facts), None) is not None


def _solve(formula: list, bound: Bindings, facts: Facts) -> Iterator[Bindings]:
    """All extensions of ``bound`` under which the formula holds."""
    if not formula:
        yield bound
        return
    head = formula[0]
    if head == "and":
        yield from _solve_all(formula[1:], bound, facts)
    elif head == "or":
        yield from itertools.chain(*(_solve(part, bound, facts) for part in formula[1:]))
    elif head == "exists":
        inner = {v: bound[v] for v in bound if v not in formula[1]}
        if _holds(formula[2], inner, facts):
            yield bound
    elif head == "not":
        if _unbound(formula, bound):
            raise PlanError(f"negation must be over known things, got {formula}")
        if not _holds(formula[1], bound, facts):
            yield bound
    elif head == "=":
        if bound.get(formula[1], formula[1]) == bound.get(formula[2], formula[2]):
            yield bound
    elif head in ("forall", "imply"):
        raise PlanError(f"formula must be made of and, or, not, exists, =, got {head}")
    else:
        yield from _match(formula, bound, facts)


def _match(atom: list, bound: Bindings, facts: Facts) -> Iterator[Bindings]:
    wanted = [bound.get(word, word) for word in atom[1:]]
    if not any(word[0] == "?" for word in wanted):
        if tuple(wanted) in facts.get(atom[0], ()):
            yield bound
        return
    for values in facts.get(atom[0], ()):
        found = dict(bound)
        for word, value in zip(wanted, values, strict=True):
            if word[0] == "?" and found.setdefault(word, value) == value:
                continue
            if word != value:
                break
        else:
            yield found


def _solve_all(parts: list, bound: Bindings, facts: Facts) -> Iterator[Bindings]:
    """A conjunction, the part with the fewest open variables first; facts before other parts."""
    if not parts:
        yield bound
        return
    ranks = [_rank(part, bound, facts) for part in parts]
    best = ranks.index(min(ranks))
    rest = parts[:best] + parts[best + 1 :]
    for found in _solve(parts[best], bound, facts):
        yield from _solve_all(rest, found, facts)


def _rank(part: list, bound: Bindings, facts: Facts) -> tuple[int, int]:
    unbound = len(_unbound(part, bound))
    if not unbound:
        return 0, 0
    if part[0] in ("not", "=", "or"):
        return 3, unbound
    return (2, unbound) if part[0] == "exists" else (1, len(facts.get(part[0], ())))


def _unbound(part: list, bound: Bindings) -> set[str]:
    """Variables that ``bound`` lacks, those that the part quantifies itself aside."""
    found: set[str] = set()
    own: set[str] = set(part[1]) if part and part[0] == "exists" else set()
    for item in part[2:] if own else part[1:]:
        if isinstance(item, list):
            found |= _unbound(item, bound)
        elif item[0] == "?" and item not in bound:
            found.add(item)
    return found - own


def _collect(effect: list, bound: Bindings, facts: Facts, add: list, delete: list) -> None:
    head = effect[0]
    if head == "and":
        for part in effect[1:]:
            _collect(part, bound, facts, add, delete)
    elif head == "when":
        if _holds(effect[1], bound, facts):
            _collect(effect[2], bound, facts, add, delete)
    elif head == "not":
        atom = effect[1]
        delete.append((atom[0], tuple(bound.get(w, w) for w in atom[1:])))
    elif head == "forall":
        raise PlanError("effects must be made of and, not, when, got forall")
    elif head != "increase":
        add.append((head, tuple(bound.get(w, w) for w in effect[1:])))
