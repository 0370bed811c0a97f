"""Scripted players that know more or less of where the object of a task is kept.

All are the searching player; they differ in what it believes, so that the difference of two of them is
what that knowledge is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evolving_rl_jax.envs.alfworld.experts import SearchingExpert
from evolving_rl_jax.envs.alfworld.households.scenes import usual_places
from evolving_rl_jax.envs.alfworld.objects.truth import kind_of
from evolving_rl_jax.types import Task

__all__ = ["PLAYERS", "Experience"]

# Name -> what the player knows, as tables say it.
PLAYERS = {
    "nothing": "nothing (small closed places first)",
    "kind": "the kind of place where one other game had the object",
    "three_kinds": "the three commonest kinds of place of train",
    "trial": "the very place of another trial of the same scene",
    "nothing_there": "nothing, on the games that have such a trial",
    "exact": "the exact place in this game",
    "usual": "usual places of the package's tables",
    "usual_trial": "the same and the place of another trial of the scene",
    "usual_there": "usual places alone, on the games that have such a trial",
}


class Experience:
    """What players may know of games from the training games of the same objects.

    Args:
      games: training games, each with its truth (``kept``).
    """

    def __init__(self, games: Sequence[Task]):
        self._by_object: dict[str, list[Task]] = {}
        for task in sorted(games, key=lambda game: game.id):
            self._by_object.setdefault(task.meta["object"], []).append(task)

    def player(self, name: str, task: Task, rng: np.random.Generator) -> SearchingExpert | None:
        """The player of ``PLAYERS`` for one game; None where it cannot know what it should."""
        obj = task.meta["object"]
        options: Mapping = {}
        if name in ("kind", "trial", "nothing_there", "usual_trial", "usual_there"):
            same_scene = name != "kind"
            others = [
                other
                for other in self._by_object.get(obj, ())
                if other.content_hash != task.content_hash
                and (not same_scene or other.meta.get("scene") == task.meta.get("scene"))
            ]
            if not others:
                return None
            place = str(rng.choice(others[rng.integers(len(others))].meta["kept"]))
            if name == "kind":
                options = {"usual": {obj: {kind_of(place)}}}
            elif name in ("trial", "usual_trial"):
                options = {"beliefs": {obj: place}}
        if name == "exact":
            options = {"beliefs": {obj: str(rng.choice(task.meta["kept"]))}}
        if name == "three_kinds":
            options = {"usual": {obj: set(task.meta["usual"])}}
        if name in ("usual", "usual_trial", "usual_there"):
            options = {**options, "usual": usual_places()}
        return SearchingExpert(task, rng, **options)
