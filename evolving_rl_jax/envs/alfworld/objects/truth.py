"""Where the object of a task is at the start, by the game's own PDDL; never shown to the policy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from evolving_rl_jax.envs.alfworld.names import numbered
from evolving_rl_jax.types import Task

__all__ = ["PLACED_AS_FOUND", "Truth", "is_by_object", "kind_of", "truth_of", "usual_kinds"]

_FACT = re.compile(
    r"\(\s*(inReceptacle|objectType|receptacleType)\s+([^\s()?]+)\s+([^\s()?]+)\s*\)"
)

_USUAL = 3  # kinds of places that are kept of an object

# Types in which a thing of the target's kind of place is where it should be already.
PLACED_AS_FOUND = ("pick_and_place_simple", "pick_two_obj_and_place")


def is_by_object(task: Task) -> bool:
    """Whether a task is of an index by object, which says where the object is kept."""
    return "kept" in task.meta


class Truth(NamedTuple):
    """What a game says at its start.

    Attributes:
      places: all of the room, as the agent reads them, sorted.
      kept: those where a thing of the object's class lies at the start, but for what is there already:
        places of the kind that a task asks to put it into, with nothing done to it before.
    """

    places: list[str]
    kept: list[str]


def kind_of(place: str) -> str:
    """The class word of a place: that of ``cabinet 3`` is ``cabinet``."""
    return place.split(" ", 1)[0]


def usual_kinds(counts: Mapping[str, int], there: str = "") -> list[str]:
    """The commonest kinds of places, at most three, without that of ``there``; equal ones by name."""
    ranked = sorted(counts, key=lambda kind: (-counts[kind], kind))
    return [kind for kind in ranked if kind != there][:_USUAL]


def truth_of(pddl_problem: str, task_type: str, obj: str, target: str) -> Truth:
    """Reads a problem.

    Args:
      pddl_problem: of the game.
      task_type: one of ALFWorld's.
      obj: class word of the task's object, as in ``Task.meta``.
      target: that of the place to fill; the lamp where an object is looked at.

    >>> problem = "(:init (receptacleType Safe_bar_1 SafeType) (objectType Pen_bar_1 PenType)"
    >>> problem += " (inReceptacle Pen_bar_1 Safe_bar_1)) (:goal (x))"
    >>> truth_of(problem, "pick_and_place_simple", "pen", "shelf")
    Truth(places=['safe 1'], kept=['safe 1'])
    """
    facts: dict[str, list[tuple[str, str]]] = {}
    for predicate, first, second in _FACT.findall(pddl_problem.split("(:goal", 1)[0]):
        facts.setdefault(predicate, []).append((first, second))
    names = {i: name for name, i in numbered({r for r, _ in facts["receptacleType"]}).items()}
    things = {
        thing
        for thing, kind in facts.get("objectType", ())
        if kind.removesuffix("Type").lower() == obj
    }
    kept = {names[r] for thing, r in facts.get("inReceptacle", ()) if thing in things}
    if task_type in PLACED_AS_FOUND:
        kept = {place for place in kept if kind_of(place) != target}
    return Truth(sorted(names.values()), sorted(kept))
