"""Where things are kept in ALFRED's scenes: in a game itself, and usually, in the training games.

The first is the truth of a game, for metrics and scripted teachers; the second is what the oracle's
skill says.  Neither is shown to a policy.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from evolving_rl_jax.envs.alfworld.households.scenes import usual_places

__all__ = ["add_habits"]

_USUAL = 3  # kinds of places that are kept of an object


def add_habits(rows: Sequence[dict[str, Any]], rooms: Mapping[str, Sequence[str]]) -> None:
    """Writes ``places``, ``kept`` and ``usual`` into the meta of the rows of an index.

    ``places``: all of the room.  ``kept``: those where a thing of the task's class lies, without places
    of the target's kind unless there is no other.  ``usual``: the commonest kinds of places of that
    class among the training games of the scene, at most three and not the target's; of all training
    games where the scene has none, and those that can hold the class where no training game has it.

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
                    of_scene[scene, _kind(thing)][_kind(place)] += 1
    for row in rows:
        meta = row["meta"]
        obj, target = meta["object"], meta["target"]
        here = sorted({p for thing, p in meta["things"].items() if _kind(thing) == obj})
        meta["places"] = list(rooms[meta["scene"]])
        meta["kept"] = [p for p in here if _kind(p) != target] or here
        counts = (of_scene.get((scene, obj), {}) for scene in (meta["scene"], ""))
        able = dict.fromkeys(usual_places().get(obj, ()), 0)
        found = (_usual(count, target) for count in (*counts, able))
        meta["usual"] = next(filter(None, found), [])


def _usual(counts: Mapping[str, int], target: str) -> list[str]:
    kinds = sorted(counts, key=lambda kind: (-counts[kind], kind))
    return [kind for kind in kinds if kind != target][:_USUAL]


def _kind(name: str) -> str:
    """The class word of a thing or a place."""
    return name.rsplit(" ", 1)[0]
