"""One game of a panel with what each condition gave, and the shares of several hosts put together."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Hashable, Iterable
from typing import Any

from evolving_rl_jax import envs
from evolving_rl_jax.run.hosts import Hosts
from evolving_rl_jax.types import Episode, Task


@dataclasses.dataclass
class PanelGame:
    """One game of the panel, played with one seed, and what each condition gave.

    Attributes:
      task: the game.
      source: the retrieved game that its own skill comes from, with its ``similarity``.
      source_episode: that episode; a failed one makes the game's ``own`` outcome not count.
      candidate: the skill extracted from it (``rollout.evolve.Candidate``), or None.
      episodes: condition -> episode.
      others: protocol -> the same, of web tasks played under another protocol too.
    """

    task: Task
    source: Task | None = None
    episodes: dict[str, Episode] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    similarity: float | None = None
    source_episode: Episode | None = None
    candidate: Any = None
    others: dict[str, dict[str, Episode]] = dataclasses.field(default_factory=dict)

    def under(self, protocol: str) -> dict[str, Episode]:
        """condition -> episode, under a protocol of web tasks."""
        return self.others.get(protocol, self.episodes)

    @property
    def site(self) -> str:
        """The group that intervals draw as one; "" where each game stands for itself."""
        return site_of(self.task)

    def drawn_with(self, condition: str) -> Hashable:
        """What shares a cause: the plays of one site, those of one source's skill, or those of one game.

        `statistics.drawn_together` says the same of the rows of a file.
        """
        if self.site:
            return "group", self.site
        if condition == "own" and self.source is not None:
            return "source", self.source.id
        return self.task.id

    def status(self, condition: str) -> tuple[str, str]:
        """(status, error) of a condition: for ``own`` that of its source when that failed."""
        episode, source = self.episodes[condition], self.source_episode
        if condition == "own" and source is not None and not source.scored:
            return source.status, f"source {source.task.id}: {source.error}"
        return episode.status, episode.error


def site_of(task: Task) -> str:
    """The group that intervals draw as one; "" where each task stands for itself."""
    return task.group if envs.benchmark(task.env).draws_groups else ""


def site_labels(tasks: Iterable[Task]) -> dict[str, Hashable]:
    """Id -> label of those tasks that intervals draw with others of their site."""
    return {task.id: ("group", site) for task in tasks if (site := site_of(task))}


def gather_panel(hosts: Hosts, games: list[PanelGame], counts: Any) -> Any:
    """Completes ``games`` with what the other hosts played; returns the sum of all ``counts``.

    Tokens stay where they were sampled: results need none.

    Args:
      hosts: all must call it.
      games: the whole panel, of which this host played a share.
      counts: of this host's share, that can be added up.
    """
    if hosts.count == 1:
        return counts
    everyone = hosts.gather(([_without_tokens(game) for game in games], counts))
    for i, game in enumerate(games):
        for part, _ in everyone:
            _fill(game, part[i])
    return functools.reduce(operator.add, (found for _, found in everyone))


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
