"""Intervals, tests and paired comparisons: every one that the project prints is made here.

Plays that each stand alone get Wilson's interval for their share of wins.  Everything else is one
bootstrap (`bootstrap`) that draws what plays share: a game, the skill that they were played with, the
training run.  With fewer than ``MANY_RUNS`` runs no resampling of them can be trusted (three runs of one
sign never give an interval with zero in it), so `over_runs` gives the t-interval over runs beside it.
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
MANY_RUNS = 6  # training runs from which on drawing them anew says enough
RESAMPLES = 9999
_SAME = 1e-12

Play = tuple[
    Hashable, ...
]  # a game, the seed it was played with, and whatever else tells plays apart


def wilson_interval(k: int, n: int) -> tuple[float, float]:
    """Wilson score interval (95 %) of ``k`` successes in ``n`` games; (0, 1) without games.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(int(k), int(n)).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap(
    values: Sequence[float],
    groups: Sequence[Hashable],
    *,
    crossed: Sequence[Hashable] | None = None,
    weights: Sequence[float] | None = None,
    columns: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> tuple[float, float, float]:
    """A weighted mean with its 95 % interval, from 9,999 drawings of whole groups (`scipy.stats.bootstrap`).

    Bias-corrected and accelerated (BCa) for a plain mean over groups, else by percentiles.

    Args:
      values: [n], n >= 1, weighted sums where there are weights.
      groups: [n] labels: values of one group share a cause and are drawn together.
      crossed: [n] labels of a second cause, drawn by itself, such as the training run of a game's
        play: a value counts as often as its group times its run was drawn (Owen, "The pigeonhole
        bootstrap", 2007: never too narrow where only noise varies).
      weights: [n] what each value is a sum of; None = one.
      columns: [n] labels; the mean is then the mean over columns of each one's mean.  A column that a
        drawing left out does not count in it.
      seed: of the drawings, so that a report gives the same digits again.

    Returns:
      (value, low, high).  When nothing varies between what is drawn, the interval is the value.
    """
    size = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    factors = [f for f in (groups, crossed) if f is not None]
    factors = [f for f in map(_numbers, factors) if f.max() > 0]
    column = _numbers([0] * len(size) if columns is None else columns)
    cells, cell = np.unique(
        np.array(factors, int).reshape(-1, len(size)), axis=1, return_inverse=True
    )
    sums, sizes = np.zeros((2, cells.shape[1], column.max() + 1))
    np.add.at(sums, (cell.ravel(), column), np.asarray(values, float))
    np.add.at(sizes, (cell.ravel(), column), size)
    levels = [int(f.max()) + 1 for f in factors]

    def mean(counts: np.ndarray) -> np.ndarray:
        total, n = counts @ sums, counts @ sizes
        rates = np.divide(total, n, out=np.zeros_like(n), where=n > 0)
        return rates.sum(-1) / np.maximum((n > 0).sum(-1), 1)

    value = float(mean(np.ones(len(sums))))
    if not factors or np.ptp(sums - value * sizes) < _SAME:
        return value, value, value

    def of_drawn(*drawn, axis=-1):
        counts = 1.0
        for rows, number, n in zip(drawn, cells, levels, strict=True):
            counts = counts * _counts(rows, n)[..., number]
        # Drawings that hold no cell at all say nothing: they count as the value.
        return np.where((counts @ sizes).sum(-1) > 0, mean(counts), value)

    plain = len(factors) == 1 and sums.shape[1] == 1
    for method in ("BCa", "percentile") if plain else ("percentile",):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                [np.arange(n) for n in levels], of_drawn, vectorized=True, n_resamples=RESAMPLES,
                batch=1000, confidence_level=CONFIDENCE, method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
        if np.isfinite(found).all():  # else too few groups for the correction
            break
    return value, float(found.low), float(found.high)


def _numbers(labels: Sequence[Hashable]) -> np.ndarray:
    """Labels as numbers from 0 in the order of their first appearance."""
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels])


def _counts(rows: np.ndarray, n: int) -> np.ndarray:
    """How often each of ``n`` numbers is in the last axis of ``rows``, [..., n]."""
    flat = rows.reshape(-1, rows.shape[-1]).astype(int)
    flat = flat + n * np.arange(len(flat))[:, None]
    counts = np.bincount(flat.ravel(), minlength=n * len(flat)).astype(float)
    return counts.reshape(*rows.shape[:-1], n)


def share(
    values: Sequence[float],
    groups: Sequence[Hashable],
    *,
    crossed: Sequence[Hashable] | None = None,
    seed: int = 0,
    **more: Any,
) -> tuple[float, float, float, str]:
    """A mean of values in [0, 1] with its 95 % interval, and how that was made.

    Args:
      values, groups, crossed, seed, more: as for `bootstrap`.

    Returns:
      (value, low, high, how): ``"wilson"`` for outcomes that each stand alone; else ``"bootstrap"``; or
      ``"wilson over groups"``, that of as many games as there are groups, where nothing varies
      between these, which says little when there are few.
    """
    num = len(set(groups))
    alone = num == len(values) and crossed is None and not more
    if alone and set(values) <= {0, 1}:
        return sum(values) / num, *wilson_interval(sum(values), num), "wilson"
    value, low, high = bootstrap(values, groups, crossed=crossed, seed=seed, **more)
    if low == high:
        return value, *wilson_interval(round(value * num), num), "wilson over groups"
    return value, low, high, "bootstrap"


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % t-interval of the mean of ``values``, [n] with n >= 2."""
    interval = stats.ttest_1samp(np.asarray(values, float), 0.0).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)


def over_runs(values: Sequence[float]) -> dict[str, Any] | None:
    """``{runs, low, high}``: the t-interval over training runs; None for one run, or many.

    Args:
      values: [runs] the figure of each run.
    """
    if not 1 < len(values) < MANY_RUNS:
        return None
    if np.ptp(values) < _SAME:  # nothing varied: as wide as the bootstrap
        return None
    low, high = t_interval(values)
    return {"runs": len(values), "low": low, "high": high}


# -- tests -----------------------------------------------------------------------------------------


def sign_flip_p(
    a: Sequence[float], b: Sequence[float], groups: Sequence[Hashable], seed: int = 0
) -> float:
    """Two-sided p-value of a paired difference when the games of a group share a cause.

    Under the hypothesis that neither side is better, each group's difference is as likely to have
    the opposite sign; all sign patterns are tried, or 9,999 random ones when there are more.  With
    groups of one game this is McNemar's exact test.
    """
    sums = np.bincount(_numbers(groups), np.asarray(b, float) - np.asarray(a, float))
    sums = sums[sums != 0]
    if len(sums) < 2:  # both signs of a single group are as far from zero
        return 1.0
    result = stats.permutation_test(
        (sums,), lambda x, axis=-1: x.sum(axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=RESAMPLES, batch=1000, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.pvalue)


def mcnemar_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Exact two-sided McNemar p-value: are games won by only one of the two split evenly?

    1.0 when no game is won by only one of them.  Of scores it is the sign test.
    """
    before, after = np.asarray(a, float), np.asarray(b, float)
    if before.shape != after.shape:
        raise ValueError(f"a and b must have one shape, got {before.shape} and {after.shape}")
    gained, lost = int((after > before).sum()), int((before > after).sum())
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    seed: int = 0,
    *,
    groups: Sequence[Hashable] | None = None,
    crossed: Sequence[Hashable] | None = None,
) -> tuple[float, float, float]:
    """Mean of ``b - a`` over games with its 95 % interval from `bootstrap`.

    Args:
      a: outcomes before, [n], one a game.
      b: outcomes after, [n], of the same games in the same order.
      seed, groups, crossed: as for `bootstrap`.  Without groups every game stands for itself.

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
    return bootstrap(after - before, labels, crossed=crossed, seed=seed)


# -- plays by name ---------------------------------------------------------------------------------


def outcomes(result: Mapping[str, Any] | None) -> dict[tuple[str, str], dict[Play, bool | None]]:
    """(split, condition) -> (game, seed) -> won, None where the infrastructure failed.

    A game is (id, hash of its content): runs that made their own games have ids in common.
    """
    table: dict[tuple[str, str], dict[Play, bool | None]] = {}
    for game in (result or {}).get("games", ()):
        for condition, outcome in game["conditions"].items():
            scored = outcome.get("status", "ok") in SCORED
            won = bool(outcome["won"]) if scored else None
            table.setdefault((game["split"], condition), {})[play_of(game)] = won
    return table


def play_of(row: Mapping[str, Any]) -> Play:
    """(game, seed) of a row of a result's ``games``."""
    return _game(row), row.get("seed")


def drawn_together(condition: str, *results: Mapping[str, Any] | None) -> dict[Hashable, Hashable]:
    """Game -> label of what is drawn with it under a condition; a game without one stands for itself.

    The site or the family of pages that a row names (``drawn``), whatever the condition; else, for ``own``, the
    source of its skill: games with one source play with one skill.
    """
    sources, groups = {}, {}
    for result in results:
        web = bool((result or {}).get("web"))  # sites: written before rows said so
        for game in (result or {}).get("games", ()):
            group = game.get("drawn") or (game.get("group") if web else None)
            source = game.get("retrieved") or {}
            if group:
                groups[_game(game)] = ("group", group)
            if condition == "own" and source.get("id") is not None:
                sources[_game(game)] = ("source", _game(source))
    return sources | groups


def _game(row: Mapping[str, Any]) -> tuple[Hashable, Hashable]:
    """What tells a game of a result's rows apart."""
    return row["id"], row.get("hash")


def success(
    plays: Mapping[Play, float | None] | None,
    groups: Mapping[Hashable, Hashable],
    seed: int = 0,
    *,
    crossed: Mapping[Play, Hashable] | None = None,
) -> dict[str, Any] | None:
    """{n, success, low, high, interval, excluded} of outcomes; None when none was scored.

    Args:
      plays: outcomes, None where the infrastructure failed.
      groups: game -> label of what is drawn together; a game without one stands for itself,
        with all of its seeds.
      seed: of the bootstrap.
      crossed: play -> label of what is drawn besides, see `bootstrap`.
    """
    scored = _scored(plays)
    if not scored:
        return None
    value, low, high, interval = share(
        list(scored.values()), _labels(scored, groups), crossed=_crossed(scored, crossed), seed=seed
    )
    return {
        "n": len(scored),
        "success": float(value),
        "low": low,
        "high": high,
        "interval": interval,
        "excluded": len(plays) - len(scored),
    }


def paired(
    before: Mapping[Play, float | None],
    after: Mapping[Play, float | None],
    groups: Mapping[Hashable, Hashable],
    seed: int = 0,
    *,
    crossed: Mapping[Play, Hashable] | None = None,
) -> dict[str, Any] | None:
    """The paired comparison of what two sides both scored; None when that is nothing.

    Args:
      before: outcomes (or scores) of one side.
      after: of the other.
      groups, seed, crossed: as for `success`.

    Returns:
      ``n`` pairs, ``value`` (mean of after - before) with ``low`` and ``high`` (bootstrap; where no
      group differs from another, `matched_interval` of as many pairs as groups), pairs ``gained``
      and ``lost``, ``p`` (McNemar, exact, over pairs) and ``p_grouped`` (sign flips over groups; of
      two crossed causes the larger one).
    """
    first, second = _scored(before), _scored(after)
    common = sorted(set(first) & set(second), key=str)
    if not common:
        return None
    a, b = [first[g] for g in common], [second[g] for g in common]
    labels, other = _labels(common, groups), _crossed(common, crossed)
    value, low, high = paired_difference(a, b, seed, groups=labels, crossed=other)
    if low == high:  # nothing varied, which says little when there is little
        size = len(set(labels))
        low, high = matched_interval(size, max(value, 0) * size, max(-value, 0) * size)
    return {
        "n": len(common),
        "value": value,
        "low": low,
        "high": high,
        "gained": sum(y > x for x, y in zip(a, b, strict=True)),
        "lost": sum(x > y for x, y in zip(a, b, strict=True)),
        "p": mcnemar_p(a, b),
        "p_grouped": max(sign_flip_p(a, b, f, seed) for f in (labels, other) if f is not None),
    }


def paired_rows(
    tables: Mapping[tuple[str, str], Mapping[Play, float | None]],
    groups: Mapping[str, Mapping[Hashable, Hashable]],
    pairs: Sequence[tuple[str, str]],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """`paired` for every split: dicts with ``split``, ``condition``, ``baseline`` and its figures.

    Args:
      tables: (split, condition) -> outcomes.
      groups: condition -> game id -> label of what is drawn together.
      pairs: (baseline, condition); those that a split has not played are left out.
      seed: of the bootstrap.
    """
    rows = []
    for split in sorted({split for split, _ in tables}):
        for baseline, condition in pairs:
            sides = tables.get((split, baseline), {}), tables.get((split, condition), {})
            first, second = groups.get(baseline, {}), groups.get(condition, {})
            other = None  # where both have labels, and others, games are drawn by each of them
            if any(first.get(game, label) != label for game, label in second.items()):
                other = {play: first.get(play[0], play[0]) for play in sides[1]}
            found = paired(*sides, {**first, **second}, seed, crossed=other)
            if found:
                rows.append({"split": split, "condition": condition, "baseline": baseline, **found})
    return rows


def _scored(plays: Mapping[Play, float | None] | None) -> dict[Play, float]:
    return {play: won for play, won in (plays or {}).items() if won is not None}


def _labels(plays, groups: Mapping[Hashable, Hashable]) -> list[Hashable]:
    return [groups.get(play[0], play[0]) for play in plays]


def _crossed(plays, crossed: Mapping[Play, Hashable] | None) -> list[Hashable] | None:
    return None if crossed is None else [crossed[play] for play in plays]
