"""Which characters plain English is written with: an allow-list.

Categories alone let through what looks like words and is none (Kangxi radicals, Yi, Braille and
letters in circles are all "symbols"), and names alone refuse "Sauté".
"""

from __future__ import annotations

import functools
import unicodedata

# Punctuation, symbols, spaces and numbers outside ASCII are allowed in these blocks; letters never.
_SYMBOL_BLOCKS = (
    (0x00A0, 0x00FF),  # Latin-1: degree, times, one half, superscripts
    (0x2000, 0x2027), (0x202F, 0x206F),  # punctuation, without line separators
    (0x2070, 0x20CF),  # superscripts, subscripts, currencies
    (0x2100, 0x23FF),  # trade mark, fractions, arrows, operators, technical
    (0x2460, 0x249B),  # numbers in circles; letters follow
    (0x24EA, 0x27FF),  # more of them, boxes, shapes, dingbats, arrows; Braille follows
    (0x2900, 0x2BFF),  # arrows and operators
    (0x2E00, 0x2E5D),  # further punctuation
    (0xFE50, 0xFE6F),  # small forms
    (0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F7E0, 0x1F7EB), (0x1F900, 0x1FAFF),  # emoji
)  # fmt: skip
_EMOJI_STYLE = "\ufe0f"  # follows a symbol that is to be shown as an emoji
_CONTROLS = frozenset("\t\n\r")
_ACCENTED = (0x00C0, 0x017F)  # Latin-1 and Extended-A: letters of European names and loanwords


@functools.cache
def is_allowed(character: str) -> bool:
    """Whether plain English may hold the character."""
    code, category = ord(character), unicodedata.category(character)
    if code < 0x7F:
        return code >= 0x20 or character in _CONTROLS
    if category[0] in "SPZ" or category == "No":
        return any(first <= code <= last for first, last in _SYMBOL_BLOCKS)
    return character == _EMOJI_STYLE or category in ("Ll", "Lu") and _is_accented(character)


def _is_accented(letter: str) -> bool:
    """Whether it is one of the Latin letters of European languages, or a plain one with accents."""
    if _ACCENTED[0] <= ord(letter) <= _ACCENTED[1]:
        return True
    base, *accents = unicodedata.normalize("NFD", letter)
    return bool(accents) and base.isascii() and all(map(unicodedata.combining, accents))


def is_uncommon(character: str) -> bool:
    """Whether it is no character of a text: invisible, unassigned, a compatibility form, odd.

    Source: the released audit, and symbols outside the allow-list beside it.
    """
    if is_allowed(character):
        return False
    category, name = unicodedata.category(character), unicodedata.name(character, "")
    return category[0] in "CSPZ" or any(part in name for part in _ODD_NAMES)


def is_non_english(character: str) -> bool:
    """Whether it belongs to another script or language."""
    allowed = is_allowed(character)
    return not allowed and ord(character) > 127 and unicodedata.category(character)[0] not in "SPZ"


_ODD_NAMES = (
    "ZERO WIDTH", "FULLWIDTH", "HALFWIDTH", "MATHEMATICAL", "MODIFIER LETTER", "COMBINING",
)  # fmt: skip
