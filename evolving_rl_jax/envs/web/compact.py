"""The short form of web pages: an element is called by its name, and by its number only where that is needed.

``textbox "Find" (left) [ref=e7]`` is written ``textbox Find left``, and answered ``textbox find left> type mug``.  Two
elements of one name are written with the numbers of their refs, ``Add 3`` and ``Add 9``, and so are long ones.  A small
policy copies names well and looks numbers up badly.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from evolving_rl_jax.envs.web.actions import OPS, WebAction, clean, parse_action
from evolving_rl_jax.envs.web.observation import split_observation

__all__ = ["compact_answer", "compact_page", "compact_text", "parse_web_compact"]

NAME_WORDS = 6  # a longer name is called by its first words and its number

_REF = re.compile(r" ?\[ref=e(\d+)\]")
_MARKS = re.compile(r'["()\[\]|]')
_PRESSED = re.compile(r'\b(?:button|link) (?=")')
_DONE = re.compile(r"^[A-Z]+\b")  # of an action; roles are written small
_ANSWER = r"(?=>\s*(?P<op>{})(?:\s(?P<value>.*))?$)"


class _Line(NamedTuple):
    """A line of a page: the number of its ref, what it is called, all of it."""

    ref: int
    name: str
    text: str


def compact_text(line: str) -> str:
    """``button "Search" (footer) [ref=e7]`` as ``Search footer 7``: fewer and fewer kinds of tokens.

    What can only be clicked needs no role, and an operation is written as answers write it.  Names and values keep
    their case: what is typed or selected must be right to the letter.
    """
    line = _DONE.sub(lambda op: op[0].lower(), line)
    return " ".join(_MARKS.sub(" ", _PRESSED.sub("", _REF.sub(r" \1", line))).split())


def compact_page(observation: str) -> list[str]:
    """The lines of the page of an observation in short form, each name unlike all others."""
    return [line.text for line in _lines(observation)]


@functools.lru_cache(1024)
def _lines(observation: str) -> tuple[_Line, ...]:
    page = split_observation(observation)[2]
    found = [(_REF.search(line), line) for line in page]
    heads = [compact_text(line[: ref.start()] if ref else line) for ref, line in found]
    count = Counter(map(clean, heads))
    plain = [ref and count[clean(head)] == 1 for (ref, _), head in zip(found, heads, strict=True)]
    plain = [p and len(h.split()) <= NAME_WORDS for p, h in zip(plain, heads, strict=True)]
    numbered = {
        clean(f"{head} {ref[1]}")
        for (ref, _), head, alone in zip(found, heads, plain, strict=True)
        if ref and not alone
    }
    lines = []
    for (ref, line), head, alone in zip(found, heads, plain, strict=True):
        if alone and clean(head) not in numbered:
            rest = compact_text(line[ref.end() :])
            lines.append(_Line(int(ref[1]), head, f"{head} {rest}".strip()))
        else:
            lines.append(_Line(int(ref[1]) if ref else 0, "", compact_text(line)))
    return tuple(lines)


def compact_answer(target: str, action: str, observation: str = "") -> str:
    """An action (JSON text) as an answer writes it; ``target`` is what an element without a name is called."""
    web = parse_action(action)
    line = next((line for line in _lines(observation) if line.ref == web.ref), None)
    name = line.name if line and line.name else f"{target} {web.ref}"
    return f"{name}> {web.op.lower()} {web.value}".strip()


def parse_web_compact(
    text: str, ops: Sequence[str] = OPS, observation: str = ""
) -> tuple[str, bool]:
    """Reads the short form of small policies, ``textbox find left> type mug`` or ``search 3> click``.

    Left of the ``>`` is an element as the page shows it, or the number of its ref after any words; right of it the
    operation and its value.  A name may hold a ``>`` too: what counts is the last one between an element and an
    operation.

    Args:
      text: of a turn.
      ops: the operations that there are, in any case.
      observation: that it answers; without one only numbers can be read.

    Returns:
      ``(action, valid)``: the action as the JSON that web environments read, or the text as it is.

    >>> parse_web_compact("city 5> select New York")
    ('{"op": "SELECT", "ref": "e5", "value": "New York"}', True)
    """
    line = text.strip()
    refs = {clean(line.name): line.ref for line in _lines(observation) if line.name}
    if len(line.splitlines()) == 1:
        for found in reversed([*re.finditer(_ANSWER.format("|".join(ops)), line, re.IGNORECASE)]):
            target = clean(line[: found.start()])
            number = re.search(r"(?:^|\s)(\d+)$", target)
            ref = refs.get(target, int(number[1]) if number else None)
            if ref is not None:
                value = (found["value"] or "").strip()
                return WebAction(found["op"].upper(), ref, value).to_json(), True
    return line, False
