"""The metrics of web tasks in a panel's file, in the tables of the console and in the report.

A panel of web tasks is played under both protocols, with the same skills; see ``envs.mind2web.metrics``
for what is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evolving_rl_jax.envs.mind2web.metrics import (
    COUNTED,
    FAILED_STEP,
    OFFICIAL,
    SHOWN,
    STOPPING,
    TaskScore,
    step_metrics,
)
from evolving_rl_jax.eval import statistics, tables
from evolving_rl_jax.eval.games import PanelGame
from evolving_rl_jax.types import SCORED, Episode

__all__ = ["add_to", "web_comparison", "web_summary", "web_table"]

_BASELINE = "none"


def add_to(result: dict[str, Any], games: Sequence[PanelGame], protocols: Sequence[str]) -> None:
    """Completes a panel's file: ``web``, and ``web`` of every play.

    Args:
      result: with ``games`` in the order of ``games``, and ``seed``.
      games: that were played.
      protocols: under which.
    """
    conditions = [c for c in statistics.CONDITIONS if any(c in g.episodes for g in games)]
    result["web"] = web_summary(games, conditions, protocols, result["seed"])
    for record, game in zip(result["games"], games, strict=True):
        for condition, outcome in record["conditions"].items():
            outcome["web"] = game_scores(game, condition, protocols)


def task_score(game: PanelGame, condition: str, protocol: str, episode: Episode) -> TaskScore:
    """The scores of one play.

    An answer that was cut off is a step that failed.  So are, where all steps are to be played, those
    that were not; where an error ends the play, the one that it was cut off at.
    """
    steps = [info for info in episode.infos if info is not None]
    total = steps[0]["num_steps"] if steps else game.task.step_limit
    failed = {**FAILED_STEP, "num_steps": total}
    if len(steps) < max(1, len(episode.turns)):
        steps.append(failed)
    if protocol == "teacher_forced":
        steps += [failed] * (total - len(steps))
    elif len(steps) < total and all(s["correct"] for s in steps):
        steps.append(failed)
    name = f"{game.task.id}#{game.seed}"
    return TaskScore(name, game.task.split, tuple(steps), game.drawn_with(condition))


def _scores(games: Sequence[PanelGame], condition: str, protocol: str) -> list[TaskScore]:
    found = []
    for game in games:
        episode = game.under(protocol)[condition]
        source = game.source_episode if condition == "own" else None
        if episode.status in SCORED and (source is None or source.scored):
            found.append(task_score(game, condition, protocol, episode))
    return found


def summarise_web(scores: Sequence[TaskScore], protocol: str, seed: int = 0) -> dict[str, dict]:
    """Figures of every split.

    Args:
      scores: of all tasks that were not lost to the infrastructure.
      protocol: ``"stop_at_error"`` or ``"teacher_forced"``: how they were played.
      seed: of the drawings behind the intervals.

    Returns:
      split -> ``num_tasks``, ``num_steps`` (attempted), ``no_gold`` (steps without a right element),
      ``gold_missing`` (steps whose right element was not shown), ``value_missing`` (steps whose list did
      not show the value to select), ``correct_steps`` (mean a task), and for each metric ``{"macro": m, "micro": m}`` (only
      macro for ``task_success``) with m = ``{"value", "low", "high"}``: see `statistics.share`.

    Raises:
      ValueError: an unknown protocol.
    """
    metrics = step_metrics(protocol)
    summary = {}
    for split in sorted({s.split for s in scores}):
        members = [s for s in scores if s.split == split]
        sizes = [len(s.steps) for s in members]

        def figure(values, weights=None, members=members):
            groups = [s.group or s.task_id for s in members]
            more = {} if weights is None else {"weights": weights}
            found = statistics.share(values, groups, seed=seed, **more)
            return dict(zip(("value", "low", "high"), map(float, found[:3]), strict=True))

        summary[split] = {
            "num_tasks": len(members),
            "num_steps": sum(sizes),
            **{
                name: sum(bool(x.get(key)) for s in members for x in s.steps)
                for key, name in COUNTED.items()
            },
            "correct_steps": float(np.mean([s.num_correct for s in members])),
            "task_success": {"macro": figure([s.won(protocol) for s in members])},
        }
        for name, key in metrics.items():
            summary[split][name] = {
                "macro": figure([s.value(name, protocol) for s in members]),
                "micro": figure([s.total(key) for s in members], sizes),
            }
    return summary


def paired_web_difference(
    before: Sequence[TaskScore],
    after: Sequence[TaskScore],
    metric: str,
    protocol: str,
    seed: int = 0,
) -> dict[str, float]:
    """How much a macro metric changed over the tasks that both have, paired by task.

    Returns:
      ``{"n", "value", "low", "high"}``, see `statistics.paired`.

    Raises:
      ValueError: no common task, or an unknown metric or protocol.
    """
    sides = [{(s.task_id,): s.value(metric, protocol) for s in x} for x in (before, after)]
    found = _paired(*sides, {s.task_id: s.group or s.task_id for s in after}, seed)
    if found is None:
        raise ValueError("before and after must have common tasks, got none")
    return found


def _paired(before, after, groups, seed: int = 0) -> dict[str, Any] | None:
    row = statistics.paired(before, after, groups, seed)
    return row and {key: row[key] for key in ("n", "value", "low", "high")}


def web_summary(
    games: Sequence[PanelGame], conditions: Sequence[str], protocols: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """protocol -> split -> condition -> figures of `summarise_web`.

    Conditions other than ``none`` also have ``against_none``: metric -> the paired difference to it,
    ``{"n", "value", "low", "high"}``.
    """
    summary: dict[str, Any] = {}
    for protocol in protocols:
        played = {c: _scores(games, c, protocol) for c in conditions}
        by_split = summary.setdefault(protocol, {})
        for condition in conditions:
            for split, figures in summarise_web(played[condition], protocol, seed).items():
                figures["against_none"] = _against(played, condition, split, protocol, seed)
                by_split.setdefault(split, {})[condition] = figures
    return summary


def _against(played, condition: str, split: str, protocol: str, seed: int) -> dict[str, Any]:
    if condition == _BASELINE or _BASELINE not in played:
        return {}
    with_skill = [s for s in played[condition] if s.split == split]
    known = {s.task_id for s in played[_BASELINE]} & {s.task_id for s in with_skill}
    metrics = [m for p, m, _ in SHOWN if p == protocol] if known else []
    return {
        metric: paired_web_difference(played[_BASELINE], with_skill, metric, protocol, seed)
        for metric in metrics
    }


def game_scores(game: PanelGame, condition: str, protocols: Sequence[str]) -> dict[str, Any]:
    """protocol -> the play's macro figures, number of steps, and whether it was won."""
    scores = {}
    for protocol in protocols:
        episode = game.under(protocol)[condition]
        if episode.status in SCORED:
            score = task_score(game, condition, protocol, episode)
            num = len(score.steps)
            means = {m: score.total(key) / num for m, key in (STOPPING | OFFICIAL).items()}
            won = {"task_success": float(score.won(protocol)), "steps": num}
            scores[protocol] = {**means, **won}
    return scores


def web_table(result: Mapping[str, Any]) -> str:
    """The web metrics of a panel as plain text: macro [95 % interval], micro in brackets."""
    lines = [f"web metrics in %: macro [{tables.DRAWN}, or a site] (micro)"]
    for protocol, metric, heading in SHOWN:
        for split, conditions in result["web"].get(protocol, {}).items():
            for condition, figures in conditions.items():
                micro = figures[metric].get("micro")
                value = tables.share(_share(figures[metric]["macro"]))
                value += f" ({tables.percent(micro['value'])})" if micro else ""
                lines.append(f"{heading:<27} {split:<14} {condition:<11} {value}")
    return "\n".join(lines)


def web_comparison(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Two policies on the same tasks: one row for each metric, split and condition.

    Args:
      before: a panel's file, or None.
      after: likewise.

    Returns:
      dicts with ``metric``, ``split``, ``condition``, ``before`` and ``after`` (``success``, ``low`` and
      ``high`` of the macro metric, or None), and ``difference`` (``value``, ``low``, ``high``, ``n``; paired by task, or None).
    """
    rows = []
    for protocol, metric, heading in SHOWN:
        tables = [((r or {}).get("web") or {}).get(protocol, {}) for r in (before, after)]
        keys = dict.fromkeys((s, c) for table in tables for s in table for c in table[s])
        for split, condition in keys:
            cells = [(t.get(split) or {}).get(condition) for t in tables]
            rows.append(
                {
                    "metric": heading,
                    "split": split,
                    "condition": condition,
                    **{
                        name: None if cell is None else _share(cell[metric]["macro"])
                        for name, cell in zip(("before", "after"), cells, strict=True)
                    },
                    "difference": _difference(before, after, protocol, metric, split, condition),
                }
            )
    return rows


def _share(macro: Mapping[str, float]) -> dict[str, float]:
    return {"n": 1, "success": macro["value"], "low": macro["low"], "high": macro["high"]}


def _difference(before, after, protocol, metric, split, condition) -> dict[str, Any] | None:
    if before is None or after is None:
        return None
    sides = (_plays(r, protocol, metric, split, condition) for r in (before, after))
    return _paired(*sides, statistics.drawn_together(condition, before, after))


def _plays(
    result: Mapping[str, Any], protocol: str, metric: str, split: str, condition: str
) -> dict[statistics.Play, float]:
    """(task, seed) -> score."""
    found = {}
    for game in result["games"]:
        if game["split"] != split:
            continue
        outcome = game["conditions"].get(condition) or {}
        score = (outcome.get("web") or {}).get(protocol)
        if score is None or outcome["status"] not in SCORED:
            continue
        found[statistics.play_of(game)] = score[metric]
    return found
