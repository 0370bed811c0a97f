"""What a household episode revealed, and what a skill claims: the facts that decide the next episode.

A fact is "objects of this class are kept in this place".  Skills in the household world are written in a
few fixed sentences; these functions write and read them.  Text only, no model.
"""

from __future__ import annotations

import json
import re

from evolving_rl_jax.types import Episode, Task

_CLAIM = re.compile(r"\bthe (\w+) is (not )?in (\w+ \d+)")
_LISTING = re.compile(r"\b(?:In it|On the (?P<on>\w+ \d+)), you see (?P<items>[^.]*)\.")
_OPENED = re.compile(r"\bThe (\w+ \d+) is open\b")


def fact_sentence(obj: str, place: str, *, negated: bool = False) -> str:
    """``the mug is in cabinet 3`` or ``the mug is not in cabinet 3``."""
    return f"the {obj} is {'not ' if negated else ''}in {place}"


def skill_json(obj: str, sentence: str) -> str:
    """A skill as the extractor writes it."""
    return json.dumps({"name": f"find {obj}", "description": sentence})


def claims(text: str) -> tuple[dict[str, str], dict[str, set[str]]]:
    """(object -> place it is said to be in, object -> places it is said not to be in)."""
    kept: dict[str, str] = {}
    excluded: dict[str, set[str]] = {}
    for obj, negation, place in _CLAIM.findall(text):
        if negation:
            excluded.setdefault(obj, set()).add(place)
        else:
            kept[obj] = place
    return kept, excluded


def seen_contents(observations: list[str]) -> dict[str, list[str]]:
    """place -> object classes seen in it when it was first opened (or looked at)."""
    contents: dict[str, list[str]] = {}
    for text in observations:
        listing = _LISTING.search(text)
        if not listing:
            continue
        opened = _OPENED.search(text)
        place = listing["on"] or (opened[1] if opened else None)
        if place and place not in contents:
            contents[place] = _things(listing)
    return contents


def things_listed(text: str) -> list[str]:
    """Classes of the things that an observation lists in a place."""
    return [word for listing in _LISTING.finditer(text) for word in _things(listing)]


def _things(listing: re.Match) -> list[str]:
    return re.findall(r"\b(?:a|an) ([a-z]+) \d+", listing["items"])


def fact_seen(task: Task, observations: list[str]) -> bool:
    """Whether an episode of ``task`` saw where its own object is kept."""
    return task.meta["object"] in seen_contents(observations).get(task.meta["place"], ())


def fact_stated(task: Task, skill_text: str) -> bool:
    """Whether a skill says where the object of ``task`` is kept, and is right."""
    return claims(skill_text)[0].get(task.meta["object"]) == task.meta["place"]


def share_seen(episode: Episode) -> float | None:
    """Share of the facts of an episode's task that it revealed; None where the task states none."""
    if "place" not in episode.task.meta:
        return None
    return float(fact_seen(episode.task, episode.observations))


def share_stated(episode: Episode, skill_text: str) -> float:
    """Share of the facts of an episode's task that it revealed and that a skill states rightly."""
    task = episode.task
    return float(fact_seen(task, episode.observations) and fact_stated(task, skill_text))


def given_skill(task: Task, i: int, *, misleading: bool) -> str:
    """A skill (JSON text) that states where the object of ``task`` is, or the i-th wrong place."""
    obj, place = task.meta["object"], task.meta["place"]
    if misleading:
        wrong = sorted(p for p in task.meta["habits"].values() if p != place)
        place = wrong[i % len(wrong)]
    return skill_json(obj, fact_sentence(obj, place))
