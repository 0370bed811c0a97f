"""Judging an action on a web page against the annotated one.

Mind2Web annotates an operation (CLICK, TYPE, SELECT; HOVER and ENTER count as CLICK) and the nodes that
are right.  A step is correct when a right node and the right operation are chosen and, except for
CLICK, the value is the same up to case and blanks.  The official metrics use the F1 between the words of
operation and value instead of equality, case included (Mind2Web, arXiv 2306.06070, section 4).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from typing import NamedTuple

from evolving_rl_jax.envs.web.actions import (
    AS_CLICK,
    OPS,
    WebAction,
    clean,
    normalize_op,
    parse_action,
)

__all__ = ["Gold", "Verdict", "WebAction", "action_f1", "clean", "judge", "normalize_op"]
__all__ += ["parse_action", "parse_repr"]

ANNOTATED_OPS = OPS + AS_CLICK
OK, MISMATCH = "ok", "mismatch"
INVALID, UNKNOWN_REF = "invalid_action_format", "unknown_ref"

_REPR = re.compile(r"^\[(?P<role>[^\]]*)\]\s*(?P<rest>.*)$", re.DOTALL)
_REPR_OP = re.compile(r"^(?P<target>.*)->\s*(?P<op>[A-Za-z]+)\s*(?::(?P<value>.*))?$", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Gold:
    """The annotated action of a step: the node ids that are right (maybe none) and the operation."""

    node_ids: tuple[str, ...]
    op: str
    value: str = ""


class Verdict(NamedTuple):
    """How an action compares with the gold one; the parts are None when no element was chosen."""

    ok: bool
    op_ok: bool | None
    target_ok: bool | None
    value_ok: bool | None
    reason: str


def judge(gold: Gold, op: str, value: str, node_id: str | None, reason: str = "") -> Verdict:
    """Compares an action with the gold one.

    Args:
      gold: the annotation.
      op, value: of the action.
      node_id: of the chosen element; None when there is none.
      reason: why there is none: ``invalid_action_format`` or ``unknown_ref``.

    >>> judge(Gold(("4",), "TYPE", "Oslo"), "TYPE", " oslo", "4").reason
    'ok'
    """
    if node_id is None:
        return Verdict(False, None, None, None, reason or UNKNOWN_REF)
    wanted = normalize_op(gold.op)
    op_ok = normalize_op(op) == wanted
    target_ok = node_id in gold.node_ids
    value_ok = wanted == "CLICK" or clean(value) == clean(gold.value)
    ok = op_ok and target_ok and value_ok
    return Verdict(ok, op_ok, target_ok, value_ok, OK if ok else MISMATCH)


def action_f1(gold: Gold, op: str, value: str) -> float:
    """Mind2Web's operation F1 of an answer that chose an element: between the sets of words of ``op value``.

    Words are compared with case.  A value that is annotated on a CLICK does not count, one that the
    answer gives does.  An answer without an element, or a step without a right one, is officially 0.

    >>> action_f1(Gold((), "TYPE", "new york"), "TYPE", "york")
    0.8
    """
    wanted, found = normalize_op(gold.op), normalize_op(op)
    wanted = {wanted} if wanted == "CLICK" else {wanted, *gold.value.split()}
    found = {found, *value.split()} - {""}
    common = len(wanted & found)
    return 2 * common / (len(wanted) + len(found)) if common else 0.0


def parse_repr(text: str) -> dict[str, str]:
    """Reads Mind2Web's ``[role]  target -> OP: value``.

    >>> parse_repr("[combobox]  Size -> SELECT: Large : XL")
    {'role': 'combobox', 'target_text': 'Size', 'op': 'SELECT', 'value': 'Large : XL'}
    """
    text = text.strip()
    head = _REPR.match(text)
    role, rest = (head["role"], head["rest"]) if head else ("", text)
    tail = _REPR_OP.match(rest)
    target, op, value = (tail["target"], tail["op"], tail["value"]) if tail else (rest, "", "")
    return {
        "role": role.strip().lower(),
        "target_text": " ".join(target.split()).rstrip(" ."),
        "op": normalize_op(op),
        "value": " ".join((value or "").split()),
    }


def shares_node(gold: Gold, node_ids: Collection[str]) -> bool:
    """Whether one of the right nodes is among ``node_ids``."""
    return any(node_id in node_ids for node_id in gold.node_ids)
