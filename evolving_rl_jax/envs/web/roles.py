"""What a node of a page is: its role, whether it can be acted on, whether it is hidden."""

from __future__ import annotations

from collections.abc import Mapping

CONTROL, TEXT, NESTED, WRAPPER = 0, 1, 2, 3  # see `page.Element.rank`

Attributes = Mapping[str, str | None]

SKIPPED = frozenset("script style noscript template head meta link title base".split())
IMAGES = frozenset(("svg", "img"))
LANDMARKS = frozenset("nav header footer aside main".split())
_LANDMARK_ROLES = {
    "navigation": "nav",
    "banner": "header",
    "contentinfo": "footer",
    "complementary": "aside",
    "main": "main",
    "dialog": "dialog",
    "search": "search",
}
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
FIELDS = frozenset("textbox searchbox combobox checkbox radio slider spinbutton switch".split())
TOGGLES = frozenset(("checkbox", "radio", "switch"))
_WRAPPER_ROLES = {
    "li": "listitem",
    "tr": "row",
    "td": "cell",
    "th": "cell",
    "table": "table",
    "ul": "list",
    "ol": "list",
    "form": "form",
    "label": "label",
    "option": "option",
}


def control_role(tag: str, attributes: Attributes) -> str:
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
    clickable = (
        "onclick" in attributes
        or attributes.get("is_clickable") == "true"
        or (attributes.get("tabindex") or "-1")[:1] != "-"
    )
    return "clickable" if clickable else ""


def passive_role(tag: str, attributes: Attributes, owns_text: bool) -> str:
    """The role of what is no control."""
    if tag in IMAGES or attributes.get("role") == "img":
        return "img"
    if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
        return "heading"
    own = "text" if owns_text and tag != "option" else ""
    return own or _WRAPPER_ROLES.get(tag, "group")


def landmark(tag: str, attributes: Attributes) -> str:
    """The name of a region's kind, or "" for what is no landmark."""
    return tag if tag in LANDMARKS else _LANDMARK_ROLES.get(attributes.get("role") or "", "")


def is_hidden(tag: str, attributes: Attributes) -> bool:
    """Whether nobody sees it: scripts, hidden fields, ``display:none``."""
    if tag in SKIPPED or "hidden" in attributes:
        return True
    if tag == "input" and (attributes.get("type") or "").lower() == "hidden":
        return True
    style = attributes.get("style")
    if not style:
        return False
    style = style[:1000].replace(" ", "").lower()
    return "display:none" in style or "visibility:hidden" in style


def state(tag: str, role: str, attributes: Attributes, selected: str) -> str:
    """What a field holds now: the selected option, ``checked``, or the text that was typed.

    ``input_value`` is the state at the time of the action, ``value`` what the page came with.
    """
    if role in TOGGLES:
        on = any(
            attributes.get(key) in ("true", "checked", "")
            for key in ("checked", "input_checked", "aria-checked", "aria_checked")
        )
        return "checked" if on else ""
    if tag == "select" and selected:
        return selected
    if "input_value" in attributes:
        return attributes["input_value"] or ""
    return attributes.get("value") or ""
