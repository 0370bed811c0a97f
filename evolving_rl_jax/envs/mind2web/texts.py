"""What the policy reads on web tasks, in short and in long form, and how it is understood.

Every observation has the task, the earlier actions and the page, so a turn can be a sequence of its own
(``config.rollout.context`` recent with ``recent_turns`` 0, the paper's per-step samples), or be appended
to the turns before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evolving_rl_jax.envs.answers import ACTION, REASONING, between
from evolving_rl_jax.envs.mind2web.actions import OPS, WebAction, parse_action
from evolving_rl_jax.envs.mind2web.env import PAGE, observed_site, split_observation
from evolving_rl_jax.envs.texts import ChatTexts, CompactTexts, PromptTexts
from evolving_rl_jax.types import Task

__all__ = ["TEXTS", "compact_text", "parse_web", "parse_web_compact"]

_REF = re.compile(r"\[ref=e(\d+)\]")
_LABEL = re.compile(r'"[^"]*"')
_MARKS = re.compile(r'["()\[\]|]')
_PRESSED = re.compile(r'\b(?:button|link) (?=")')
_COMPACT = re.compile(
    rf"(?:.*\s)?(?P<ref>\d+)\s*>\s*(?P<op>{'|'.join(OPS)})(?:\s(?P<value>.*))?", re.IGNORECASE
)

_RULES = """\
You are an agent that carries out a task on web sites. You see one page at a time, as a list of its \
elements, and answer with exactly one action on one of them.

Every answer has two parts:
<reasoning>what the task still needs, and which element of this page serves it</reasoning>
<action>{"op": "CLICK", "ref": "e12"}</action>

The action is a JSON object with these fields:
- "op": CLICK, TYPE (into a text field) or SELECT (from a list)
- "ref": the ref of the element, as the page shows it in [ref=...]
- "value": the text to type or the option to select; leave it out for CLICK

Only refs of the page that you see now are valid. Do not repeat what the earlier actions have done."""

_REQUEST = """\
The episode is over: the task was {outcome}.

Write one skill that will help with other tasks on this web site and on sites like it. State what this \
episode taught that holds beyond its own values: how such tasks proceed from page to page, which of \
several similar elements is the right one and how to tell, what a field expects, what failed and why. \
Do not mention refs: they change from page to page.

Answer in English with one JSON object and nothing else. Its fields:
- "name": a short title
- "description": what the skill does and when it helps, in one or two sentences
- "when_to_use": a list of kinds of tasks or sites
- "inputs_to_identify": a list of what must be read from the task before acting
- "workflow": a list of steps in order, each an object with "goal", "action", \
"tools_or_strategy" (how to recognise the element) and "completion_condition"
- "decision_rules": a list of rules for choosing between elements
- "error_handling": a list of objects with "error", "cause" and "response".
"""


def compact_text(line: str) -> str:
    """``button "Search" (footer) [ref=e7]`` as ``search footer 7``: fewer and fewer kinds of tokens.

    What can only be clicked needs no role.  The tokenizer makes one token of a word and its number, so
    whoever finds the right word has the ref with it.
    """
    line = _MARKS.sub(" ", _PRESSED.sub("", _REF.sub(r"\1", line)))
    return " ".join(line.lower().split())


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


def parse_web_compact(text: str) -> tuple[str, bool]:
    """Reads the short form of small policies, ``search header 3> click``.

    Left of the ``>`` is what is meant, with the number of its ref at the end; right of it the operation
    and its value.  A name may hold a ``>`` too: what counts is the last one between a number and an
    operation.

    Returns:
      ``(action, valid)``: the action as the JSON that web environments read, or the text as it is.

    >>> parse_web_compact("city 5> select new york")
    ('{"op": "SELECT", "ref": "e5", "value": "new york"}', True)
    """
    line = text.strip().lower()
    found = _COMPACT.fullmatch(line)
    if found is None or len(line.splitlines()) != 1:
        return text.strip(), False
    value = (found["value"] or "").strip()
    return WebAction(found["op"].upper(), int(found["ref"]), value).to_json(), True


def shorten_page(observation: str, action: str, lines: int) -> str:
    """An observation whose page has ``lines`` lines: that of the action, those of its name, its neighbours."""
    head, mark, page = observation.partition(f"\n{PAGE}\n")
    listed = page.splitlines()
    if not mark or len(listed) <= lines:
        return observation
    web = parse_action(action)
    refs = [_REF.search(line) for line in listed]
    at = [i for i, ref in enumerate(refs) if ref and web and int(ref[1]) == web.ref]
    here = at[0] if at else 0
    label = _LABEL.search(listed[here])

    def distance(i: int) -> tuple[bool, int]:
        found = _LABEL.search(listed[i])
        return not (at and label and found and found[0] == label[0]), abs(i - here)

    kept = sorted(sorted(range(len(listed)), key=distance)[:lines])
    shown = [listed[i] for i in kept]
    return f"{head}{mark}" + "\n".join([*shown, f"({len(listed) - lines} lines left out)"])


class WebCompact(CompactTexts):
    """Short forms, all in lower case; an answer names the element with its ref, ``footer 7> click``."""

    def shorten(self, observation: str, action: str, lines: int) -> str:
        """The part of the page around the action."""
        return shorten_page(observation, action, lines)

    def plain(self, text: str) -> str:
        """A task or a skill as it is shown."""
        return text.lower()

    def opening(self, observation: str) -> list[str]:
        """The site, the earlier actions, if there are any, and the page."""
        _, earlier, _ = split_observation(observation)
        site = [observed_site(observation).lower()]
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
        return f"{target} {web.ref}> {web.op} {web.value}".strip().lower()

    def parse(self, text: str) -> tuple[str, bool]:
        """(action as JSON, valid) of a turn."""
        return parse_web_compact(text)


class WebChat(ChatTexts):
    """Long forms; an observation has the task in it."""

    rules, request = _RULES, _REQUEST
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


TEXTS = PromptTexts(WebCompact(), WebChat())
