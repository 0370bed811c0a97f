"""The shape of a skill, reading one from model text, and writing one into a prompt.

Syntax is strict and content is tolerant.  A candidate must be standard JSON, because the extractor
is rewarded for what this parser accepts and should not learn that broken JSON is good enough.
Around it there may be prose, code fences or other objects, and inside it a field of the wrong type
is converted to text instead of refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from evolving_rl_jax.files import encodable

MAX_DEPTH = 32  # nesting levels accepted in a skill; real ones use four
_MAX_BROKEN = 1000  # objects that fail to parse before the search ends; each error costs a pass
_MAX_DIGITS = 300  # longer integers stay text (Python itself refuses to convert beyond 4300 digits)

_TEXT_FIELDS = ("name", "description")
_LIST_FIELDS = ("when_to_use", "decision_rules")
_ENTRY_FIELDS = {"workflow": "action", "error_handling": "error"}  # field -> key of a bare string
_FIELDS = (*_TEXT_FIELDS, *_LIST_FIELDS, *_ENTRY_FIELDS)
_OPTIONAL = (
    "metadata",
    "skill_overview",
    "when_not_to_use",
    "inputs_to_identify",
    "output_requirements",
)
_KNOWN = frozenset((*_FIELDS, *_OPTIONAL))
_OBJECT_START = re.compile(r'\{\s*["}]')
_STEP_NUMBER = re.compile(r"(?i)(?:step\s*)?\d+[.):]?")


@dataclasses.dataclass(frozen=True)
class Skill:
    """One reusable piece of experience.

    Attributes:
      name: short handle, never empty.
      description: what it does and when it helps, never empty.
      when_to_use: situations, one text each.
      workflow: ordered steps, each a mapping of text to text with any of ``goal``, ``action``,
        ``tools_or_strategy``, ``completion_condition``.
      decision_rules: one text each.
      error_handling: mappings of text to text with any of ``error``, ``cause``, ``response``.
      extra: every other field that the text had, as JSON values.
    """

    name: str
    description: str
    when_to_use: tuple[str, ...] = ()
    workflow: tuple[Mapping[str, str], ...] = ()
    decision_rules: tuple[str, ...] = ()
    error_handling: tuple[Mapping[str, str], ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The skill as JSON values; ``Skill.from_dict`` gives an equal skill back."""
        return {
            "name": self.name,
            "description": self.description,
            "when_to_use": list(self.when_to_use),
            "workflow": [dict(step) for step in self.workflow],
            "decision_rules": list(self.decision_rules),
            "error_handling": [dict(entry) for entry in self.error_handling],
            **self.extra,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Skill:
        """Builds a skill from JSON values, converting fields of the wrong type to text.

        Raises:
          ValueError: ``data`` is no mapping, is nested deeper than ``MAX_DEPTH`` levels, or has no
            non-empty name or description.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"a skill must be a JSON object, got {type(data).__name__}")
        data = _clean(data)
        texts = {key: _flatten(data.get(key) or "").strip() for key in _TEXT_FIELDS}
        for key, text in texts.items():
            if not text:
                raise ValueError(f"{key} must be a non-empty text, got {_short(data.get(key))}")
        return cls(
            name=" ".join(texts["name"].split()),
            description=texts["description"],
            extra={key: value for key, value in data.items() if key not in _FIELDS},
            **{key: _texts(data.get(key)) for key in _LIST_FIELDS},
            **{key: _entries(data.get(key), bare) for key, bare in _ENTRY_FIELDS.items()},
        )


def parse_skill(text: str) -> tuple[Skill | None, str]:
    """Finds a skill in what a model wrote.  Never raises, and takes time linear in the text.

    Among several JSON objects with a name and a description, the one with the most fields of the
    schema wins, then the longest, then the last.  An object that only wraps others (it has no field
    of the schema itself) is opened.  Parts of a broken object are never taken for a skill.

    Args:
      text: model output; anything else is refused with a reason.

    Returns:
      ``(skill, "")``, or ``(None, reason)`` with a one-line reason.

    >>> parse_skill('Done. {"name": "Mugs", "description": "They are kept in cabinet 3."}')[0].name
    'Mugs'
    >>> parse_skill('{"name": "Mugs"}')
    (None, 'description must be a non-empty text, got null')
    """
    if not isinstance(text, str):
        return None, f"model output must be a text, got {type(text).__name__}"
    best, best_rank, reason = None, (-1, -1), "no JSON object found"
    for found, length in _json_objects(text):
        if isinstance(found, str):
            reason = found if best is None else reason
            continue
        for data in _open_wrappers(found):
            try:
                skill = Skill.from_dict(data)
            except ValueError as error:
                reason = str(error)
                continue
            rank = (len(_KNOWN.intersection(data)), length)
            if rank >= best_rank:
                best, best_rank = skill, rank
    return (None, reason) if best is None else (best, "")


def render_skill(
    skill: Skill,
    style: str = "markdown",
    max_tokens: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> str:
    """Writes a skill for a prompt.

    Args:
      skill: what to write.
      style: ``"markdown"`` for language models (all fields but ``metadata``, one section each),
        ``"compact"`` for small policies (one line, ``name: description``).
      max_tokens: longest result in tokens; the least important text, which is the last, is dropped,
        whole lines first, then words.  None = no limit.
      count_tokens: number of tokens of a text; needed with ``max_tokens``.

    Returns:
      The text, without a newline at the end.

    Raises:
      ValueError: unknown style, ``max_tokens`` below 1 or without ``count_tokens``.
    """
    if style not in ("markdown", "compact"):
        raise ValueError(f"style must be 'markdown' or 'compact', got {style!r}")
    if style == "compact":
        lines = [f"{skill.name}: {' '.join(skill.description.split())}"]
    else:
        lines = _markdown_lines(skill)
    if max_tokens is None:
        return "\n".join(lines)
    if count_tokens is None:
        raise ValueError(f"count_tokens must be given with max_tokens={max_tokens}, got None")
    return fit_text("\n".join(lines), max_tokens, count_tokens)


def text_to_audit(skill: Skill) -> str:
    """All that a skill says, as in Markdown, but with the lines of its fields as they were written.

    A list item of several lines is one line in a prompt; an audit reads them one by one.
    """
    return "\n".join(_markdown_lines(skill, _own_lines))


def fit_text(text: str, max_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """The beginning of a text that fits a number of tokens: whole lines, or else whole words.

    Headings that nothing follows any more are left out too.

    Raises:
      ValueError: ``max_tokens`` is below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    lines = text.split("\n")
    fitting = _longest_prefix(lines, "\n", max_tokens, count_tokens)
    if fitting:
        return "\n".join(_drop_open_heading(lines[:fitting]))
    words = lines[0].split(" ")
    return " ".join(words[: _longest_prefix(words, " ", max_tokens, count_tokens)])


# ---------------------------------------------------------------------------------------- reading


def _parse_int(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MAX_DIGITS else digits


def _parse_float(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits  # 1e999 has no JSON form as a number


_DECODER = json.JSONDecoder(parse_int=_parse_int, parse_float=_parse_float, parse_constant=str)


def _json_objects(text: str) -> Iterator[tuple[Any, int]]:
    """Yields ``(object, source length)``, or ``(reason, 0)`` where an object failed to parse."""
    start, broken = _OBJECT_START.search(text), 0
    while start and broken < _MAX_BROKEN:
        begin = start.start()
        try:
            value, end = _DECODER.raw_decode(text, begin)
            yield value, end - begin
        except json.JSONDecodeError as error:
            yield f"invalid JSON: {error.msg} at character {error.pos}", 0
            end = max(begin + 1, _resume(text, begin, error.pos))
            broken += 1
        except RecursionError:
            yield f"nested deeper than {MAX_DEPTH} levels", 0
            return
        start = _OBJECT_START.search(text, end)


def _resume(text: str, begin: int, error: int) -> int:
    """Where to look on after a syntax error.

    At the error, so that parts of the broken object are not read as objects of their own; but after
    a string from its start, whose quotes a stray one may have swapped (``{"a} no. {"name": ...``).
    """
    close = error - 1
    while close > begin and text[close].isspace():
        close -= 1
    if text[close] != '"':
        return error
    opening = text.rfind('"', begin, close)
    return error if opening < 0 else opening


def _open_wrappers(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the outermost objects with a field of the schema, or ``value`` if there is none."""
    pending, found = [(value, 0)], False
    while pending:
        item, depth = pending.pop()
        if isinstance(item, dict) and not _KNOWN.isdisjoint(item):
            found = True
            yield item
        elif isinstance(item, dict | list) and depth < MAX_DEPTH:
            children = item.values() if isinstance(item, dict) else item
            pending.extend((child, depth + 1) for child in reversed(list(children)))
    if not found:
        yield value


def _clean(value: Any, depth: int = 0) -> Any:
    """Copies JSON values with lone surrogates replaced, see `files.encodable`."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {_clean(str(key)): _clean(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item, depth + 1) for item in value]
    return value


def _flatten(value: Any) -> str:
    """One text for any JSON value: ``{"a": [1, 2]}`` becomes ``a: 1; 2``."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        parts = [(key, _flatten(item)) for key, item in value.items()]
        return "; ".join(f"{key}: {text}" for key, text in parts if text)
    if isinstance(value, list | tuple):
        return "; ".join(filter(None, map(_flatten, value)))
    return str(value)


def _texts(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(filter(None, map(_flatten, items)))


def _entries(value: Any, bare: str) -> tuple[Mapping[str, str], ...]:
    """Text-to-text mappings from whatever was written; bare texts get the key ``bare``."""
    if isinstance(value, Mapping):
        numbered = value and all(
            isinstance(item, Mapping) or _STEP_NUMBER.fullmatch(str(key)) and isinstance(item, str)
            for key, item in value.items()
        )
        value = list(value.values()) if numbered else [value]
    entries = []
    for item in value if isinstance(value, list) else [value]:
        fields = item if isinstance(item, Mapping) else {bare: item}
        entry = {str(key): _flatten(field) for key, field in fields.items()}
        if _STEP_NUMBER.fullmatch(entry.get("step", "")):
            del entry["step"]  # the order says it
        entries.append({key: text for key, text in entry.items() if text})
    return tuple(filter(None, entries))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


# ---------------------------------------------------------------------------------------- writing


def _line(text: str) -> str:
    return " ".join(text.split())


def _own_lines(text: str) -> str:
    return "\n".join(filter(None, map(_line, text.splitlines())))


def _entry_text(entry: Mapping[str, str], head_key: str, body_key: str) -> str:
    rest = dict(entry)
    head, body = rest.pop(head_key, ""), rest.pop(body_key, "")
    details = [f"{key.replace('_', ' ')}: {text}" for key, text in rest.items()]
    lead = f"**{_line(head)}**: {body}" if head and body else f"{head}{body}"
    if not details:
        return lead
    return f"{lead} ({'; '.join(details)})" if lead else "; ".join(details)


def _markdown_lines(skill: Skill, line: Callable[[str], str] = _line) -> list[str]:
    """The lines of a skill; ``line`` makes one list item of a text."""
    lines = [f"# Skill: {skill.name}", "", *skill.description.splitlines()]
    steps = [_entry_text(step, "goal", "action") for step in skill.workflow]
    errors = [_entry_text(entry, "error", "response") for entry in skill.error_handling]
    sections = [
        ("Overview", _bullets(_texts(skill.extra.get("skill_overview")), line)),
        ("When to use", _bullets(skill.when_to_use, line)),
        ("Workflow", [f"{i}. {line(text)}" for i, text in enumerate(steps, 1)]),
        ("Decision rules", _bullets(skill.decision_rules, line)),
        ("Error handling", _bullets(errors, line)),
    ]
    for key, value in skill.extra.items():
        if key not in ("metadata", "skill_overview"):
            title = _line(key.replace("_", " ")).capitalize()
            sections.append((title, _bullets(_texts(value), line)))
    for title, body in sections:
        if body:
            lines += ["", f"## {title}", *body]
    return lines


def _bullets(texts: Iterable[str], line: Callable[[str], str]) -> list[str]:
    return [f"- {line(text)}" for text in texts]


def _longest_prefix(
    parts: list[str], joint: str, max_tokens: int, count_tokens: Callable[[str], int]
) -> int:
    """Largest n with the first n parts within the limit, by bisection (counts grow with text)."""
    low, high = 0, len(parts)
    while low < high:
        middle = (low + high + 1) // 2
        if count_tokens(joint.join(parts[:middle])) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    return low


def _drop_open_heading(lines: list[str]) -> list[str]:
    while len(lines) > 1 and (not lines[-1] or lines[-1].startswith("## ")):
        lines = lines[:-1]
    return lines
