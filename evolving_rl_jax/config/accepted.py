"""What a value may be: choices and ranges, each with the words that an error says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple


class ConfigError(ValueError):
    """A configuration, or an option, that cannot be used; the message names the key."""


class Accepted(NamedTuple):
    """What a key accepts.

    Attributes:
      words: after "must be".
      test: whether a value of the right type is accepted.
      item: what a tuple holds, where its default is empty.
    """

    words: str
    test: Callable[[Any], Any]
    item: type = int


class Key(NamedTuple):
    """A key of the configuration: its default, and what it accepts beside its type."""

    default: Any
    accepted: Accepted


def one_of(*choices: Any) -> Key:
    """A key with these choices; the first is the default."""
    words = f"one of {', '.join(map(str, choices))}"
    return Key(choices[0], Accepted(words, lambda x: x in choices))


def least_0(default: float) -> Key:
    """A number that is not negative."""
    return Key(default, Accepted(">= 0", lambda x: x >= 0))


def least_1(default: int) -> Key:
    """A number of things of which there must be one."""
    return Key(default, Accepted(">= 1", lambda x: x >= 1))


def above_0(default: float) -> Key:
    """A positive number."""
    return Key(default, Accepted("> 0", lambda x: x > 0))


def share(default: float) -> Key:
    """A share of a whole, both ends included."""
    return Key(default, Accepted("in [0, 1]", lambda x: 0 <= x <= 1))


def decay(default: float) -> Key:
    """The decay of a moving average."""
    return Key(default, Accepted("in [0, 1)", lambda x: 0 <= x < 1))


def names(*default: str, of: tuple[str, ...] = ()) -> Key:
    """A tuple of at least one name, out of ``of`` where that is given."""
    words = f"a tuple of {', '.join(of)}" if of else "a tuple of at least one name"
    return Key(default, Accepted(words, lambda x: x and (not of or set(x) <= set(of)), str))


def sizes(*default: int, words: str = "empty or a tuple of sizes >= 1") -> Key:
    """A tuple of sizes, which may be empty where its default is."""
    return Key(default, Accepted(words, lambda x: min(x, default=1) >= 1 and (x or not default)))


_OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def names_attribute(text: str) -> bool:
    """Whether a text has the form ``package.module:attribute``."""
    return _OWN.fullmatch(text) is not None


def is_json_object(text: str) -> bool:
    """Whether a text is one."""
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False
