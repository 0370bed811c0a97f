"""A panel that several hosts play: each its share of the games, and all get the whole result."""

from __future__ import annotations

import dataclasses
from typing import Any

from evolving_rl_jax.eval.results import PanelGame
from evolving_rl_jax.run.hosts import Hosts


def gather_panel(hosts: Hosts, games: list[PanelGame], counts: Any) -> Any:
    """Completes ``games`` with what the other hosts played; returns the sum of all ``counts``.

    Tokens stay where they were sampled: results need none.

    Args:
      hosts: all must call it.
      games: the whole panel, of which this host played a share.
      counts: a dataclass of numbers.
    """
    if hosts.count == 1:
        return counts
    everyone = hosts.gather(([_without_tokens(game) for game in games], counts))
    for i, game in enumerate(games):
        for part, _ in everyone:
            _fill(game, part[i])
    names = [f.name for f in dataclasses.fields(counts)]
    return type(counts)(*(sum(getattr(c, name) for _, c in everyone) for name in names))


def _fill(game: PanelGame, other: PanelGame) -> None:
    """Takes over what ``other`` has and ``game`` lacks."""
    for field in dataclasses.fields(game):
        if field.name == "episodes":
            game.episodes |= {k: v for k, v in other.episodes.items() if k not in game.episodes}
        elif field.name == "others":
            for protocol, played in other.others.items():
                mine = game.others.setdefault(protocol, {})
                mine |= {k: v for k, v in played.items() if k not in mine}
        elif getattr(game, field.name) is None:
            setattr(game, field.name, getattr(other, field.name))


def _without_tokens(game: PanelGame) -> PanelGame:
    def episode(e):
        return None if e is None else dataclasses.replace(e, samples=[])

    return dataclasses.replace(
        game,
        episodes={name: episode(e) for name, e in game.episodes.items()},
        source_episode=episode(game.source_episode),
        others={
            protocol: {name: episode(e) for name, e in played.items()}
            for protocol, played in game.others.items()
        },
    )
