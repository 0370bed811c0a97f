"""Metrics of web tasks, macro (mean over the steps of a task, then over tasks) and micro (over all steps).

Under ``teacher_forced`` they are Mind2Web's official ones (arXiv 2306.06070): element accuracy, operation
F1, step success (right element and F1 of 1) and task success (all steps).  Under ``stop_at_error`` they
are those of Evolving-RL (arXiv 2605.10663): action accuracy is correct over attempted actions, and a task
is won without an error.  A step whose right element is not in the snapshot is a failure, and counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["TaskScore", "paired_web_difference", "summarise_web"]

RESAMPLES = 2000
# Name of the metric -> the score of a step that it averages.
OFFICIAL = {"element_accuracy": "element", "operation_f1": "f1", "step_success": "success"}
STOPPING = {"action_accuracy": "correct"}


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """The scores of one episode.

    Attributes:
      task_id: of the task.
      split: of the task.
      steps: ``StepResult.info`` of every action, in order; at least one.
      group: tasks that share a cause (a site, a skill) and are resampled together; empty = on its own.
    """

    task_id: str
    split: str
    steps: tuple[Mapping[str, Any], ...]
    group: str = ""

    def __post_init__(self):
        if not self.steps:
            raise ValueError(f"steps of {self.task_id!r} must hold at least one score, got none")

    @property
    def num_correct(self) -> int:
        """Correct actions."""
        return sum(bool(s["correct"]) for s in self.steps)

    def won(self, protocol: str) -> bool:
        """Whether all annotated steps were played and right, as the protocol judges a step."""
        key = "success" if protocol == "teacher_forced" else "correct"
        return len(self.steps) == self.steps[0]["num_steps"] and all(s[key] for s in self.steps)


def summarise_web(scores: Sequence[TaskScore], protocol: str, seed: int = 0) -> dict[str, dict]:
    """Figures of every split.

    Args:
      scores: of all tasks that were not lost to the infrastructure.
      protocol: ``"stop_at_error"`` or ``"teacher_forced"``: how they were played.
      seed: of the resampling behind the intervals.

    Returns:
      split -> ``num_tasks``, ``num_steps`` (attempted), ``gold_missing`` (steps whose right element was
      not shown), ``correct_steps`` (mean a task), and for each metric ``{"macro": m, "micro": m}`` (only
      macro for ``task_success``) with m = ``{"value", "low", "high"}``: 95 % percentile bootstrap over
      groups of tasks.

    Raises:
      ValueError: an unknown protocol.
    """
    metrics = _metrics(protocol)
    summary = {}
    for split in sorted({s.split for s in scores}):
        members = [s for s in scores if s.split == split]
        draws = _draws(members, seed)
        summary[split] = {
            "num_tasks": len(members),
            "num_steps": sum(len(s.steps) for s in members),
            "gold_missing": sum(bool(x["missing"]) for s in members for x in s.steps),
            "correct_steps": float(np.mean([s.num_correct for s in members])),
            "task_success": {"macro": _mean([s.won(protocol) for s in members], None, draws)},
        }
        for name, key in metrics.items():
            totals = np.array([sum(float(x[key]) for x in s.steps) for s in members])
            sizes = np.array([len(s.steps) for s in members], float)
            summary[split][name] = {
                "macro": _mean(totals / sizes, None, draws),
                "micro": _mean(totals, sizes, draws),
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
      ``{"n", "value", "low", "high"}``: 95 % percentile bootstrap over groups of tasks.

    Raises:
      ValueError: no common task, or an unknown metric or protocol.
    """
    first, second = ({s.task_id: s for s in x} for x in (before, after))
    common = sorted(set(first) & set(second))
    if not common:
        raise ValueError("before and after must have common tasks, got none")
    change = [
        _value(second[t], metric, protocol) - _value(first[t], metric, protocol) for t in common
    ]
    result = _mean(change, None, _draws([second[t] for t in common], seed))
    return {"n": len(common), **result}


def _metrics(protocol: str) -> dict[str, str]:
    known = {"teacher_forced": OFFICIAL, "stop_at_error": STOPPING}
    if protocol not in known:
        raise ValueError(f"protocol must be one of {', '.join(known)}, got {protocol!r}")
    return known[protocol]


def _value(score: TaskScore, metric: str, protocol: str) -> float:
    metrics = _metrics(protocol)
    if metric == "task_success":
        return float(score.won(protocol))
    if metric == "correct_steps":
        return float(score.num_correct)
    if metric not in metrics:
        accepted = ", ".join([*metrics, "task_success", "correct_steps"])
        raise ValueError(f"metric of {protocol} must be one of {accepted}, got {metric!r}")
    return float(np.mean([float(step[metrics[metric]]) for step in score.steps]))


def _draws(members: Sequence[TaskScore], seed: int) -> np.ndarray:
    """How often each task is drawn in each resampling of the groups, [RESAMPLES, tasks]."""
    labels: list[Hashable] = [s.group or ("task", i) for i, s in enumerate(members)]
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    group = np.array([numbers[label] for label in labels])
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), RESAMPLES)
    return counts[:, group]


def _mean(totals, sizes, draws: np.ndarray) -> dict[str, float]:
    """Sum of ``totals`` over sum of ``sizes`` (None: one each), with its interval."""
    totals = np.asarray(totals, float)
    sizes = np.ones_like(totals) if sizes is None else sizes
    resampled = (draws @ totals) / (draws @ sizes)
    low, high = np.percentile(resampled, [2.5, 97.5])
    value = float(totals.sum() / sizes.sum())
    return {"value": value, "low": float(low), "high": float(high)}
