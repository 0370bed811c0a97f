"""A curriculum over kinds of tasks: a bandit whose arms are paid by how much their plays taught.

Source: Self-Evolving Curriculum, arXiv 2505.14970: ``Q(c) <- (1 - a) Q(c) + a * mean |advantage|`` of
the plays of kind c, and the next kinds drawn with ``p ~ exp(Q / t)``.  A group that is all won or all
lost has no advantage, so kinds that are mastered or out of reach are drawn less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evolving_rl_jax.data.tasks import TaskOrder
from evolving_rl_jax.types import Task


class Curriculum:
    """Draws the source tasks of an iteration.

    What is drawn follows from the values at the start of the iteration, its number and the seed: the
    same on every host, and after a restart.

    Args:
      tasks: at least one.
      by: field of a task that names its kind: ``task_type`` or ``group``.
      rate: a, how much of a value the newest plays make.
      temperature: t.
      seed: of the draws, and of the order of the tasks of each kind.

    Attributes:
      values: kind -> Q, 0 at the start.
    """

    def __init__(
        self, tasks: Sequence[Task], *, by: str, rate: float, temperature: float, seed: int
    ):
        members: dict[str, list[Task]] = {}
        for task in tasks:
            members.setdefault(getattr(task, by), []).append(task)
        self._orders = {kind: TaskOrder(found, seed) for kind, found in sorted(members.items())}
        self._by, self._rate, self._temperature, self._seed = by, rate, temperature, seed
        self.values = dict.fromkeys(self._orders, 0.0)
        self._taken: Counter[str] = Counter()

    def shares(self) -> dict[str, float]:
        """Kind -> probability of the next draw."""
        scaled = np.array(list(self.values.values())) / self._temperature
        weights = np.exp(scaled - scaled.max())
        return dict(zip(self.values, (weights / weights.sum()).tolist(), strict=True))

    def draw(self, iteration: int, n: int) -> list[Task]:
        """The ``n`` tasks of an iteration; of each kind in its own order, none left out."""
        shares = self.shares()
        rng = np.random.default_rng([self._seed, iteration, 23])
        kinds = rng.choice(len(shares), n, p=np.array(list(shares.values())))
        taken, tasks = Counter(self._taken), []
        for kind in (list(shares)[i] for i in kinds):
            tasks += self._orders[kind].take(taken[kind], 1)
            taken[kind] += 1
        return tasks

    def learn(self, iteration: int, n: int, played: Sequence[tuple[Task, float]]) -> None:
        """Takes what an iteration taught; the next draw is another one.

        Args:
          iteration: whose tasks were drawn last.
          n: of them.
          played: tasks with the mean |advantage| of their plays; those that none could score are left out.
        """
        self._taken.update(getattr(task, self._by) for task in self.draw(iteration, n))
        found: dict[str, list[float]] = {}
        for task, value in played:
            found.setdefault(getattr(task, self._by), []).append(value)
        for kind, values in found.items():
            mean = sum(values) / len(values)
            self.values[kind] = (1 - self._rate) * self.values[kind] + self._rate * mean

    def state(self) -> dict[str, Any]:
        """What `restore` takes, as JSON values."""
        return {"values": dict(self.values), "taken": dict(self._taken)}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from a `state`; None = from the start."""
        state = state or {"values": {}, "taken": {}}
        self.values = {kind: float(state["values"].get(kind, 0.0)) for kind in self._orders}
        self._taken = Counter({k: int(n) for k, n in state["taken"].items() if k in self._orders})

    def figures(self) -> dict[str, float]:
        """Of the draws to come, by the names of docs/metrics.md."""
        shares = np.array(list(self.shares().values()))
        entropy = -float(np.sum(shares * np.log(np.maximum(shares, 1e-300))))
        return {
            "curriculum/value": float(np.mean(list(self.values.values()))),
            "curriculum/largest_share": float(shares.max()),
            "curriculum/entropy": entropy,
        }
