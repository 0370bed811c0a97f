"""Games whose object goes by a made-up name, so that a policy learns to read names instead of knowing them.

A small policy that is cloned on two dozen classes of objects knows these by heart, and calls every other
one by one of their names.
"""

from __future__ import annotations

import pathlib
import re

import numpy as np

from evolving_rl_jax.envs.alfworld.folder import GAME_FILES, read_object
from evolving_rl_jax.envs.alfworld.objects.truth import is_by_object
from evolving_rl_jax.files import write_json
from evolving_rl_jax.types import Task

__all__ = ["RENAMED", "is_renamed", "made_up_names", "write_renamed"]

RENAMED = "warmstart"  # the split of such games

# Parts of a syllable; real names have the same: "spatula", "mug", "creditcard".  What stands here twice is
# drawn twice as often.
_STARTS = ("", *"bcdfghjklmnprstvwz", "br", "ch", "cr", "pl", "sh", "sp", "st", "th", "tr")
_MIDDLES = ("a", "e", "i", "o", "u", "a", "e", "o", "ea", "oo")
_ENDS = (*("",) * 14, *"bdgklmnprst", "ck", "ll", "ss")
_SENTENCE = re.compile(r"Your task is to: [^\"]*")


def is_renamed(task: Task) -> bool:
    """Whether the object of a task goes by a made-up name."""
    return task.split == RENAMED and is_by_object(task)


def made_up_names(number: int, seed: int, taken: set[str]) -> list[str]:
    """Different words of one to three syllables, none of them ``taken``; a pure function of the arguments.

    >>> made_up_names(3, 0, {"tuna"})
    ['wakaer', 'stagtrok', 'toople']
    """
    rng = np.random.default_rng(seed)
    names: dict[str, None] = {}
    while len(names) < number:
        syllables = rng.choice([1, 2, 2, 2, 3])
        parts = (_STARTS, _MIDDLES, _ENDS) * syllables
        word = "".join(part[rng.integers(len(part))] for part in parts)
        if 3 <= len(word) <= 10 and word not in taken:
            names[word] = None
    return list(names)


def write_renamed(source: pathlib.Path, out: pathlib.Path, name: str) -> None:
    """Writes the game of a folder with another name for the class of its object.

    Nothing else differs: places, contents and what can be done are the same.

    Args:
      source: folder of a game.
      out: folder to write.
      name: in lower case.
    """
    traj, game = (read_object(source / file) for file in GAME_FILES)
    params = traj["pddl_params"]
    kind, word = params["object_target"], params["object_target"].lower()
    as_word = re.compile(rf"\b{re.escape(word)}\b")
    as_kind = re.compile(rf"(?<![A-Za-z]){re.escape(kind)}(?=_bar_|Type\b)")
    kept = {key: traj[key] for key in ("task_type", "scene") if key in traj}
    traj = {**kept, "pddl_params": {**params, "object_target": name.capitalize()}}
    game |= {
        "pddl_problem": as_kind.sub(name.capitalize(), game["pddl_problem"]),
        "grammar": _SENTENCE.sub(lambda said: as_word.sub(name, said[0]), game["grammar"]),
        "walkthrough": [as_word.sub(name, step) for step in game.get("walkthrough") or ()],
    }
    out.mkdir(parents=True)
    for file, content in zip(GAME_FILES, (traj, game), strict=True):
        write_json(out / file, content)
