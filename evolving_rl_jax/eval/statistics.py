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
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    group = np.array([numbers[label] for label in labels])
    sums, sizes = np.bincount(group, after - before), np.bincount(group).astype(float)
    mean = float(sums.sum() / sizes.sum())
    if np.ptp(sums - mean * sizes) < 1e-12:
        return mean, mean, mean
    low, high = _bootstrap(sums, sizes, seed, "BCa")
    if not np.isfinite([low, high]).all():  # too few games for the correction
        low, high = _bootstrap(sums, sizes, seed, "percentile")
    return mean, low, high


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
      dicts with ``split``, ``condition``, ``before`` and ``after`` ({n, success, low, high,
      excluded} or None) and ``difference`` ({n, value, low, high, p} over the games that both
      scored, or None; games whose own skill came from one source are resampled together).
    """
    first, second = outcomes(before), outcomes(after)
    sources = _sources(before, after)
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
                    "before": _success(games[0]),
                    "after": _success(games[1]),
                    "difference": _difference(*games, groups, seed),
                }
            )
    return rows


def outcomes(result: Mapping[str, Any] | None) -> dict[tuple[str, str], dict[str, bool | None]]:
    """(split, condition) -> game id -> won, None for a game that the infrastructure failed."""
    table: dict[tuple[str, str], dict[str, bool | None]] = {}
    for game in (result or {}).get("games", ()):
        for condition, outcome in game["conditions"].items():
            scored = outcome.get("status", "ok") in SCORED
            won = bool(outcome["won"]) if scored else None
            table.setdefault((game["split"], condition), {})[game["id"]] = won
    return table


def _success(games: Mapping[str, bool | None] | None) -> dict[str, Any] | None:
    scored = _scored(games)
    if not scored:
        return None
    low, high = wilson_interval(sum(scored.values()), len(scored))
    return {
        "n": len(scored),
        "success": sum(scored.values()) / len(scored),
        "low": low,
        "high": high,
        "excluded": len(games) - len(scored),
    }


def _sources(*results: Mapping[str, Any] | None) -> dict[str, Hashable]:
    """Game id -> the source of its own skill; games with one source play with one skill."""
    sources = {}
    for game in (game for result in results for game in (result or {}).get("games", ())):
        source = (game.get("retrieved") or {}).get("id")
        if source is not None:
            sources[game["id"]] = ("source", source)
    return sources


def _difference(before, after, groups: Mapping[str, Hashable], seed: int) -> dict[str, Any] | None:
    first, second = _scored(before), _scored(after)
    common = sorted(set(first) & set(second), key=str)
    if not common:
        return None
    a, b = [first[g] for g in common], [second[g] for g in common]
    labels = [groups.get(g, g) for g in common]
    value, low, high = paired_difference(a, b, seed, groups=labels)
    return {"n": len(common), "value": value, "low": low, "high": high, "p": mcnemar_p(a, b)}


def _scored(games: Mapping[str, bool | None] | None) -> dict[str, bool]:
    return {game: won for game, won in (games or {}).items() if won is not None}
