"""Which receptacle an object stands in: two rules for what no plan says, and how often they are right.

A record has the points of all objects and says the receptacle of those that its plan picks up.  The
place of another object is that of the nearest known pick-up of the scene, or, farther than
``NEAR`` from all of them, the nearest receptacle that can hold its class.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

from evolving_rl_jax.envs.alfworld.alfred.scene import KnownScene
from evolving_rl_jax.envs.alfworld.alfred.trial import Point, Pose

__all__ = [
    "BY_PICKUP",
    "BY_PLAN",
    "BY_RECEPTACLE",
    "Accuracy",
    "lamp_place",
    "left_one_out",
    "place_of",
]

BY_PLAN, BY_PICKUP, BY_RECEPTACLE = "plan", "nearest_pickup", "nearest_receptacle"
NEAR = 0.4  # metres; farther pick-ups say little
_BANDS = (0.1, 0.3, NEAR)


def place_of(scene: KnownScene, thing: Pose, *, but: str = "") -> tuple[str, str] | None:
    """The place of an object and the rule that says it.

    Args:
      scene: where it stands.
      thing: its class and point.
      but: a trial whose pick-ups are not looked at.

    Returns:
      (name of the receptacle, rule), or None where neither rule says one.
    """
    found, distance = _nearest_sighting(scene, thing, but)
    if distance <= NEAR:
        return found, BY_PICKUP
    found = nearest_receptacle(scene, thing)
    return (found, BY_RECEPTACLE) if found else None


def nearest_receptacle(scene: KnownScene, thing: Pose) -> str:
    """The nearest receptacle that can hold the class of an object; "" where none can."""
    fitting = scene.room.holding(thing.kind)
    return min(
        fitting, key=lambda name: (math.dist(scene.points[name].at, thing.at), name), default=""
    )


def lamp_place(scene: KnownScene, at: Point) -> tuple[str, str] | None:
    """As ``place_of`` for a desk lamp, which no plan picks up and no table says a place of."""
    places = scene.lamp_places
    near = min(
        ((math.dist(s.at, at), s.place) for s in scene.sightings if s.place in places),
        default=(math.inf, ""),
    )
    if near[0] <= NEAR:
        return near[1], BY_PICKUP
    place = min(places, key=lambda name: (math.dist(scene.points[name].at, at), name), default="")
    return (place, BY_RECEPTACLE) if place else None


def _nearest_sighting(scene: KnownScene, thing: Pose, but: str) -> tuple[str, float]:
    others = ((math.dist(s.at, thing.at), s.place) for s in scene.sightings if s.trial != but)
    distance, place = min(others, default=(math.inf, ""))
    return place, distance


class Accuracy(NamedTuple):
    """How often a rule found the receptacle that a left-out plan says.

    Attributes:
      rule: with the distance of the nearest pick-up where that decides.
      right: objects placed as the plan says.
      total: objects that the rule placed.
    """

    rule: str
    right: int
    total: int

    def line(self) -> str:
        """As text."""
        share = f"{100 * self.right / self.total:.1f} %" if self.total else "-"
        return f"{self.rule}: {self.right} of {self.total} ({share})"


def left_one_out(scenes: Iterable[KnownScene]) -> list[Accuracy]:
    """Places every object that a plan took without that trial's plan, by both rules.

    Returns:
      The rules together, the first one by the distance of the pick-up, and the second one alone: of
      those that are too far, and of all.
    """
    bands = {
        high: f"{BY_PICKUP}, {low} to {high} m" for low, high in itertools.pairwise((0, *_BANDS))
    }
    both, far, every = "both rules", f"{BY_RECEPTACLE}, beyond {NEAR} m", f"{BY_RECEPTACLE}, all"
    counts = {rule: [0, 0] for rule in (both, BY_PICKUP, *bands.values(), far, every)}

    def note(rule: str, is_right: bool) -> None:
        counts[rule][0] += is_right
        counts[rule][1] += 1

    for scene in scenes:
        for sighting in scene.sightings:
            thing = Pose(sighting.kind, sighting.at)
            found, distance = _nearest_sighting(scene, thing, sighting.trial)
            nearest = nearest_receptacle(scene, thing)
            chosen = found if distance <= NEAR else nearest
            note(every, nearest == sighting.place)
            note(both, chosen == sighting.place)
            if distance <= NEAR:
                note(BY_PICKUP, found == sighting.place)
                note(bands[min(b for b in bands if distance <= b)], found == sighting.place)
            else:
                note(far, nearest == sighting.place)
    return [Accuracy(rule, *count) for rule, count in counts.items()]
