"""ALFWorld on its published engine, made fast: nothing is computed twice.

The C library decides which actions apply, what they change and whether the goal holds; the game's
own grammar gives the text.  Games are deterministic, so every state visited becomes a node that
remembers its admissible commands and where each leads.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable
from typing import Any

from evolving_rl_jax import types
from evolving_rl_jax.envs.alfworld.downward import Library, LibraryPool
from evolving_rl_jax.envs.alfworld.engine.facts import FactTable
from evolving_rl_jax.envs.alfworld.engine.text import TextGenerator, load_grammar
from evolving_rl_jax.envs.alfworld.games import GameStore, entities, read_game
from evolving_rl_jax.envs.alfworld.translation import Translation, TranslationCache
from evolving_rl_jax.envs.base import EnvError, Environment

__all__ = ["CachedAlfworld", "CachedGames", "Game"]

_NOTHING = "Nothing happens."
_LITERAL = re.compile(r"^(?:Negated)?Atom ([^( ]+)\((.*)\)$", re.MULTILINE)


class _Node:
    """A state of a game: what can be done in it and where that leads."""

    __slots__ = ("parent", "operator", "facts", "state", "load", "won", "commands", "actions")
    __slots__ += ("edges",)

    def __init__(self, parent: _Node | None, operator: int, facts: int):
        self.parent = parent
        self.operator = operator  # that led here from the parent
        self.facts = facts
        self.edges: dict[str, tuple[types.StepResult, _Node]] = {}


class _Operator:
    """A grounded action: its command and feedback templates, and what it does to the facts."""

    __slots__ = ("name", "id", "template", "feedback", "mapping", "clear", "set")


class Game:
    """One game, shared by all its episodes.  Not thread-safe."""

    def __init__(
        self, data: dict[str, Any], translation: Translation, pool: LibraryPool, max_nodes: int
    ):
        self._translation = translation
        self._pool = pool
        self._max_nodes, self._num_nodes = max_nodes, 0
        self._linked: list[_Node] = []  # those with edges
        self._nodes: dict[tuple[int, int], _Node] = {}  # by (state, facts) since the last load
        self._loads, self._stale = 0, False
        self._operators: dict[int, _Operator] = {}
        self._commands: dict[tuple, tuple[dict[str, int], tuple[str, ...]]] = {}
        self._grammar = load_grammar(data["grammar"])
        self._variables = {name: (name, kind) for name, kind in translation.objects.items()}
        sas = translation.sas
        facts = {(name, self._arguments(names)) for name, names in translation.init}
        shown = {fact for fact in facts if fact[0] in self._grammar.predicates}
        self._bits = _numbered(shown | self._literals(sas))
        self._table = FactTable()
        weakref.finalize(self, _untie, self._linked, self._table)
        for (predicate, arguments), bit in self._bits.items():
            self._table.add((predicate, tuple(v[1] for v in arguments)), arguments, bit)
        found = entities(facts)
        self._names = {name: entity.name for name, entity in found.items()}
        self._text = TextGenerator(self._grammar, self._table, translation.types, found)
        library, _ = pool.borrow(self)
        self.root = _Node(None, -1, sum(self._bits[fact] for fact in shown))
        self._load(library, sas)
        self._complete(self.root, library)
        self.intro = self._text.derive("#intro#", "#intro#", {}, self.root.facts)

    def step(self, node: _Node, action: str) -> tuple[types.StepResult, _Node]:
        """What an action does in a state, and the state that it leads to."""
        found = node.edges.get(action)
        if found is not None:
            return found
        operator = node.commands.get(action)
        if operator is None:
            return _result(_NOTHING, node), node
        found = self._apply(node, self._operators[operator])
        if not node.edges:
            self._linked.append(node)
        node.edges[action] = found
        return found

    def _apply(self, node: _Node, op: _Operator) -> tuple[types.StepResult, _Node]:
        library = self._library()
        state = library.apply(self._state(node, library), op.id)
        facts = (node.facts & ~op.clear) | op.set
        child = self._nodes.get((state, facts))
        if child is None:
            if self.size >= self._max_nodes:
                self.forget()
            child = _Node(node, op.id, facts)
            self._place(child, state)
            self._complete(child, library)
            self._num_nodes += 1
        try:
            text = self._text.derive((op.name, "feedback"), op.feedback, op.mapping, facts)
        except ValueError:  # the published engine takes these for an unknown command
            text = _NOTHING
        return _result(text, child), child

    @property
    def size(self) -> int:
        """States and texts remembered."""
        return self._num_nodes + self._table.size

    def forget(self) -> None:
        """Drops what is remembered; episodes under way keep their own states."""
        _untie(self._linked, self._table)
        self._nodes, self._num_nodes = {}, 0
        self._commands = {}
        self._text.forget()
        self._stale = True  # the library never forgets a state while a game stays loaded

    def _complete(self, node: _Node, library: Library) -> None:
        """Fills in the commands of a new state."""
        commands: dict[str, int] = {}
        seen = set()
        for number, name, num_effects in library.operators(node.state):
            op = self._operators.get(number)
            if op is None:
                op = self._new_operator(number, name, num_effects, node.state, library)
            if op.name in seen:
                continue
            seen.add(op.name)
            command = self._text.derive(op.name, op.template, op.mapping, node.facts)
            if "{" in command or "}" in command:
                names = {ph[0]: self._names[v[0]] for ph, v in op.mapping.items()}
                command = command.format(**names)
            commands.setdefault(command, number)
        node.won = library.goal_reached(node.state)
        same = (commands, tuple(sorted(commands)))  # most states share theirs with many others
        node.commands, node.actions = self._commands.setdefault(tuple(commands.items()), same)

    def _new_operator(
        self, number: int, text: str, num_effects: int, state: int, library: Library
    ) -> _Operator:
        op = _Operator()
        op.name, op.id = text, number
        name, *names = text.split()
        parameters = self._translation.parameters[name]
        op.mapping = {ph: (arg, ph[1]) for ph, arg in zip(parameters, names, strict=False)}
        op.template = self._grammar.templates[name]
        op.feedback = self._grammar.feedback[name]
        op.clear = op.set = 0
        for literal in library.effects(state, number, num_effects):
            predicate, names = _LITERAL.match(literal).groups()
            arguments = self._arguments(names.split(", ")) if names else ()
            if literal.startswith("Negated"):
                predicate = "not_" + predicate
            opposite = self._bits.get((_negated(predicate), arguments), 0)
            op.clear |= opposite
            op.set = (op.set & ~opposite) | self._bits.get((predicate, arguments), 0)
        self._operators[number] = op
        return op

    def _library(self) -> Library:
        library, still_loaded = self._pool.borrow(self)
        if self._stale or not still_loaded:
            self._load(library, self._translation.sas)
        return library

    def _load(self, library: Library, sas: bytes) -> None:
        self._loads, self._stale = self._loads + 1, False
        self._nodes = {}  # the library numbers its states anew
        self._place(self.root, library.load(sas))

    def _place(self, node: _Node, state: int) -> None:
        node.state, node.load = state, self._loads
        self._nodes[state, node.facts] = node

    def _state(self, node: _Node, library: Library) -> int:
        """The library's number of a state; after a reload it is reached again from the start."""
        path = []
        while node.load != self._loads:
            path.append(node)
            node = node.parent
        for child in reversed(path):
            self._place(child, library.apply(node.state, child.operator))
            node = child
        return node.state

    def _arguments(self, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
        return tuple(map(self._variables.__getitem__, names))

    def _literals(self, sas: bytes) -> set:
        """All facts, negated ones included, that can change and that the grammar speaks of."""
        shown = self._grammar.predicates
        found = set()
        for predicate, names in _LITERAL.findall(sas[: sas.index(b"begin_state")].decode()):
            for name in (predicate, _negated(predicate)):
                if name in shown:
                    arguments = self._arguments(names.split(", ")) if names else ()
                    found.add((name, arguments))
        return found


def _numbered(facts: set) -> dict[Any, int]:
    return {fact: 1 << i for i, fact in enumerate(sorted(facts))}


def _negated(predicate: str) -> str:
    return predicate[4:] if predicate.startswith("not_") else "not_" + predicate


def _result(text: str, node: _Node) -> types.StepResult:
    return types.StepResult(text, node.actions, float(node.won), node.won, node.won)


def _untie(linked: list[_Node], table: FactTable) -> None:
    """Breaks all cycles, so that states and texts are freed at once and not when all are searched."""
    for node in linked:  # a state and those that it leads to hold each other
        node.edges.clear()
    linked.clear()
    table.forget()


class CachedGames(GameStore):
    """The games of one process, their translations and their copies of the library."""

    def __init__(
        self,
        cache_dir: str | None,
        max_games: int,
        max_loaded: int,
        max_nodes: int,
        max_states: int,
    ):
        self._translations = TranslationCache(cache_dir)
        self._pool = LibraryPool(max_loaded)
        self._max_nodes = max_nodes
        super().__init__(self._game, max_games, max_states)

    def translate(self, folder: str) -> None:
        """Makes sure that a game's translation is on disk."""
        data = read_game(folder)
        self._translations.get(data["pddl_domain"], data["pddl_problem"])

    def _game(self, data: dict[str, Any]) -> Game:
        translation = self._translations.get(data["pddl_domain"], data["pddl_problem"])
        return Game(data, translation, self._pool, self._max_nodes)


class CachedAlfworld(Environment):
    """An episode of a game of a ``GameStore``; many of them share the store."""

    def __init__(self, store: CachedGames):
        self._store = store
        self._game: Game | None = None
        self._node: _Node | None = None

    def reset(self, task: types.Task) -> types.Observation:
        self._game = self._store.game(task.path)
        self._node = self._game.root
        return types.Observation(self._game.intro, self._node.actions)

    def step(self, action: str) -> types.StepResult:
        if self._node is None:
            raise EnvError("step was called before reset")
        result, self._node = self._game.step(self._node, action.strip())
        return result

    def prepare(self, task: types.Task) -> None:
        self._store.translate(task.path)

    def load(self, task: types.Task) -> None:
        self._store.game(task.path)

    def close(self) -> None:
        self._game = self._node = None
