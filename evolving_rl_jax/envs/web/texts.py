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
from evolving_rl_jax.envs.web.actions import OPS, parse_action
from evolving_rl_jax.envs.web.compact import (
    compact_answer,
    compact_page,
    compact_text,
    parse_web_compact,
)
from evolving_rl_jax.envs.web.observation import PAGE, observed_site, split_observation
from evolving_rl_jax.types import Task

__all__ = ["WebChat", "WebCompact", "parse_web", "shorten_page"]

_REF = re.compile(r"\[ref=e(\d+)\]")
_LABEL = re.compile(r'"[^"]*"')


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
    """Short forms; an answer names the element as the page does, ``checkout footer> click``.

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
        return [" ".join(compact_page(observation))]

    def ending(self, observation: str) -> list[str]:
        """Nothing: it only repeats whether the task was won."""
        return []

    def answer(self, target: str, action: str, observation: str = "") -> str:
        """A turn as a teacher writes it; ``target`` is what an element without a name of its own is called."""
        return compact_answer(target, action, observation)

    def parse(self, text: str, observation: str = "") -> tuple[str, bool]:
        """(action as JSON, valid) of a turn."""
        return parse_web_compact(text, self.ops, observation)


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

    def parse(self, text: str, observation: str = "") -> tuple[str, bool]:
        """(action as JSON, valid) of a turn."""
        return parse_web(text)
