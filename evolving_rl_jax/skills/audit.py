"""Whether a skill is plain, readable English: no odd characters, no other scripts, no loops.

The extractor is rewarded through a solver that reads its text, so nothing else keeps that text
readable; an audited failure earns reward 0.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from evolving_rl_jax.types import Task

CHARACTER_RUN = 8  # one character this often in a row
TOKEN_RUN = 8  # one token this often in a row
CHUNK_TOKENS = (2, 3, 4)  # lengths of repeated chunks
CHUNK_CHARACTERS = 8  # shorter chunks ("a b") may repeat
CHUNK_REPEATS = 4
LINE_CHARACTERS = 12  # shorter lines may repeat
LINE_REPEATS = 3
LINE_SHARE = 0.5

_ODD_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Co", "Cn"))
_ODD_NAMES = re.compile("ZERO WIDTH|FULLWIDTH|HALFWIDTH|MATHEMATICAL|MODIFIER LETTER|COMBINING")
_ALLOWED_CONTROLS = frozenset("\t\n\r")
_REPEATED_CHARACTER = re.compile(rf"([^\n])\1{{{CHARACTER_RUN - 1}}}")
_BLANKS = re.compile(r"[^\S\n]+")
_WORD = re.compile(r"\w+")
_THING = re.compile(r"\b([a-z]+) (\d+)\b")
_SHOWN = 5  # characters named in a reason


class AuditResult(NamedTuple):
    """The verdict on one text; ``passed`` is true when no flag is.

    ``reasons`` has one line for each flag.
    """

    passed: bool
    has_uncommon_characters: bool
    has_non_english_characters: bool
    has_repetition: bool
    has_leakage: bool
    too_long: bool
    reasons: tuple[str, ...]
    has_copied_entities: bool = False


def audit(
    text: str,
    *,
    leakage_texts: Iterable[str] = (),
    entities: Iterable[str] = (),
    max_chars: int | None = None,
) -> AuditResult:
    """Audits the text of a skill, in time linear in its length.

    Args:
      text: what the policy would read.
      leakage_texts: answers that the skill must not contain, compared as whole words without case
        and punctuation.  None by default.
      entities: names of single things of the source that the skill must not copy, compared alike.
      max_chars: longest text that passes, in characters.  No limit by default.

    Returns:
      The flags and their reasons.

    >>> audit("Mugs are in cabinet 3.").passed
    True
    >>> audit("go go go go go go go go").reasons
    ("the token 'go' 8 times in a row",)
    """
    characters = sorted(set(text))
    uncommon = [c for c in characters if _is_uncommon(c)]
    foreign = [c for c in characters if _is_non_english(c)]
    repetition = _find_repetition(text)
    words = f" {' '.join(_WORD.findall(text.casefold()))} "
    leaked, copied = _find_words(words, leakage_texts), _find_words(words, entities)
    too_long = max_chars is not None and len(text) > max_chars
    reasons = (
        uncommon and f"uncommon characters: {_code_points(uncommon)}",
        foreign and f"non-English characters: {_code_points(foreign)}",
        repetition,
        leaked and f"contains the answer {leaked!r}",
        too_long and f"{len(text)} characters, more than {max_chars}",
        copied and f"copies {copied!r} of its source",
    )
    return AuditResult(
        not any(reasons),
        *map(bool, reasons[:-1]),
        tuple(str(reason) for reason in reasons if reason),
        bool(copied),
    )


@dataclasses.dataclass(frozen=True)
class AuditRules:
    """Which audits are switched on beside the language; see ``config.skills``.

    Attributes:
      max_chars: longest skill, None = any.
      leakage: refuse commands of the source's known solution and its known answers.
      entities: refuse names of single things that the source episode showed ("mug 2").
    """

    max_chars: int | None = None
    leakage: bool = False
    entities: bool = False

    def apply(self, text: str, task: Task, observations: Iterable[str] = ()) -> AuditResult:
        """Audits a skill extracted from an episode of ``task`` that read ``observations``."""
        return audit(
            text,
            leakage_texts=answers(task) if self.leakage else (),
            entities=numbered_things(observations) if self.entities else (),
            max_chars=self.max_chars,
        )


def answers(task: Task) -> list[str]:
    """What gives a task away: ``meta["answers"]``, and the commands of its known solution.

    Commands of one or two words ("look", "open it") say nothing of a task and are left out.
    """
    commands = [c for c in task.meta.get("walkthrough", ()) if len(c.split()) > 2]
    return list(dict.fromkeys([*task.meta.get("answers", ()), *commands]))


def numbered_things(observations: Iterable[str]) -> list[str]:
    """Names of single things ("cabinet 3") in what an episode read, sorted."""
    return sorted({" ".join(m) for text in observations for m in _THING.findall(text.lower())})


def _is_uncommon(character: str) -> bool:
    if character in _ALLOWED_CONTROLS:
        return False
    return (
        character == "\ufffd"
        or unicodedata.category(character) in _ODD_CATEGORIES
        or _ODD_NAMES.search(unicodedata.name(character, "")) is not None
    )


def _is_non_english(character: str) -> bool:
    return ord(character) > 127 and unicodedata.category(character)[0] not in "SPZ"


def _code_points(characters: list[str]) -> str:
    shown = " ".join(f"U+{ord(c):04X}" for c in characters[:_SHOWN])
    more = len(characters) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _find_repetition(text: str) -> str:
    """The first loop found, in words; empty if there is none."""
    run = _REPEATED_CHARACTER.search(_BLANKS.sub(" ", text))
    if run:
        return f"the character {run[1]!r} {CHARACTER_RUN} times in a row"
    tokens = text.lower().split()
    end = _find_period(tokens, 1, TOKEN_RUN)
    if end is not None:
        return f"the token {tokens[end][:40]!r} {TOKEN_RUN} times in a row"
    for length in CHUNK_TOKENS:
        end = _find_period(tokens, length, CHUNK_REPEATS, CHUNK_CHARACTERS)
        if end is not None:
            chunk = " ".join(tokens[end - length + 1 : end + 1])
            return f"the words {chunk[:80]!r} {CHUNK_REPEATS} times in a row"
    lines = [line for line in map(str.strip, text.lower().splitlines()) if line]
    for line, count in Counter(lines).items():
        if (
            len(line) >= LINE_CHARACTERS
            and count >= LINE_REPEATS
            and count >= LINE_SHARE * len(lines)
        ):
            return f"the line {line[:80]!r} {count} times in {len(lines)} lines"
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


def _find_words(words: str, answers: Iterable[str]) -> str:
    """The first answer that occurs in ``words`` (" one two ") as whole words, or ""."""
    for answer in answers:
        needle = " ".join(_WORD.findall(answer.casefold()))
        if needle and f" {needle} " in words:
            return answer
    return ""
