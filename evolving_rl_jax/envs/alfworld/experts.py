"""Scripted players of ALFWorld games: a walkthrough, and a searcher that acts on beliefs.

The searcher is noisy with ``noise`` above 0.  ``play`` runs any of them.  Both see what an agent sees: the task sentence, observations and admissible actions.  ``target`` is
the class word of the object that they are after (``"mug"``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from evolving_rl_jax.envs.base import EnvError, Environment
from evolving_rl_jax.types import OK, Task

__all__ = ["SearchingExpert", "Walkthrough", "play"]

_STATES = {"clean": "clean", "hot": "heat", "heat": "heat", "cool": "cool", "cold": "cool"}
_APPLIANCES = {
    "clean": ("sinkbasin", "bathtubbasin"),
    "heat": ("microwave",),
    "cool": ("fridge",),
}
# The sentence's last clause, in ALFWorld's two wordings; an earlier "find X at Y and" says where.
_GOALS = (
    re.compile(r"\bput (?P<two>two) (?P<obj>\w+) in (?P<target>\w+)"),
    re.compile(r"\bfind (?P<two>two) (?P<obj>\w+) and put them in (?P<target>\w+)"),
    re.compile(
        r"\bput (?:a|some) (?:(?P<state>clean|hot|cool) )?(?P<obj>\w+) (?:in|on) (?P<target>\w+)"
    ),
    re.compile(r"\b(?P<state>clean|heat|cool) some (?P<obj>\w+) and put it in (?P<target>\w+)"),
    re.compile(r"\b(?:look at|examine)(?: the)? (?P<obj>\w+) (?:under|with) the (?P<lamp>\w+)"),
)
_ARRIVED = re.compile(r"^You (?:arrive at|are facing) (?:the )?(\w+ \d+)")
_TAKEN = re.compile(r"^You pick up the (\w+ \d+) from the (\w+ \d+)")
_MOVED = re.compile(r"^You (?:move|put) the (\w+ \d+) (?:to|in/on) the (\w+ \d+)")
_PROCESSED = re.compile(r"^You (clean|heat|cool) the (\w+ \d+) using")
_LISTED = re.compile(r"(?:The (\w+ \d+) is open\. In it|On the (\w+ \d+)), you see (.*?)\.(?:\s|$)")
_THING = re.compile(r"\b(\w+ \d+)")
_SMALL = ("cabinet", "drawer")
_CLOSED = (*_SMALL, "fridge", "microwave", "safe")
_SURFACES = ("countertop", "diningtable", "sidetable", "desk", "dresser")
_LAMP_PLACES = ("sidetable", "desk", "dresser", "shelf")
_MOST_OF_A_CLASS = 48  # the largest layout has 47 receptacles


class Walkthrough:
    """Plays the solution that the game came with, then looks around.

    Raises:
      ValueError: the task has none.
    """

    def __init__(self, task: Task):
        steps = task.meta.get("walkthrough")
        if not steps:
            raise ValueError(f"task {task.id!r} must have a walkthrough, found none")
        self.target: str = task.meta["object"]
        self._rest = list(steps)[::-1]

    def act(self, observation: str, actions: Sequence[str]) -> str:
        """The next command, whatever is seen."""
        return self._rest.pop() if self._rest else "look"


class SearchingExpert:
    """Searches for the object, believed place first, then does what the task asks.

    Without noise it opens no place twice and wastes no step except on places that do not hold the
    object.  It recovers from its own random actions.

    Args:
      task: only its sentence is read.
      rng: every choice comes from it.
      beliefs: object class -> place where it is said to be kept (``cabinet 3``), or kind of place
        (``cabinet``).  Places believed to hold another class are tried late.
      excluded: object class -> places where it is said not to be; tried late.
      noise: probability of a random admissible action, each turn.
      usual: object class -> classes of the places where such things are usually kept, tried early,
        open ones before closed ones; see ``scene_layouts.usual_places``.  None: small closed places
        first, as fits the compact rooms.
      ignore_belief: probability of playing the whole episode without ``beliefs`` and ``excluded``.
      random_place: probability of a random place instead of the next one of the search.

    Raises:
      ValueError: the sentence is not in ALFWorld's wording, or a probability is outside [0, 1].
    """

    def __init__(
        self,
        task: Task,
        rng: np.random.Generator,
        beliefs: Mapping[str, str] | None = None,
        *,
        excluded: Mapping[str, Collection[str]] | None = None,
        usual: Mapping[str, Collection[str]] | None = None,
        noise: float = 0.0,
        ignore_belief: float = 0.0,
        random_place: float = 0.0,
    ):
        rates = {"noise": noise, "ignore_belief": ignore_belief, "random_place": random_place}
        for name, value in rates.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be a probability in [0, 1], got {value!r}")
        goal = _parse_goal(task)
        self.target: str = goal["obj"]
        self._verb = _STATES.get(goal.get("state") or "")
        self._goal_place, self._lamp = goal.get("target"), goal.get("lamp")
        self._rng, self._noise, self._random_place = rng, noise, random_place
        if rng.random() < ignore_belief:
            beliefs, excluded = None, None
        self._believed = dict(beliefs or {})
        self._excluded = set((excluded or {}).get(self.target, ()))
        self._usual = None if usual is None else set(usual.get(self.target, ()))
        self._here: str | None = None
        self._held: str | None = None
        self._contents: dict[str, set[str]] = {}  # place -> things seen in it
        self._places: set[str] = set()
        self._done: set[tuple[str, str]] = set()  # (verb, thing)
        self._priority: dict[str, float] = {}  # place -> its random place in the search

    def act(self, observation: str, actions: Sequence[str]) -> str:
        """The next action.

        Args:
          observation: what the last action (or the reset) answered.
          actions: the admissible ones; the result is one of them.
        """
        self._read(observation)
        if self._rng.random() < self._noise:
            # Not "help": its long answer says nothing about the game.
            return str(self._rng.choice([a for a in actions if a != "help"]))
        wanted = self._held_steps(actions) if self._held else self._search_steps(actions)
        for action in wanted:
            if action in actions:
                return action
        return "look" if "look" in actions else actions[0]

    # -- what is known ----------------------------------------------------------------------------

    def _read(self, text: str) -> None:
        if match := _ARRIVED.search(text):
            self._here = match[1]
        for in_it, on_it, things in _LISTED.findall(text):
            self._contents[in_it or on_it] = set(_THING.findall(things))
        if match := _TAKEN.search(text):
            self._held = match[1]
            self._contents.setdefault(match[2], set()).discard(match[1])
        if match := _MOVED.search(text):
            self._held = None
            self._contents.setdefault(match[2], set()).add(match[1])
        if match := _PROCESSED.search(text):
            self._done.add((match[1], match[2]))

    def _is_class(self, name: str, word: str | None) -> bool:
        return name.rsplit(" ", 1)[0] == word

    def _known(self, word: str) -> list[tuple[str, str]]:
        """(place, thing) of every thing of that class that was seen."""
        return sorted(
            (place, thing)
            for place, things in self._contents.items()
            for thing in things
            if self._is_class(thing, word)
        )

    def _is_there(self, place: str, thing: str) -> bool:
        """Whether a thing is where the task wants it, with what is to be done to it first."""
        done = not self._verb or (self._verb, thing) in self._done
        return done and self._is_class(place, self._goal_place)

    # -- what to do, best first; the first admissible one is taken ---------------------------------

    def _held_steps(self, actions: Sequence[str]) -> list[str]:
        held, here = self._held, self._here
        if not self._is_class(held, self.target):
            return [f"move {held} to {here}", *self._go_to(*_SURFACES)]
        if self._lamp:
            known = [place for place, _ in self._known(self._lamp)]
            lamp = [f"use {self._lamp} {n}" for n in (1, 2, 3)]
            go = [f"go to {place}" for place in known if place != here]
            return [*lamp, *go, *self._lamp_search(actions)]
        if self._verb and (self._verb, held) not in self._done:
            kinds = _APPLIANCES[self._verb]
            return [
                *(f"{self._verb} {held} with {kind} {n}" for kind in kinds for n in (1, 2, 3)),
                *self._go_to(*kinds),
            ]
        goals = [a.removeprefix("go to ") for a in self._go_to(self._goal_place)]
        goals = [here, *goals] if here and self._is_class(here, self._goal_place) else goals
        moves = [f"move {held} to {place}" for place in goals]  # possible without going, at times
        return [*moves, *(f"open {place}" for place in goals), *(f"go to {g}" for g in goals)]

    def _lamp_search(self, actions: Sequence[str]) -> list[str]:
        """Places where a lamp can stand, then all others, those not seen yet first."""
        likely = self._go_to(*_LAMP_PLACES)
        every = [*likely, *(a for a in actions if a.startswith("go to "))]
        unseen = [a for a in every if a.removeprefix("go to ") not in self._contents]
        return [*unseen, *likely]

    def _go_to(self, *kinds: str) -> list[str]:
        """Going to the first places of these classes, in that order, except where it stands."""
        numbered = (f"{kind} {n}" for kind in kinds for n in range(1, _MOST_OF_A_CLASS))
        return [f"go to {place}" for place in numbered if place != self._here]

    def _search_steps(self, actions: Sequence[str]) -> list[str]:
        here = self._here
        known = [found for found in self._known(self.target) if not self._is_there(*found)]
        if known:
            takes = [f"take {thing} from {place}" for place, thing in known]
            opens = [f"open {here}", *(f"open {place}" for place, _ in known)]
            return [*takes, *opens, *(f"go to {place}" for place, _ in known)]
        if here and here not in self._contents and f"open {here}" in actions:
            return [f"open {here}"]
        # Places may share a standing point: what can be opened from here costs no step to get to.
        places = [a.removeprefix("go to ") for a in actions if a.startswith("go to ")]
        self._places.update(places)
        near = [a for a in actions if a.startswith("open ") and self._unseen(a)]
        near += [a for a in actions if a.startswith("examine ") and self._unseen(a)]
        if near:
            return near
        if places and self._rng.random() < self._random_place:
            return [f"go to {self._rng.choice(places)}"]
        unseen = [place for place in places if place not in self._contents]
        if not unseen and (left := self._known(self.target)):
            # Nowhere else: one that lies where it belongs has to be taken, to be cleaned, say.
            place, thing = left[0]
            return [f"take {thing} from {place}", f"open {place}", f"go to {place}"]
        return [f"go to {place}" for place in sorted(unseen or places, key=self._rank)]

    def _unseen(self, action: str) -> bool:
        name = action.split(" ", 1)[1]
        return name in self._places and name not in self._contents

    def _rank(self, place: str) -> tuple[float, float]:
        """Believed place, then likely places, then those believed wrong, then the rest."""
        if place not in self._priority:
            self._priority[place] = float(self._rng.random())
        others = {p for obj, p in self._believed.items() if obj != self.target}
        if self._believed.get(self.target) in (place, place.split()[0]):
            tier = 0
        elif place in self._excluded or place in others:
            tier = 2
        else:
            tier = self._likelihood(place.split()[0])
        return tier, self._priority[place]

    def _likelihood(self, word: str) -> float:
        """Tier of a class of places: 1 to 2 likely, 3 to 4 not."""
        if self._usual is None:
            return 1 if word in _SMALL else 3
        return (1 if word in self._usual else 3) + (0.5 if word in _CLOSED else 0)


class _Player(Protocol):
    def act(self, observation: str, actions: Sequence[str]) -> str: ...


def play(env: Environment, task: Task, player: _Player, *, max_steps: int = 50) -> tuple[bool, int]:
    """One episode of a scripted player.

    Returns:
      (won, steps taken).

    Raises:
      EnvError: the environment failed, so there is no result.
    """
    seen = env.reset(task)
    for step in range(1, max_steps + 1):
        if seen.status != OK:
            raise EnvError(f"task {task.id}: {seen.status}: {seen.text}")
        seen = env.step(player.act(seen.text, seen.actions))
        if seen.won or seen.done:
            return seen.won, step
    return False, max_steps


def is_worded_as_usual(task: Task) -> bool:
    """Whether a player of this file can read a task's sentence; people word theirs otherwise."""
    return any(pattern.search(task.text) for pattern in _GOALS)


def _parse_goal(task: Task) -> dict[str, str | None]:
    for pattern in _GOALS:
        if match := pattern.search(task.text):
            return match.groupdict()
    raise ValueError(
        f"text of task {task.id!r} must be worded as ALFWorld words its tasks, got {task.text!r}"
    )
