"""What a policy reads of web pages, in short and in long form, and how its answers are understood.

Every observation has the task, the earlier actions and the page, so a turn can be a sequence of its own
(``config.rollout.context`` recent with ``recent_turns`` 0, the paper's per-step samples), or be appended
to the turns before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evolving_rl_jax.envs.answers import ACTION, REASONING, between
from evolving_rl_jax.envs.texts import ChatTexts, CompactTexts
from evolving_rl_jax.envs.web.actions import OPS, WebAction, parse_action
from evolving_rl_jax.envs.web.observation import PAGE, observed_site, split_observation
from evolving_rl_jax.types import Task

__all__ = ["WebChat", "WebCompact", "compact_text", "parse_web", "parse_web_compact"]
__all__ += ["shorten_page"]

_REF = re.compile(r"\[ref=e(\d+)\]")
_LABEL = re.compile(r'"[^"]*"')
_MARKS = re.compile(r'["()\[\]|]')
_PRESSED = re.compile(r'\b(?:button|link) (?=")')
_COMPACT = r"(?:.*\s)?(?P<ref>\d+)\s*>\s*(?P<op>{})(?:\s(?P<value>.*))?"
_DONE = re.compile(r"^[A-Z]+\b")  # of an action; roles are written small


def compact_text(line: str) -> str:
    """``button "Search" (footer) [ref=e7]`` as ``Search footer 7``: fewer and fewer kinds of tokens.

    What can only be clicked needs no role, and an operation is written as answers write it.  Names and values keep
    their case: what is typed or selected must be right to the letter.
    """
    line = _DONE.sub(lambda op: op[0].lower(), line)
    return " ".join(_MARKS.sub(" ", _PRESSED.sub("", _REF.sub(r"\1", line))).split())


def parse_web(text: str) -> tuple[str, bool]:
    """Reads ``<reasoning>...</reasoning><action>{"op": ..., "ref": ..., "value": ...}</action>``.

    Returns:
      ``(action, valid)``.  The action is the first tagged text, stripped, or all of the text without
      one.  Valid needs a reasoning block and an action that web environments can read.

    >>> parse_web('<reasoning>Search.</reasoning><action>{"op": "CLICK", "ref": "e3"}</action>')
    ('{"op": "CLICK", "ref": "e3"}', True)
    """
    tagged = between(text, ACTION)
    if tagged is None:
        return text.strip(), False
    action = tagged.strip()
    reasoned = between(text, REASONING) is not None
    return action, reasoned and parse_action(action) is not None


def parse_web_compact(text: str, ops: Sequence[str] = OPS) -> tuple[str, bool]:
    """Reads the short form of small policies, ``search header 3> click``.

    Left of the ``>`` is what is meant, with the number of its ref at the end; right of it the operation
    and its value.  A name may hold a ``>`` too: what counts is the last one between a number and an
    operation.

    Args:
      text: of a turn.
      ops: the operations that there are, in any case.

    Returns:
      ``(action, valid)``: the action as the JSON that web environments read, or the text as it is.

    >>> parse_web_compact("city 5> select New York")
    ('{"op": "SELECT", "ref": "e5", "value": "New York"}', True)
    """
    line = text.strip()
    found = re.fullmatch(_COMPACT.format("|".join(ops)), line, re.IGNORECASE)
    if found is None or len(line.splitlines()) != 1:
        return text.strip(), False
    value = (found["value"] or "").strip()
    return WebAction(found["op"].upper(), int(found["ref"]), value).to_json(), True


def shorten_page(observation: str, action: str, lines: int) -> str:
    """An observation whose page has ``lines`` lines: that of the action, those of its role and name, those of
    its name, its neighbours."""
    head, mark, page = observation.partition(f"\n{PAGE}\n")
    listed = page.splitlines()
    if not mark or len(listed) <= lines:
        return observation
    web = parse_action(action)
    refs = [_REF.search(line) for line in listed]
    at = [i for i, ref in enumerate(refs) if ref and web and int(ref[1]) == web.ref]
    here = at[0] if at else 0
    label = _LABEL.search(listed[here])

    def distance(i: int) -> tuple[bool, bool, int]:
        found = _LABEL.search(listed[i])
        same = bool(at and label and found and found[0] == label[0])
        rival = same and listed[i][: found.start()] == listed[here][: label.start()]
        return not rival, not same, abs(i - here)

    kept = sorted(sorted(range(len(listed)), key=distance)[:lines])
    shown = [listed[i] for i in kept]
    return f"{head}{mark}" + "\n".join([*shown, f"({len(listed) - lines} lines left out)"])


class WebCompact(CompactTexts):
    """Short forms; an answer names the element with its ref, ``footer 7> click``.

    Attributes:
      ops: the operations that there are.
    """

    ops: Sequence[str] = OPS

    def shorten(self, observation: str, action: str, lines: int) -> str:
        """The part of the page around the action."""
        return shorten_page(observation, action, lines)

    def opening(self, observation: str) -> list[str]:
        """The site, the earlier actions, if there are any, and the page."""
        _, earlier, _ = split_observation(observation)
        site = [observed_site(observation)]
        before = [" ".join(map(compact_text, earlier))] if earlier else []
        return [*filter(None, site), *before, *self.following(observation)]

    def following(self, observation: str) -> list[str]:
        """The page (the actions are in the sequence already)."""
        return [" ".join(map(compact_text, split_observation(observation)[2]))]

    def ending(self, observation: str) -> list[str]:
        """Nothing: it only repeats whether the task was won."""
        return []

    def answer(self, target: str, action: str) -> str:
        """A turn as a teacher writes it; ``target`` names the element."""
        web = parse_action(action)
        return f"{target} {web.ref}> {web.op.lower()} {web.value}".strip()

    def parse(self, text: str) -> tuple[str, bool]:
        """(action as JSON, valid) of a turn."""
        return parse_web_compact(text, self.ops)


class WebChat(ChatTexts):
    """Long forms; an observation has the task in it."""

    thought = "The next thing to use is {target}."

    def shorten(self, observation: str, action: str, lines: int) -> str:
        """The part of the page around the action."""
        return shorten_page(observation, action, lines)

    def opening(self, task: Task, observation: str, actions: Sequence[str] = ()) -> str:
        """The first user message: task, earlier actions, page."""
        return observation

    def following(self, observation: str, actions: Sequence[str] = ()) -> str:
        """The next page."""
        page = split_observation(observation)[2]
        return "Page:\n" + "\n".join(page) if page else observation

    def ending(self, observation: str) -> str:
        """How the episode ended."""
        return observation

    def parse(self, text: str) -> tuple[str, bool]:
        """(action as JSON, valid) of a turn."""
        return parse_web(text)
