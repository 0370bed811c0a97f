"""What a skill says of where an object is kept: a kind of place, or a place with its number.

``the mug is at some countertop`` holds in many rooms, ``the mug is in countertop 2`` in few.  These two
are what teachers write; what a language model writes is read by its prepositions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from evolving_rl_jax.envs.alfworld import facts
from evolving_rl_jax.envs.alfworld.objects.truth import kind_of
from evolving_rl_jax.types import Episode, Task

__all__ = [
    "Claims",
    "claims_of",
    "given_skill",
    "judge_skill",
    "sentence",
    "share_seen",
    "share_stated",
]

_SENTENCE = re.compile(r"[.;!?]\s|\n")
_DENIAL = re.compile(r"\b(?:not|never|no)\b|n't\b")
_BETWEEN = r"(?:(?:the|a|an|some|any|every|each|most|one of the)\s+)?"


class Claims(NamedTuple):
    """What was said.

    Attributes:
      kinds: of places named without a number, in their order.
      places: named with one.
    """

    kinds: list[str]
    places: list[str]


def sentence(obj: str, place: str) -> str:
    """Says that an object is kept in a place (``cabinet 3``) or in a kind of place (``cabinet``)."""
    if " " in place:
        return facts.fact_sentence(obj, place)
    return f"the {obj} is at some {place}"


def given_skill(task: Task, i: int, *, misleading: bool) -> str:
    """A skill (JSON text) with the commonest kind of place of training games, or the i-th wrong one."""
    kind = task.meta["usual"][0]
    if misleading:
        right = {*map(kind_of, task.meta["kept"]), *task.meta["usual"]}
        wrong = sorted({kind_of(place) for place in task.meta["places"]} - right)
        kind = wrong[i % len(wrong)] if wrong else task.meta["usual"][-1]
    obj = task.meta["object"]
    return facts.skill_json(obj, sentence(obj, kind))


def claims_of(text: str, task: Task) -> Claims:
    """What a skill says of the object of a task.

    Read are sentences that name the object and deny nothing: a place of the task's room (or any
    word, in the teachers' two sentences) after a preposition.  The place to put the object into is no
    claim.
    """
    obj, target = task.meta["object"], task.meta["target"]
    words = sorted({kind_of(place) for place in task.meta["places"]})
    places = "|".join(re.escape(form) for word in words for form in _forms(word))
    own = rf"the {re.escape(obj)} is (?:at some|in) (?P<own>\w+)(?: (?P<own_number>\d+))?"
    prose = (
        rf"(?:in|on|at|inside|from|into|to)\s+{_BETWEEN}(?P<kind>{places})\b(?:\s*(?P<number>\d+))?"
    )
    pattern = re.compile(rf"\b(?:{own}|{prose})", re.IGNORECASE)
    singular = {form: word for word in words for form in _forms(word)}
    named = re.compile(rf"\b(?:{'|'.join(map(re.escape, _forms(obj)))})\b", re.IGNORECASE)
    found = Claims([], [])
    for part in _SENTENCE.split(text):
        if not named.search(part) or _DENIAL.search(part):
            continue
        for match in pattern.finditer(part):
            word = (match["own"] or match["kind"]).lower()
            kind, number = singular.get(word, word), match["own_number"] or match["number"]
            if kind != target:
                (found.places if number else found.kinds).append(
                    f"{kind} {number}" if number else kind
                )
    return found


def _forms(word: str) -> Iterable[str]:
    """One and many of a class of things."""
    yield word
    if word.endswith("f"):
        yield f"{word[:-1]}ves"
    yield f"{word}es"
    yield f"{word}s"


def share_seen(episode: Episode) -> float:
    """1 where an episode saw its task's object where it can be taken from, else 0."""
    return float(bool(_places_seen(episode)))


def _places_seen(episode: Episode) -> set[str]:
    obj, kept = episode.task.meta["object"], episode.task.meta["kept"]
    seen = facts.seen_contents(episode.observations)
    return {place for place in kept if obj in seen.get(place, ())}


def share_stated(episode: Episode, skill_text: str) -> float:
    """1 where a skill says of what an episode saw where it was, with or without its number."""
    seen = _places_seen(episode)
    said = claims_of(skill_text, episode.task)
    kinds = {kind_of(place) for place in seen}
    return float(bool(seen & set(said.places) or kinds & set(said.kinds)))


def judge_skill(episode: Episode, skill_text: str, played: Sequence[Task]) -> Mapping[str, float]:
    """In which form a skill says where the object is, and whether that is so.

    Args:
      episode: that it was written after.
      skill_text: as the solver reads it.
      played: the tasks that were played with it.

    Returns:
      ``states_kind`` and ``states_number``, 0 or 1, both 0 where it says nothing; and, of the form that it
      has, ``kind_right`` or ``number_right`` in the episode's own game, and ``kind_right_elsewhere`` or
      ``number_right_elsewhere``, the share of the tasks about the same object in which it is.  A skill
      that names a place with a number states a number, whatever else it names.
    """
    task = episode.task
    said = claims_of(skill_text, task)
    form, claimed = ("number", said.places) if said.places else ("kind", said.kinds)
    found = {"states_kind": 0.0, "states_number": 0.0}
    if not claimed:
        return found
    found[f"states_{form}"] = 1.0
    found[f"{form}_right"] = _right(form, claimed, task)
    same = [other for other in played if other.meta.get("object") == task.meta["object"]]
    if same:
        rights = [_right(form, claimed, other) for other in same]
        found[f"{form}_right_elsewhere"] = sum(rights) / len(rights)
    return found


def _right(form: str, claimed: Sequence[str], task: Task) -> float:
    kept = task.meta["kept"]
    true = set(kept) if form == "number" else {kind_of(place) for place in kept}
    return float(bool(true & set(claimed)))
