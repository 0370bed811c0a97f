"""What a script sees of a page: the elements of an observation, by their words."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from evolving_rl_jax.envs.web.actions import WebAction
from evolving_rl_jax.envs.web.observation import split_observation

__all__ = ["PRESSED", "Item", "Lost", "Script", "View", "nth", "quoted"]

_LINE = re.compile(
    r'(?P<role>\w+)(?: "(?P<label>.*?)")?(?: \((?P<context>[^"]*)\))? \[ref=e(?P<ref>\d+)\]'
    r'(?: = "(?P<value>.*?)")?(?: of (?P<options>.*))?$'
)
_QUOTED = re.compile(r'"([^"]*)"')
PRESSED = ("button", "link", "clickable", "tab", "menuitem", "checkbox", "radio", "text", "img")
FIELDS = ("textbox", "searchbox", "combobox", "spinbutton")


class Lost(Exception):
    """A script does not see what it looks for."""


class Item(NamedTuple):
    """An element as its line says it."""

    ref: int
    role: str
    label: str
    context: str
    value: str
    options: str


class View:
    """The page of an observation.

    Attributes:
      items: its elements, in order.
    """

    def __init__(self, observation: str):
        found = map(_LINE.match, split_observation(observation)[2])
        self.items = [
            Item(
                int(m["ref"]), m["role"], m["label"] or "", m["context"] or "",
                m["value"] or "", m["options"] or "",
            )
            for m in found
            if m
        ]  # fmt: skip

    def all(self, label: str | None = None, *roles: str, context: str = "") -> list[Item]:
        """Elements of a label (any case; None = any), of some roles, in a context."""
        return [
            e
            for e in self.items
            if (label is None or e.label.lower() == label.lower())
            and (not roles or e.role in roles)
            and context in e.context
        ]

    def one(self, label: str | None = None, *roles: str, context: str = "", n: int = 0) -> Item:
        """The n-th of those; the one that says it in the same case first.

        Raises:
          Lost: there is none.
        """
        found = self.all(label, *roles, context=context)
        found.sort(key=lambda e: e.label != label)  # stable: otherwise in order
        if not -len(found) <= n < len(found):
            raise Lost(f"no {label!r} {roles} {context!r}")
        return found[n]

    def click(self, label: str | None = None, *roles: str, context: str = "", n: int = 0):
        """Clicks on an element, a control before a text."""
        for role in roles or PRESSED:
            if len(self.all(label, role, context=context)) > n:
                return WebAction("CLICK", self.one(label, role, context=context, n=n).ref)
        raise Lost(f"nothing to click: {label!r} {roles} {context!r}")

    def type(self, text: str, label: str | None = None, n: int = 0) -> WebAction:
        """Types into a field."""
        return WebAction("TYPE", self.one(label, *FIELDS, n=n).ref, text)

    def texts(self) -> Iterator[str]:
        """What is written on the page, beside controls."""
        return (e.label for e in self.items if e.role in ("text", "heading"))


Script = Callable[[str, View], Generator[WebAction, View, None]]


def quoted(task: str) -> list[str]:
    """What a sentence has in quotes."""
    return _QUOTED.findall(task)


def nth(task: str) -> int:
    """The position that a sentence names, from 0: ``the 3rd`` is 2."""
    found = re.search(r"\b(\d+)(?:st|nd|rd|th)\b", task)
    if found is None:
        raise Lost("no position in the task")
    return int(found[1]) - 1
