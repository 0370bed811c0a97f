"""ALFWorld in Python alone: a game's own domain and grammar, compiled, played on a set of bits.

A state is one integer, a bit for each changing fact.  Which actions apply, what they are called,
what they say and whether the goal holds are functions of few facts each, so they are computed when
a combination of those facts is first met and looked up afterwards.  Nothing is translated and
nothing is grounded beyond what the episodes reach; no C library is involved.

Text and meaning are those of the published engine; ``check`` compares the two before this is trusted.
What cannot be compiled is refused with its name, and so is a command that could mean two instances
whose conditions differ: which of them the published engine takes depends on its numbering of facts.
One difference stays: a goal that can never be reached is refused at load only when unchanging facts
alone rule it out; the published engine also refuses those that no sequence of actions leads to.
"""

from __future__ import annotations

import weakref
from typing import Any

from evolving_rl_jax import types
from evolving_rl_jax.envs.alfworld.engine.facts import FactTable, Group, Memo, Reader, Reads
from evolving_rl_jax.envs.alfworld.engine.pddl import (
    Fact,
    Row,
    Unsupported,
    initial_fact,
    parse_problem,
    quiet,
    relations,
)
from evolving_rl_jax.envs.alfworld.engine.query import World, reachable
from evolving_rl_jax.envs.alfworld.engine.schema import (
    Conditional,
    Goal,
    Schema,
    compile_domain,
    compile_goal,
)
from evolving_rl_jax.envs.alfworld.engine.text import TextGenerator, entities, load_grammar
from evolving_rl_jax.envs.base import EnvError

__all__ = ["Game", "open_game"]

_NOTHING = "Nothing happens."
# Bytes of a game and of what it remembers, measured in rooms of 12 to 39 receptacles.
_GAME_BYTES, _RESULT_BYTES, _FACT_BYTES = 100_000, 800, 2_000
_OPERATOR_BYTES, _GROUP_BYTES = 900, 1_000


def open_game(data: dict[str, Any], max_bytes: int = 1 << 26) -> Game:
    """Reads a game.

    Args:
      data: content of its file.
      max_bytes: where it forgets what it remembers and begins anew; see ``Game.nbytes``.

    Raises:
      EnvError: its goal always holds or can never be reached, or it has what cannot be compiled.
      BaseException: what the parsers raise for malformed texts.
    """
    with quiet():
        try:
            return Game(data, max_bytes)
        except Unsupported as error:
            raise EnvError(f"engine native cannot compile {error}; play it with stock") from error


class _Operator:
    """An instance of an action that applies somewhere; its effects are worked out at first use."""

    __slots__ = ("schema", "row", "mapping", "kept", "set", "conditionals")

    def __init__(self, schema: Schema, row: Row):
        self.schema, self.row = schema, row
        self.kept: int | None = None

    @property
    def key(self) -> tuple[str, Row]:
        """Name and arguments of the action."""
        return self.schema.name, self.schema.arguments(self.row)

    def required(self) -> tuple[set[Fact], set[Fact]]:
        """The changing facts that must and must not hold."""
        conditions = self.schema.required, self.schema.forbidden
        return tuple({get(self.row) for get in getters} for getters in conditions)


class _View:
    """What the agent may do: command -> operator, and the sorted commands."""

    __slots__ = ("commands", "actions")


class _Branches:
    """A memo for each choice among a few facts that nearly every result depends on."""

    def __init__(self, table: FactTable, groups: list[Group]):
        self._table = table
        self._choice = Reader(groups)
        self._memos: dict[int, Memo] = {}

    def memo(self, state: int) -> Memo:
        """The memo for a state."""
        key = state & self._choice.mask
        memo = self._memos.get(key)
        if memo is None:
            memo = self._memos[key] = Memo(self._table)
        return memo


class Game:
    """One game, shared by all its episodes.  Not thread-safe.

    Attributes:
      root: the initial state.
      intro: the first text.
      won_at_start: whether the goal holds before the first action.
    """

    def __init__(self, data: dict[str, Any], max_bytes: int):
        grammar = load_grammar(data["grammar"])
        self._compiled = compile_domain(data["pddl_domain"], grammar)
        domain = self._compiled.domain
        objects, init, goal = parse_problem(domain, data["pddl_problem"])
        self._max_bytes = max_bytes
        self._objects = {o.name: (o.name, o.type_name) for o in objects}
        static, self._start = relations(domain, objects, init)
        self._world = World(static, self._objects, grammar.predicates)
        weakref.finalize(self, self._world.table.forget)  # breaks the cycles of what it remembers
        facts = self._show_unchanging(init, grammar.predicates)
        self.root = sum(self._world.bit(*fact) for fact in sorted(self._start))
        self._entities = entities(facts)
        self._names = {name: entity.name for name, entity in self._entities.items()}
        kinds = [(t.name, list(t.supertype_names)) for t in domain.types]
        self._text = TextGenerator(grammar, self._world.table, kinds, self._entities)
        self._reached: set[Fact] | None = None
        self._set_goal(compile_goal(domain, goal))
        self.forget()
        self.intro = self._text.derive("#intro#", "#intro#", {}, self.root)
        self.view(self.root)
        self.won_at_start = self._is_won(self.root)

    def _show_unchanging(self, init: list, shown: set[str]) -> set:
        """Tells texts the facts that never change; returns all initial facts."""
        facts = [fact for fact in map(initial_fact, init) if fact is not None]
        for predicate, names in facts:
            if predicate in shown and predicate not in self._compiled.domain.fluents:
                self._world.show(predicate, names, 0)
        return {(p, tuple(self._objects[name] for name in names)) for p, names in facts}

    def _set_goal(self, goal: Goal) -> None:
        unknown = sorted(goal.constants - set(self._objects))
        if unknown:
            raise EnvError(f"the goal names {unknown[0]}, which is not an object of the game")
        self._goal, self._world.derived = goal.query, goal.derived
        possible = any(query.run(self._world, self.root, Reads()) for query in goal.possible)
        if goal.settled or not possible:
            raise EnvError("the goal of the game always holds or can never be reached")

    @property
    def nbytes(self) -> int:
        """Memory that it takes, to a fifth."""
        table = self._world.table
        return (
            _GAME_BYTES
            + _RESULT_BYTES * table.num_results
            + _FACT_BYTES * self._world.num_bits
            + _OPERATOR_BYTES * len(self._operators)
            + _GROUP_BYTES * table.num_groups
        )

    def forget(self) -> None:
        """Drops what is remembered, but for the numbers of facts; episodes under way go on."""
        table = self._world.table
        table.forget()
        self._text.forget()
        self._operators: dict[tuple[Schema, Row], _Operator] = {}
        self._lists: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._won = Memo(table)
        firsts = [schema.query.first for schema in self._compiled.schemas]
        choices = [[] if p is None else [table.group(p, (), ())] for p in firsts]
        self._instances = [_Branches(table, choice) for choice in choices]
        every = {group: None for choice in choices for group in choice}
        self._views = _Branches(table, list(every))

    def step(self, state: int, view: _View, action: str) -> tuple[types.StepResult, int, _View]:
        """What an action does in a state, the state that it leads to, and its view."""
        operator = view.commands.get(action)
        if operator is None:
            text = _NOTHING
        else:
            state = self._apply(operator, state)
            view = self.view(state)
            try:
                text = self._text.derive(
                    operator, operator.schema.feedback, operator.mapping, state
                )
            except ValueError:  # the published engine takes these for an unknown command
                text = _NOTHING
        won = self._is_won(state)
        return types.StepResult(text, view.actions, float(won), won, won), state, view

    def _is_won(self, state: int) -> bool:
        won = self._won.find(state)
        if won is None:
            reads = Reads()
            won = bool(self._goal.run(self._world, state, reads))
            self._won.keep(state, reads, won)
        return won

    def view(self, state: int) -> _View:
        """What can be done in a state."""
        memo = self._views.memo(state)
        view = memo.find(state)
        if view is None:
            if self.nbytes > self._max_bytes:
                self.forget()
                memo = self._views.memo(state)
            reads, pairs = Reads(), []
            for schema, branches in zip(self._compiled.schemas, self._instances, strict=True):
                found, looked_at = self._applicable(schema, branches, state)
                pairs += found
                reads.update(looked_at)
            view = _View()
            view.commands = dict(reversed(pairs))  # of equal commands, the first one counts
            if len(view.commands) < len(pairs):
                _refuse_ambiguous(pairs, view.commands)
            actions = tuple(sorted(view.commands))
            view.actions = self._lists.setdefault(actions, actions)
            memo.keep(state, reads, view)
        return view

    def _applicable(
        self, schema: Schema, branches: _Branches, state: int
    ) -> tuple[list[tuple[str, _Operator]], Reads]:
        """Commands and operators of one action, by arguments, and the facts this depends on."""
        memo = branches.memo(state)
        found = memo.find(state)
        if found is None:
            reads = Reads()
            rows = schema.query.run(self._world, state, reads)
            if not schema.surely_changes:
                rows = [row for row in rows if self._changes(schema, row)]
            by_arguments = {schema.arguments(row): row for row in reversed(rows)}
            pairs = []
            for arguments in sorted(by_arguments):
                operator = self._operator(schema, by_arguments[arguments], arguments)
                pairs.append((self._command(operator, state, reads), operator))
            found = pairs, reads
            memo.keep(state, reads, found)
        return found

    def _operator(self, schema: Schema, row: Row, arguments: Row) -> _Operator:
        operator = self._operators.get((schema, arguments))
        if operator is None:
            operator = self._operators[schema, arguments] = _Operator(schema, row)
            values = zip(schema.parameters, arguments, strict=True)
            operator.mapping = {ph: (name, ph[1]) for ph, name in values}
        return operator

    def _command(self, operator: _Operator, state: int, reads: Reads) -> str:
        """The text of a command; arguments that its template does not show are left out."""
        schema, mapping = operator.schema, operator.mapping
        if schema.template_columns is not None:
            items = list(mapping.items())
            mapping = dict([items[i] for i in schema.template_columns])
        key = (schema.name, tuple(mapping.values()))
        command, looked_at = self._text.derive_with_reads(key, schema.template, mapping, state)
        reads.update(looked_at)
        if "{" in command or "}" in command:
            command = command.format(**{ph[0]: self._names[v[0]] for ph, v in mapping.items()})
        return command

    def _apply(self, operator: _Operator, state: int) -> int:
        if operator.kept is None:
            self._ground(operator)
        new = state & operator.kept | operator.set
        if operator.conditionals:
            clear = add = 0
            for mask, wanted, deleted, added in operator.conditionals:
                if state & mask == wanted:
                    clear |= deleted
                    add |= added
            new = (state & operator.kept & ~clear) | operator.set | add
        return new

    def _ground(self, operator: _Operator) -> None:
        """Works out what an operator does to the bits."""
        schema, row, world = operator.schema, operator.row, self._world
        adds = {get(row) for get in schema.adds}
        deletes = {get(row) for get in schema.deletes} - adds
        clear = add = 0
        for fact in adds:
            add |= world.bit(*fact)
            if fact[0] in self._compiled.negations:
                clear |= world.bit(f"not_{fact[0]}", fact[1])
        for fact in deletes:
            clear |= world.bit(*fact)
            if fact[0] in self._compiled.negations and self._is_told(schema, row, fact):
                add |= world.bit(f"not_{fact[0]}", fact[1])
        operator.set, operator.kept = add, ~clear
        operator.conditionals = self._conditionals(schema, row)

    def _conditionals(self, schema: Schema, row: Row) -> list[tuple[int, int, int, int]]:
        """(facts to look at, those that must hold, deleted, added) of each conditional effect."""
        found = []
        for effect in schema.conditionals:
            fixed = ((get(row), wanted) for get, wanted in effect.static)
            if not all((args in self._world.static[p]) is wanted for (p, args), wanted in fixed):
                continue
            mask = required = 0
            possible = True
            for get, wanted in effect.fluent:
                bit = self._world.bit(*get(row))
                possible &= not mask & bit or bool(required & bit) is wanted
                mask |= bit
                required |= bit if wanted else 0
            if possible:
                bit = self._world.bit(*effect.fact(row))
                found.append((mask, required, 0 if effect.adds else bit, bit * effect.adds))
        return found

    def _changes(self, schema: Schema, row: Row) -> bool:
        """Whether an instance changes anything; the engine does not offer what does not."""
        required = {get(row) for get in schema.required}
        adds = {get(row) for get in schema.adds}
        deletes = {get(row) for get in schema.deletes} - adds
        if adds - required or deletes & required:
            return True
        if any(self._is_told(schema, row, fact) for fact in deletes):
            return True
        forbidden = {get(row) for get in schema.forbidden}
        return any(
            self._may_change(effect, required, forbidden, row) for effect in schema.conditionals
        )

    def _may_change(
        self, effect: Conditional, required: set[Fact], forbidden: set[Fact], row: Row
    ) -> bool:
        for get, wanted in effect.static:
            predicate, arguments = get(row)
            if (arguments in self._world.static[predicate]) is not wanted:
                return False
        for get, wanted in effect.fluent:
            fact = get(row)
            if fact in (forbidden if wanted else required):
                return False
            if wanted and fact not in required and fact not in self._reachable():
                return False
        fact = effect.fact(row)
        if effect.adds:
            return fact not in required
        return fact not in forbidden and (fact in required or fact in self._reachable())

    def _is_told(self, schema: Schema, row: Row, fact: Fact) -> bool:
        """Whether the engine counts a deletion: the fact may have held before."""
        if any(get(row) == fact for get in schema.required):
            return True
        if any(get(row) == fact for get in schema.forbidden):
            return False
        return fact in self._reachable()

    def _reachable(self) -> set[Fact]:
        """All changing facts that can hold when nothing ever becomes false; only seldom needed."""
        if self._reached is None:
            domain, static = self._compiled.domain, self._world.static
            self._reached = reachable(domain, static, self._objects, self._start)
        return self._reached


def _refuse_ambiguous(pairs: list[tuple[str, _Operator]], commands: dict[str, _Operator]) -> None:
    """The published engine takes the first operator by name only among equal conditions."""
    for command, operator in pairs:
        chosen = commands[command]
        if operator.key != chosen.key and operator.required() != chosen.required():
            raise EnvError(
                f"engine native cannot tell which instance of action {operator.schema.name} the "
                f"command {command!r} stands for; play the game with stock"
            )
