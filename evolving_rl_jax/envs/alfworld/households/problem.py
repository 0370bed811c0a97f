"""Problems in the PDDL dialect that the ALFWorld engine plays, kept as small as the engine allows.

The translation of a problem dominates the cost of loading a game and grows with its objects,
receptacles and ``canContain`` facts, so a problem here declares only what its game can use and no
distances.  The domain and the text grammar are read from the installed ``alfworld`` package.

Names follow the engine's rule for what the agent reads: an id ``<Class>_bar_<position>`` becomes
``<class> <number>``, and ids of one class are numbered downwards in the order of their text.  In the
compact room the position therefore decreases with the number that is wanted; the ids of scenes are
given, and so are their numbers.  Either way ``cabinet 2`` is the same piece of furniture in every
problem of a room.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

SURFACES = ("CounterTop", "DiningTable", "SideTable")
APPLIANCES = ("Fridge", "Microwave", "Sink")
OPENABLE = ("Cabinet", "Drawer", "Fridge", "Microwave")
LAMP = "DeskLamp"
LAMP_PLACE = "sidetable 1"

# What each task type requires of an object besides lying in the target: (property, reached state).
PROCESS = {
    "pick_clean_then_place_in_recep": ("cleanable", "isClean"),
    "pick_heat_then_place_in_recep": ("heatable", "isHot"),
    "pick_cool_then_place_in_recep": ("coolable", "isCool"),
}
_START = "loc_bar_0_bar_0_bar_0_bar_30"
_DECLARED = ("SinkBasin", "Microwave", "Fridge")  # the domain names these types, present or not


class Thing(NamedTuple):
    """A movable object: its class, its number within the class, and the place that holds it."""

    kind: str
    number: int
    place: str

    @property
    def name(self) -> str:
        """The name that the agent reads, e.g. ``mug 1``."""
        return f"{self.kind.lower()} {self.number}"


class Place(NamedTuple):
    """A receptacle of a room.

    Attributes:
      id: its PDDL object.
      type: its class as goals name it, without the suffix ``Type`` (a ``Sink`` is a ``SinkBasin``).
      location: the PDDL object where the agent stands to use it; several places may share one.
      openable: closed at the start.
    """

    id: str
    type: str
    location: str
    openable: bool


@dataclasses.dataclass(frozen=True)
class Room:
    """Everything about a room that is the same in all of its games.

    Attributes:
      places: agent-visible name -> receptacle, in the order of the problem's text.
      contains: receptacle type -> object classes that can be put there.
      properties: object class -> what can be done to it (``cleanable``, ``heatable``, ``coolable``).
      lamp_place: name of the place where the desk lamp stands; "" = the room has none.
      start: the PDDL object where the agent stands at the start.
    """

    places: Mapping[str, Place]
    contains: Mapping[str, Collection[str]]
    properties: Mapping[str, Sequence[str]]
    lamp_place: str = LAMP_PLACE
    start: str = _START

    def holding(self, kind: str) -> list[str]:
        """Names of the places that an object of that class can be put into."""
        return [n for n, p in self.places.items() if kind in self.contains.get(p.type, ())]


def receptacle_classes(cabinets: int = 3, drawers: int = 3) -> dict[str, tuple[str, int]]:
    """Every place of the compact room: agent-visible name -> (class, number)."""
    kinds = [("Cabinet", i) for i in range(1, cabinets + 1)]
    kinds += [("Drawer", i) for i in range(1, drawers + 1)]
    kinds += [(kind, 1) for kind in SURFACES + APPLIANCES]
    return {f"{agent_class(kind)} {number}": (kind, number) for kind, number in kinds}


def agent_class(kind: str) -> str:
    """The class word that the agent reads (a ``Sink`` is called by its basin)."""
    return "sinkbasin" if kind == "Sink" else kind.lower()


@functools.cache
def engine_logic() -> tuple[str, str]:
    """The PDDL domain and the text grammar of the installed ``alfworld`` package.

    Raises:
      ModuleNotFoundError: the package is not installed.
      FileNotFoundError: it lacks one of the two files.
    """
    spec = importlib.util.find_spec("alfworld")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("generating games needs the package alfworld", name="alfworld")
    folder = os.path.join(next(iter(spec.submodule_search_locations)), "data")
    texts = []
    for name in ("alfred.pddl", "alfred.twl2"):
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: the alfworld package must ship this file, not found")
        with open(path, encoding="utf-8") as file:
            texts.append(file.read())
    return texts[0], texts[1]


def _position(number: int, row: int) -> str:
    """A made-up position; a larger ``number`` sorts earlier, as the engine's numbering wants it."""
    return f"_plus_{90 - number:02d}_dot_00_bar__plus_01_dot_00_bar__plus_{row:02d}_dot_00"


def _receptacle_id(kind: str, number: int) -> str:
    basin = "_bar_SinkBasin" if kind == "Sink" else ""
    return f"{kind}_bar_{_position(number, 0)}{basin}"


def _goal(task_type: str, kind: str, target: str) -> str:
    """The goal formula of one task type (meanings as in ALFWorld's goal library)."""
    if task_type == "look_at_obj_in_light":
        return (
            f"(and (exists (?t - object ?r - receptacle ?a - agent ?l - location) (and "
            f"(objectType ?t {LAMP}Type) (toggleable ?t) (isToggled ?t) (inReceptacle ?t ?r) "
            f"(receptacleAtLocation ?r ?l) (atLocation ?a ?l))) "
            f"(exists (?o - object ?a - agent) (and (objectType ?o {kind}Type) (holds ?a ?o))))"
        )
    there = f"(receptacleType ?r {target}Type)"
    if task_type == "pick_two_obj_and_place":
        each = " ".join(
            f"(objectType {o} {kind}Type) (inReceptacle {o} ?r)" for o in ("?o1", "?o2")
        )
        variables = "?r - receptacle ?o1 - object ?o2 - object"
        return f"(exists ({variables}) (and (not (= ?o1 ?o2)) {there} {each}))"
    state = "".join(f"({fact} ?o) " for fact in PROCESS.get(task_type, ()))
    return (
        f"(exists (?r - receptacle ?o - object) "
        f"(and {there} (objectType ?o {kind}Type) {state}(inReceptacle ?o ?r)))"
    )


def compact_room(processable: Sequence[str], others: Sequence[str]) -> Room:
    """The smallest room in which all six task types can be played.

    Args:
      processable: object classes that can be cleaned, heated and cooled; they fit everywhere.
      others: object classes that fit on the open surfaces only.
    """
    places = {}
    for i, (name, (kind, number)) in enumerate(receptacle_classes().items(), start=1):
        rtype = "SinkBasin" if kind == "Sink" else kind
        location = f"loc_bar_{i}_bar_1_bar_1_bar_30"
        places[name] = Place(_receptacle_id(kind, number), rtype, location, kind in OPENABLE)
    kinds = frozenset(processable)
    contains = {p.type: kinds for p in places.values()}
    contains |= {kind: kinds | set(others) for kind in SURFACES}
    return Room(places, contains, dict.fromkeys(processable, ("cleanable", "heatable", "coolable")))


def problem(
    room: Room,
    things: Sequence[Thing],
    *,
    task_type: str,
    kind: str,
    target: str,
) -> str:
    """Writes one problem.

    Args:
      room: its places and what its objects can do.
      things: the movable objects, lamps included, where they are at the start.
      task_type: one of ALFWorld's six.
      kind: class of the object that the task is about.
      target: type of the receptacle to fill (ignored by ``look_at_obj_in_light``).

    Returns:
      The text of ``pddl_problem``.  Two problems of the same room with the same things (class and
      number) differ in where the things are and in the goal, in nothing else.
    """
    thing_id = {t: f"{t.kind}_bar_{_position(t.number, 1)}" for t in things}
    kinds = sorted({t.kind for t in things})
    places = room.places.values()
    rtypes = list(dict.fromkeys([*(p.type for p in places), *_DECLARED]))

    objects = ["agent1 - agent", f"{room.start} - location"]
    objects += [f"{kind}Type - otype" for kind in kinds]
    objects += [f"{rtype}Type - rtype" for rtype in rtypes]
    known = {room.start}  # places may share a location
    for place in places:
        objects.append(f"{place.id} - receptacle")
        if place.location not in known:
            known.add(place.location)
            objects.append(f"{place.location} - location")
    objects += [f"{thing_id[t]} - object" for t in sorted(things)]

    init = ["(= (total-cost) 0)", f"(atLocation agent1 {room.start})"]
    for place in places:
        init.append(f"(receptacleType {place.id} {place.type}Type)")
        init.append(f"(receptacleAtLocation {place.id} {place.location})")
        if place.openable:
            init.append(f"(openable {place.id})")
    for rtype in rtypes:
        fitting = [k for k in kinds if k in room.contains.get(rtype, ())]
        init += [f"(canContain {rtype}Type {k}Type)" for k in fitting]
    for t in sorted(things):
        facts = ["toggleable"] if t.kind == LAMP else ["pickupable"]
        init += [f"({fact} {thing_id[t]})" for fact in (*facts, *room.properties.get(t.kind, ()))]
        init.append(f"(objectType {thing_id[t]} {t.kind}Type)")
    for t in sorted(things):
        place = room.places[t.place]
        init.append(f"(inReceptacle {thing_id[t]} {place.id})")
        init.append(f"(objectAtLocation {thing_id[t]} {place.location})")

    sections = ("\n".join(objects), "\n".join(init), _goal(task_type, kind, target))
    return (
        "(define (problem household)\n(:domain alfred)\n"
        "(:objects\n{}\n)\n(:init\n{}\n)\n(:goal {})\n)\n".format(*sections)
    )
