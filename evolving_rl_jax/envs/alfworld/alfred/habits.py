"""Where things are kept in ALFRED's scenes: in a game itself, and usually, in the training games.

The first is the truth of a game, for metrics and scripted teachers; the second is what the oracle's
skill says.  Neither is shown to a policy.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from evolving_rl_jax.envs.alfworld.households.scenes import usual_places
from evolving_rl_jax.envs.alfworld.objects.truth import PLACED_AS_FOUND, kind_of, usual_kinds

__all__ = ["add_habits"]


def add_habits(rows: Sequence[dict[str, Any]], rooms: Mapping[str, Sequence[str]]) -> None:
    """Writes ``places``, ``kept`` and ``usual`` into the meta of the rows of an index.

    ``places`` and ``kept`` as `objects.truth.Truth` has them, but that ``kept`` is never empty: where
    all things of the class lie in places like the target, it is those.  ``usual``: the commonest kinds
    of places of that class among the training games of the scene, at most three; of all training games
    where the scene has none, and those that can hold the class where no training game has it.  Where
    a task only moves a thing, the target's kind is not among them.

    Args:
      rows: of the games, see ``index_row``; those of training have a split that begins with its name.
      rooms: scene -> names of its places.
    """
    of_scene: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        meta = row["meta"]
        if row["split"] in ("train", "heldout_types_train"):
            for thing, place in meta["things"].items():
                for scene in (meta["scene"], ""):
                    of_scene[scene, kind_of(thing)][kind_of(place)] += 1
    for row in rows:
        meta = row["meta"]
        obj = meta["object"]
        target = meta["target"] if row["task_type"] in PLACED_AS_FOUND else ""
        here = sorted({p for thing, p in meta["things"].items() if kind_of(thing) == obj})
        meta["places"] = list(rooms[meta["scene"]])
        meta["kept"] = [p for p in here if kind_of(p) != target] or here
        counts = (of_scene.get((scene, obj), {}) for scene in (meta["scene"], ""))
        able = dict.fromkeys(usual_places().get(obj, ()), 0)
        found = (usual_kinds(count, target) for count in (*counts, able))
        meta["usual"] = next(filter(None, found), [])
