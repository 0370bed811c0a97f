"""Scripted players of ALFWorld games: a walkthrough, and a searcher that acts on beliefs.

Both see what an agent sees: the task sentence, observations and admissible actions.  ``target`` is
the class word of the object that they are after (``"mug"``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from evolving_rl_jax.types import Task

__all__ = ["SearchingExpert", "Walkthrough"]

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
_SURFACES = ("countertop", "diningtable", "sidetable", "desk", "dresser")


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
      beliefs: object class -> place where it is said to be kept.  Places believed to hold another
        class are tried late.
      excluded: object class -> places where it is said not to be; tried late.
      noise: probability of a random admissible action, each turn.
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
        self._here: str | None = None
        self._held: str | None = None
        self._contents: dict[str, set[str]] = {}  # place -> things seen in it
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
        wanted = self._held_steps() if self._held else self._search_steps(actions)
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

    def _known(self, word: str, *, avoid: str | None = None) -> list[tuple[str, str]]:
        """(place, thing) of every thing of that class seen outside places of class ``avoid``."""
        return sorted(
            (place, thing)
            for place, things in self._contents.items()
            for thing in things
            if self._is_class(thing, word) and not self._is_class(place, avoid)
        )

    # -- what to do, best first; the first admissible one is taken ---------------------------------

    def _held_steps(self) -> list[str]:
        held, here = self._held, self._here
        if not self._is_class(held, self.target):
            return [f"move {held} to {here}", *self._go_to(*_SURFACES)]
        if self._lamp:
            known = [place for place, _ in self._known(self._lamp)]
            lamp = [f"use {self._lamp} {n}" for n in (1, 2, 3)] if here in known else []
            go = [f"go to {place}" for place in known if place != here]
            return [*lamp, *go, *self._go_to("sidetable", "desk", "dresser", "shelf")]
        if self._verb and (self._verb, held) not in self._done:
            kinds = _APPLIANCES[self._verb]
            return [
                *(f"{self._verb} {held} with {kind} {n}" for kind in kinds for n in (1, 2)),
                *self._go_to(*kinds),
            ]
        if here and self._is_class(here, self._goal_place):
            return [f"move {held} to {here}", f"open {here}"]
        return self._go_to(self._goal_place)

    def _go_to(self, *kinds: str) -> list[str]:
        """Going to the first places of these classes, in that order, except where it stands."""
        numbered = (f"{kind} {n}" for kind in kinds for n in range(1, 10))
        return [f"go to {place}" for place in numbered if place != self._here]

    def _search_steps(self, actions: Sequence[str]) -> list[str]:
        here = self._here
        known = self._known(self.target, avoid=self._goal_place)
        if known:
            takes = [f"take {thing} from {place}" for place, thing in known]
            return [*takes, f"open {here}", *(f"go to {place}" for place, _ in known)]
        if here and here not in self._contents and f"open {here}" in actions:
            return [f"open {here}"]
        places = [a.removeprefix("go to ") for a in actions if a.startswith("go to ")]
        if places and self._rng.random() < self._random_place:
            return [f"go to {self._rng.choice(places)}"]
        unseen = [place for place in places if place not in self._contents]
        return [f"go to {place}" for place in sorted(unseen or places, key=self._rank)]

    def _rank(self, place: str) -> tuple[int, float]:
        """Believed place, then small closed places, then those believed wrong, then the rest."""
        if place not in self._priority:
            self._priority[place] = float(self._rng.random())
        others = {p for obj, p in self._believed.items() if obj != self.target}
        if place == self._believed.get(self.target):
            tier = 0
        elif place in self._excluded or place in others:
            tier = 2
        else:
            tier = 1 if place.split()[0] in _SMALL else 3
        return tier, self._priority[place]


def _parse_goal(task: Task) -> dict[str, str | None]:
    for pattern in _GOALS:
        if match := pattern.search(task.text):
            return match.groupdict()
    raise ValueError(
        f"text of task {task.id!r} must be worded as ALFWorld words its tasks, got {task.text!r}"
    )
