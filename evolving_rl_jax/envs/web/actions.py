"""Actions on web pages: what an agent says as JSON, read and written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from evolving_rl_jax.files import encodable

__all__ = ["AS_CLICK", "OPS", "WebAction", "clean", "normalize_op", "parse_action", "plain_op"]

OPS = ("CLICK", "TYPE", "SELECT")
AS_CLICK = ("HOVER", "ENTER")

_TAGGED = re.compile(r"<action>(.*?)</action>", re.IGNORECASE | re.DOTALL)
_REF = re.compile(r"\[?(?:ref=)?e?(\d{1,6})\]?", re.IGNORECASE)
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.IGNORECASE | re.DOTALL)
# Not strict: a line break inside a value is what it looks like.  Numbers stay as they are written.
_JSON = json.JSONDecoder(strict=False, parse_int=str, parse_float=str)


class WebAction(NamedTuple):
    """What an agent wants to do; ``ref`` is the number of an element of the snapshot, from 1."""

    op: str
    ref: int
    value: str = ""

    def to_json(self) -> str:
        """The JSON object that an environment reads."""
        fields = {"op": self.op, "ref": f"e{self.ref}"}
        return json.dumps(fields | ({"value": self.value} if self.value else {}))


def plain_op(op: str) -> str:
    """Upper case on one line."""
    return " ".join(op.upper().split())


def normalize_op(op: str) -> str:
    """As `plain_op`, with HOVER and ENTER as CLICK."""
    op = plain_op(op)
    return "CLICK" if op in AS_CLICK else op


def clean(text: str) -> str:
    """Lower case, single blanks."""
    return " ".join(text.lower().split())


def parse_action(text: str, normalize: Callable[[str], str] = normalize_op) -> WebAction | None:
    """Reads ``{"op": "TYPE", "ref": "e12", "value": "Oslo"}``, alone or between action tags.

    In a code fence too, with the number alone as ref, and with a full stop after it.

    Args:
      text: of an answer.
      normalize: what makes one of the operations that there are of the one that it names.

    Returns:
      None when there is no JSON object with an operation and a ref.

    >>> parse_action('<action>{"op": "click", "ref": "e3"}</action>')
    WebAction(op='CLICK', ref=3, value='')
    >>> parse_action("CLICK e3") is None
    True
    """
    tagged = _TAGGED.search(text)
    said = (tagged[1] if tagged else text).strip()
    fenced = _FENCED.fullmatch(said)
    said = fenced[1] if fenced else said
    try:
        data, end = _JSON.raw_decode(said)
    except (ValueError, RecursionError):
        return None
    if said[end:].strip(" \t\r\n.,;"):
        return None
    if not isinstance(data, dict):
        return None
    op, ref, value = (data.get(key) for key in ("op", "ref", "value"))
    if not isinstance(op, str) or not op.strip() or not isinstance(ref, str):
        return None
    number = _REF.fullmatch(ref.strip())
    if number is None or isinstance(value, dict | list):
        return None
    value = str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
    value = encodable(value)
    return WebAction(normalize(encodable(op)), int(number[1]), value)
