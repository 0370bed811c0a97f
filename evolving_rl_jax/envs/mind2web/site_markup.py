"""Markup of generated pages, written as Mind2Web writes that of real ones, with its candidates."""

from __future__ import annotations

import html
import json
import random
from collections.abc import Callable, Sequence

from evolving_rl_jax.envs.web.markup import NODE_ID

__all__ = ["Markup"]

Node = tuple[str, str, str]  # role, label, context
_ICONS = range(0xE900, 0xE940)  # where icon fonts keep their pictures


class Markup:
    """Pieces of one page.

    Attributes:
      ids: (role, label, context) of each control -> its node id.
      candidates: every node that can be seen, with what the page does not say of it.
      html: the whole page, once `page` was called.
    """

    def __init__(self, rng: random.Random):
        self._next = rng.randrange(10, 90)
        self._rng = rng
        self.ids: dict[Node, str] = {}
        self.candidates: list[dict[str, str]] = []
        self.html = ""

    def button(self, label: str, context: str = "") -> str:
        """A button; ``context`` is where it stands."""
        return self._node("button", self._text(label), name=("button", label, context))

    def link(self, label: str) -> str:
        """A link, and its double for small screens, which nobody sees."""
        double = self._node("a", self._text(label), seen=False, hidden="")
        return double + self._node("a", self._text(label), name=("link", label, ""), kind="anchor")

    def icon(self, label: str) -> str:
        """A link that is a picture of an icon font, and called by its title."""
        picture = self._text(chr(self._rng.choice(_ICONS)))
        return self._node("a", picture, name=("link", label, ""), kind="anchor", title=label)

    def textbox(self, label: str, context: str = "") -> str:
        """A text field beside its label; ``context`` is where it stands."""
        field = self._node("input", name=("textbox", label, context), type="text")
        return self._labelled(label, field)

    def combobox(self, label: str, options: Sequence[str]) -> str:
        """A list beside its label, with its first option selected."""
        choices = "".join(
            self._node(
                "option",
                self._text(o),
                seen=False,
                value=str(i),
                **({} if i else {"option_selected": "true"}),
            )
            for i, o in enumerate(options)
        )
        return self._labelled(label, self._node("select", choices, name=("combobox", label, "")))

    def checkbox(self, label: str) -> str:
        """A box to tick before its label."""
        box = self._node("input", name=("checkbox", label, ""), type="checkbox")
        return f"<div>{box}{self._node('label', self._text(label))}</div>"

    def row(self, title: str, label: str) -> str:
        """A row of ``div`` with a title and a button; nothing but its title names it."""
        shown = f"<div>{self._node('span', self._text(title))}</div>"
        return self._node("div", f"{shown}<div>{self.button(label, title)}</div>", kind="card")

    def in_places(self, places: Sequence[str], make: Callable[[str], str]) -> list[str]:
        """The same control in every place, in any order."""
        order = self._rng.sample(list(places), len(places))
        return [self._within(place, make(place)) for place in order]

    def page(self, parts: Sequence[str]) -> Markup:
        """Puts the pieces together."""
        self.html = f"<html><body>{''.join(parts)}</body></html>"
        return self

    def _within(self, place: str, content: str) -> str:
        if place in ("header", "footer"):
            return f"<{place}>{content}</{place}>"
        return f'<section aria_label="{place}">{content}</section>'

    def _labelled(self, label: str, field: str) -> str:
        return f"<div>{self._node('label', self._text(label))}<div>{field}</div></div>"

    def _text(self, text: str) -> str:
        self._next += 1
        return f'<text {NODE_ID}="{self._next}">{html.escape(text)}</text>'

    def _node(
        self,
        tag: str,
        content: str = "",
        *,
        name: Node | None = None,
        kind: str = "",
        seen: bool = True,
        **attributes: str,
    ) -> str:
        self._next += self._rng.randrange(1, 9)
        number = str(self._next)
        if name is not None:
            self.ids[name] = number
        if seen:
            told = {NODE_ID: number, "class": kind or tag, **attributes}
            told |= {"is_clickable": "true"} if kind == "anchor" else {}
            candidate = {"tag": tag, NODE_ID: number, "attributes": json.dumps(told)}
            self.candidates.append(candidate)
        listed = "".join(f' {k}="{html.escape(v)}"' for k, v in attributes.items())
        return f'<{tag} {NODE_ID}="{number}"{listed}>{content}</{tag}>'
