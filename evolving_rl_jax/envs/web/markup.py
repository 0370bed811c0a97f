"""Reads the markup of a page into a tree of nodes, each with the text of what is in it.

Mind2Web's ``cleaned_html`` is XML as lxml wrote it (``<a .../>`` is closed, which an HTML parser does not
see), so a page is read as XML first (expat, a stream without a limit of depth) and, when it is not
well-formed, by the HTML5 parser lexbor.  Which of the two depends on the page alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.parsers import expat

from evolving_rl_jax.envs.web.roles import Attributes, control_role, is_hidden

__all__ = ["NODE_ID", "TEXT_CHARS", "Node", "attribute_text", "read_markup", "words"]

NODE_ID = "backend_node_id"
TEXT_CHARS = 300  # of the text in a node, kept
MAX_OPTIONS = 400  # of one list, kept; fewer are shown
_PIECE_CHARS = 4 * TEXT_CHARS  # of one text, looked at
_NAME_CHARS = 80  # of what nodes without text in a node are called, until no more is added

# Private-use characters (icon fonts) and format characters (marks of direction, soft hyphens).
_UNREADABLE = re.compile(
    "[\ue000-\uf8ff\U000f0000-\U0010ffff\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2"
    "\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000110bd\U000110cd"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001-\U000e007f]"
)


def words(text: str | None) -> str:
    """What can be read of a text, with single blanks; at most ``_PIECE_CHARS`` are looked at."""
    if not text:
        return ""
    text = text[:_PIECE_CHARS]
    if not text.isascii():
        text = _UNREADABLE.sub("", text)
    return " ".join(text.split())


class Node:
    """A tag of the page.

    Attributes:
      tag, attributes: its own, and what its candidate tells besides.
      node_id: its ``backend_node_id``, or "".
      candidate: whether it is one.
      parent: the tag it is in; None for the root.
      position: its number in the order of the document; those of what is in it come before ``end``.
      hidden: whether nobody sees it.
      role: of a control, or "".
      control: the control that it is in; None outside of any.
      label: the ``<label>`` that it is in, or None.
      select: the list that it is an option of, or None.
      owns_text: whether there is text right in it.
      text: of all that is in it, at most ``TEXT_CHARS`` characters.
      names: what images and the like in it are called, where they have no text.
      options: of a list.
      selected: the option that is chosen.
    """

    __slots__ = (
        *("attributes", "candidate", "control", "end", "hidden", "label", "names", "node_id"),
        *("options", "owns_text", "parent", "parts", "position", "role", "select", "selected"),
        *("size", "tag", "text"),
    )

    def __init__(self, tag: str, attributes: Attributes, parent: Node | None, position: int):
        self.tag, self.attributes, self.parent, self.position = tag, attributes, parent, position
        self.node_id = str(attributes.get(NODE_ID) or "")
        self.candidate = self.hidden = self.owns_text = False
        self.role, self.text, self.names, self.selected = "", "", "", ""
        self.control = self.label = self.select = None
        self.options: list[str] = []
        self.parts: list[str] = []
        self.size, self.end = 0, position + 1

    def add(self, text: str) -> None:
        """Adds to the text, up to its limit."""
        if self.size < TEXT_CHARS:
            self.parts.append(text[: TEXT_CHARS - self.size])
            self.size += len(self.parts[-1]) + 1


def attribute_text(attributes: Attributes) -> str:
    """What a node's attributes call it."""
    for key in ("aria-label", "aria_label", "title", "alt"):
        if attributes.get(key) and (found := words(attributes[key])):
            return found[:TEXT_CHARS]
    return ""


def read_markup(html: str, candidates: Mapping[str, Attributes]) -> list[Node]:
    """The nodes of a page in the order of the document.

    Args:
      html: XML or HTML; of broken markup what can be read.
      candidates: node id -> attributes that the page itself does not have.
    """
    data = html.encode("utf-8", "replace")  # lone surrogates of JSON have no UTF-8 form
    try:
        return _read_xml(data, _Builder(candidates))
    except expat.ExpatError:
        return _read_html(data.decode("utf-8"), _Builder(candidates))


def _read_xml(data: bytes, builder: _Builder) -> list[Node]:
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.EntityDeclHandler = _refuse_entity
    parser.Parse(data, True)
    return builder.nodes


def _refuse_entity(*_args) -> None:
    raise expat.ExpatError("pages must not declare entities")


def _read_html(html: str, builder: _Builder) -> list[Node]:
    from selectolax.lexbor import LexborHTMLParser

    node, depth = LexborHTMLParser(html).root, 0
    while node is not None:  # no recursion: pages may be thousands of levels deep
        _open_node(builder, node)
        following = node.child
        if following is not None:
            depth += 1
        while following is None:
            _close_node(builder, node)
            if depth == 0:
                return builder.nodes
            following = node.next
            if following is None:
                node, depth = node.parent, depth - 1
        node = following
    return builder.nodes


def _open_node(builder: _Builder, node) -> None:
    tag = _tag(node)
    if tag == "-text":
        builder.text(node.text_content or "")
    elif not tag.startswith("-"):
        builder.start(tag, node.attributes)


def _close_node(builder: _Builder, node) -> None:
    if not _tag(node).startswith("-"):
        builder.end(_tag(node))


def _tag(node) -> str:
    """Tag of an element, ``-text`` or ``-comment``; broken names come as None."""
    return node.tag or "unknown"


class _Builder:
    """Takes start, text and end events in document order; every event takes constant time."""

    def __init__(self, candidates: Mapping[str, Attributes]):
        self.nodes: list[Node] = []
        self._candidates = candidates
        self._stack = [Node("", {}, None, -1)]

    def start(self, tag: str, attributes: Attributes) -> None:
        """An opening tag."""
        tag, parent = tag.lower(), self._stack[-1]
        told = self._candidates.get(str(attributes.get(NODE_ID) or ""))
        if tag == "text" and told is None:
            self._stack.append(parent)  # a piece of text of what it is in
            return
        node = Node(tag, {**told, **attributes} if told else attributes, parent, len(self.nodes))
        self.nodes.append(node)
        self._stack.append(node)
        node.candidate = told is not None
        node.hidden = parent.hidden or is_hidden(tag, node.attributes)
        node.role = control_role(tag, node.attributes) if tag != "option" else ""
        node.control = parent if parent.role else parent.control
        node.label = parent if parent.tag == "label" else parent.label
        node.select = parent if parent.tag == "select" else parent.select

    def text(self, data: str) -> None:
        """Character data."""
        if data := words(data):
            self._stack[-1].owns_text = True
            self._stack[-1].add(data)

    def end(self, _tag: str) -> None:
        """A closing tag."""
        node = self._stack.pop()
        parent = self._stack[-1]
        if parent is node:
            return
        node.end = len(self.nodes)
        node.text, node.parts = " ".join(node.parts)[:TEXT_CHARS], []
        if node.hidden and not parent.hidden:
            return
        if node.select is not None:
            self._end_option(node)
        elif node.text:
            parent.add(node.text)
        elif len(parent.names) < _NAME_CHARS:
            name = attribute_text(node.attributes) or node.names
            parent.names = f"{parent.names} {name}".strip()

    def _end_option(self, node: Node) -> None:
        """An option is no text of its list, but one of its values."""
        if node.tag != "option" or not node.text:
            return
        chosen = (node.attributes.get("option_selected") or "") == "true"
        if chosen or "selected" in node.attributes:
            several = "multiple" in node.select.attributes and node.select.selected
            node.select.selected = f"{node.select.selected}, {node.text}" if several else node.text
        if len(node.select.options) < MAX_OPTIONS:
            node.select.options.append(node.text)
