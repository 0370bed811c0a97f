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


class _Names(NamedTuple):
    """A page in short form: its lines, and what those elements are called that have a name of their own."""

    lines: tuple[str, ...]
    of_ref: dict[int, str]
    refs: dict[str, int]  # of cleaned names


def compact_text(line: str) -> str:
    """``button "Search" (footer) [ref=e7]`` as ``Search footer 7``: fewer and fewer kinds of tokens.

    What can only be clicked needs no role, and an operation is written as answers write it.  Names and values keep
    their case: what is typed or selected must be right to the letter.
    """
    line = _DONE.sub(lambda op: op[0].lower(), line)
    return " ".join(_MARKS.sub(" ", _PRESSED.sub("", _REF.sub(r" \1", line))).split())


def compact_page(observation: str) -> list[str]:
    """The lines of the page of an observation in short form, each name unlike all others."""
    return list(_names(observation).lines)


@functools.lru_cache(1024)
def _names(observation: str) -> _Names:
    parts = [_parts(line) for line in split_observation(observation)[2]]
    count = Counter(clean(name) for _, name, _ in parts)
    alone = [
        ref > 0 and count[clean(name)] == 1 and len(name.split()) <= NAME_WORDS
        for ref, name, _ in parts
    ]
    pairs = list(zip(parts, alone, strict=True))
    numbered = {clean(f"{name} {ref}") for (ref, name, _), own in pairs if not own}
    lines, of_ref = [], {}
    for (ref, name, rest), own in pairs:
        named = own and clean(name) not in numbered
        if named and name:
            of_ref[ref] = name
        text = [name, "" if named or not ref else str(ref), rest]
        lines.append(" ".join(filter(None, text)))
    return _Names(tuple(lines), of_ref, {clean(name): ref for ref, name in of_ref.items()})


def _parts(line: str) -> tuple[int, str, str]:
    """The number of the ref of a line (0 without one), what stands before it, what behind it."""
    ref = _REF.search(line)
    if ref is None:
        return 0, compact_text(line), ""
    return int(ref[1]), compact_text(line[: ref.start()]), compact_text(line[ref.end() :])


def compact_answer(target: str, action: str, observation: str = "") -> str:
    """An action (JSON text) as an answer writes it; ``target`` is what an element without a name is called."""
    web = parse_action(action)
    name = _names(observation).of_ref.get(web.ref) or f"{target} {web.ref}"
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
    refs = _names(observation).refs
    if len(line.splitlines()) == 1:
        for found in reversed([*re.finditer(_ANSWER.format("|".join(ops)), line, re.IGNORECASE)]):
            target = clean(line[: found.start()])
            number = re.search(r"(?:^|\s)(\d{1,6})$", target)
            ref = refs.get(target, int(number[1]) if number else None)
            if ref is not None:
                value = (found["value"] or "").strip()
                return WebAction(found["op"].upper(), ref, value).to_json(), True
    return line, False
