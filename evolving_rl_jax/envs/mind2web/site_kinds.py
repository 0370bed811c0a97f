"""What generated sites are about: their domains, the words of their tasks, and the habits that a site can have.

A **habit** decides what is right where a page leaves several things open, and there are always three:

* ``press``: the same button stands in three places;
* ``use``: the same field stands in three places;
* ``write``: a date can be written in three formats;
* ``set``: one of two filters must be set before a row is chosen, or none of them.

Both halves of the domains, those that are trained on and the others, have all four kinds of habit, under
names that no other domain has.
"""

from __future__ import annotations

import dataclasses
import random

__all__ = ["KINDS", "TEST_KINDS", "TRAIN_KINDS", "VERBS", "Date", "Kind", "choices_of"]

_COLORS = "red blue green black white".split()
_THINGS = "mug lamp chair jacket clock bag tent bowl scarf desk".split()
_CITIES = "oslo lima cairo dublin kyoto quito riga perth lyon porto".split()
_NAMES = "anna boris chen dara emil fatima goran hana ivan julia".split()
_TOPICS = "tax refund visa parking library school permit water".split()
_ROOMS = "single double family garden".split()
_DAYS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
_MONTHS = "january february march april may june july august october december".split()

_PLACES = (("header", "footer", "side"), ("left", "right", "middle"), ("top", "bottom", "corner"))
_FILTERS = (("none", "new", "used"), ("none", "near", "cheap"), ("none", "large", "small"))
_FORMATS = (("day", "month", "slash"),)
_CHOICES = {"press": _PLACES, "use": _PLACES, "write": _FORMATS, "set": _FILTERS}


@dataclasses.dataclass(frozen=True)
class Date:
    """A day of the year, as sentences and sites write it."""

    day: str
    month: str

    @classmethod
    def drawn(cls, rng: random.Random) -> Date:
        return cls(rng.choice(_DAYS), rng.choice(_MONTHS))

    @property
    def sentence(self) -> str:
        """``the fifth of may``."""
        return f"the {self.day} of {self.month}"

    def written(self, form: str) -> str:
        """In one of the three formats, by its name."""
        forms = {
            "day": f"{self.day} {self.month}",
            "month": f"{self.month} {self.day}",
            "slash": f"{self.month} / {self.day}",
        }
        return forms[form]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the sites of a domain are like.

    A task fills in ``field`` by ``op`` with one of ``fill_from``, perhaps a date, perhaps presses a button, and
    chooses one of equal ``row_label`` buttons by its row.

    Attributes:
      slots: the two habits: what each is about -> its kind.  A ``use`` is of ``field``, a ``write`` of the field
        of that name, a ``press`` of the button of that name, a ``set`` of the filters of the rows.
    """

    domain: str
    subdomain: str
    field: str
    op: str
    fill_from: tuple[str, ...]
    row_label: str
    rows_from: tuple[str, ...]
    slots: dict[str, str]
    sentence: str

    @property
    def date_field(self) -> str:
        """The field of the date, or ""."""
        return next((slot for slot, verb in self.slots.items() if verb == "write"), "")

    def text(self, fill: str, row: str, date: Date) -> str:
        """The instruction."""
        return self.sentence.format(fill=fill, row=row, date=date.sentence)


KINDS = (
    Kind("Shopping", "Shop", "find", "TYPE", tuple(_THINGS), "add", tuple(_COLORS),
         {"find": "use", "checkout": "press"}, "find {fill} and add the {row} one"),
    Kind("Travel", "Hotel", "city", "SELECT", tuple(_CITIES), "book", tuple(_ROOMS),
         {"arrival": "write", "filter": "set"}, "go to {fill} on {date} and book a {row} room"),
    Kind("Service", "Form", "person", "TYPE", tuple(_NAMES), "choose", tuple(_TOPICS),
         {"person": "use", "birth": "write"}, "write as {fill} born on {date} and choose {row}"),
    Kind("Info", "Search", "topic", "SELECT", tuple(_TOPICS), "open", tuple(_COLORS),
         {"show": "press", "sort": "set"}, "look up {fill} and open the {row} page"),
)  # fmt: skip
TRAIN_KINDS, TEST_KINDS = KINDS[:2], KINDS[2:]

# What a habit is about -> its kind, the first word of the sentence that states it.
VERBS = {slot: verb for kind in KINDS for slot, verb in kind.slots.items()}


def choices_of(kind: Kind, rng: random.Random) -> dict[str, tuple[str, ...]]:
    """The habits of a new site: what each is about -> its three choices, the right one first."""
    sets: dict[str, tuple[str, ...]] = {}
    for slot, verb in kind.slots.items():
        free = [s for s in _CHOICES[verb] if s not in sets.values()]
        sets[slot] = rng.choice(free)
    return {slot: tuple(rng.sample(found, len(found))) for slot, found in sets.items()}
