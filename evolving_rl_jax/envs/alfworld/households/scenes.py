"""The rooms that the installed ``alfworld`` package ships: real receptacles, and what fits where.

A layout file lists the receptacles of one scene with the point from which each is used; the tables
of the package's constants say which object goes into which receptacle and what can be done to it.
Nothing of them is copied here, all is read from the installation.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from evolving_rl_jax.envs.alfworld.households.problem import LAMP, Place, Room
from evolving_rl_jax.envs.alfworld.names import numbered

__all__ = [
    "LAMP_PLACES",
    "ROOM_KINDS",
    "Scene",
    "layout_points",
    "load_scene",
    "make_room",
    "mangled",
    "receptacle_type",
    "scene_numbers",
    "tables",
    "usual_places",
]

KITCHEN, LAMP_ROOM, BATHROOM = ROOM_KINDS = ("kitchen", "lamp_room", "bathroom")
# Scenes smaller than this leave too little to search, larger ones translate slowly.
_SIZES = {KITCHEN: (15, 39), LAMP_ROOM: (8, 39), BATHROOM: (6, 39)}
_NEEDED = {KITCHEN: {"Fridge", "Microwave", "SinkBasin"}, LAMP_ROOM: set(), BATHROOM: {"SinkBasin"}}
LAMP_PLACES = ("Desk", "SideTable", "Dresser", "Shelf")  # where a desk lamp can stand
_AGENT_START = "loc_bar_{}_bar_0_bar_0_bar_30"
_SPELLINGS = (("|", "_bar_"), ("-", "_minus_"), ("+", "_plus_"), (".", "_dot_"), (",", "_comma_"))


@dataclasses.dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
      name: as the package names it, e.g. ``FloorPlan7``.
      room: its receptacles under the names that the agent reads.
      kinds: classes of movable objects that the scene has in the original.
      is_test: one of the scenes that ALFRED keeps for tests.
    """

    name: str
    room: Room
    kinds: tuple[str, ...]
    is_test: bool


@dataclasses.dataclass(frozen=True)
class Tables:
    """What the package's constants say of classes.

    Attributes:
      contains: receptacle type -> object classes that fit.
      properties: object class -> ``cleanable``, ``heatable``, ``coolable`` as they apply.
      openable: receptacle types that are closed at the start.
      scenes: room kind -> numbers of its scenes.
      test_scenes: numbers of the test scenes.
    """

    contains: Mapping[str, frozenset[str]]
    properties: Mapping[str, tuple[str, ...]]
    openable: frozenset[str]
    scenes: Mapping[str, tuple[int, ...]]
    test_scenes: frozenset[int]


def _package_folder() -> pathlib.Path:
    spec = importlib.util.find_spec("alfworld")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("scene layouts need the alfworld package: pip install alfworld")
    return pathlib.Path(next(iter(spec.submodule_search_locations))) / "gen"


@functools.cache
def tables() -> Tables:
    """The tables of the installed package.

    Raises:
      FileNotFoundError: the package is not installed or lacks its constants.
    """
    # Loaded by path: importing ``alfworld`` itself makes a folder in the user's home.
    path = _package_folder() / "constants.py"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the alfworld package must ship this file, not found")
    spec = importlib.util.spec_from_file_location("alfworld_constants", path)
    constants: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(constants)
    movable = set(constants.MOVABLE_RECEPTACLES)
    fixed = {k: v for k, v in constants.VAL_RECEPTACLE_OBJECTS.items() if k not in movable}
    actions = constants.VAL_ACTION_OBJECTS
    verbs = {v: set(actions[v.capitalize()]) for v in ("cleanable", "heatable", "coolable")}
    whole = sorted({k for kinds in fixed.values() for k in kinds if not k.endswith("Sliced")})
    by_kind = constants.SCENE_TYPE
    return Tables(
        contains={k: frozenset(v) & set(whole) for k, v in fixed.items()},
        properties={k: tuple(v for v, has in verbs.items() if k in has) for k in whole},
        openable=frozenset(constants.OPENABLE_CLASS_LIST),
        scenes={
            KITCHEN: tuple(by_kind["Kitchen"]),
            LAMP_ROOM: (*by_kind["LivingRoom"], *by_kind["Bedroom"]),
            BATHROOM: tuple(by_kind["Bathroom"]),
        },
        test_scenes=frozenset(constants.TEST_SCENE_NUMBERS),
    )


@functools.cache
def load_scene(number: int) -> Scene:
    """Reads one scene, once a process.

    Raises:
      FileNotFoundError: the installed package has no such layout.
    """
    points = layout_points(number)
    kinds = _read(_package_folder() / "layouts" / f"FloorPlan{number}-objects.json")
    locations = {place_id: mangled(location) for place_id, location in points.items()}
    room = make_room(locations, has_lamp=LAMP in kinds)
    known = tables()
    movable = tuple(sorted(k for k in set(kinds) if k in known.properties))
    return Scene(f"FloorPlan{number}", room, movable, number in known.test_scenes)


def layout_points(number: int) -> dict[str, str]:
    """The receptacles of a scene: id -> where the agent stands to use it, both as ALFRED writes them.

    Raises:
      FileNotFoundError: the installed package has no such layout.
    """
    points = _read(_package_folder() / "layouts" / f"FloorPlan{number}-openable.json")
    return {place_id: _location(point) for place_id, point in points.items()}


def make_room(locations: Mapping[str, str], *, has_lamp: bool = False) -> Room:
    """A room with these receptacles.

    Args:
      locations: id as ALFRED writes it -> PDDL object of the location from which it is used.
      has_lamp: a desk lamp stands on the first receptacle that is made for one.
    """
    known = tables()
    places = {}
    names = {place_id: name for name, place_id in numbered(map(mangled, locations)).items()}
    for original in sorted(locations):
        name = names[mangled(original)]
        rtype = receptacle_type(original)
        location = locations[original]
        places[name] = Place(mangled(original), rtype, location, rtype in known.openable)
    taken = {place.location for place in places.values()}
    starts = (_AGENT_START.format(i) for i in range(len(taken) + 1))
    lamps = [n for n, p in places.items() if p.type in LAMP_PLACES]
    return Room(
        places,
        known.contains,
        known.properties,
        lamp_place=lamps[0] if has_lamp and lamps else "",
        start=next(start for start in starts if start not in taken),
    )


def receptacle_type(original: str) -> str:
    """The class that goals name: of ``Sink|x|y|z|SinkBasin`` the basin, otherwise the first part."""
    first, *_, last = original.split("|")
    return last if last.endswith("Basin") else first


@functools.cache
def usual_places() -> dict[str, frozenset[str]]:
    """Object class -> classes of the places that can hold it, as the agent reads them."""
    contains = tables().contains
    words = {
        k.lower(): {p.lower() for p, held in contains.items() if k in held}
        for k in tables().properties
    }
    return {word: frozenset(places) for word, places in words.items()}


@functools.cache
def scene_numbers(kind: str) -> tuple[int, ...]:
    """Numbers of the usable scenes of one of ``ROOM_KINDS``, ascending.

    Usable means: as many receptacles as ``_SIZES`` allows, the appliances that the task types of
    such a room need, and a desk lamp in a lamp room.
    """
    least, most = _SIZES[kind]
    usable = []
    for number in tables().scenes[kind]:
        room = load_scene(number).room
        types = {place.type for place in room.places.values()}
        lamp_ok = kind != LAMP_ROOM or bool(room.lamp_place)
        if least <= len(room.places) <= most and types >= _NEEDED[kind] and lamp_ok:
            usable.append(number)
    return tuple(usable)


def _read(path: pathlib.Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the alfworld package must ship this file, not found")
    return json.loads(path.read_text(encoding="utf-8"))


def mangled(original: str) -> str:
    """An id or a location of ALFRED as PDDL spells it."""
    for plain, spelt in _SPELLINGS:
        original = original.replace(plain, spelt)
    return original


def _location(point: list[float]) -> str:
    """ALFRED's name of a standing point: quarter metres, quarter turns, degrees of the camera."""
    x, z, turn, horizon = point
    parts = (round(4 * x), round(4 * z), round(turn / 90), round(horizon))
    return "loc|" + "|".join(map(str, parts))
