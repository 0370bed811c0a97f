"""Credit of single steps in environments that score only whole episodes: what each turn is worth beside its episode's advantage.

Steps of one group of episodes that read the same are compared with each other by the discounted return
that followed (GiGPO, arXiv 2505.10978; with observations that are only alike, SLEA-RL, arXiv 2603.18079).

What differs from the released code of GiGPO:

1. The standard deviation is the population's, as in every group here; the code's default subtracts
   the mean only (``algorithm.advantage`` none).
2. Episode advantages count each episode once, whatever its length.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from evolving_rl_jax.rollout.evolve import Experience
from evolving_rl_jax.rollout.groups import normalized
from evolving_rl_jax.types import Episode, Sample


def discounted_returns(rewards: Sequence[float], discount: float) -> np.ndarray:
    """What follows each step, ``sum over t >= s of discount^(t - s) * rewards[t]``, [S].

    >>> discounted_returns([0.0, 0.0, 1.0], 0.5).tolist()
    [0.25, 0.5, 1.0]
    """
    returns, after = np.zeros(len(rewards)), 0.0
    for s in reversed(range(len(rewards))):
        returns[s] = after = rewards[s] + discount * after
    return returns


def alike(texts: Sequence[str], similarity: float = 1.0) -> list[int]:
    """The number of the group that each text belongs to, in the order in which groups begin.

    Args:
      texts: to put in groups.
      similarity: 1 = equal texts alone; below, a text joins the first group whose first text has at
        least this ``difflib.SequenceMatcher`` ratio to it.

    >>> alike(["a mug 1", "a pan", "a mug 2"]), alike(["a mug 1", "a pan", "a mug 2"], 0.8)
    ([0, 1, 2], [0, 1, 0])
    """
    firsts: list[str] = []
    number: dict[str, int] = {}
    for text in texts:
        if text not in number:
            near = (i for i, first in enumerate(firsts) if _near(text, first, similarity))
            number[text] = next(near, len(firsts))
            if number[text] == len(firsts):
                firsts.append(text)
    return [number[text] for text in texts]


def _near(text: str, first: str, similarity: float) -> bool:
    if similarity >= 1:
        return False
    return difflib.SequenceMatcher(None, text, first, autojunk=False).ratio() >= similarity


def step_credit(
    observations: Sequence[Sequence[str]],
    rewards: Sequence[Sequence[float]],
    *,
    discount: float = 0.95,
    similarity: float = 1.0,
    scale: str = "std",
) -> list[np.ndarray]:
    """Advantage of every step among those of all episodes of a group that read the same.

    Args:
      observations: of each episode, what each step read.
      rewards: likewise, what each step was given.
      discount: of what came a step later.
      similarity: see `alike`.
      scale: see `groups.normalized`.

    Returns:
      One array [S] an episode, S its steps; 0 where a step is alone or its like had equal returns.

    >>> read = [["hall", "desk"], ["hall", "shelf"]]
    >>> [c.round(2).tolist() for c in step_credit(read, [[0.0, 1.0], [0.0, 0.0]])]
    [[1.0, 0.0], [-1.0, 0.0]]
    """
    groups = np.array(alike([text for texts in observations for text in texts], similarity))
    returns = [discounted_returns(given, discount) for given in rewards]
    flat, credit = np.concatenate([*returns, np.zeros(0)]), np.zeros(len(groups), np.float32)
    for number in range(groups.max(initial=-1) + 1):
        members = groups == number
        credit[members] = normalized(flat[members], np.ones(members.sum()), (0,), scale)
    return np.split(credit, np.cumsum([len(r) for r in returns])[:-1])


def add_credit(experience: Experience, algorithm: Any, weight: float) -> None:
    """Fills in `types.Episode.credit` of everything the solver played in groups.

    Args:
      experience: of this host, with whole groups.
      algorithm: ``config.algorithm``.
      weight: of the solver's advantages.
    """
    wanted = algorithm.step_credit
    for group in _groups(experience):
        found = step_credit(
            [[turn.observation for turn in e.turns] for e in group],
            [_rewards(e, algorithm.solver_reward) for e in group],
            discount=wanted.discount,
            similarity=wanted.similarity,
            scale=algorithm.advantage,
        )
        for episode, credit in zip(group, found, strict=True):
            episode.credit = [weight * wanted.weight * float(c) for c in credit]


def _groups(experience: Experience) -> Iterable[list[Episode]]:
    """Episodes of one task that are compared with each other: those that count."""
    for source in experience.sources:
        found: dict[tuple, list[Episode]] = {}
        for (k, _, _), episode in sorted(source.episodes.items()):
            found.setdefault(("skills", k), []).append(episode)
        for (kind, k, _), episode in sorted(source.beside.items()):
            found.setdefault((kind, k), []).append(episode)
        if experience.source_mask is not None:
            found[("source",)] = source.attempts
        for group in found.values():
            if counted := [e for e in group if e.scored]:
                yield counted


def _rewards(episode: Episode, unit: float) -> list[float]:
    """Of each turn; what an environment gives for the outcome alone stands at the end."""
    given = [*episode.rewards, *[0.0] * len(episode.turns)][: len(episode.turns)]
    if given:
        given[-1] += episode.reward - sum(given)
    return [unit * r for r in given]


def token_credit(sample: Sample, credit: Sequence[float]) -> np.ndarray:
    """The credit of each token of a sequence that was sampled, [T], 0 for all others.

    Args:
      sample: of one turn, or of all turns of an episode with something read between them.
      credit: of each turn of the episode; none = 0.
    """
    sampled = sample.loss_mask > 0
    if not len(credit):
        return np.zeros(len(sampled), np.float32)
    begins = sampled & ~np.concatenate([[False], sampled[:-1]])
    turn = sample.step + np.cumsum(begins) - 1
    return np.where(sampled, np.asarray(credit, np.float32)[np.maximum(turn, 0)], 0.0)


def credit_figures(experience: Experience) -> dict[str, float]:
    """How many turns have a credit, by the name of docs/metrics.md."""
    turns = [c != 0 for group in _groups(experience) for e in group for c in e.credit]
    return {"rollout/turns_with_credit": float(np.mean(turns))} if turns else {}
