"""Scripts for pages on which something is found and clicked."""

from __future__ import annotations

import re

from evolving_rl_jax.envs.miniwob.solvers.view import Lost, Script, View, nth, quoted
from evolving_rl_jax.envs.web.actions import WebAction

__all__ = ["CLICKS"]

_SHADE = re.compile(r"rgb\((\d+), (\d+), (\d+)\)")
_LOOK = re.compile(r"(?P<color>\S+) (?P<kind>.+) (?P<size>\d+)(?:x\d+|px)")
_LARGE = 15  # pixels
_SHAPES = ("circle", "rectangle", "triangle")


def click_it(task: str, page: View):
    """The control that the sentence has in quotes."""
    yield page.click(quoted(task)[0])


def only_button(task: str, page: View):
    """The one button there is."""
    yield page.click(None, "button")


def button_one(task: str, page: View):
    """The button called ONE."""
    yield page.click("ONE", "button")


def button_sequence(task: str, page: View):
    """ONE, then TWO."""
    page = yield page.click("ONE", "button")
    yield page.click("TWO", "button")


def close_dialog(task: str, page: View):
    """The button that the sentence names; x is called Close."""
    wanted = quoted(task)[-1]
    yield page.click("Close" if wanted == "x" else wanted, "button")


def link(task: str, page: View):
    """The word that the sentence has in quotes, exactly."""
    yield WebAction("CLICK", exact(page, quoted(task)[0]))


def exact(page: View, label: str) -> int:
    """The ref of a link that is written exactly so."""
    for e in page.items:
        if e.label == label and e.role in ("clickable", "link"):
            return e.ref
    raise Lost(f"no link {label!r}")


def widget(task: str, page: View):
    """Any element of the kind that the sentence names."""
    kind = quoted(task)[0]
    fields = page.all(None, "textbox")
    if kind in ("textarea", "text"):
        # A long field and a short one look alike, but a long one is called by what it holds.
        wanted = [e for e in fields if (e.label == e.value != "") == (kind == "textarea")] or fields
        yield WebAction("CLICK", wanted[0].ref)
    else:
        yield page.click(None, kind)


def tab(task: str, page: View):
    """The tab that the sentence names."""
    yield page.click(task.removeprefix("Click on ").rstrip("."), "link")


def link_in_tabs(task: str, page: View):
    """Each tab in turn, until the link is seen."""
    wanted = quoted(task)[0]
    for name in [e.label for e in page.all(None, "tab")]:
        page = yield page.click(name, "link")
        if any(e.label == wanted and e.role == "clickable" for e in page.items):
            yield WebAction("CLICK", exact(page, wanted))


def section(task: str, page: View):
    """Opens the section, presses what is in it."""
    closed = page.all(None, "tab")[0]
    page = yield page.click(closed.label, "tab")
    yield page.click("Submit", "button")


def link_in_sections(task: str, page: View):
    """Each section in turn, until the link is seen."""
    wanted = quoted(task)[0]
    for name in [e.label for e in page.all(None, "tab") if e.label.startswith("Section")]:
        page = yield page.click(name, "tab")
        if any(e.label == wanted and e.role == "clickable" for e in page.items):
            yield WebAction("CLICK", exact(page, wanted))


def menu(task: str, page: View):
    """One entry after the other, with the arrow keys: a click would choose what only leads further."""
    yield from walked(page, page.items[0].ref, task.removeprefix("Select ").split(">"))


def walked(page: View, ref: int, path: list[str]):
    """Goes down a menu and presses Enter.

    Args:
      page: with the menu, whose first entry gets the focus.
      ref: of the menu.
      path: the names of the entries.
    """
    before: set[str] = set()
    for depth, name in enumerate(path):
        level = [e.label for e in page.all(None, "menuitem") if e.label not in before]
        before |= set(level)
        if name not in level:
            raise Lost(f"no entry {name!r}")
        for _ in range(level.index(name)):
            page = yield WebAction("KEY", ref, "ArrowDown")
        page = yield WebAction("KEY", ref, "Enter" if depth == len(path) - 1 else "ArrowRight")


def pie(task: str, page: View):
    """The plus, then the letter."""
    page = yield from opened(page)
    wanted = quoted(task)[0]
    yield WebAction(
        "CLICK", next(e.ref for e in page.items if e.role == "text" and e.label == wanted)
    )


def opened(page: View):
    """The page after the plus."""
    return (yield page.click("+", "text"))


def color(task: str, page: View):
    """The box of the colour."""
    yield page.click(task.split()[3], "clickable")


def shades(task: str, page: View):
    """Every box whose strongest part is the colour, then Submit."""
    part = ("red", "green", "blue").index(task.split("shades of ")[1].split()[0])
    for e in list(page.items):
        found = _SHADE.fullmatch(e.label)
        if found and max(range(3), key=lambda i: int(found[i + 1])) == part:
            page = yield WebAction("CLICK", e.ref)
    yield page.click("Submit", "button")


def fits(look: str, words: list[str]) -> bool:
    """Whether a shape looks as some words of a sentence say."""
    found = _LOOK.fullmatch(look)
    if found is None:
        return False
    kind, size = found["kind"], int(found["size"])
    is_shape = kind in _SHAPES
    said = {
        found["color"], kind, "item", "items", "large" if size > _LARGE else "small",
        "shape" if is_shape else "digit" if kind.isdigit() else "letter",
    }  # fmt: skip
    return all(w in said or w.removesuffix("s") in said for w in words)


def shape(task: str, page: View):
    """The first shape that the sentence describes."""
    words = re.sub("^Click on an? ", "", task).split()
    yield WebAction("CLICK", next(e.ref for e in page.items if fits(e.label, words)))


def shape_count(task: str, page: View):
    """The button with the number of shapes that the sentence describes."""
    words = re.sub("^How many | are there.*$", "", task).split()
    yield page.click(str(sum(fits(e.label, words) for e in page.items)), "button")


def identify(task: str, page: View):
    """The button that names the kind of the figure."""
    kind = next(m["kind"] for m in (_LOOK.fullmatch(e.label) for e in page.items) if m)
    name = kind if kind in _SHAPES else "Number" if kind.isdigit() else "Letter"
    yield page.click(name, "button")


def coordinate(task: str, page: View):
    """Points stand column by column, each from the lowest row."""
    x, y = map(int, re.findall(r"-?\d+", task))
    points = [e for e in page.items if e.role == "clickable"]
    yield WebAction("CLICK", points[(x + 2) * 5 + (2 - y)].ref)


def ascending(task: str, page: View):
    """The numbers from the lowest to the highest; only their places are seen after the first."""
    left = [int(e.label.split()[0]) for e in page.all(None, "clickable")]
    for number in sorted(left):
        page = yield WebAction("CLICK", page.all(None, "clickable")[left.index(number)].ref)
        left.remove(number)


def focus(task: str, page: View):
    """The field."""
    yield page.click(None, "textbox")


def focus_nth(task: str, page: View):
    """The field of that place."""
    yield page.click(None, "textbox", n=nth(task))


def tree(task: str, page: View):
    """Opens the folders one after the other, until the name is seen."""
    wanted, seen = quoted(task)[0], set()
    while True:
        if page.all(wanted):
            yield WebAction("CLICK", page.all(wanted)[-1].ref)
        closed = [e for e in page.items if "expandable" in e.label and e.context not in seen]
        if not closed:
            raise Lost("no folder to open")
        seen.add(closed[0].context)
        page = yield WebAction("CLICK", closed[0].ref)


def greatest(task: str, page: View):
    """Every card, then the one with the greatest number again."""
    numbers: list[int] = []
    count = len([e for e in page.all(None, "clickable")])
    for place in range(count):
        page = yield WebAction("CLICK", page.all(None, "clickable")[place].ref)
        shown = [e for e in page.all(None, "clickable") if e.label.isdigit()]
        numbers.append(int(shown[0].label))
    page = yield WebAction("CLICK", page.all(None, "clickable")[numbers.index(max(numbers))].ref)
    yield page.click("Submit", "button")


def odd_or_even(task: str, page: View):
    """Beside each number what it is, then Submit."""
    for place, number in enumerate([e.label for e in page.all(None, "text")]):
        page = yield page.click("Even" if int(number) % 2 == 0 else "Odd", "button", n=place)
    yield page.click("Submit", "button")


CLICKS: dict[str, Script] = {
    "ascending-numbers": ascending,
    "click-button": click_it,
    "click-button-sequence": button_sequence,
    "click-collapsible": section,
    "click-collapsible-2": link_in_sections,
    "click-collapsible-2-nodelay": link_in_sections,
    "click-collapsible-nodelay": section,
    "click-color": color,
    "click-dialog": close_dialog,
    "click-dialog-2": close_dialog,
    "click-link": link,
    "click-menu": menu,
    "click-pie": pie,
    "click-pie-nodelay": pie,
    "click-shades": shades,
    "click-shape": shape,
    "click-tab": tab,
    "click-tab-2": link_in_tabs,
    "click-tab-2-easy": link_in_tabs,
    "click-tab-2-hard": link_in_tabs,
    "click-tab-2-medium": link_in_tabs,
    "click-test": only_button,
    "click-test-2": button_one,
    "click-test-transfer": button_one,
    "click-widget": widget,
    "count-shape": shape_count,
    "find-greatest": greatest,
    "focus-text": focus,
    "focus-text-2": focus_nth,
    "grid-coordinate": coordinate,
    "identify-shape": identify,
    "navigate-tree": tree,
    "odd-or-even": odd_or_even,
    "unicode-test": click_it,
}
