"""The families of the package: which are played, how long, and which are left out and why."""

from __future__ import annotations

from evolving_rl_jax.envs.base import EnvError

__all__ = ["LEAVES_TRACES", "LEFT_OUT", "PLAYED", "known", "refuse", "steps"]

PLAYED = (
    "ascending-numbers",
    "book-flight",
    "book-flight-nodelay",
    "buy-ticket",
    "choose-date",
    "choose-date-easy",
    "choose-date-medium",
    "choose-date-nodelay",
    "choose-list",
    "click-button",
    "click-button-sequence",
    "click-checkboxes",
    "click-checkboxes-large",
    "click-checkboxes-soft",
    "click-checkboxes-transfer",
    "click-collapsible",
    "click-collapsible-2",
    "click-collapsible-2-nodelay",
    "click-collapsible-nodelay",
    "click-color",
    "click-dialog",
    "click-dialog-2",
    "click-link",
    "click-menu",
    "click-option",
    "click-pie",
    "click-pie-nodelay",
    "click-scroll-list",
    "click-shades",
    "click-shape",
    "click-tab",
    "click-tab-2",
    "click-tab-2-easy",
    "click-tab-2-hard",
    "click-tab-2-medium",
    "click-test",
    "click-test-2",
    "click-test-transfer",
    "click-widget",
    "copy-paste",
    "copy-paste-2",
    "count-shape",
    "daily-calendar",
    "email-inbox",
    "email-inbox-delete",
    "email-inbox-forward",
    "email-inbox-forward-nl",
    "email-inbox-forward-nl-turk",
    "email-inbox-important",
    "email-inbox-nl-turk",
    "email-inbox-noscroll",
    "email-inbox-reply",
    "email-inbox-star-reply",
    "enter-date",
    "enter-password",
    "enter-text",
    "enter-text-2",
    "enter-text-dynamic",
    "enter-time",
    "find-greatest",
    "find-word",
    "focus-text",
    "focus-text-2",
    "form-sequence",
    "form-sequence-2",
    "form-sequence-3",
    "generate-number",
    "grid-coordinate",
    "guess-number",
    "identify-shape",
    "login-user",
    "login-user-popup",
    "multi-layouts",
    "multi-orderings",
    "navigate-tree",
    "odd-or-even",
    "order-food",
    "phone-book",
    "read-table",
    "read-table-2",
    "scroll-text-2",
    "search-engine",
    "sign-agreement",
    "simple-algebra",
    "simple-arithmetic",
    "social-media",
    "social-media-all",
    "social-media-some",
    "stock-market",
    "terminal",
    "text-transform",
    "tic-tac-toe",
    "unicode-test",
    "use-autocomplete",
    "use-autocomplete-nodelay",
    "use-colorwheel",
    "use-slider",
    "use-slider-2",
    "use-spinner",
)

_PATH = "needs the path of a pointer, which elements and text cannot say"
_PLACE = "needs a place on a drawing, which elements and text cannot say"
_MARK = "needs a part of a text to be marked with a pointer"

# Family -> why it is not played.
LEFT_OUT = {
    "bisect-angle": _PLACE,
    "circle-center": _PLACE,
    "click-menu-2": "shows an icon in half of its sentences, where a word would be",
    "count-sides": "the shape is a picture on a canvas",
    "drag-box": _PATH,
    "drag-circle": _PATH,
    "drag-cube": _PATH,
    "drag-items": _PATH,
    "drag-items-grid": _PATH,
    "drag-shapes": _PATH,
    "drag-shapes-2": _PATH,
    "drag-single-shape": _PATH,
    "drag-sort-numbers": _PATH,
    "draw-circle": _PATH,
    "draw-line": _PATH,
    "find-midpoint": _PLACE,
    "highlight-text": _MARK,
    "highlight-text-2": _MARK,
    "hot-cold": _PLACE,
    "number-checkboxes": "the example to follow is a picture",
    "resize-textarea": _PATH,
    "right-angle": _PLACE,
    "scroll-text": "the word that it asks for is far down in a text field, of which the beginning is shown",
    "text-editor": _MARK,
    "use-colorwheel-2": _PLACE,
    "visual-addition": "the blocks to count are drawn, they have no text",
    "flight.AA": "is served over HTTP, and the browser has no network",
    "flight.Alaska": "is served over HTTP, and the browser has no network",
    "flight.Alaska-auto": "is served over HTTP, and the browser has no network",
}

_STEPS = 10  # of an episode
_LONG = {
    "book-flight": 14,
    "book-flight-nodelay": 14,
    "choose-date": 20,
    "click-menu": 20,
    "choose-date-nodelay": 20,
    "click-checkboxes-large": 16,
    "click-shades": 16,
    "daily-calendar": 12,
    "form-sequence": 30,
    "social-media-all": 20,
    "use-slider": 60,
    "use-slider-2": 60,
    "use-spinner": 24,
}

# Families whose page keeps something of an episode that its own reset does not undo: a month that was turned
# to, a field that is focused.  Found by random plays, on one page and on new ones; a slow test does it again.
LEAVES_TRACES = frozenset((
    "book-flight", "book-flight-nodelay", "choose-date", "choose-date-easy", "choose-date-medium",
    "choose-date-nodelay", "click-pie", "click-pie-nodelay", "focus-text-2", "form-sequence-3",
    "login-user-popup", "scroll-text-2", "use-autocomplete", "use-autocomplete-nodelay",
    "use-colorwheel", "use-slider-2",
))  # fmt: skip

# Families whose first page hides what differs between their seeds: a number to guess, the cards' other sides, files.
HIDES = frozenset(("find-greatest", "generate-number", "guess-number", "terminal", "tic-tac-toe"))

# Families that a script plays by what an agent is not shown: pages that came before, the order of fields whose
# names stand behind them. They are not demonstrated.
PLAYED_UNSEEN = frozenset(("find-greatest", "multi-layouts"))


def known() -> list[str]:
    """All families of the package, sorted."""
    return sorted([*PLAYED, *LEFT_OUT])


def steps(family: str) -> int:
    """Most actions of an episode of a family."""
    return _LONG.get(family, _STEPS)


def refuse(family: str) -> None:
    """Raises ``EnvError`` for a family that is not played, saying why."""
    if family in LEFT_OUT:
        raise EnvError(f"miniwob's {family} is not played: {LEFT_OUT[family]}")
    if family not in PLAYED:
        raise EnvError(f"miniwob has no family {family!r}")
