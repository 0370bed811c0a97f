"""Scripts for pages on which something is filled in and sent."""

from __future__ import annotations

import re

from evolving_rl_jax.envs.miniwob.solvers.view import Lost, Script, View, nth, quoted
from evolving_rl_jax.envs.web.actions import WebAction

__all__ = ["FORMS", "choose_day"]

_MONTHS = (
    "January February March April May June July August September October November December"
).split()


def submit(page: View) -> WebAction:
    """Presses Submit."""
    return page.click("Submit", "button", "clickable")


def text(task: str, page: View):
    """The quoted text into the field."""
    page = yield page.type(quoted(task)[0])
    yield submit(page)


def cased_text(task: str, page: View):
    """The quoted text, in the case that the sentence asks for."""
    word = quoted(task)[0]
    page = yield page.type(word.upper() if "upper" in task else word.lower())
    yield submit(page)


def password(task: str, page: View):
    """The quoted text into both fields."""
    for place in range(2):
        page = yield page.type(quoted(task)[0], n=place)
    yield submit(page)


def login(task: str, page: View):
    """Name and password into their fields; what comes between is cancelled."""
    for name, value in zip(("Username", "Password"), quoted(task), strict=True):
        while page.one(name, "textbox").value != value:
            page = yield page.type(value, name)
            if page.all("Cancel", "button"):
                page = yield page.click("Cancel", "button")
    yield page.click("Login" if page.all("Login", "button") else "OK", "button")


def date_typed(task: str, page: View):
    """The date into the field."""
    page = yield page.type(re.search(r"\d\d?/\d\d?/\d{4}", task)[0])
    yield submit(page)


def time_typed(task: str, page: View):
    """The time into the field."""
    page = yield page.type(re.search(r"\d\d?:\d\d [AP]M", task)[0])
    yield submit(page)


def choose_day(page: View, wanted: str):
    """Turns an open calendar to a month and clicks the day."""
    month, day, year = map(int, re.search(r"(\d+)/(\d+)/(\d+)", wanted).groups())
    for _ in range(24):
        shown = next(i for i, name in enumerate(_MONTHS, 1) if page.all(name, "text"))
        of = int(next(t for t in page.texts() if re.fullmatch(r"\d{4}", t)))
        apart = (year - of) * 12 + month - shown
        if not apart:
            return (yield page.click(str(day), "link"))
        page = yield page.click("Next" if apart > 0 else "Prev", "link")
    raise Lost("the calendar does not turn")


def date_chosen(task: str, page: View):
    """Opens the calendar, turns to the month, clicks the day."""
    page = yield page.click(None, "textbox")
    page = yield from choose_day(page, task)
    yield submit(page)


def listed(task: str, page: View):
    """Selects the name in the list."""
    wanted = re.search(r"Select (.*) from the list", task)[1]
    page = yield WebAction("SELECT", page.one(None, "combobox").ref, wanted)
    yield submit(page)


def listed_many(task: str, page: View):
    """Selects the names in the list, one after the other."""
    for name in re.search(r"Select (.*) from the scroll list", task)[1].split(", "):
        page = yield WebAction("SELECT", page.one(None, "combobox").ref, name)
    yield submit(page)


def boxes(task: str, page: View):
    """Checks the boxes with these names."""
    wanted = re.search(r"Select (.*) and click Submit", task)[1]
    for name in [] if wanted == "nothing" else wanted.split(", "):
        page = yield WebAction("CLICK", exact(page, name, "checkbox"))
    yield submit(page)


def exact(page: View, label: str, role: str) -> int:
    """The ref of the control that is written exactly so."""
    for e in page.items:
        if e.label == label and e.role == role:
            return e.ref
    raise Lost(f"no {role} {label!r}")


def option(task: str, page: View):
    """The radio button with this name."""
    wanted = re.search(r"Select (.*) and click Submit", task)[1]
    page = yield WebAction("CLICK", exact(page, wanted, "radio"))
    yield submit(page)


def copied(task: str, page: View):
    """What the long field holds into the short one, blanks at its end too: copied and pasted."""
    full = [e for e in page.all(None, "textbox") if e.value]
    source = full[nth(task)] if re.search(r"\d(st|nd|rd|th)", task) else full[0]
    page = yield WebAction("KEY", source.ref, "Control+C")
    empty = next(e for e in page.all(None, "textbox") if not e.value)
    page = yield WebAction("KEY", empty.ref, "Control+V")
    yield submit(page)


def word(task: str, page: View):
    """The word of that place, without what ends a sentence."""
    words = next(page.texts()).split()
    page = yield page.type(words[nth(task)].strip(",."))
    yield submit(page)


def shown_letters(task: str, page: View):
    """The letters that are drawn."""
    page = yield page.type("".join(page.texts()))
    yield submit(page)


def arithmetic(task: str, page: View):
    """The result of the sum that is written."""
    a, op, b = re.search(r"(-?\d+) ?([-+x*]) ?(-?\d+) =", " ".join(page.texts())).groups()
    a, b = int(a), int(b)
    page = yield page.type(str({"+": a + b, "-": a - b}.get(op, a * b)))
    yield submit(page)


def algebra(task: str, page: View):
    """What x is in the equation that is written."""
    left, op, right, total = re.search(
        r"(\w+) ?([-+]) ?(\w+) ?= ?(-?\d+)", " ".join(page.texts())
    ).groups()
    total = int(total)
    if left == "x":
        x = total - int(right) if op == "+" else total + int(right)
    else:
        x = total - int(left) if op == "+" else int(left) - total
    page = yield page.type(str(x))
    yield submit(page)


def table_value(task: str, page: View):
    """The text beside the name that the sentence asks for."""
    name = re.search(r"value of (.*) into", task)[1]
    page = yield page.type(beside(page, name))
    yield submit(page)


def beside(page: View, name: str) -> str:
    """The text after the one that is a name."""
    said = list(page.texts())
    return said[said.index(name) + 1]


def table_values(task: str, page: View):
    """Into each field the text beside its name in the table."""
    for place, field in enumerate(page.all(None, "textbox")):
        page = yield page.type(beside(page, field.label.rstrip(":")), n=place)
    yield submit(page)


def movie(task: str, page: View):
    """Genre, director and year into their fields."""
    genre, director, year = re.search(
        r"Search for (.*) movies directed by (.*) from year (\d+)", task
    ).groups()
    kinds = {"genre": genre, "director": director, "year": year, "released": year}
    # A name may stand before, after or below its field: the n-th name belongs to the n-th field.
    named = [
        next(kinds[k] for k in kinds if k in said.lower())
        for said in page.texts()
        if any(k in said.lower() for k in kinds)
    ]
    for place, value in enumerate(named):
        page = yield page.type(value, n=place)
    last = [e for e in page.items if e.role in ("button", "clickable", "link")][-1]
    yield WebAction("CLICK", last.ref)


def completed(task: str, page: View):
    """The beginning into the field, then the suggestion that ends right."""
    begins, *ends = quoted(task)
    page = yield page.type(begins)
    found = next(
        e
        for e in page.all(None, "text")
        if e.label.startswith(begins) and e.label.endswith(ends[0] if ends else "")
    )
    page = yield WebAction("CLICK", found.ref)
    yield submit(page)


def moved(page: View, handle: int, shown: int, wanted: int):
    """Moves a slider's handle with the arrow keys.

    Args:
      page: seen now.
      handle: which handle, from 0.
      shown: which of the numbers on the page is its own, from 0.
      wanted: where to.
    """
    for _ in range(60):
        numbers = [e for e in page.items if re.fullmatch(r"-?\d+", e.label) and e.role == "text"]
        apart = wanted - int(numbers[shown].label)
        if not apart:
            return page
        grip = [e for e in page.items if "handle" in e.label][handle]
        page = yield WebAction("KEY", grip.ref, "ArrowRight" if apart > 0 else "ArrowLeft")
    raise Lost("the slider does not move")


def slider(task: str, page: View):
    """The handle to the number."""
    page = yield from moved(page, 0, 0, int(re.search(r"Select (-?\d+)", task)[1]))
    yield submit(page)


def sliders(task: str, page: View):
    """Each handle to its number."""
    for i, wanted in enumerate(re.findall(r"\d+", task)):
        page = yield from moved(page, i, i, int(wanted))
    yield submit(page)


def slider_and_box(task: str, page: View):
    """The handle to the number, then the box of that place."""
    page = yield from moved(page, 0, 0, int(re.search(r"Select (-?\d+)", task)[1]))
    page = yield page.click(None, "checkbox", n=nth(task))
    yield submit(page)


def radio_and_field(task: str, page: View):
    """The radio button of its place, the number into the field of its place."""
    first, second = re.findall(r"(\d+)(?:st|nd|rd|th)", task)
    page = yield page.click(None, "radio", n=int(first) - 1)
    page = yield page.type(quoted(task)[0], n=int(second) - 1)
    yield submit(page)


def dropdown_and_button(task: str, page: View):
    """The entry of the list, then the button."""
    wanted = re.search(r"Choose (.*) from the dropdown", task)[1]
    page = yield page.click("▾", "clickable")
    page = yield page.click(wanted, "clickable")
    yield page.click(quoted(task)[0], "button")


def spinner(task: str, page: View):
    """The number into the field."""
    wanted = int(re.search(r"Select (-?\d+)", task)[1])
    for _ in range(24):
        field = page.one(None, "spinbutton")
        apart = wanted - int(field.value or 0)
        if not apart:
            break
        page = yield WebAction("KEY", field.ref, "ArrowUp" if apart > 0 else "ArrowDown")
    yield submit(page)


# Names that pages are asked for, as CSS defines them.
_COLORS = {
    "black": "000000", "white": "ffffff", "aqua": "00ffff", "blue": "0000ff", "gray": "808080",
    "green": "008000", "lime": "00ff00", "maroon": "800000", "navy": "000080", "olive": "808000",
    "purple": "800080", "red": "ff0000", "silver": "c0c0c0", "teal": "008080", "yellow": "ffff00",
    "pink": "ffc0cb", "magenta": "ff00ff", "gold": "ffd700", "orange": "ffa500",
}  # fmt: skip


def color(task: str, page: View):
    """The digits of the colour into the field, then Submit."""
    page = yield page.type(_COLORS[task.split()[1]])
    yield submit(page)


def guess(task: str, page: View):
    """The middle of what is left, until it is right."""
    low, high = 0, 9
    while low <= high:
        middle = (low + high) // 2
        page = yield page.type(str(middle))
        page = yield submit(page)
        said = " ".join(page.texts())
        low, high = (low, middle - 1) if "lower" in said else (middle + 1, high)


def generated(task: str, page: View):
    """Generate, until the number is one of those asked for."""
    bound = int((re.findall(r"\d+", task) or [0])[0])
    right = {
        "less": lambda n: n < bound,
        "greater": lambda n: n > bound,
        "even": lambda n: n % 2 == 0,
        "odd": lambda n: n % 2 == 1,
    }
    fits = next(test for name, test in right.items() if name in task)
    while True:
        page = yield page.click("Generate", "button")
        if fits(int(next(page.texts()))):
            yield submit(page)


FORMS: dict[str, Script] = {
    "choose-date": date_chosen,
    "choose-date-easy": date_chosen,
    "choose-date-medium": date_chosen,
    "choose-date-nodelay": date_chosen,
    "choose-list": listed,
    "click-checkboxes": boxes,
    "click-checkboxes-large": boxes,
    "click-checkboxes-transfer": boxes,
    "click-option": option,
    "click-scroll-list": listed_many,
    "copy-paste": copied,
    "copy-paste-2": copied,
    "enter-date": date_typed,
    "enter-password": password,
    "enter-text": text,
    "enter-text-2": cased_text,
    "enter-text-dynamic": text,
    "enter-time": time_typed,
    "find-word": word,
    "form-sequence": slider_and_box,
    "form-sequence-2": radio_and_field,
    "form-sequence-3": dropdown_and_button,
    "generate-number": generated,
    "guess-number": guess,
    "login-user": login,
    "login-user-popup": login,
    "multi-layouts": movie,
    "multi-orderings": movie,
    "read-table": table_value,
    "read-table-2": table_values,
    "simple-algebra": algebra,
    "simple-arithmetic": arithmetic,
    "text-transform": shown_letters,
    "use-autocomplete": completed,
    "use-autocomplete-nodelay": completed,
    "use-colorwheel": color,
    "use-slider": slider,
    "use-slider-2": sliders,
    "use-spinner": spinner,
}
