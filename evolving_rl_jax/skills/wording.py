"""The words of a text, so that what it must not say is found however it is written.

``take_mug_1``, "take the mug1" and "Take mugs 1" are one; "cabinets 2 and 3" are two things.  Lines
and sentences are read one by one and without their list numbers, so that "every cabinet" and the
"2." of the next step are no "cabinet 2".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_END_OF_SENTENCE = re.compile(r"\n|[;!?]\s|(?<!\d)\.\s")
_LIST_NUMBER = re.compile(r"\A[\s>*#•+-]*\(?\d+[.)](?:\s+|\Z)")
_WORD = re.compile(r"[^\W\d_]+|\d+")
_ARTICLES = frozenset(("a", "an", "the"))
_BETWEEN_NUMBERS = frozenset(("and", "or", "to"))
_MOST_WORDS = 8  # before a further number of a list ("cabinets 2 and 3") that are searched with it


class Wording:
    """The words of a text, to search it for others."""

    def __init__(self, text: str):
        said = [line for part in _END_OF_SENTENCE.split(text) for line in _lines(_words(part))]
        self._lines = "".join(f" {' '.join(line)} \n" for line in said)

    def first_of(self, texts: Iterable[str]) -> str:
        """The first of the texts whose words occur in one line or sentence, in order, or ""."""
        for text in texts:
            needle = " ".join(next(_lines(_words(text)), ()))
            if needle and f" {needle} " in self._lines:
                return text
        return ""


def _words(text: str) -> list[str]:
    found = _WORD.findall(_LIST_NUMBER.sub("", text, count=1).casefold())
    return [word for word in found if word not in _ARTICLES]


def _lines(words: list[str]) -> Iterator[list[str]]:
    """The words with all names before numbers in one form, and again for each further number."""
    plain = [
        _singular(word) if after.isdigit() and not word.isdigit() else word
        for word, after in zip(words, [*words, ""][1:], strict=True)
    ]
    yield plain
    name = -1  # where the last name with a number is, while its numbers go on
    for i, word in enumerate(words):
        if word.isdigit() and i and not words[i - 1].isdigit():
            if name < 0 or words[i - 1] not in _BETWEEN_NUMBERS:
                name = i - 1
                continue
        if word.isdigit() and name >= 0:
            yield [*plain[max(name + 1 - _MOST_WORDS, 0) : name + 1], word]
        elif word not in _BETWEEN_NUMBERS:
            name = -1


def _singular(name: str) -> str:
    """A form that is the same for one thing and for many: "shelf" and "shelves", "mug" and "mugs"."""
    stem = name.rstrip("es") or name
    return stem[:-1] + {"v": "f", "y": "i"}.get(stem[-1], stem[-1])
