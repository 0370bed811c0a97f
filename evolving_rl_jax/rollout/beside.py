"""Plays of the retrieved tasks beside those that evaluate new skills: without a skill, and with one of the bank.

Each kind is a group of its own: pooled, every guided play would get a positive advantage and every free
one a negative, whatever it did, because skills help.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from evolving_rl_jax.rollout.evolve import Experience, Source, StepScoring
from evolving_rl_jax.rollout.extra import Extra
from evolving_rl_jax.rollout.groups import normalized
from evolving_rl_jax.skills.value import Use
from evolving_rl_jax.types import Episode, Task

FREE, BANK = "free", "bank"
_FIRST_KEY = 3_000_000  # above those of sources, skills and evaluations
_IN_SPREAD = 1e-30  # an advantage that moves nothing


class Beside:
    """Starts the plays of a source.

    Args:
      guidance: ``config.guidance``: how many plays of each kind a retrieved task gets.
      num_retrieved: K.
      choose: task -> (records with their cosines, the text that guides a play); an empty text: no
        skill is alike, and the task has no plays of that kind.
    """

    def __init__(
        self, guidance: Any, num_retrieved: int, choose: Callable[[Task], tuple[list, str]]
    ):
        self._repeats = {FREE: guidance.free_repeats, BANK: guidance.repeats}
        self._num_retrieved, self._choose = num_retrieved, choose

    def start(self, driver, g: int, source: Source) -> None:
        """Plays the tasks that were retrieved for a source of number ``g``."""
        first = _FIRST_KEY + g * self._num_retrieved * sum(self._repeats.values())
        for k, task in enumerate(source.retrieved):
            chosen, text = self._choose(task) if self._repeats[BANK] else ([], "")
            if text:
                source.guided_by[k] = [(record.id, cosine) for record, cosine in chosen]
            for kind, repeats in self._repeats.items():
                if kind == FREE or text:
                    for i in range(repeats):
                        key = first + k * sum(self._repeats.values()) + i
                        key += self._repeats[FREE] if kind == BANK else 0
                        skill = text if kind == BANK else ""
                        driver.play(key, task, skill, _keep(source, (kind, k, i)))


def _keep(source: Source, place: tuple[str, int, int]) -> Callable[[Episode, Any], None]:
    def done(episode: Episode, _handle) -> None:
        source.beside[place] = episode

    return done


def rewards_of(source: Source, scoring: StepScoring | None) -> dict[tuple[str, int], list]:
    """(kind, k) -> [(episode, its reward)] of those that count."""
    found: dict[tuple[str, int], list] = {}
    for (kind, k, _), episode in sorted(source.beside.items()):
        if episode.scored:
            reward = scoring.of(episode) if scoring else episode.reward
            found.setdefault((kind, k), []).append((episode, float(reward)))
    return found


def beside_extras(
    experience: Experience, algorithm: Any, weight: float, scoring: StepScoring | None
) -> list[list[Extra]]:
    """The sequences of the plays beside, of each source: advantages within (task, kind).

    Args:
      experience: of this host.
      algorithm: ``config.algorithm``.
      weight: of the solver's advantages.
      scoring: of steps; an episode then counts by its score, for all its steps.
    """
    found = []
    for source in experience.sources:
        extras: list[Extra] = []
        for group in rewards_of(source, scoring).values():
            rewards = np.array([reward for _, reward in group]) * algorithm.solver_reward
            advantages = normalized(rewards, np.ones(len(group)), (0,), algorithm.advantage)
            # An advantage of exactly 0 says that its group has no spread (`spread_of_sequences`).
            least = _IN_SPREAD if np.any(advantages) else 0.0
            for (episode, _), advantage in zip(group, advantages, strict=True):
                given = weight * (float(advantage) or least)
                extras += [
                    Extra(s, given, detached=False, credit=episode.credit) for s in episode.samples
                ]
        found.append(extras)
    return found


def bank_uses(experience: Experience, scoring: StepScoring | None) -> list[Use]:
    """What skills of the bank gave; a play is won or lost, where steps are scored the share that was right."""
    found = []
    for source in experience.sources:
        groups = rewards_of(source, None)
        for k, chosen in sorted(source.guided_by.items()):
            guided, free = (
                tuple(_worth(e, scoring) for e, _ in groups.get((kind, k), ()))
                for kind in (BANK, FREE)
            )
            if guided:
                found += [Use(name, source.retrieved[k], c, guided, free) for name, c in chosen]
    return found


def _worth(episode: Episode, scoring: StepScoring | None) -> float:
    return episode.score if scoring else float(episode.won)


def beside_figures(experience: Experience) -> dict[str, float]:
    """How the plays beside went, by the names of docs/metrics.md."""
    figures: dict[str, float] = {}
    for kind in (FREE, BANK):
        plays = [e for s in experience.sources for (c, *_), e in s.beside.items() if c == kind]
        won = [float(e.won) for e in plays if e.scored]
        if plays:
            figures[f"rollout/{kind}_plays"] = float(len(won))
        if won:
            figures[f"rollout/{kind}_win_rate"] = sum(won) / len(won)
    return figures
