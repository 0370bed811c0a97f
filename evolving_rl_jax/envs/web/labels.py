"""What the nodes of a page are called: from attributes, labels, texts in and beside them, classes.

A field is called by, in this order: ``aria-label``; the label that names its id; the label around it; the
nearest label before it (after it, for a checkbox or radio) with no other field between; its own text;
placeholder, title, alt; the nearest text; name, id, class.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from evolving_rl_jax.envs.web.markup import Node, words
from evolving_rl_jax.envs.web.roles import FIELDS, TOGGLES

__all__ = ["LABEL_CHARS", "Labels", "cut"]

LABEL_CHARS = 100  # longer labels are cut
_CLASS_CHARS = 40  # of a class or id that stands for a name
_LEVELS, _TEXT_LEVELS = 5, 2  # how far up a label, or any text, and its field may meet
_LABEL_IDS = ("{}-label", "{}_label", "{}label", "label-{}", "label_{}", "label-for-{}")


def cut(text: str, size: int = LABEL_CHARS) -> str:
    """A text of at most ``size`` characters."""
    return text if len(text) <= size else text[: size - 3] + "..."


class Labels:
    """The names of one page's nodes.

    Args:
      nodes: of the page, in order.
    """

    def __init__(self, nodes: Sequence[Node]):
        seen = [n for n in nodes if not n.hidden]
        self._fields = [n for n in seen if n.role in FIELDS]
        self._by_id: dict[str, Node] = {}
        self._labels: list[Node] = []
        self._texts: list[Node] = []
        if self._fields:
            self._collect(seen)
        self._at = {
            id(found): [n.position for n in found]
            for found in (self._fields, self._labels, self._texts)
        }

    def _collect(self, seen: Sequence[Node]) -> None:
        around = {id(f.label) for f in self._fields if f.label is not None}
        for node in seen:
            target = node.attributes.get("for")
            if node.tag == "label" and target:
                self._by_id.setdefault(target.lower(), node)
            elif node.tag == "label" and id(node) not in around and node.text:
                self._labels.append(node)
            elif node.owns_text and node.control is None and not node.role and node.tag != "option":
                self._texts.append(node)
            if name := node.attributes.get("id"):
                self._by_id.setdefault(f"#{name.lower()}", node)

    def of(self, node: Node) -> str:
        """The name of a node, at most ``LABEL_CHARS`` characters, perhaps empty."""
        found = node.attributes
        if node.role in FIELDS:
            names = self._field_names(node)
        elif node.role:
            names = self._first(node, node.text, found.get("value"), found.get("placeholder"))
        else:
            names = self._first(node, node.text)
        for name in names:
            if name := words(name):
                return cut(name)
        return cut(words(found.get("id") or found.get("class")), _CLASS_CHARS)

    def _first(self, node: Node, *content: str | None):
        found = node.attributes
        yield from (found.get("aria-label"), found.get("aria_label"), *content)
        yield from (found.get("title"), found.get("alt"), node.names)
        if node.role:
            yield found.get("name")

    def _field_names(self, node: Node):
        found = node.attributes
        yield from (found.get("aria-label"), found.get("aria_label"))
        yield self._named_by_id(node)
        yield node.label.text if node.label is not None else ""
        yield self._near(node, self._labels, _LEVELS)
        if node.tag != "select":
            yield node.text
        yield from (found.get("placeholder"), found.get("title"), found.get("alt"), node.names)
        yield self._near(node, self._texts, _TEXT_LEVELS)
        yield found.get("name")

    def _named_by_id(self, node: Node) -> str:
        """The text of the label whose ``for`` or id tells that it is of this field."""
        for other in (node.attributes.get(k) for k in ("aria-labelledby", "aria_labelledby")):
            found = [self._by_id.get(f"#{i.lower()}") for i in (other or "").split()]
            if any(found):
                return " ".join(n.text for n in found if n is not None)
        name = (node.attributes.get("id") or "").lower()
        if not name:
            return ""
        keys = [name, *(f"#{form.format(name)}" for form in _LABEL_IDS)]
        return next((self._by_id[k].text for k in keys if k in self._by_id), "")

    def _near(self, node: Node, labels: list[Node], levels: int) -> str:
        """The text of the nearest of ``labels`` with no other field between."""
        i = bisect_left(self._at[id(self._fields)], node.position)
        first = self._fields[i - 1].end if i else 0
        last = self._fields[i + 1].position if i + 1 < len(self._fields) else node.end + 10**9
        at = self._at[id(labels)]
        before, after = bisect_left(at, node.position) - 1, bisect_left(at, node.end)
        sides = [(before, self._distance(node, labels, before, first, last, levels))]
        if node.role in TOGGLES:
            sides.append((after, self._distance(node, labels, after, first, last, levels)))
            sides.reverse()  # of two equally near ones it is the one after
        where, distance = min(sides, key=lambda side: side[1])
        return labels[where].text if distance <= levels else ""

    def _distance(self, node, labels, where: int, first: int, last: int, levels: int) -> int:
        """Levels up to where a node and a label meet; more than ``levels`` where they do not."""
        if not 0 <= where < len(labels) or not first <= labels[where].position < last:
            return levels + 1
        above, position = node.parent, labels[where].position
        for level in range(levels):
            if above is None:
                break
            if above.position <= position < above.end:
                return level
            above = above.parent
        return levels + 1
