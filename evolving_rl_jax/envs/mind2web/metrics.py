"""Metrics of web tasks, macro (mean over the steps of a task, then over tasks) and micro (over all steps).

Under ``teacher_forced`` they are Mind2Web's official ones (arXiv 2306.06070): element accuracy, operation
F1, step success (right element and F1 of 1) and task success (all steps), over all annotated steps: one that
was not played has failed.  Under ``stop_at_error`` they
are those of Evolving-RL (arXiv 2605.10663): action accuracy is correct over attempted actions, and a task
is won without an error.  A step without a right element, or whose right element is not in the snapshot, is
a failure; both are counted, apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

__all__ = ["FAILED_STEP", "SHOWN", "TaskScore", "step_metrics"]

# Name of the metric -> the score of a step that it averages.
OFFICIAL = {"element_accuracy": "element", "operation_f1": "f1", "step_success": "success"}
STOPPING = {"action_accuracy": "correct"}
# What tables show: (protocol, metric, heading).
SHOWN = (
    ("stop_at_error", "action_accuracy", "action accuracy"),
    ("teacher_forced", "element_accuracy", "element accuracy"),
    ("teacher_forced", "operation_f1", "operation F1"),
    ("teacher_forced", "step_success", "step success"),
    ("teacher_forced", "task_success", "task success, gold history"),
)
# The scores of a step whose answer was cut off.
FAILED_STEP = {
    **{"correct": False, "element": False, "f1": 0.0, "success": False},
    **{"no_gold": False, "missing": False, "value_missing": False},
}
# Steps that no answer could have got right, or only by guessing: key of a step -> key in a panel's file.
COUNTED = {"no_gold": "no_gold", "missing": "gold_missing", "value_missing": "value_missing"}


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
    group: Hashable = ""

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

    def value(self, metric: str, protocol: str) -> float:
        """A macro metric of this task: the mean over its steps, or whether (how far) it was done.

        Raises:
          ValueError: an unknown metric or protocol.
        """
        if metric == "task_success":
            return float(self.won(protocol))
        if metric == "correct_steps":
            return float(self.num_correct)
        known = step_metrics(protocol)
        if metric not in known:
            accepted = ", ".join([*known, "task_success", "correct_steps"])
            raise ValueError(f"metric of {protocol} must be one of {accepted}, got {metric!r}")
        return self.total(known[metric]) / len(self.steps)

    def total(self, key: str) -> float:
        """Sum over steps of one of their scores."""
        return sum(float(step[key]) for step in self.steps)


def step_metrics(protocol: str) -> dict[str, str]:
    """Name of each metric that a protocol has -> the score of a step that it averages.

    Raises:
      ValueError: an unknown protocol.
    """
    known = {"teacher_forced": OFFICIAL, "stop_at_error": STOPPING}
    if protocol not in known:
        raise ValueError(f"protocol must be one of {', '.join(known)}, got {protocol!r}")
    return known[protocol]
