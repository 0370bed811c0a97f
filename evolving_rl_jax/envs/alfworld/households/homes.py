"""Households: a name, the rooms, and where each kind of object is kept, the same in all games.

A compact household lives in one small room made up here; a household of scenes has a kitchen, a
room with a desk lamp and a bathroom out of the layouts that the ``alfworld`` package ships, and each
of its object classes belongs to one of them.

Three of the compact habit classes (bowl, bread, lettuce) get one property that ALFRED does not give
them, so that every class supports every task type; drawers and cabinets hold them all.  In scenes
the package's own tables decide.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Mapping

from evolving_rl_jax.envs.alfworld.households.problem import (
    PROCESS,
    SURFACES,
    Room,
    compact_room,
    receptacle_classes,
)
from evolving_rl_jax.envs.alfworld.households.scenes import Scene, load_scene, scene_numbers

__all__ = [
    "CLUTTER_CLASSES",
    "HABIT_CLASSES",
    "MAX_HOUSEHOLDS",
    "NUM_HABITS",
    "ROOMS",
    "Household",
    "compact",
    "household_names",
    "make_households",
]

ROOMS = ("compact", "scenes")
HABIT_CLASSES = (
    *("Apple", "Bowl", "Bread", "Cup", "Egg"),
    *("Lettuce", "Mug", "Plate", "Potato", "Tomato"),
)
NUM_HABITS = 6

_FIRST_WORDS = (
    "amber apricot ash aspen autumn birch blue bramble cedar cherry clover copper coral crystal "
    "dawn elm fern forest garden golden hazel heather iris ivory jade juniper lake laurel lilac "
    "maple meadow olive pine river rose silver spring thistle violet willow"
).split()
_SECOND_WORDS = (
    "abbey arcade barn brook bungalow castle chalet chapel cottage court croft farm field gate "
    "grange grove hall harbour haven hill hollow house hut inn lodge loft manor mansion mill nook "
    "orchard palace park point priory ranch rectory tower view villa"
).split()
MAX_HOUSEHOLDS = len(_FIRST_WORDS) * len(_SECOND_WORDS)
CLUTTER_CLASSES = ("Book", "Candle", "CellPhone", "Newspaper", "Pen", "Spoon", "Vase", "Watch")
_HABIT_PLACES = tuple(
    place for place, (kind, _) in receptacle_classes().items() if kind in ("Cabinet", "Drawer")
)
_APPLIANCES = {"cleanable": "SinkBasin", "heatable": "Microwave", "coolable": "Fridge"}
_KINDS_PER_ROOM = {"kitchen": 3, "lamp_room": 2, "bathroom": 1}
_LEAST_TARGETS = 3


@functools.cache
def compact() -> Room:
    """The one room of every compact household."""
    return compact_room(HABIT_CLASSES, CLUTTER_CLASSES)


@dataclasses.dataclass(frozen=True)
class Household:
    """A name and where each habit class is kept.

    Attributes:
      name: two words.
      habits: object class -> agent-visible place.
      scenes: object class -> number of the scene that it belongs to; empty for a compact household.
    """

    name: str
    habits: Mapping[str, str]
    scenes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def id(self) -> str:
        """The name as a path component."""
        return self.name.replace(" ", "-")

    def room(self, kind: str) -> Room:
        """The room to which an object class belongs."""
        return load_scene(self.scenes[kind]).room if self.scenes else compact()

    def scene(self, kind: str) -> Scene | None:
        """The scene to which an object class belongs; None in a compact household."""
        return load_scene(self.scenes[kind]) if self.scenes else None

    def room_habits(self, kind: str) -> dict[str, str]:
        """The habits of the room to which an object class belongs."""
        if not self.scenes:
            return dict(self.habits)
        here = self.scenes[kind]
        return {k: place for k, place in self.habits.items() if self.scenes[k] == here}

    def supports(self, kind: str, task_type: str) -> bool:
        """Whether an object of that class can be the object of such a task."""
        return task_type in _types(self.room(kind), kind)

    def targets(self, kind: str) -> tuple[str, ...]:
        """Receptacle types that an object of that class can be asked to be put into."""
        return _targets(self.room(kind), kind, self.habits[kind]) if self.scenes else SURFACES


def _types(room: Room, kind: str) -> tuple[str, ...]:
    present = {place.type for place in room.places.values()}
    able = {fact for fact in room.properties.get(kind, ()) if _APPLIANCES[fact] in present}
    processed = [t for t, (fact, _) in PROCESS.items() if fact in able]
    lit = ["look_at_obj_in_light"] if room.lamp_place else []
    return ("pick_and_place_simple", *processed, "pick_two_obj_and_place", *lit)


def _targets(room: Room, kind: str, place: str) -> tuple[str, ...]:
    """All types that hold it but that of its own place, where the goal would hold at the start."""
    types = dict.fromkeys(room.places[name].type for name in room.holding(kind))
    return tuple(t for t in types if t != room.places[place].type)


def household_names(num: int, cover: int, rng: random.Random) -> list[str]:
    """``num`` different two-word names.

    When ``cover`` is at least 16 (or more, for very many names), the first ``cover`` of them use
    every word that any of them uses, so that a vocabulary made from those covers the rest.  Fewer
    than 16 words would make names so much alike that text similarity mixes households up.
    """
    size = min(len(_FIRST_WORDS), max(16, math.ceil(math.sqrt(1.2 * num))))
    first, second = rng.sample(_FIRST_WORDS, size), rng.sample(_SECOND_WORDS, size)
    diagonals = [(i % size, (i + i // size) % size) for i in range(size * size)]
    rest = diagonals[cover:]
    rng.shuffle(rest)
    return [f"{first[i]} {second[j]}" for i, j in (diagonals[:cover] + rest)[:num]]


def make_households(
    num: int,
    cover: int,
    seed: int,
    *,
    rooms: str = "compact",
    test_from: int | None = None,
) -> list[Household]:
    """Makes households; the same arguments give the same ones.

    Args:
      num: how many.
      cover: see ``household_names``.
      seed: of names, habits and scenes.
      rooms: ``"compact"`` or ``"scenes"``.
      test_from: households from this number on live in ALFRED's test scenes, those before it in the
        other ones; None = all in the other ones.  Compact households have no scenes.
    """
    rng = random.Random(f"households/{seed}")
    households: list[Household] = []
    for i, name in enumerate(household_names(num, cover, rng)):
        if rooms == "scenes":
            is_test = test_from is not None and i >= test_from
            households.append(_scene_household(name, is_test, rng))
            continue
        kinds = rng.sample(HABIT_CLASSES, NUM_HABITS)
        places = rng.sample(_HABIT_PLACES, NUM_HABITS)
        households.append(Household(name, dict(zip(kinds, places, strict=True))))
    return households


def _scene_household(name: str, is_test: bool, rng: random.Random) -> Household:
    habits: dict[str, str] = {}
    scenes: dict[str, int] = {}
    for room_kind, count in _KINDS_PER_ROOM.items():
        numbers = scene_numbers(room_kind)
        for number in rng.sample(numbers, len(numbers)):
            scene = load_scene(number)
            able = [k for k in _habit_kinds(room_kind, scene) if k not in habits]
            if scene.is_test == is_test and len(able) >= count:
                break
        else:
            raise ValueError(f"no {room_kind} of the installed layouts has {count} fitting objects")
        taken: set[str] = set()
        for kind in rng.sample(able, count):
            free = [p for p in _habit_places(scene.room, kind) if p not in taken]
            habits[kind], scenes[kind] = rng.choice(free), number
            taken.add(habits[kind])
    return Household(name, habits, scenes)


def _habit_places(room: Room, kind: str) -> list[str]:
    """Places that leave enough types of receptacles as targets."""
    places = room.holding(kind)
    return [p for p in places if len(_targets(room, kind, p)) >= _LEAST_TARGETS]


def _habit_kinds(room_kind: str, scene: Scene) -> list[str]:
    """Object classes with the task types that such a room is there for, and places to choose from.

    Kitchens give what can be cleaned, heated and cooled, bathrooms what can be cleaned, lamp rooms
    what can be looked at.
    """
    wanted = {"kitchen": set(PROCESS), "bathroom": {"pick_clean_then_place_in_recep"}}
    least = max(_KINDS_PER_ROOM.values()) + 1  # different places for all of them, with a choice
    return [
        kind
        for kind in scene.kinds
        if wanted.get(room_kind, set()) <= set(_types(scene.room, kind))
        and len(_habit_places(scene.room, kind)) >= (least if room_kind != "bathroom" else 2)
    ]
