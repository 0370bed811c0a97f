"""The command ``evolving-rl players``: how many games are won within how many steps, by what is known."""

from __future__ import annotations

import dataclasses
import pathlib
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from evolving_rl_jax.envs.alfworld.env import Options, make
from evolving_rl_jax.envs.alfworld.experts import play
from evolving_rl_jax.envs.alfworld.objects.index import HELD_OUT, SEEN
from evolving_rl_jax.envs.alfworld.objects.players import PLAYERS, Experience
from evolving_rl_jax.envs.alfworld.tasks import load_tasks
from evolving_rl_jax.envs.base import EnvError, TaskError

__all__ = ["STEPS", "Row", "players_table", "table_lines"]

STEPS = (12, 16, 20, 30, 50)
# Split of the release -> its panels.
PANELS = {
    "valid_seen": (SEEN, HELD_OUT),
    "valid_unseen": (f"{SEEN}_unseen", f"{HELD_OUT}_unseen"),
}


@dataclasses.dataclass
class Row:
    """What one player won.

    Attributes:
      name: out of ``PLAYERS``.
      games: that it could play.
      won_within: limit -> share of all plays.
      failed: plays that the environment failed; not counted.
    """

    name: str
    games: int
    won_within: dict[int, float]
    failed: int


def players_table(
    folder: pathlib.Path,
    split: str,
    *,
    seeds: int = 3,
    players: Sequence[str] = tuple(PLAYERS),
    steps: Sequence[int] = STEPS,
    progress: Callable[[int], None] | None = None,
) -> list[Row]:
    """Plays every game of a split with every player, on our own engine.

    Args:
      folder: that ``evolving-rl data objects`` wrote.
      split: ``valid_seen`` or ``valid_unseen`` (both panels of it), or one of the folder's own.
      seeds: plays of each game.
      players: names out of ``PLAYERS``.
      steps: limits to count at; the largest ends a play.
      progress: called with the number of games played so far.

    Raises:
      TaskError: the folder has no such games, or says nothing of where objects are.
    """
    tasks = load_tasks(folder)
    wanted = PANELS.get(split, (split,))
    games = [t for t in tasks if t.split in wanted]
    if not games or any("kept" not in t.meta for t in tasks):
        found = ", ".join(sorted({t.split for t in tasks}))
        raise TaskError(
            f"{folder}: must be an index by object with games of {split!r}, found the splits {found}"
        )
    panels = {panel for names in PANELS.values() for panel in names}
    known = Experience([t for t in tasks if t.split not in panels])
    results: dict[str, list[list[int]]] = {name: [] for name in players}  # steps to win, a game
    failed = dict.fromkeys(players, 0)
    env = make(Options(check_games=0))
    limit = max(steps)
    for done, task in enumerate(games, start=1):
        for name in players:
            wins = []
            for seed in range(seeds):
                rng = np.random.default_rng([seed, zlib.crc32(task.id.encode())])
                try:
                    player = known.player(name, task, rng)
                except ValueError as error:  # another wording than ALFWorld's own
                    raise TaskError(str(error)) from error
                if player is None:
                    continue
                try:
                    won, taken = play(env, task, player, max_steps=limit)
                except EnvError:
                    failed[name] += 1
                    continue
                wins.append(taken if won else limit + 1)
            if wins:
                results[name].append(wins)
        if progress:
            progress(done)
    env.close()
    return [_row(name, results[name], steps, failed[name]) for name in players]


def _row(name: str, games: Sequence[Sequence[int]], steps: Sequence[int], failed: int) -> Row:
    plays = [taken for game in games for taken in game]
    shares = {s: sum(t <= s for t in plays) / len(plays) for s in steps} if plays else {}
    return Row(name, len(games), shares, failed)


def table_lines(rows: Sequence[Row]) -> list[str]:
    """A Markdown table; shares in per cent."""
    steps = next((list(row.won_within) for row in rows if row.won_within), [])
    head = ["what the player knows", "games", *(f"{s} steps" for s in steps)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows:
        shares = [f"{100 * row.won_within[s]:.0f}" if row.won_within else "–" for s in steps]
        lines.append(f"| {' | '.join([PLAYERS[row.name], str(row.games), *shares])} |")
    failed = sum(row.failed for row in rows)
    return (
        [*lines, f"plays that the environment failed, not counted: {failed}"] if failed else lines
    )
