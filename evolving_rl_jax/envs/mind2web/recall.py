"""How often a snapshot of a given size shows an element that is right: the ceiling of any agent."""

from __future__ import annotations

from evolving_rl_jax.envs.mind2web.actions import shares_node
from evolving_rl_jax.envs.mind2web.env import gold_words, shows_value
from evolving_rl_jax.envs.mind2web.records import WebTask
from evolving_rl_jax.envs.web.snapshot import count_tokens, element_line, fitting, ranking

__all__ = ["BUDGETS", "GoldRecall"]

BUDGETS = (500, 1000, 2000, 4000)
UNREACHABLE = ("no_gold", "blank_pages", "value_missing")
PAGE = 0  # stands for the whole page, without a budget


class GoldRecall:
    """Counts over the steps that have a right element, each with its gold history.

    The snapshots are made without the gold; only afterwards it is looked up in them.

    Args:
      budgets: sizes in tokens, as ``snapshot.count_tokens`` counts.

    Attributes:
      counts: steps without a right element, with a blank page, and whose list does not show the value
        to select.
    """

    def __init__(self, budgets: tuple[int, ...] = BUDGETS):
        self._hits = dict.fromkeys((PAGE, *budgets), 0)
        self._num_steps = 0
        self.counts = dict.fromkeys(UNREACHABLE, 0)

    def add(self, task: WebTask) -> None:
        """Counts the steps of one task."""
        wanted: list[str] = []
        for step in task.steps:
            self._add_step(task.text, step, wanted)
            wanted.append(gold_words(step))

    def _add_step(self, text: str, step, wanted: list[str]) -> None:
        elements = step.page.elements
        self.counts["blank_pages"] += not elements
        self.counts["no_gold"] += not step.gold.node_ids
        self.counts["value_missing"] += not shows_value(step, text)
        if not step.gold.node_ids:
            return
        on_page = shares_node(step.gold, step.page.index)
        self._num_steps += 1
        if len(self._hits) == 1 or not on_page:
            self._hits[PAGE] += on_page
            return
        order: list[int] | None = None
        costs = [count_tokens(element_line(e, i, text)) for i, e in enumerate(elements, 1)]
        for budget in self._hits:
            if budget == PAGE or sum(costs) <= budget:
                self._hits[budget] += 1
                continue
            order = ranking(step.page, text, wanted) if order is None else order
            shown = fitting(order, costs, budget)
            self._hits[budget] += shares_node(step.gold, {elements[i].node_id for i in shown})

    def merge(self, other: GoldRecall) -> None:
        """Adds the counts of another one of the same budgets."""
        for budget, hits in other._hits.items():
            self._hits[budget] += hits
        for name, count in other.counts.items():
            self.counts[name] += count
        self._num_steps += other._num_steps

    def figures(self) -> dict[int, float]:
        """Budget -> share of steps; 0 is the whole page."""
        return {b: hits / max(self._num_steps, 1) for b, hits in self._hits.items()}
