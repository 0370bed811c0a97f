"""Which games a set of households consists of: splits, sentences, solutions and step limits.

A household keeps each of its six habit classes in a place of its own, the same in all of its games;
games differ in task type, object, target and clutter.  The household's name and the object open the
task sentence, so that text similarity brings games of the same household and the same object first.
Everything follows from the seed; solutions are built, not searched for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from evolving_rl_jax.envs.alfworld.households.homes import (
    MAX_HOUSEHOLDS,
    NUM_HABITS,
    ROOMS,
    Household,
    make_households,
)
from evolving_rl_jax.envs.alfworld.households.problem import LAMP, Room, agent_class
from evolving_rl_jax.envs.alfworld.names import (
    HELDOUT_TYPES,
    TASK_TYPES,
    TRAINED_TYPES,
    task_sentence,
)

__all__ = ["GamesSpec", "PlannedGame", "Planner", "Route", "plan_games", "spread_spec"]

_PROCESS = {  # command and appliance
    "pick_clean_then_place_in_recep": ("clean", "sinkbasin 1"),
    "pick_heat_then_place_in_recep": ("heat", "microwave 1"),
    "pick_cool_then_place_in_recep": ("cool", "fridge 1"),
}
_STEP_LIMIT = 50  # ALFWorld's own
_SLACK = 3  # compact rooms: one wrong place out of six


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
      slack: steps that the limit allows beyond the shortest solution; None = enough to try a third
        of the places where the object could be (``PlannedGame.slack``).
      rooms: ``"compact"`` or ``"scenes"``, see ``homes``.
    """

    num_train_households: int = 32
    games_per_object: int = 4
    num_seen: int = 0
    num_unseen_households: int = 80
    num_unseen: int | None = None
    num_heldout: int = 240
    num_warmstart: int = 768
    slack: int | None = None
    rooms: str = "compact"

    def __post_init__(self):
        if self.rooms not in ROOMS:
            raise ValueError(
                f"GamesSpec.rooms must be one of {', '.join(ROOMS)}, got {self.rooms!r}"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "rooms" or (value is None and field.name in ("num_unseen", "slack")):
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

    def description(self) -> dict[str, Any]:
        """What the index of the games says of it."""
        facts = dataclasses.asdict(self)
        if self.rooms == "compact":  # games of earlier versions keep their bytes
            facts["slack"] = _SLACK if self.slack is None else self.slack
            del facts["rooms"]
        return facts


def _need_households(name: str, games: int, households: int) -> None:
    if games and not households:
        raise ValueError(f"GamesSpec.{name} must be 0 without households, got {games}")


@dataclasses.dataclass(frozen=True)
class PlannedGame:
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
        target = agent_class(self.target or LAMP)
        phrase = task_sentence(self.task_type, obj, target)
        return f"find {obj} at {self.household.name} and {phrase}"

    @property
    def room(self) -> Room:
        """Where it is played."""
        return self.household.room(self.kind)

    @property
    def slack(self) -> int:
        """Steps beyond the shortest solution that let a third of the possible places be tried.

        Going to a place costs a step, opening it another.  In the compact room that is one wrong
        place of six; never more than ALFWorld's own limit allows.
        """
        if not self.household.scenes:
            return _SLACK
        places = [self.room.places[name] for name in self.room.holding(self.kind)]
        wanted = max(_SLACK, math.ceil(sum(1 + place.openable for place in places) / 3))
        return min(wanted, _STEP_LIMIT - len(self.walkthrough()))

    def walkthrough(self) -> list[str]:
        """A shortest solution, as commands."""
        route, place = Route(self.room), self.place
        target = f"{agent_class(self.target)} 1"
        for number in (1, 2) if self.task_type == "pick_two_obj_and_place" else (1,):
            obj = f"{self.kind.lower()} {number}"
            route.visit(place)
            route.steps.append(f"take {obj} from {place}")
            if self.task_type == "look_at_obj_in_light":
                route.visit(self.room.lamp_place, closed=True)
                route.steps.append(f"use {LAMP.lower()} 1")
                break
            if self.task_type in _PROCESS:
                verb, appliance = _PROCESS[self.task_type]
                route.visit(appliance, closed=True)
                route.steps.append(f"{verb} {obj} with {appliance}")
            route.visit(target)
            route.steps.append(f"move {obj} to {target}")
        return route.steps


class Route:
    """Commands that go somewhere and open it, each only where it is needed."""

    def __init__(self, room: Room):
        self.steps: list[str] = []
        self._room, self._at = room, room.start
        self._opened: set[str] = set()

    def visit(self, place: str, *, closed: bool = False) -> None:
        """Goes to a place; ``closed``: what is wanted there works through a closed door."""
        location = self._room.places[place].location
        if self._at != location:  # the engine offers no way from a place to its own location
            self.steps.append(f"go to {place}")
            self._at = location
        if self._room.places[place].openable and not closed and place not in self._opened:
            self.steps.append(f"open {place}")
            self._opened.add(place)


class Planner:
    """Makes games with ids that are unique over all splits."""

    def __init__(self, seed: int):
        self.rng = random.Random(f"games/{seed}")
        self._counts: Counter[str] = Counter()
        self._by_type: Counter[tuple[str, str]] = Counter()

    def game(
        self,
        split: str,
        household: Household,
        kind: str,
        task_type: str,
        target: str | None = None,
        source: PlannedGame | None = None,
    ) -> PlannedGame:
        """A game; a target is drawn when None, other than that of ``source``."""
        if target is None:
            choice = household.targets(kind)
            target = self.rng.choice([s for s in choice if not source or s != source.target])
        if task_type == "look_at_obj_in_light":
            target = ""
        stem = f"{household.id}/{kind.lower()}/{task_type}"
        number = self._counts[stem]
        self._counts[stem] += 1
        self._by_type[split, task_type] += 1
        source_id = source.id if source else ""
        return PlannedGame(f"{stem}-{number}", split, household, kind, task_type, target, source_id)

    def train(self, household: Household, kind: str, num: int) -> Iterator[PlannedGame]:
        """``num`` games of one object: task types in turn, targets in turn within a type."""
        types = self.rng.sample(TRAINED_TYPES, len(TRAINED_TYPES))
        types = [t for t in types if household.supports(kind, t)]
        choice = household.targets(kind)
        targets = {t: self.rng.sample(choice, len(choice)) for t in types}
        for i in range(num):
            task_type, turn = types[i % len(types)], i // len(types)
            target = targets[task_type][turn % len(choice)]
            yield self.game("train", household, kind, task_type, target)

    def spread(
        self, split: str, households: Sequence[Household], num: int, types: Sequence[str]
    ) -> Iterator[PlannedGame]:
        """``num`` games over households, then objects; task types as evenly as that allows."""
        for household, kind, turn in itertools.islice(_rounds(households), num):
            yield self.game(
                split, household, kind, self.next_type(split, household, kind, types, turn)
            )

    def next_type(
        self, split: str, household: Household, kind: str, types: Sequence[str], turn: int
    ) -> str:
        """The task type of the next game: in turn, or where few classes support a type, the rarest."""
        if not household.scenes:
            return types[turn % len(types)]
        able = [t for t in types if household.supports(kind, t)]
        return min(
            able, key=lambda t: (self._by_type[split, t], (types.index(t) + turn) % len(types))
        )

    def full_sets(
        self, split: str, households: Sequence[Household], num: int
    ) -> Iterator[PlannedGame]:
        """``num`` games, all six task types in one household before the next one."""
        for i in range(num):
            h, t = divmod(i, len(TASK_TYPES))
            kinds = sorted(households[h].habits)
            kinds = [k for k in kinds if households[h].supports(k, TASK_TYPES[t])]
            kind = kinds[(h + t) % len(kinds)]
            yield self.game(split, households[h], kind, TASK_TYPES[t])


def _rounds(households: Sequence[Household]) -> Iterator[tuple[Household, str, int]]:
    """Endlessly: (household, object class, turn), all households in each round.

    The object moves on with the round; turns, taken modulo 2, 3, 4 or 6, are even over households
    and over rounds and are not tied to the objects.
    """
    for lap in itertools.count() if households else ():
        for i, household in enumerate(households):
            yield household, sorted(household.habits)[(i + lap) % NUM_HABITS], lap + i + i // 12


def plan_games(spec: GamesSpec, seed: int) -> list[PlannedGame]:
    """All games of all splits, in a fixed order."""
    n_train, n_warm = spec.num_train_households, spec.warmstart_households
    num = n_train + n_warm + spec.num_unseen_households
    known = n_train + n_warm
    everyone = make_households(num, known, seed, rooms=spec.rooms, test_from=known)
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


def _plan_panels(
    planner: Planner, spec: GamesSpec, unseen: Sequence[Household]
) -> list[PlannedGame]:
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
            others = [t for t in types if t != source.task_type and household.supports(kind, t)]
            # A class with one trained type differs from its source in target and clutter only.
            task_type = planner.next_type(split, household, kind, others or types, turn)
            games.append(planner.game(split, household, kind, task_type, source=source))
    return games


def spread_spec(num: int, *, rooms: str = "compact", slack: int | None = None) -> GamesSpec:
    """All splits with ``num`` games in all.

    About a half are for training, an eighth in the same households, a quarter in unseen ones, an
    eighth for the warm start.

    Raises:
      ValueError: ``num`` is too small for one household of each kind, or asks for too many.
    """
    per_train, per_unseen = NUM_HABITS * 4, NUM_HABITS * 5 // 2  # games to a household
    least = 2 * (per_train + per_unseen)
    if num < least:
        raise ValueError(f"num must be at least {least} to give every split games, got {num}")
    num_train, num_unseen = num // 2 // per_train, num // 4 // per_unseen
    num_warm = num // 8
    used = num_train * per_train + num_unseen * per_unseen + num_warm
    return GamesSpec(
        num_train_households=num_train,
        num_unseen_households=num_unseen,
        num_heldout=num_unseen * NUM_HABITS // 2,
        num_warmstart=num_warm,
        num_seen=num - used,
        slack=slack,
        rooms=rooms,
    )
