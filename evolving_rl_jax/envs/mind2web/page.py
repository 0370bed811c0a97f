"""From the HTML of a page to the elements that an agent may act on.  Never looks at the gold action.

Mind2Web's ``cleaned_html`` is XML as lxml wrote it (``<a .../>`` is closed, which an HTML parser does not
see), so a page is read as XML first (expat, a stream without a limit of depth) and, when it is not
well-formed, by the HTML5 parser lexbor.  Which of the two depends on the page alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping
from xml.parsers import expat

__all__ = ["CONTROL", "NESTED", "TEXT", "Element", "Page", "parse_page"]

CONTROL, TEXT, NESTED = 0, 1, 2  # a control, text outside of controls, a part of a control
LABEL_CHARS = 100  # longer labels are cut
MAX_OPTIONS = 400  # of one list, kept; fewer are shown
NODE_ID = "backend_node_id"

_SKIPPED = frozenset("script style noscript template head meta link title base".split())
_TAG_ROLES = {
    "a": "link",
    "button": "button",
    "select": "combobox",
    "summary": "button",
    "textarea": "textbox",
}
_INPUT_ROLES = {
    **dict.fromkeys(("submit", "button", "image", "reset", "file", "color"), "button"),
    "checkbox": "checkbox",
    "radio": "radio",
    "range": "slider",
}
_CONTROL_ROLES = frozenset(
    "button link checkbox radio tab menuitem menuitemcheckbox menuitemradio option combobox listbox "
    "textbox searchbox slider spinbutton switch treeitem gridcell".split()
)
_FIELDS = frozenset("textbox searchbox combobox checkbox radio slider spinbutton switch".split())
_GROUP_TAGS = frozenset(
    "li tr section article form fieldset nav header footer aside dialog dl".split()
)
_LANDMARKS = frozenset("nav header footer aside".split())
_GROUP_ROLES = frozenset(
    "group region listitem row dialog navigation banner contentinfo form search".split()
)
_IMAGES = frozenset(("svg", "img"))
_TEXT_ATTRIBUTES = ("aria-label", "aria_label", "title", "alt")


@dataclasses.dataclass(frozen=True, slots=True)
class Element:
    """Something on a page that has a node id.

    Attributes:
      node_id: its ``backend_node_id``.
      role: ``button``, ``link``, ``textbox``, ``combobox``, ..., ``heading``, ``img`` or ``text``.
      label: what it is called, at most ``LABEL_CHARS`` characters, possibly empty.
      rank: ``CONTROL``, ``TEXT`` or ``NESTED``.
      value: what a field holds.
      context: what tells it from others of the same role and label: the row or region it is in.
      options: of a list to select from.
    """

    node_id: str
    role: str
    label: str
    rank: int = CONTROL
    value: str = ""
    context: str = ""
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Role, label and context as one text: ``button "Add" (red mug)``."""
        text = f'{self.role} "{self.label}"' if self.label else self.role
        return f"{text} ({self.context})" if self.context else text

    def to_json(self) -> list:
        """The element as a short JSON list; ``from_json`` gives it back."""
        fields = [self.node_id, self.role, self.label, self.rank, self.value, self.context]
        return [*fields, list(self.options)] if self.options else fields

    @classmethod
    def from_json(cls, fields: list) -> Element:
        """Inverse of ``to_json``."""
        options = tuple(fields[6]) if len(fields) > 6 else ()
        return cls(*fields[:6], options)


@dataclasses.dataclass(frozen=True)
class Page:
    """The elements of a page in the order of the document; their refs are e1, e2, ... in that order."""

    elements: tuple[Element, ...]

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Node id -> position."""
        return {element.node_id: i for i, element in enumerate(self.elements)}


def parse_page(html: str) -> Page:
    """Reads a page.

    Args:
      html: XML or HTML; any text is accepted, broken markup gives what can be read of it.

    Returns:
      Elements that have a ``backend_node_id``: controls, texts and images.  Invisible parts (scripts,
      hidden fields, ``display:none``) are left out.  One node id is one element.
    """
    data = html.encode("utf-8", "replace")  # lone surrogates of JSON have no UTF-8 form
    try:
        return _read_xml(data)
    except expat.ExpatError:
        return _read_html(data.decode("utf-8"))


def _read_xml(data: bytes) -> Page:
    builder = _Builder()
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.EntityDeclHandler = _refuse_entity
    parser.Parse(data, True)
    return builder.page()


def _refuse_entity(*_args) -> None:
    raise expat.ExpatError("pages must not declare entities")


def _read_html(html: str) -> Page:
    from selectolax.lexbor import LexborHTMLParser

    builder, node, depth = _Builder(), LexborHTMLParser(html).root, 0
    while node is not None:  # no recursion: pages may be thousands of levels deep
        _open_node(builder, node)
        following = node.child
        if following is not None:
            depth += 1
        while following is None:
            _close_node(builder, node)
            if depth == 0:
                return builder.page()
            following = node.next
            if following is None:
                node, depth = node.parent, depth - 1
        node = following
    return builder.page()


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


class _Group:
    """A row, list item or region: what gives equal labels in it a context."""

    __slots__ = ("label", "parent", "tag")

    def __init__(self, parent: _Group | None, tag: str, label: str):
        self.parent, self.tag, self.label = parent, tag, label


class _Draft:
    """An element while its content is read."""

    __slots__ = (
        *("node_id", "role", "rank", "attributes", "group", "options", "wrapper"),
        *("parts", "size", "tag"),
    )

    def __init__(self, tag, node_id, role, rank, attributes, group, wrapper):
        self.tag, self.node_id, self.role, self.rank = tag, node_id, role, rank
        self.attributes, self.group, self.wrapper = attributes, group, wrapper
        self.options: list[str] = []
        self.parts: list[str] = []
        self.size = 0

    def add(self, text: str) -> None:
        if text and self.size < LABEL_CHARS:
            self.parts.append(text[:LABEL_CHARS])
            self.size += len(self.parts[-1]) + 1

    @property
    def content(self) -> str:
        return " ".join(self.parts)


class _Frame:
    """An open tag: who takes the text in it."""

    __slots__ = ("control", "group", "label", "option", "owner", "select", "skipped")

    def __init__(self, parent: _Frame | None):
        for name in self.__slots__:
            setattr(self, name, getattr(parent, name, None))
        self.option = None


class _Builder:
    """Takes start, text and end events in document order; every event takes constant time."""

    def __init__(self):
        self._stack = [_Frame(None)]
        self._drafts: list[_Draft] = []
        self._labels: dict[str, _Draft] = {}  # html id -> the <label for=...> of it

    def start(self, tag: str, attributes: Mapping[str, str | None]) -> None:
        """An opening tag."""
        tag, parent = tag.lower(), self._stack[-1]
        frame = _Frame(parent)
        self._stack.append(frame)
        if tag == "text":
            frame.option = parent.option  # a piece of text of what it is in
            return
        if parent.skipped or tag in _SKIPPED or _hidden(tag, attributes):
            frame.skipped = True
            return
        if tag == "option" and frame.select is not None:
            frame.option = []
            return
        if tag in _GROUP_TAGS or attributes.get("role") in _GROUP_ROLES:
            frame.group = _Group(parent.group, tag, _attribute_text(attributes))
        if parent.control and tag in _IMAGES:
            parent.control.add(_attribute_text(attributes))  # an icon names its button
        node_id = attributes.get(NODE_ID)
        if node_id:
            self._open(frame, parent, tag, str(node_id), attributes)

    def _open(self, frame, parent, tag, node_id, attributes) -> None:
        role = _control_role(tag, attributes)
        rank = CONTROL if role else NESTED if parent.control else TEXT
        role = role or _passive_role(tag)
        group = parent.group if rank != CONTROL else frame.group
        draft = _Draft(tag, node_id, role, rank, attributes, group, parent.label)
        self._drafts.append(draft)
        frame.owner = draft
        if rank == CONTROL:
            frame.control = draft
            frame.select = draft if tag == "select" else None
        if tag == "label":
            frame.label = draft
            if attributes.get("for"):
                self._labels[attributes["for"]] = draft

    def text(self, data: str) -> None:
        """Character data."""
        data = " ".join(data.split())
        frame = self._stack[-1]
        if not data or frame.skipped:
            return
        if frame.option is not None:
            frame.option.append(data[:LABEL_CHARS])
            return
        if frame.owner is not None:
            frame.owner.add(data)
        if frame.control is not None and frame.control is not frame.owner:
            frame.control.add(data)
        if frame.group is not None and not frame.group.label:
            frame.group.label = data[:LABEL_CHARS]

    def end(self, _tag: str) -> None:
        """A closing tag."""
        frame = self._stack.pop()
        parent = self._stack[-1]
        if frame.option is not None and parent.option is None and frame.select is not None:
            if len(frame.select.options) < MAX_OPTIONS and frame.option:
                frame.select.options.append(_cut(" ".join(frame.option)))
        inner, outer = frame.control, parent.control
        if inner is not None and outer is not None and inner is not outer and not outer.parts:
            outer.add(inner.content)  # a control that only wraps another is called like it

    def page(self) -> Page:
        """The elements, contexts included."""
        labels = [self._label(draft) for draft in self._drafts]
        kept = [i for i, d in enumerate(self._drafts) if labels[i] or _needs_no_label(d)]
        times = Counter((self._drafts[i].role, labels[i]) for i in kept)
        elements: dict[str, Element] = {}
        for i in kept:
            draft, label = self._drafts[i], labels[i]
            ambiguous = draft.rank == CONTROL and times[draft.role, label] > 1
            element = Element(
                draft.node_id,
                draft.role,
                label,
                draft.rank,
                _cut(draft.attributes.get("value") or draft.attributes.get("input_value") or "")
                if draft.role in _FIELDS
                else "",
                _context(draft.group, label) if ambiguous else "",
                tuple(draft.options),
            )
            elements.setdefault(draft.node_id, element)
        return Page(tuple(elements.values()))

    def _label(self, draft: _Draft) -> str:
        found = draft.attributes
        named = next((found[k] for k in ("aria-label", "aria_label") if found.get(k)), "")
        rest = [found.get(key) for key in ("placeholder", "title", "alt", "name", "id")]
        if draft.role in _FIELDS:
            own = self._labels.get(found.get("id") or "") or draft.wrapper
            candidates = [
                named,
                own and own.content,
                draft.tag != "select" and draft.content,
                *rest,
            ]
        elif draft.rank == CONTROL:
            candidates = [named, draft.content, found.get("value"), *rest]
        else:
            candidates = [named, draft.content, *rest[1:3]]
        return next((cut for cut in map(_cut, filter(None, candidates)) if cut), "")


def _control_role(tag: str, attributes: Mapping[str, str | None]) -> str:
    """The role of a control, or "" for what is not one."""
    given = attributes.get("role")
    if given in _CONTROL_ROLES:
        return given
    if tag == "input":
        return _INPUT_ROLES.get((attributes.get("type") or "text").lower(), "textbox")
    if tag in _TAG_ROLES:
        return _TAG_ROLES[tag]
    if attributes.get("contenteditable") in ("", "true"):
        return "textbox"
    clickable = "onclick" in attributes or (attributes.get("tabindex") or "-1")[:1] != "-"
    return "clickable" if clickable else ""


def _passive_role(tag: str) -> str:
    if tag in _IMAGES:
        return "img"
    return "heading" if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit() else "text"


def _needs_no_label(draft: _Draft) -> bool:
    return draft.rank == CONTROL or draft.tag in _IMAGES


def _hidden(tag: str, attributes: Mapping[str, str | None]) -> bool:
    if "hidden" in attributes or (
        tag == "input" and (attributes.get("type") or "").lower() == "hidden"
    ):
        return True
    style = attributes.get("style")
    if not style:
        return False
    style = style[:1000].replace(" ", "").lower()
    return "display:none" in style or "visibility:hidden" in style


def _attribute_text(attributes: Mapping[str, str | None]) -> str:
    return next((_cut(attributes[k]) for k in _TEXT_ATTRIBUTES if attributes.get(k)), "")


def _context(group: _Group | None, label: str) -> str:
    """The label of the nearest row or region that says something else than the element itself."""
    for _ in range(8):
        if group is None:
            return ""
        if group.label and group.label != label:
            return _cut(group.label)
        if group.tag in _LANDMARKS:
            return group.tag
        group = group.parent
    return ""


def _cut(text: str) -> str:
    text = " ".join(text[: 4 * LABEL_CHARS].split())
    return text if len(text) <= LABEL_CHARS else text[: LABEL_CHARS - 3] + "..."
