"""ALFWorld's own words: its task types, how it words a task of each, and how it numbers things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

__all__ = ["HELDOUT_TYPES", "TASK_TYPES", "TRAINED_TYPES", "numbered", "task_sentence"]

_PHRASES = {
    "pick_and_place_simple": "put a {obj} in {target}",
    "pick_clean_then_place_in_recep": "put a clean {obj} in {target}",
    "pick_heat_then_place_in_recep": "put a hot {obj} in {target}",
    "pick_cool_then_place_in_recep": "put a cool {obj} in {target}",
    "pick_two_obj_and_place": "put two {obj} in {target}",
    "look_at_obj_in_light": "look at {obj} under the {target}",
}
TASK_TYPES = tuple(_PHRASES)
TRAINED_TYPES, HELDOUT_TYPES = TASK_TYPES[:4], TASK_TYPES[4:]


def task_sentence(task_type: str, obj: str, target: str) -> str:
    """A task in ALFWorld's words; the target of ``look_at_obj_in_light`` is its lamp."""
    return _PHRASES[task_type].format(obj=obj, target=target)


def numbered(ids: Iterable[str]) -> dict[str, str]:
    """Agent-visible name -> id of objects or receptacles.

    They are numbered within a class, downwards in the order of their ids, so that the last one of
    them is number 1; a basin has a class of its own.
    """
    ids = sorted(ids, key=str.lower)
    words = [i.split("_bar_")[0].lower() + ("basin" if "basin" in i.lower() else "") for i in ids]
    left, names = Counter(words), {}
    for word, i in zip(words, ids, strict=True):
        names[f"{word} {left[word]}"] = i
        left[word] -= 1
    return names
