"""From the HTML of a page to the elements that an agent may act on.  Never looks at the gold action."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from evolving_rl_jax.envs.web.contexts import contexts
from evolving_rl_jax.envs.web.labels import LABEL_CHARS, Labels, cut
from evolving_rl_jax.envs.web.markup import NODE_ID, Node, attribute_text, read_markup
from evolving_rl_jax.envs.web.roles import (
    CONTROL,
    FIELDS,
    IMAGES,
    NESTED,
    TEXT,
    WRAPPER,
    Attributes,
    passive_role,
    state,
)

__all__ = ["CONTROL", "LABEL_CHARS", "NESTED", "NODE_ID", "TEXT", "WRAPPER", "Element", "Page"]
__all__ += ["parse_page"]


@dataclasses.dataclass(frozen=True, slots=True)
class Element:
    """Something on a page that has a node id.

    Attributes:
      node_id: its ``backend_node_id``.
      role: ``button``, ``link``, ``textbox``, ``combobox``, ..., ``heading``, ``img`` or ``text``.
      label: what it is called, at most ``LABEL_CHARS`` characters, possibly empty.
      rank: ``CONTROL``, ``TEXT``, ``NESTED`` (a part of a control) or ``WRAPPER`` (what has its text
        from other elements).
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


def parse_page(
    html: str, candidates: Mapping[str, Attributes] | None = None, *, keep_all: bool = False
) -> Page:
    """Reads a page.

    Args:
      html: XML or HTML; any text is accepted, broken markup gives what can be read of it.
      candidates: node id -> attributes that are not in the markup; all of them become elements.
      keep_all: make an element of every node that has an id and is not hidden.

    Returns:
      Elements that have a ``backend_node_id``: candidates, controls, texts and images.  Invisible parts
      (scripts, hidden fields, ``display:none``) are left out.  One node id is one element.
    """
    nodes = read_markup(html, candidates or {})
    listed = {id(n.select) for n in nodes if n.select is not None and n.candidate}
    labels, taken = Labels(nodes), set()
    kept: list[Node] = []
    names: list[tuple[str, str]] = []
    for node in nodes:
        if not node.node_id or node.node_id in taken:
            continue
        wanted = node.candidate or id(node.select) in listed or keep_all and not node.hidden
        if not wanted and (node.hidden or not _speaks(node)):
            continue
        taken.add(node.node_id)
        kept.append(node)
        role = node.role or passive_role(node.tag, node.attributes, node.owns_text)
        names.append((role, labels.of(node)))
    told = contexts(kept, names, labels.of)
    return Page(tuple(map(_element, kept, names, told)))


def _speaks(node: Node) -> bool:
    """Whether a node that is no candidate is worth showing."""
    if node.select is not None:
        return False  # an option is chosen by its list
    if node.role or node.tag in IMAGES:
        return True
    return node.owns_text or bool(attribute_text(node.attributes))


def _element(node: Node, name: tuple[str, str], context: str) -> Element:
    role, label = name
    if node.role:
        rank = CONTROL
    elif node.control is not None:
        rank = NESTED
    else:
        speaks = node.owns_text or role in ("heading", "img") or attribute_text(node.attributes)
        rank = TEXT if speaks else WRAPPER
    value = ""
    if role in FIELDS:
        value = cut(" ".join(state(node.tag, role, node.attributes, node.selected)[:400].split()))
    return Element(node.node_id, role, label, rank, value, context, tuple(map(cut, node.options)))
