"""Loops in a text: what a policy writes when it no longer says anything."""

from __future__ import annotations

import re
import zlib
from collections import Counter

CHARACTER_RUN = 8  # one character this often in a row
TOKEN_RUN = 8  # one token this often in a row
CHUNK_TOKENS = (2, 3, 4)  # lengths of repeated chunks
CHUNK_CHARACTERS = 8  # shorter chunks ("a b") may repeat
CHUNK_REPEATS = 4
LINE_CHARACTERS = 12  # shorter lines may repeat
LINE_REPEATS = 3
LINE_SHARE = 0.5
# Characters -> size of so many, compressed, below which they say one thing over and over.  Prose
# stays above 0.25 of its size, and lists of lines that differ in one word above these.
COMPRESSED_SHARE = {400: 0.15, 800: 0.15, 1600: 0.08, 3200: 0.06}
COMPRESSED_LEAST = 240  # characters; shorter texts cannot be told by their compressed size
_RULE_LENGTH = 120  # characters of the longest rule or table line that Markdown is given

_REPEATED_CHARACTER = re.compile(rf"([^\n])\1{{{CHARACTER_RUN - 1}}}")
_BLANKS = re.compile(r"[^\S\n]+")
_RULE = re.compile(r"([-*_=])(?: ?\1){2,}")
_TABLE_RULE = re.compile(r"\|?(?: ?:?-+:? ?\|)+(?: ?:?-+:?)?")


def find_loop(text: str) -> str:
    """The first loop found, in words; empty if there is none.  Takes time linear in the text."""
    text = _without_rules(_BLANKS.sub(" ", text))
    run = _REPEATED_CHARACTER.search(text)
    if run:
        return f"the character {run[1]!r} {CHARACTER_RUN} times in a row"
    text = text.lower()
    return _find_chunk(text.split()) or _find_line(text) or _find_compressible(text)


def _without_rules(text: str) -> str:
    """Leaves out the lines that Markdown draws: rules between paragraphs, heads of tables.

    Two in a row are not Markdown, nor is a rule after which nothing comes.
    """
    lines = [line.strip() for line in text.strip().split("\n")]
    kept: list[str] = []
    after_rule = False
    for number, line in enumerate(lines):
        drawn = len(line) <= _RULE_LENGTH and not after_rule
        last = 0 < number == len(lines) - 1
        rule = drawn and (_TABLE_RULE.fullmatch(line) or not last and _RULE.fullmatch(line))
        if not rule:
            kept.append(line)
        after_rule = bool(rule) or after_rule and not line
    return "\n".join(kept)


def _find_chunk(tokens: list[str]) -> str:
    end = _find_period(tokens, 1, TOKEN_RUN)
    if end is not None:
        return f"the token {tokens[end][:40]!r} {TOKEN_RUN} times in a row"
    for length in CHUNK_TOKENS:
        end = _find_period(tokens, length, CHUNK_REPEATS, CHUNK_CHARACTERS)
        if end is not None:
            chunk = " ".join(tokens[end - length + 1 : end + 1])
            return f"the words {chunk[:80]!r} {CHUNK_REPEATS} times in a row"
    return ""


def _find_period(
    tokens: list[str], period: int, repeats: int, min_characters: int = 0
) -> int | None:
    """Index of the token at which a chunk of ``period`` tokens has come ``repeats`` times, or None.

    A chunk repeats r times exactly where (r-1)*period tokens in a row equal the one ``period``
    before them, so one pass is enough.  All rotations of a chunk have the same length.
    """
    needed, run = (repeats - 1) * period, 0
    for i in range(period, len(tokens)):
        run = run + 1 if tokens[i] == tokens[i - period] else 0
        if run >= needed:
            chunk = tokens[i - period + 1 : i + 1]
            if sum(map(len, chunk)) + period - 1 >= min_characters:
                return i
    return None


def _find_line(text: str) -> str:
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    for line, count in Counter(lines).items():
        if (
            len(line) >= LINE_CHARACTERS
            and count >= LINE_REPEATS
            and count >= LINE_SHARE * len(lines)
        ):
            return f"the line {line[:80]!r} {count} times in {len(lines)} lines"
    return ""


def _find_compressible(text: str) -> str:
    """A stretch that repeats itself at any period, or nearly so (a loop that counts)."""
    data = text.encode("utf-8", "replace")
    for size, share in COMPRESSED_SHARE.items():
        least = COMPRESSED_LEAST if size == min(COMPRESSED_SHARE) else size
        for start in range(0, max(len(data) - size // 2, 1), size // 2):
            window = data[start : start + size]
            if len(window) >= least and len(zlib.compress(window)) < share * len(window):
                said = window[:60].decode("utf-8", "ignore")
                return f"a text that repeats itself: {len(window)} characters from {said!r} on"
    return ""
