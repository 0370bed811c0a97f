"""Which games a set of households consists of: names, habits, splits, sentences and solutions.

A household keeps each of its six habit classes in a closed place of its own, the same in all of its
games; games differ in task type, object, target and clutter.  The household's name and the object
open the task sentence, so that text similarity brings games of the same household and the same
object first.  Everything follows from the seed; solutions are built, not searched for.

Three of the habit classes (bowl, bread, lettuce) get one property that ALFRED does not give them,
so that every class supports every task type; drawers and cabinets hold them all.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence

from evolving_rl_jax.envs.pddl_problem import (
    LAMP,
    LAMP_PLACE,
    SURFACES,
    agent_class,
    receptacle_classes,
)

TRAINED_TYPES = (
    "pick_and_place_simple",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
)
HELDOUT_TYPES = ("pick_two_obj_and_place", "look_at_obj_in_light")
TASK_TYPES = TRAINED_TYPES + HELDOUT_TYPES

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

_PHRASES = {
    "pick_and_place_simple": "put a {obj} in {target}",
    "pick_clean_then_place_in_recep": "put a clean {obj} in {target}",
    "pick_heat_then_place_in_recep": "put a hot {obj} in {target}",
    "pick_cool_then_place_in_recep": "put a cool {obj} in {target}",
    "pick_two_obj_and_place": "put two {obj} in {target}",
    "look_at_obj_in_light": "look at {obj} under the desklamp",
}
_PROCESS = {  # command and appliance
    "pick_clean_then_place_in_recep": ("clean", "sinkbasin 1"),
    "pick_heat_then_place_in_recep": ("heat", "microwave 1"),
    "pick_cool_then_place_in_recep": ("cool", "fridge 1"),
}
_HABIT_PLACES = tuple(
    place for place, (kind, _) in receptacle_classes().items() if kind in ("Cabinet", "Drawer")
)


@dataclasses.dataclass(frozen=True)
class GamesSpec:
    """How many games of which split to generate.

    Splits: ``train`` (trained task types), ``valid_seen`` (the same households, other games),
    ``valid_unseen`` (other households, trained types), ``heldout_types`` (those other households,
    the other two types), ``valid_unseen_sources`` (one game for each household and object of these
    two panels: same object, other task type, target and clutter) and ``warmstart`` (households of
    its own, all six types).  Every household has six habit objects.

    Attributes:
      num_train_households: households of ``train``.
      games_per_object: games of ``train`` for each household and object.
      num_seen: games of ``valid_seen``.
      num_unseen_households: households of the unseen panels.
      num_unseen: games of ``valid_unseen``; None = one for each household and object.
      num_heldout: games of ``heldout_types``.
      num_warmstart: games of ``warmstart``, six to a household.
      slack: steps that the limit allows beyond the shortest solution.
    """

    num_train_households: int = 32
    games_per_object: int = 4
    num_seen: int = 0
    num_unseen_households: int = 80
    num_unseen: int | None = None
    num_heldout: int = 240
    num_warmstart: int = 768
    slack: int = 3

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "num_unseen" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(
                    f"GamesSpec.{field.name} must be an integer of at least 0, got {value!r}"
                )
        _need_households("num_seen", self.num_seen, self.num_train_households)
        panel = (self.num_unseen or 0) + self.num_heldout
        _need_households("num_unseen and num_heldout", panel, self.num_unseen_households)
        total = self.num_train_households + self.num_unseen_households + self.warmstart_households
        if total > MAX_HOUSEHOLDS:
            raise ValueError(
                f"GamesSpec must ask for at most {MAX_HOUSEHOLDS} households in all, got {total}"
            )

    @property
    def warmstart_households(self) -> int:
        """Households of the warm-start split."""
        return math.ceil(self.num_warmstart / NUM_HABITS)


def _need_households(name: str, games: int, households: int) -> None:
    if games and not households:
        raise ValueError(f"GamesSpec.{name} must be 0 without households, got {games}")


@dataclasses.dataclass(frozen=True)
class Household:
    """A name and where each habit class is kept (class -> agent-visible place)."""

    name: str
    habits: dict[str, str]

    @property
    def id(self) -> str:
        """The name as a path component."""
        return self.name.replace(" ", "-")


@dataclasses.dataclass(frozen=True)
class Game:
    """What a game is about, before clutter is placed."""

    id: str
    split: str
    household: Household
    kind: str  # object class
    task_type: str
    target: str  # receptacle class, "" for look_at_obj_in_light
    source: str = ""  # id of the game in valid_unseen_sources with the same household and object

    @property
    def place(self) -> str:
        """Where the object is kept."""
        return self.household.habits[self.kind]

    @property
    def text(self) -> str:
        """The task sentence."""
        obj = self.kind.lower()
        phrase = _PHRASES[self.task_type].format(obj=obj, target=agent_class(self.target))
        return f"find {obj} at {self.household.name} and {phrase}"

    def walkthrough(self) -> list[str]:
        """A shortest solution, as commands."""
        obj, place = f"{self.kind.lower()} 1", self.place
        steps = [f"go to {place}", f"open {place}", f"take {obj} from {place}"]
        if self.task_type == "look_at_obj_in_light":
            return [*steps, f"go to {LAMP_PLACE}", f"use {LAMP.lower()} 1"]
        if self.task_type in _PROCESS:
            verb, appliance = _PROCESS[self.task_type]
            steps += [f"go to {appliance}", f"{verb} {obj} with {appliance}"]
        target = f"{agent_class(self.target)} 1"
        steps += [f"go to {target}", f"move {obj} to {target}"]
        if self.task_type == "pick_two_obj_and_place":
            second = f"{self.kind.lower()} 2"
            steps += [f"go to {place}", f"take {second} from {place}"]
            steps += [f"go to {target}", f"move {second} to {target}"]
        return steps


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


def make_households(num: int, cover: int, seed: int) -> list[Household]:
    """``num`` households: see ``household_names`` for ``cover``."""
    rng = random.Random(f"households/{seed}")
    households = []
    for name in household_names(num, cover, rng):
        kinds = rng.sample(HABIT_CLASSES, NUM_HABITS)
        places = rng.sample(_HABIT_PLACES, NUM_HABITS)
        households.append(Household(name, dict(zip(kinds, places, strict=True))))
    return households


class Planner:
    """Makes games with ids that are unique over all splits."""

    def __init__(self, seed: int):
        self.rng = random.Random(f"games/{seed}")
        self._counts: Counter[str] = Counter()

    def game(
        self,
        split: str,
        household: Household,
        kind: str,
        task_type: str,
        target: str | None = None,
        source: Game | None = None,
    ) -> Game:
        """A game; a target is drawn when None, other than that of ``source``."""
        if target is None:
            target = self.rng.choice([s for s in SURFACES if not source or s != source.target])
        if task_type == "look_at_obj_in_light":
            target = ""
        stem = f"{household.id}/{kind.lower()}/{task_type}"
        number = self._counts[stem]
        self._counts[stem] += 1
        source_id = source.id if source else ""
        return Game(f"{stem}-{number}", split, household, kind, task_type, target, source_id)

    def train(self, household: Household, kind: str, num: int) -> Iterator[Game]:
        """``num`` games of one object: task types in turn, targets in turn within a type."""
        types = self.rng.sample(TRAINED_TYPES, len(TRAINED_TYPES))
        targets = {t: self.rng.sample(SURFACES, len(SURFACES)) for t in types}
        for i in range(num):
            task_type, turn = types[i % len(types)], i // len(types)
            target = targets[task_type][turn % len(SURFACES)]
            yield self.game("train", household, kind, task_type, target)

    def spread(
        self, split: str, households: Sequence[Household], num: int, types: Sequence[str]
    ) -> Iterator[Game]:
        """``num`` games over households, then objects; task types as evenly as that allows."""
        for household, kind, turn in itertools.islice(_rounds(households), num):
            yield self.game(split, household, kind, types[turn % len(types)])

    def full_sets(self, split: str, households: Sequence[Household], num: int) -> Iterator[Game]:
        """``num`` games, all six task types in one household before the next one."""
        for i in range(num):
            h, t = divmod(i, len(TASK_TYPES))
            kind = sorted(households[h].habits)[(h + t) % NUM_HABITS]
            yield self.game(split, households[h], kind, TASK_TYPES[t])


def _rounds(households: Sequence[Household]) -> Iterator[tuple[Household, str, int]]:
    """Endlessly: (household, object class, turn), all households in each round.

    The object moves on with the round; turns, taken modulo 2, 3, 4 or 6, are even over households
    and over rounds and are not tied to the objects.
    """
    for lap in itertools.count() if households else ():
        for i, household in enumerate(households):
            yield household, sorted(household.habits)[(i + lap) % NUM_HABITS], lap + i + i // 12


def plan_games(spec: GamesSpec, seed: int) -> list[Game]:
    """All games of all splits, in a fixed order."""
    n_train, n_warm = spec.num_train_households, spec.warmstart_households
    num = n_train + n_warm + spec.num_unseen_households
    everyone = make_households(num, n_train + n_warm, seed)
    train, warm = everyone[:n_train], everyone[n_train : n_train + n_warm]
    planner = Planner(seed)
    games = [
        game
        for household in train
        for kind in sorted(household.habits)
        for game in planner.train(household, kind, spec.games_per_object)
    ]
    games += planner.spread("valid_seen", train, spec.num_seen, TRAINED_TYPES)
    games += planner.full_sets("warmstart", warm, spec.num_warmstart)
    return games + _plan_panels(planner, spec, everyone[n_train + n_warm :])


def _plan_panels(planner: Planner, spec: GamesSpec, unseen: Sequence[Household]) -> list[Game]:
    """The sources of the unseen households, then the two panels, each game with its source."""
    num_pairs = len(unseen) * NUM_HABITS
    games = list(planner.spread("valid_unseen_sources", unseen, num_pairs, TRAINED_TYPES))
    by_pair = {(game.household.id, game.kind): game for game in games}
    num_unseen = num_pairs if spec.num_unseen is None else spec.num_unseen
    for split, num, types in (
        ("valid_unseen", num_unseen, TRAINED_TYPES),
        ("heldout_types", spec.num_heldout, HELDOUT_TYPES),
    ):
        for household, kind, turn in itertools.islice(_rounds(unseen), num):
            source = by_pair[household.id, kind]
            others = [t for t in types if t != source.task_type]
            task_type = others[turn % len(others)]
            games.append(planner.game(split, household, kind, task_type, source=source))
    return games
