"""Intervals and paired comparisons of success rates.

Success is a share of games, so a single policy gets a Wilson interval; two policies that played the
same games are compared game by game, which is far sharper than comparing two shares.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from evolving_rl_jax.skills.records import matched_interval
from evolving_rl_jax.types import SCORED

CONDITIONS = ("none", "own", "oracle", "misleading")
CONFIDENCE = 0.95


def wilson_interval(k: int, n: int) -> tuple[float, float]:
    """Wilson score interval (95 %) of ``k`` successes in ``n`` games; (0, 1) without games.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(int(k), int(n)).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def success_interval(
    won: Sequence[bool], groups: Sequence[Hashable], seed: int = 0
) -> tuple[float, float, str]:
    """95 % interval of a success rate, and how it was made.

    Games on their own get Wilson's interval.  Games that share a cause (one skill, or one game
    played with several seeds) are resampled together; when nothing varies between the groups the
    interval is Wilson's for as many games as there are groups.

    Args:
      won: [n] outcomes.
      groups: [n] labels.
      seed: of the resampling.

    Returns:
      (low, high, ``"wilson"``, ``"bootstrap"`` or ``"wilson over groups"``).
    """
    sums, sizes = _grouped(np.asarray(won, float), groups)
    if len(sums) == len(won):
        return *wilson_interval(int(sums.sum()), len(won)), "wilson"
    mean = sums.sum() / sizes.sum()
    if np.ptp(sums - mean * sizes) < 1e-12:
        return *wilson_interval(round(mean * len(sums)), len(sums)), "wilson over groups"
    return *_ratio_interval(sums, sizes, seed), "bootstrap"


def macro_success(
    won: Sequence[bool], types: Sequence[str], groups: Sequence[Hashable], seed: int = 0
) -> tuple[float, float, float]:
    """Mean over task types of their success rates, with its 95 % bootstrap interval over groups.

    Args:
      won: [n] outcomes, n >= 1.
      types: [n] task types.
      groups: [n] labels of what is resampled together.
      seed: of the resampling.

    Returns:
      (macro, low, high).  A type that a resample left out does not count in it.
    """
    names = {name: i for i, name in enumerate(sorted(set(types)))}
    numbers = _numbers(groups)
    wins, games = np.zeros((2, max(numbers) + 1, len(names)))
    np.add.at(wins, (numbers, [names[t] for t in types]), np.asarray(won, float))
    np.add.at(games, (numbers, [names[t] for t in types]), 1.0)

    def macro(rows, axis=-1):
        rows = rows.astype(int)
        n = games[rows].sum(axis=-2)
        rates = np.divide(wins[rows].sum(axis=-2), n, out=np.full_like(n, np.nan), where=n > 0)
        return np.nanmean(rates, axis=-1)

    rows = np.arange(len(wins))
    value = float(macro(rows))
    if len(rows) < 2 or value in (0.0, 1.0):
        low, high = wilson_interval(round(value * len(rows)), len(rows))
        return value, low, high
    result = stats.bootstrap(
        (rows,), macro, vectorized=True, n_resamples=9999, batch=500, method="percentile",
        confidence_level=CONFIDENCE, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return value, float(result.confidence_interval.low), float(result.confidence_interval.high)


def sign_flip_p(
    a: Sequence[float], b: Sequence[float], groups: Sequence[Hashable], seed: int = 0
) -> float:
    """Two-sided p-value of a paired difference when the games of a group share a cause.

    Under the hypothesis that neither side is better, each group's difference is as likely to have
    the opposite sign; all sign patterns are tried, or 9,999 random ones when there are more.  With
    groups of one game this is McNemar's exact test.
    """
    sums, _ = _grouped(np.asarray(b, float) - np.asarray(a, float), groups)
    sums = sums[sums != 0]
    if len(sums) < 2:  # both signs of a single group are as far from zero
        return 1.0
    result = stats.permutation_test(
        (sums,), lambda x, axis=-1: x.sum(axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=9999, batch=1000, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.pvalue)


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    seed: int = 0,
    *,
    groups: Sequence[Hashable] | None = None,
) -> tuple[float, float, float]:
    """Mean of ``b - a`` over games with its 95 % bootstrap interval (bias-corrected, accelerated).

    Args:
      a: outcomes before, [n], one a game.
      b: outcomes after, [n], of the same games in the same order.
      seed: of the resampling, so that a report gives the same digits again.
      groups: [n]; games of one group share a cause (one skill played them all) and are resampled
        together.  None: every game stands for itself.

    Returns:
      (difference, low, high).  When nothing varies between what is resampled, the interval is the
      difference itself.

    Raises:
      ValueError: the arguments are not equally long vectors with at least one game.
    """
    before, after = np.asarray(a, float), np.asarray(b, float)
    if before.shape != after.shape or before.ndim != 1 or not before.size:
        raise ValueError(
            f"a and b must be [n] with n >= 1, got shapes {before.shape} and {after.shape}"
        )
    labels = list(range(before.size)) if groups is None else list(groups)
    if len(labels) != before.size:
        raise ValueError(f"groups must be [{before.size}] like a and b, got {len(labels)} labels")
    sums, sizes = _grouped(after - before, labels)
    mean = float(sums.sum() / sizes.sum())
    if np.ptp(sums - mean * sizes) < 1e-12:
        return mean, mean, mean
    return mean, *_ratio_interval(sums, sizes, seed)


def _numbers(groups: Sequence[Hashable]) -> list[int]:
    numbers = {label: i for i, label in enumerate(dict.fromkeys(groups))}
    return [numbers[label] for label in groups]


def _grouped(values: np.ndarray, groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """(sum, size) of the values of each group, [groups]."""
    numbers = _numbers(groups)
    return np.bincount(numbers, values), np.bincount(numbers).astype(float)


def _ratio_interval(sums: np.ndarray, sizes: np.ndarray, seed: int) -> tuple[float, float]:
    low, high = _bootstrap(sums, sizes, seed, "BCa")
    if not np.isfinite([low, high]).all():  # too few games for the correction
        low, high = _bootstrap(sums, sizes, seed, "percentile")
    return low, high


def _bootstrap(sums: np.ndarray, sizes: np.ndarray, seed: int, method: str) -> tuple[float, float]:
    def ratio(sums, sizes, axis=-1):
        return sums.sum(axis=axis) / sizes.sum(axis=axis)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (sums, sizes),
            ratio,
            paired=True,
            vectorized=True,
            n_resamples=9999,
            batch=1000,
            confidence_level=CONFIDENCE,
            method=method,
            rng=np.random.default_rng(seed),
        )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def mcnemar_p(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided McNemar p-value: are games won by only one of the two split evenly?

    1.0 when no game is won by only one of them.
    """
    before, after = np.asarray(a, bool), np.asarray(b, bool)
    if before.shape != after.shape:
        raise ValueError(f"a and b must have one shape, got {before.shape} and {after.shape}")
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)


def compare(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of the before/after table: one for each split and condition found in either result.

    Args:
      before: content of an evaluation file (``{"games": [...]}``), or None.
      after: the same of the later policy, or None.
      seed: of the bootstrap.

    Returns:
      dicts with ``split``, ``condition``, ``before`` and ``after`` (see `success`, or None) and
      ``difference`` (see `paired`, or None).  Games whose own skill came from one source are
      resampled together, and so are the seeds of a game.
    """
    first, second = outcomes(before), outcomes(after)
    sources = sources_of(before, after)
    splits = dict.fromkeys(split for split, _ in [*first, *second])
    conditions = dict.fromkeys([*CONDITIONS, *(c for _, c in [*first, *second])])
    rows = []
    for key in ((s, c) for s in splits for c in conditions):
        if key in first or key in second:
            games = (first.get(key), second.get(key))
            groups = sources if key[1] == "own" else {}
            rows.append(
                {
                    "split": key[0],
                    "condition": key[1],
                    "before": success(games[0], groups, seed),
                    "after": success(games[1], groups, seed),
                    "difference": paired(games[0] or {}, games[1] or {}, groups, seed),
                }
            )
    return rows


Play = tuple[str, int | None]  # id of a game and the seed that it was played with


def outcomes(result: Mapping[str, Any] | None) -> dict[tuple[str, str], dict[Play, bool | None]]:
    """(split, condition) -> (game id, seed) -> won, None where the infrastructure failed."""
    table: dict[tuple[str, str], dict[Play, bool | None]] = {}
    for game in (result or {}).get("games", ()):
        for condition, outcome in game["conditions"].items():
            scored = outcome.get("status", "ok") in SCORED
            won = bool(outcome["won"]) if scored else None
            play = game["id"], game.get("seed")
            table.setdefault((game["split"], condition), {})[play] = won
    return table


def sources_of(*results: Mapping[str, Any] | None) -> dict[str, Hashable]:
    """Game id -> the source of its own skill; games with one source play with one skill."""
    sources = {}
    for game in (game for result in results for game in (result or {}).get("games", ())):
        source = (game.get("retrieved") or {}).get("id")
        if source is not None:
            sources[game["id"]] = ("source", source)
    return sources


def paired(
    before: Mapping[Play, bool | None],
    after: Mapping[Play, bool | None],
    groups: Mapping[str, Hashable],
    seed: int = 0,
) -> dict[str, Any] | None:
    """The paired comparison of what two sides both scored; None when that is nothing.

    Args:
      before: outcomes of one side.
      after: of the other.
      groups: game id -> label of what is resampled together; a game without one stands for itself,
        with all of its seeds.
      seed: of the bootstrap.

    Returns:
      ``n`` pairs, ``value`` (mean of after - before) with ``low`` and ``high`` (bootstrap; where no
      group differs from another, `matched_interval` of as many pairs as groups), pairs ``gained``
      and ``lost``, ``p`` (McNemar, exact, over pairs) and ``p_grouped`` (sign flips over groups).
    """
    first, second = _scored(before), _scored(after)
    common = sorted(set(first) & set(second), key=str)
    if not common:
        return None
    a, b = [first[g] for g in common], [second[g] for g in common]
    labels = [groups.get(game, game) for game, _ in common]
    value, low, high = paired_difference(a, b, seed, groups=labels)
    if low == high:  # nothing varied, which says little when there is little
        size = len(set(labels))
        low, high = matched_interval(size, max(value, 0) * size, max(-value, 0) * size)
    return {
        "n": len(common),
        "value": value,
        "low": low,
        "high": high,
        "gained": sum(y and not x for x, y in zip(a, b, strict=True)),
        "lost": sum(x and not y for x, y in zip(a, b, strict=True)),
        "p": mcnemar_p(a, b),
        "p_grouped": sign_flip_p(a, b, labels, seed),
    }


def success(
    plays: Mapping[Play, bool | None] | None, groups: Mapping[str, Hashable], seed: int = 0
) -> dict[str, Any] | None:
    """{n, success, low, high, interval, excluded} of outcomes; None when none was scored."""
    scored = _scored(plays)
    if not scored:
        return None
    labels = [groups.get(game, game) for game, _ in scored]
    low, high, interval = success_interval(list(scored.values()), labels, seed)
    return {
        "n": len(scored),
        "success": sum(scored.values()) / len(scored),
        "low": low,
        "high": high,
        "interval": interval,
        "excluded": len(plays) - len(scored),
    }


def _scored(plays: Mapping[Play, bool | None] | None) -> dict[Play, bool]:
    return {play: won for play, won in (plays or {}).items() if won is not None}
