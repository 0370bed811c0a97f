"""Text of ALFWorld games: evaluates the grammar shipped inside each game, remembering results.

The grammar is parsed by textworld's own parser; only its evaluation is done here, because the
published evaluator copies every context and searches all facts again for every admissible action.
Each derived text is remembered together with the facts that it looked at, so it is derived again
only when one of those facts changed.

Expressions inside a grammar are evaluated as Python, as in the published engine: a game is code, so
play only games whose source you trust.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import textworld.logic
from textworld.envs.pddl import logic as pddl_logic
from textworld.envs.pddl import textgen

from evolving_rl_jax.envs.alfworld.engine.facts import FactTable, Memo, Reads
from evolving_rl_jax.envs.alfworld.games import PLACEHOLDER, shared_grammar

__all__ = ["Grammar", "TextGenerator", "entities", "load_grammar"]

Variable = tuple[str, str]  # object name, type
Arguments = tuple[Variable, ...]


class Grammar:
    """A parsed grammar.

    Attributes:
      templates: action name -> template of its command.
      feedback: action name -> text to derive after it.
      predicates: those that the grammar asks for; no other fact has an influence on any text.
      shared: the same grammar before its task sentence was put in.
    """

    def __init__(self, text: str):
        parsed = pddl_logic.GameLogic(domain="", grammar=text)
        self.shared = self
        self.templates = {name: action.template for name, action in parsed.actions.items()}
        self.feedback = {name: action.feedback_rule for name, action in parsed.actions.items()}
        self._rules = {
            name: [(_query(r.condition), [_compile(s) for s in r.rhs]) for r in rules]
            for name, rules in parsed.grammar._rules.items()
        }
        self.predicates = {part[0] for query in self._queries() for part in query}

    def _queries(self) -> Iterator[tuple]:
        for rules in self._rules.values():
            for condition, symbols in rules:
                yield condition
                yield from _queries(symbols)
        for text in (*self.templates.values(), *self.feedback.values()):
            yield from _queries(self.symbols(text))

    def rules(self, name: str) -> list[tuple[tuple, list]]:
        """The alternatives of a rule as (condition, symbols)."""
        if name not in self._rules:
            raise LookupError(f"the grammar has no rule {name!r}")
        return self._rules[name]

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def symbols(text: str) -> tuple:
        """Parses a text such as ``"go to {r}"`` into symbols."""
        return tuple(_compile(s) for s in textgen._parse_and_convert(text, rule_name="symbols"))

    def with_task(self, sentence: str) -> Grammar:
        """The same grammar, its placeholder sentence replaced."""
        new = object.__new__(Grammar)
        new.templates, new.feedback = self.templates, self.feedback
        new.predicates, new.shared = self.predicates, self.shared
        new._rules = {name: list(rules) for name, rules in self._rules.items()}
        for name, rules in new._rules.items():
            for i, (condition, symbols) in enumerate(rules):
                if any(kind == "text" and PLACEHOLDER in value for kind, value in symbols):
                    new_symbols = [
                        (k, v.replace(PLACEHOLDER, sentence) if k == "text" else v)
                        for k, v in symbols
                    ]
                    new._rules[name][i] = (condition, new_symbols)
        return new


def entities(facts: set) -> dict[str, Any]:
    """Object name -> textworld entity, named by ALFWorld's own demangler ("mug 1")."""
    from alfworld.agents.utils.misc import Demangler
    from textworld.generator.game import EntityInfo

    found = {name: EntityInfo(name, kind) for _, args in facts for name, kind in args}
    demangler = Demangler(game_infos=found, shuffle=False)
    for entity in found.values():
        entity.name = demangler.demangle_alfred_name(entity.id)
        entity.definite, entity.indefinite = "the", "a"
    return found


@functools.lru_cache(maxsize=8)
def _parse(text: str) -> Grammar:
    return Grammar(text)


def load_grammar(text: str) -> Grammar:
    """Parses a game's grammar; games that differ only in their task sentence share the parse."""
    shared, sentence = shared_grammar(text)
    return _parse(shared) if sentence is None else _parse(shared).with_task(sentence)


def _compile(symbol: Any) -> tuple[str, Any]:
    """A textworld symbol as (kind, value); the kinds are the cases of ``TextGenerator._emit``."""
    if isinstance(symbol, textgen.TerminalSymbol):
        return "text", str(symbol.symbol)
    if isinstance(symbol, textgen.NonterminalSymbol):
        return "rule", symbol.symbol
    if isinstance(symbol, textgen.EvalSymbol):
        return "eval", compile(symbol.expression.strip(), "<grammar>", "eval")
    if isinstance(symbol, textgen.ConditionalSymbol):
        return "each", (_compile(symbol.expression), _query(symbol.given))
    return "list", _compile(symbol.symbol)


def _queries(symbols: Iterable[tuple[str, Any]]) -> Iterator[tuple]:
    """The queries inside compiled symbols."""
    for kind, value in symbols:
        if kind == "each":
            yield value[1]
            yield from _queries([value[0]])
        elif kind == "list":
            yield from _queries([value])


@functools.lru_cache(maxsize=4096)
def _query(expression: str | None) -> tuple:
    """A conjunctive query as a tuple of (predicate, types, placeholders)."""
    if not expression:
        return ()
    rule = textworld.logic.Rule.parse_conjunctive_query(expression)
    return tuple(
        (p.name, tuple(p.signature.types), tuple((ph.name, ph.type) for ph in p.parameters))
        for p in rule.preconditions
    )


@functools.lru_cache(maxsize=16)
def _subtypes(types: tuple[tuple[str, tuple[str, ...]], ...]):
    """A function from a tuple of type names to all tuples of their subtypes, in engine order."""
    hierarchy = textworld.logic.TypeHierarchy()
    known = set()
    for name, parents in types:
        if name not in known:
            known.add(name)
            hierarchy.add(textworld.logic.Type(name, list(parents)))

    @functools.cache
    def expand(names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        members = [hierarchy.get(name) for name in names]
        return tuple(tuple(t.name for t in ts) for ts in hierarchy.multi_subtypes(members))

    return expand


class TextGenerator:
    """Derives texts of one game from its grammar and the facts that hold."""

    def __init__(
        self,
        grammar: Grammar,
        table: FactTable,
        types: list[tuple[str, list[str]]],
        entities: dict[str, Any],
    ):
        """Args:
        grammar: of the game.
        table: its facts; a relation is (predicate, types of the arguments), the arguments are
          ``Variable``s, and negated facts have ``not_`` before their predicate.
        types: (name, supertypes) of each PDDL type.
        entities: object name -> ``textworld`` entity, already carrying its displayed name.
        """
        self._grammar = grammar
        self._table = table
        self._entities = entities
        self._subtypes = _subtypes(tuple((name, tuple(parents)) for name, parents in types))
        self._known: dict[Any, Memo] = {}
        self._reads = Reads()

    def derive(self, key: Any, text: str, mapping: dict, facts: int) -> str:
        """Derives ``text``.

        Args:
          key: stands for (text, mapping) in the memory of results.
          text: for instance ``"#intro#"`` or ``"open {r}"``.
          mapping: (placeholder, type) -> (object, type) of the action's parameters.
          facts: the set of facts that hold.
        """
        return self.derive_with_reads(key, text, mapping, facts)[0]

    def derive_with_reads(
        self, key: Any, text: str, mapping: dict, facts: int
    ) -> tuple[str, Reads]:
        """As ``derive``, and the facts that the text depends on."""
        memo = self._known.get(key)
        if memo is None:
            memo = self._known[key] = Memo(self._table)
        found = memo.find(facts)
        if found is None:
            reads = self._reads = Reads()
            out: list[str] = []
            variables = {ph[0]: self._entities[var[0]] for ph, var in mapping.items()}
            self._emit(self._grammar.symbols(text), variables, mapping, facts, out)
            found = "".join(out), reads
            memo.keep(facts, reads, found)
        return found

    def forget(self) -> None:
        """Drops all remembered texts."""
        self._known = {}

    def _emit(self, symbols: Any, variables: dict, mapping: dict, facts: int, out: list) -> None:
        for kind, value in symbols:
            if kind == "text":
                out.append(value)
            elif kind == "rule":
                body = self._choose(value, mapping, facts)
                self._emit(body, variables, mapping, facts, out)
            elif kind == "eval":
                out.append(str(eval(value, {}, variables)))
            elif kind == "each":
                for v, m in self._contexts(value[1], variables, mapping, facts):
                    self._emit((value[0],), v, m, facts, out)
            else:
                self._emit_list(value, variables, mapping, facts, out)

    def _emit_list(self, each: Any, variables: dict, mapping: dict, facts: int, out: list) -> None:
        expression, query = each[1]
        contexts = self._contexts(query, variables, mapping, facts)
        if not contexts:
            self._emit((("rule", "list_empty"),), variables, mapping, facts, out)
        for i, (v, m) in enumerate(contexts):
            if i:
                name = "list_last_separator" if i == len(contexts) - 1 else "list_separator"
                self._emit((("rule", name),), variables, mapping, facts, out)
            self._emit((expression,), v, m, facts, out)

    def _choose(self, name: str, mapping: dict, facts: int) -> list:
        for condition, symbols in self._grammar.rules(name):
            if not condition or any(True for _ in self._matches(condition, mapping, facts)):
                return symbols
        raise LookupError(f"no alternative of grammar rule {name!r} applies")

    def _contexts(self, query: tuple, variables: dict, mapping: dict, facts: int) -> list[tuple]:
        if not query:
            return [(variables, mapping)]
        contexts = []
        for found in self._matches(query, mapping, facts):
            new = {ph[0]: self._entities[var[0]] for ph, var in found.items()}
            contexts.append(({**variables, **new}, found))
        return contexts

    def _matches(self, query: tuple, mapping: dict, facts: int) -> Iterator[dict]:
        """All extensions of ``mapping`` under which the query holds, in the engine's order."""
        yield from self._search(query, 0, dict(mapping), set(mapping.values()), facts)

    def _search(self, query: tuple, i: int, mapping: dict, used: set, facts: int) -> Iterator[dict]:
        if i == len(query):
            yield dict(mapping)
            return
        predicate, types, placeholders = query[i]
        bound = [p for p, ph in enumerate(placeholders) if ph in mapping]
        values = [mapping[placeholders[p]] for p in bound]
        for names in self._subtypes(types):
            if any(names[p] != value[1] for p, value in zip(bound, values, strict=True)):
                continue
            group = self._table.group((predicate, names), tuple(bound), tuple(values))
            self._reads.groups[group] = None
            for arguments in group.holding(facts):
                new = self._bind(placeholders, arguments, mapping, used)
                if new is None:
                    continue
                yield from self._search(query, i + 1, mapping, used, facts)
                for ph in new:
                    used.discard(mapping.pop(ph))

    @staticmethod
    def _bind(placeholders: Arguments, arguments: Arguments, mapping: dict, used: set):
        """Binds what is not bound yet; the placeholders bound, or None where it does not fit."""
        bound = []
        for ph, var in zip(placeholders, arguments, strict=True):
            current = mapping.get(ph)
            if current is None and var not in used:
                mapping[ph] = var
                used.add(var)
                bound.append(ph)
            elif current != var:
                for undo in bound:
                    used.discard(mapping.pop(undo))
                return None
        return bound
