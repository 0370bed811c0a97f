"""Whether a skill is plain, readable English that does not give its task away.

The extractor is rewarded through a solver that reads its text, so nothing else keeps that text
readable; an audited failure earns reward 0.  Characters are those of an allow-list
(`skills.characters`), loops are found at any period (`skills.loops`), and what must not be said is
searched however it is written (`skills.wording`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from evolving_rl_jax.skills.characters import is_non_english, is_uncommon
from evolving_rl_jax.skills.loops import find_loop
from evolving_rl_jax.skills.wording import Wording
from evolving_rl_jax.types import Task

_THING = re.compile(r"\b([a-z]+) (\d+)\b")
# What ends a turn or opens another role for a chat model that is sent the text.
_CONTROL_TOKEN = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
)
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
    has_control_tokens: bool = False


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
      leakage_texts: answers that the skill must not contain, compared line by line as whole words
        without case, articles and punctuation.  None by default.
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
    uncommon = [c for c in characters if is_uncommon(c)]
    foreign = [c for c in characters if is_non_english(c)]
    words = Wording(text)
    leaked, copied = words.first_of(leakage_texts), words.first_of(entities)
    control = _CONTROL_TOKEN.search(text)
    reasons = {
        "has_uncommon_characters": uncommon and f"uncommon characters: {_code_points(uncommon)}",
        "has_non_english_characters": foreign
        and f"non-English characters: {_code_points(foreign)}",
        "has_repetition": find_loop(text),
        "has_leakage": leaked and f"contains the answer {leaked!r}",
        "too_long": max_chars is not None
        and len(text) > max_chars
        and f"{len(text)} characters, more than {max_chars}",
        "has_copied_entities": copied and f"copies {copied!r} of its source",
        "has_control_tokens": control and f"contains the control token {control[0]!r}",
    }
    return AuditResult(
        passed=not any(reasons.values()),
        reasons=tuple(str(reason) for reason in reasons.values() if reason),
        **{flag: bool(reason) for flag, reason in reasons.items()},
    )


@dataclasses.dataclass(frozen=True)
class AuditRules:
    """Which audits are switched on beside the language; see ``config.skills``.

    Attributes:
      max_chars: longest skill, None = any.
      leakage: refuse commands of the source's known solution and its known answers.
      entities: refuse names of single things that the source episode showed ("mug 2").
      further: rules of an environment, an object with the same ``apply``, which must pass too.
    """

    max_chars: int | None = None
    leakage: bool = False
    entities: bool = False
    further: Any = None

    def apply(self, text: str, task: Task, observations: Iterable[str] = ()) -> AuditResult:
        """Audits a skill extracted from an episode of ``task`` that read ``observations``."""
        observations = list(observations)
        own = self._own(text, task, observations)
        if self.further is None:
            return own
        other = self.further.apply(text, task, observations)
        flags = {f: getattr(own, f) or getattr(other, f) for f in own._fields if f != "reasons"}
        flags["passed"] = own.passed and other.passed
        return AuditResult(**flags, reasons=tuple(dict.fromkeys(own.reasons + other.reasons)))

    def _own(self, text: str, task: Task, observations: list[str]) -> AuditResult:
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


def _code_points(characters: list[str]) -> str:
    shown = " ".join(f"U+{ord(c):04X}" for c in characters[:_SHOWN])
    more = len(characters) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
