"""A scene with all that the layout and the survey know: its room, and where objects were found."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evolving_rl_jax.envs.alfworld.alfred.survey import SceneSurvey, Use
from evolving_rl_jax.envs.alfworld.alfred.trial import LeftOut, Point, Pose
from evolving_rl_jax.envs.alfworld.households.problem import Room
from evolving_rl_jax.envs.alfworld.households.scenes import (
    LAMP_PLACES,
    layout_points,
    make_room,
    mangled,
    receptacle_type,
)
from evolving_rl_jax.envs.alfworld.names import numbered

__all__ = ["KnownScene", "Sighting", "make_scene"]

# How far a plan's point of a receptacle may be from the layout's, in metres.
_SAME = 0.1
_SAME_OPENED = 0.35  # a drawer that stands open, across
_SAME_BASIN = 1.5  # the layout has the point of the sink or tub around it, across


class Sighting(NamedTuple):
    """An object that a plan took: which trial, its class and point, and the place that held it."""

    trial: str
    kind: str
    at: Point
    place: str


@dataclasses.dataclass(frozen=True)
class KnownScene:
    """A scene.

    Attributes:
      number: of its floor plan.
      room: its receptacles, those of the layout and those that plans used besides.
      points: name of a receptacle -> its class and point.
      sightings: objects that plans took, with their places.
      lamps: points of its desk lamps.
      added: names of the receptacles that the layout lacks.
    """

    number: int
    room: Room
    points: Mapping[str, Pose]
    sightings: Sequence[Sighting]
    lamps: Sequence[Point]
    added: frozenset[str]

    def receptacle(self, seen: Pose) -> str | None:
        """Name of the receptacle that a plan means, or None when the scene has none there."""
        return _nearest(self.points, seen)

    @functools.cached_property
    def lamp_places(self) -> list[str]:
        """Names of the receptacles that can hold a desk lamp."""
        return [name for name, place in self.room.places.items() if place.type in LAMP_PLACES]


def make_scene(number: int, survey: SceneSurvey) -> KnownScene:
    """Puts the layout and the survey of a scene together.

    Raises:
      LeftOut: the installed package has no layout of it.
    """
    try:
        points = layout_points(number)
    except FileNotFoundError as error:
        raise LeftOut("unknown scene", f"FloorPlan{number}") from error
    added = _missing({place_id: _pose_of(place_id) for place_id in points}, survey.uses)
    originals = {mangled(place_id): place_id for place_id in (*points, *added)}
    room = make_room({p: mangled(location) for p, location in (points | added).items()})
    names = {name: originals[place_id] for name, place_id in numbered(originals).items()}
    poses = {name: _pose_of(place_id) for name, place_id in names.items()}
    sightings = []
    for pickup in survey.pickups:
        place = _nearest(poses, pickup.receptacle)
        if place is not None:
            sightings.append(Sighting(pickup.trial, pickup.thing.kind, pickup.thing.at, place))
    return KnownScene(
        number=number,
        room=room,
        points=poses,
        sightings=sightings,
        lamps=_apart(survey.lamps),
        added=frozenset(name for name, place_id in names.items() if place_id in added),
    )


def _missing(known: Mapping[str, Pose], uses: Counter[Use]) -> dict[str, str]:
    """Receptacles that plans used and the layout lacks: id -> location used most often."""
    found: dict[str, Pose] = {}
    said: dict[str, Counter[str]] = defaultdict(Counter)
    locations: dict[str, Counter[str]] = defaultdict(Counter)
    for use, count in sorted(uses.items()):
        if use.id in known or _nearest(known, use.receptacle) is not None:
            continue
        key = _nearest(found, use.receptacle)
        if key is None:
            key = _made_id(use.receptacle)
            found[key] = use.receptacle
        locations[key][use.location] += count
        if use.id:
            said[key][use.id] += count
    return {
        _commonest(said[key]) if said[key] else key: _commonest(locations[key]) for key in found
    }


def _commonest(counts: Counter[str]) -> str:
    return min(counts, key=lambda value: (-counts[value], value))


def _made_id(receptacle: Pose) -> str:
    """The id of a receptacle as ALFRED forms it: class and point, with two digits."""
    at = "|".join(f"{value:+06.2f}" for value in receptacle.at)
    outer = receptacle.kind.removesuffix("Basin")
    return f"{outer}|{at}" + (f"|{receptacle.kind}" if outer != receptacle.kind else "")


def _pose_of(place_id: str) -> Pose:
    x, y, z = map(float, place_id.split("|")[1:4])
    return Pose(receptacle_type(place_id), (x, y, z))


def _nearest(known: Mapping[str, Pose], seen: Pose) -> str | None:
    """The receptacle of that class that stands where a plan saw one."""
    same = [name for name, pose in known.items() if pose.kind == seen.kind]
    name = min(same, key=lambda name: (math.dist(known[name].at, seen.at), name), default=None)
    return name if name is not None and _is_same(known[name], seen) else None


def _is_same(pose: Pose, seen: Pose) -> bool:
    (x, y, z), (seen_x, seen_y, seen_z) = pose.at, seen.at
    across = math.hypot(x - seen_x, z - seen_z)
    if seen.kind.endswith("Basin"):
        return across < _SAME_BASIN
    if seen.kind == "Drawer" and abs(y - seen_y) < _SAME:
        return across < _SAME_OPENED
    return math.dist(pose.at, seen.at) < _SAME


def _apart(points: Counter[Point]) -> list[Point]:
    """The commonest of points that lie within reach of each other."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (-points[p], p)):
        if all(math.dist(point, other) > _SAME for other in kept):
            kept.append(point)
    return kept
