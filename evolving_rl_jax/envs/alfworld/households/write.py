"""Generated ALFWorld-format games in households with stable habits: writes what was planned.

A game is a folder that the published engine plays as it is: ``traj_data.json`` and
``game.tw-pddl``.  The step limit is the shortest solution plus a slack too small to search
everything, so knowing where things are kept decides a game (see ``plan``).  Before a game is written
its walkthrough is played on our own engine, which reads nothing but the PDDL and the grammar that the
game will have.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from evolving_rl_jax.envs.alfworld.folder import GAME_FILES, content_hash
from evolving_rl_jax.envs.alfworld.households.homes import (
    CLUTTER_CLASSES,
    MAX_HOUSEHOLDS,
    ROOMS,
    compact,
    make_households,
)
from evolving_rl_jax.envs.alfworld.households.plan import (
    GamesSpec,
    PlannedGame,
    Planner,
    plan_games,
)
from evolving_rl_jax.envs.alfworld.households.problem import (
    LAMP,
    SURFACES,
    Thing,
    engine_logic,
    problem,
)
from evolving_rl_jax.envs.alfworld.names import TASK_TYPES
from evolving_rl_jax.envs.base import EnvError
from evolving_rl_jax.files import write_json

__all__ = ["PlanError", "commands_to_win", "generate_even", "generate_games", "prove", "write_game"]

NUM_CLUTTER = 5
_SURFACE_PLACES = tuple(n for n, p in compact().places.items() if p.type in SURFACES)
# Splits whose scenes are ALFRED's test scenes, which no other split has.
UNSEEN_SPLITS = ("valid_unseen", "valid_unseen_sources", "heldout_types")


class PlanError(ValueError):
    """A game that its walkthrough does not win."""


def generate_games(
    out_dir: str | os.PathLike[str],
    *,
    seed: int,
    spec: GamesSpec | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Writes all splits of ``spec`` and the index ``games.json``.

    Args:
      out_dir: made when missing; must not hold ``games.json`` yet.  The index is written last, so
        an interrupted generation is simply run again.
      seed: the same seed and spec give the same bytes.
      spec: how many games of which split; the defaults of ``GamesSpec`` when None.
      progress: called with the number of games written so far.

    Returns:
      The content of ``games.json``.

    Raises:
      FileExistsError: ``out_dir`` already holds ``games.json``.
      FileNotFoundError: the alfworld package is not installed.
      PlanError: a game is not won by its walkthrough (never seen; nothing is indexed then).
    """
    spec = spec or GamesSpec()
    description = {"seed": seed, "spec": spec.description()}
    return _write_games(out_dir, plan_games(spec, seed), spec.slack, description, progress)


def generate_even(
    out_dir: str | os.PathLike[str],
    *,
    num: int,
    seed: int,
    split: str = "train",
    rooms: str = "compact",
    slack: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Writes ``num`` games of one split, spread evenly over the six task types.

    As ``generate_games``; six games (one of each type) to a household.  With ``rooms="scenes"`` the
    splits of ``UNSEEN_SPLITS`` live in ALFRED's test scenes, all others in its training scenes.

    Raises:
      ValueError: ``num`` is not between 1 and what the number of household names allows, ``split``
        is not a plain name, or ``rooms`` or ``slack`` has a wrong value.
    """
    most = MAX_HOUSEHOLDS * len(TASK_TYPES)
    if not 1 <= num <= most:
        raise ValueError(f"num must be between 1 and {most}, got {num}")
    if not re.fullmatch(r"[A-Za-z0-9_]+", split):
        raise ValueError(f"split must be made of letters, digits and underscores, got {split!r}")
    if rooms not in ROOMS:
        raise ValueError(f"rooms must be one of {', '.join(ROOMS)}, got {rooms!r}")
    if slack is not None and slack < 0:
        raise ValueError(f"slack must be at least 0, got {slack}")
    num_households = math.ceil(num / len(TASK_TYPES))
    test_from = 0 if split in UNSEEN_SPLITS else None
    households = make_households(
        num_households, num_households, seed, rooms=rooms, test_from=test_from
    )
    games = list(Planner(seed).full_sets(split, households, num))
    description = {"seed": seed, "num": num} | ({} if rooms == "compact" else {"rooms": rooms})
    return _write_games(out_dir, games, slack, description, progress)


def _write_games(
    out_dir, games: Sequence[PlannedGame], slack: int | None, description: dict, progress
) -> dict[str, Any]:
    out = pathlib.Path(out_dir)
    index = out / "games.json"
    if index.exists():
        raise FileExistsError(f"{out}: must not hold games already, found games.json")
    taken: set[str] = set()
    entries = []
    for done, game in enumerate(games, start=1):
        pddl, things = _place_clutter(game, description["seed"], taken)
        data = _game_data(game, pddl)
        try:
            prove(data)
        except (PlanError, EnvError) as error:
            raise PlanError(f"game {game.id}: {error}") from error
        folder = f"{game.split}/{game.id}"
        write_game(out / folder, _traj_data(game, things, slack), data)
        digest = content_hash(pddl, game.task_type)
        entries.append({"id": game.id, "split": game.split, "path": folder, "content_hash": digest})
        if progress:
            progress(done)
    manifest = {"format": 1, **description, "games": entries}
    write_json(index, manifest, indent=1)
    return manifest


def prove(data: dict[str, Any]) -> None:
    """Plays the walkthrough of a game on our own engine.

    Args:
      data: what the file of the game will hold.

    Raises:
      PlanError: a command is not possible where it comes, or the goal does not hold after the last
        command, or holds before it.
      EnvError: the game cannot be played at all.
    """
    walkthrough, needed = data["walkthrough"], commands_to_win(data)
    if needed < len(walkthrough):
        command = walkthrough[needed]
        raise PlanError(f"goal must not hold before command {needed + 1} ({command!r}), it does")


def commands_to_win(data: dict[str, Any]) -> int:
    """As ``prove``, but tells how many commands of the walkthrough win; 0 = won at the start."""
    from evolving_rl_jax.envs.alfworld.engine.game import open_game

    game = open_game(data)
    state, view, won = game.root, game.view(game.root), game.won_at_start
    for number, command in enumerate(data["walkthrough"], start=1):
        if won:
            return number - 1
        if command not in view.actions:
            raise PlanError(f"command {command!r} must be possible where it comes, it is not")
        result, state, view = game.step(state, view, command)
        won = result.won
    if not won:
        raise PlanError(f"goal must hold after {len(data['walkthrough'])} commands, it does not")
    return len(data["walkthrough"])


def _place_clutter(game: PlannedGame, seed: int, taken: set[str]) -> tuple[str, list[Thing]]:
    """The problem of a game, with clutter that makes it different from all in ``taken``."""
    habits = game.household.room_habits(game.kind)
    things = [Thing(kind, 1, place) for kind, place in habits.items()]
    if game.room.lamp_place:
        things.append(Thing(LAMP, 1, game.room.lamp_place))
    if game.task_type == "pick_two_obj_and_place":
        things.append(Thing(game.kind, 2, game.place))
    rng = random.Random(f"clutter/{seed}/{game.id}")
    about = {"task_type": game.task_type, "kind": game.kind, "target": game.target}
    while True:
        placed = things + _clutter(game, rng)
        text = problem(game.room, placed, **about)
        if text not in taken:
            taken.add(text)
            return text, placed


def _clutter(game: PlannedGame, rng: random.Random) -> list[Thing]:
    """Things of other classes: on the open surfaces of a compact room, where they fit in scenes."""
    scene = game.household.scene(game.kind)
    if scene is None:
        kinds = rng.sample(CLUTTER_CLASSES, NUM_CLUTTER)
        return [Thing(kind, 1, rng.choice(_SURFACE_PLACES)) for kind in kinds]
    kinds = [k for k in scene.kinds if k not in game.household.habits and scene.room.holding(k)]
    number = min(len(kinds), max(NUM_CLUTTER, len(scene.room.places) // 2))
    return [
        Thing(kind, 1, rng.choice(scene.room.holding(kind))) for kind in rng.sample(kinds, number)
    ]


def _traj_data(game: PlannedGame, things: list[Thing], slack: int | None) -> dict[str, Any]:
    """What the file beside a game says of it."""
    shortest = len(game.walkthrough())
    is_light = game.task_type == "look_at_obj_in_light"
    data = {
        "task_id": game.id,
        "task_type": game.task_type,
        "pddl_params": {
            "object_target": game.kind,
            "parent_target": game.target,
            "toggle_target": LAMP if is_light else "",
            "mrecep_target": "",
            "object_sliced": False,
        },
        "turk_annotations": {"anns": [{"task_desc": game.text, "high_descs": []}]},
        "household": {
            "id": game.id,
            "split": game.split,
            "name": game.household.name,
            "place": game.place,
            "habits": {kind.lower(): place for kind, place in game.household.habits.items()},
            "things": {thing.name: thing.place for thing in things},
            "source": game.source,
            "shortest": shortest,
            "step_limit": shortest + (game.slack if slack is None else slack),
        },
    }
    scene = game.household.scene(game.kind)
    return data | ({"scene": {"floor_plan": scene.name}} if scene else {})


def _game_data(game: PlannedGame, pddl: str) -> dict[str, Any]:
    """What the file of a game holds."""
    domain, grammar = engine_logic()
    return {
        "pddl_domain": domain,
        "grammar": grammar.replace("UNKNOWN GOAL", game.text),
        "pddl_problem": pddl,
        "solvable": True,
        "walkthrough": game.walkthrough(),
    }


def write_game(folder: pathlib.Path, traj_data: dict[str, Any], game_data: dict[str, Any]) -> None:
    """Writes the two files of a game."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in zip(GAME_FILES, (traj_data, game_data), strict=True):
        (folder / name).write_text(json.dumps(data) + "\n", encoding="ascii")
