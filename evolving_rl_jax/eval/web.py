"""The metrics of web tasks in a panel's file, in the tables of the console and in the report.

A panel of web tasks is played under both protocols, with the same skills; see ``eval.web_metrics`` for
what is counted.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evolving_rl_jax.envs.mind2web.metrics import TaskScore, paired_web_difference, summarise_web
from evolving_rl_jax.eval import statistics
from evolving_rl_jax.types import SCORED, Episode

if TYPE_CHECKING:  # `results` imports this module
    from evolving_rl_jax.eval.results import PanelGame

__all__ = ["add_to", "web_comparison", "web_summary", "web_table"]

# What the tables show: (protocol, metric, heading).
SHOWN = (
    ("stop_at_error", "action_accuracy", "action accuracy"),
    ("teacher_forced", "element_accuracy", "element accuracy"),
    ("teacher_forced", "operation_f1", "operation F1"),
    ("teacher_forced", "step_success", "step success"),
    ("teacher_forced", "task_success", "task success, gold history"),
)
_BASELINE = "none"
# The key of a step's score that each metric averages.
_KEYS = {
    "action_accuracy": "correct",
    "element_accuracy": "element",
    "operation_f1": "f1",
    "step_success": "success",
}


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


def task_score(game: PanelGame, condition: str, episode: Episode) -> TaskScore:
    """The scores of one play; an answer that was cut off is a step that failed."""
    steps = [info for info in episode.infos if info is not None]
    if len(steps) < max(1, len(episode.turns)):
        failed = {"correct": False, "element": False, "f1": 0.0, "success": False}
        steps = [*steps, {**failed, "missing": False, "num_steps": game.task.step_limit}]
    # Tasks of one site share its habits, and those played with one skill share that.
    group = game.source.id if condition == "own" and game.source else game.task.group
    return TaskScore(
        f"{game.task.id}#{game.seed}", game.task.split, tuple(steps), group or game.task.id
    )


def _scores(games: Sequence[PanelGame], condition: str, protocol: str) -> list[TaskScore]:
    found = []
    for game in games:
        episode = game.under(protocol)[condition]
        source = game.source_episode if condition == "own" else None
        if episode.status in SCORED and (source is None or source.scored):
            found.append(task_score(game, condition, episode))
    return found


def web_summary(
    games: Sequence[PanelGame], conditions: Sequence[str], protocols: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """protocol -> split -> condition -> figures of `web_metrics.summarise_web`.

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
            score = task_score(game, condition, episode)
            steps = score.steps
            means = {m: sum(float(s[k]) for s in steps) / len(steps) for m, k in _KEYS.items()}
            won = {"task_success": float(score.won(protocol)), "steps": len(steps)}
            scores[protocol] = {**means, **won}
    return scores


def web_table(result: Mapping[str, Any]) -> str:
    """The web metrics of a panel as plain text: macro [95 % interval], micro in brackets."""
    lines = ["web metrics in %: macro [95 % interval] (micro)"]
    for protocol, metric, heading in SHOWN:
        for split, conditions in result["web"].get(protocol, {}).items():
            for condition, figures in conditions.items():
                lines.append(f"{heading:<27} {split:<14} {condition:<11} {_value(figures[metric])}")
    return "\n".join(lines)


def _value(metric: Mapping[str, Mapping[str, float]]) -> str:
    macro = metric["macro"]
    value, low, high = (100 * macro[key] for key in ("value", "low", "high"))
    micro = f" ({100 * metric['micro']['value']:.1f})" if "micro" in metric else ""
    return f"{value:5.1f} [{low:.1f}, {high:.1f}]{micro}"


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
    return {"success": macro["value"], "low": macro["low"], "high": macro["high"]}


def _difference(before, after, protocol, metric, split, condition) -> dict[str, Any] | None:
    if before is None or after is None:
        return None
    sides = [_plays(r, protocol, metric, split, condition) for r in (before, after)]
    common = [play for play in sides[1] if play in sides[0]]
    if not common:
        return None
    groups = [sides[1][play][1] for play in common]
    values = [[side[play][0] for play in common] for side in sides]
    value, low, high = statistics.paired_difference(*values, groups=groups)
    return {"value": value, "low": low, "high": high, "n": len(common)}


def _plays(
    result: Mapping[str, Any], protocol: str, metric: str, split: str, condition: str
) -> dict[tuple[str, Any], tuple[float, Hashable]]:
    """(task id, seed) -> (score, what it is resampled with)."""
    found = {}
    for game in result["games"]:
        if game["split"] != split:
            continue
        outcome = game["conditions"].get(condition) or {}
        score = (outcome.get("web") or {}).get(protocol)
        if score is None or outcome["status"] not in SCORED:
            continue
        source = (game.get("retrieved") or {}).get("id") if condition == "own" else None
        group = source or game.get("group") or game["id"]
        found[game["id"], game.get("seed")] = (score[metric], group)
    return found
