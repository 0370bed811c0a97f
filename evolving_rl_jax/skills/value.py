"""What a stored skill is worth, learned from the plays that had it in their prompt; and a bank ranked by it.

``ema``: ``Q += rate * (r - Q)`` with r = +-1, from 0 (MemRL, arXiv 2601.03192).  ``laplace``:
``(wins + 1) / (uses + 2)`` (EvolveR, arXiv 2510.16079).  ``gain``: wins a use minus wins a play of the
same tasks without it.  ``head``: a logistic model of winning, learned by cross-entropy from similarity,
uses, success and kinship (after Memento, arXiv 2508.16153).

A skill is chosen in two phases: by similarity, then by
``(1 - weight) z(similarity) + weight z(value) - diversity log(1 + uses)``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from evolving_rl_jax.skills.records import SkillRecord
from evolving_rl_jax.skills.retrieval import SkillRetriever
from evolving_rl_jax.types import Task

VALUES = ("laplace", "ema", "gain", "head")
_MOST_Z = 3.0  # beyond it one outlier would decide alone
_HEAD_RATE = 0.1


@dataclasses.dataclass
class Counts:
    """What plays with one skill gave; wins may be shares.

    Attributes:
      uses, wins: plays with it, those of its own evaluation included.
      base_uses, base_wins: plays of the same tasks without a skill.
      q: moving average of +-1 over its uses from the bank.
      own_uses, own_wins: those of ``uses`` and ``wins`` that evaluated it; their tasks have no free plays.
    """

    uses: float = 0.0
    wins: float = 0.0
    base_uses: float = 0.0
    base_wins: float = 0.0
    q: float = 0.0
    own_uses: float = 0.0
    own_wins: float = 0.0

    def uses_for(self, kind: str) -> float:
        """The plays that `value` goes by: for ``ema`` and ``gain`` those from the bank alone."""
        return self.uses - self.own_uses if kind in ("ema", "gain") else self.uses

    def value(self, kind: str) -> float:
        """By ``ema``, ``laplace`` or ``gain``; without plays to compare with, a gain is 0."""
        if kind == "ema":
            return self.q
        if kind == "gain":
            uses = self.uses_for(kind)
            if not (uses and self.base_uses):
                return 0.0
            return (self.wins - self.own_wins) / uses - self.base_wins / self.base_uses
        return (self.wins + 1) / (self.uses + 2)


@dataclasses.dataclass(frozen=True)
class Use:
    """What one task gave with a skill of the bank and without any.

    Attributes:
      id: of the record.
      task: that was played.
      similarity: at which the skill was found.
      rewards: of the plays with it, each in 0..1.
      free: of the plays of the task without a skill.
    """

    id: str
    task: Task
    similarity: float
    rewards: tuple[float, ...]
    free: tuple[float, ...] = ()


class RankedBank:
    """Skills that plays are guided by, ranked by what they were worth.

    Args:
      bank: ``config.guidance``.
      make_retriever: of an empty skill retriever.
    """

    def __init__(self, bank: Any, make_retriever: Callable[[], SkillRetriever]):
        self._config, self._make_retriever = bank, make_retriever
        self._records: dict[str, SkillRecord] = {}
        self._counts: dict[str, Counts] = {}
        self._head = np.zeros(6)
        self._frozen: SkillRetriever = make_retriever()

    def __len__(self) -> int:
        return len(self._records)

    def value(self, record_id: str) -> float:
        """Of a record, whatever it is looked for by; with the head, its success so far."""
        kind = self._config.value
        return self._counts[record_id].value("laplace" if kind == "head" else kind)

    # -- choosing ----------------------------------------------------------------------------------

    def freeze(self) -> None:
        """What is chosen from now on is chosen from what is there now."""
        self._frozen = self._make_retriever()
        self._frozen.add(list(self._records.values()))

    def choose(self, task: Task) -> list[tuple[SkillRecord, float]]:
        """(record, cosine) of the best skills for a task, at most ``guidance.top``; none without any alike."""
        c = self._config
        found = [f for f in self._frozen.retrieve(task, c.candidates) if f[0].id in self._counts]
        if not found:
            return []
        cosines = np.array([cosine for _, cosine in found])
        if c.value == "head":
            values = np.array([self._predicted(task, r, cosine) for r, cosine in found])
        else:
            values = np.array([self.value(record.id) for record, _ in found])
        uses = np.array([self._counts[record.id].uses for record, _ in found])
        score = (1 - c.weight) * _z(cosines) + c.weight * _z(values)
        score = score - c.diversity * np.log1p(uses)
        order = np.argsort(-score, kind="stable")  # of equals the most similar
        return [found[i] for i in order[: c.top]]

    # -- learning ----------------------------------------------------------------------------------

    def admit(self, records: Iterable[SkillRecord]) -> None:
        """Takes new usable skills, with the plays that evaluated them.

        A full bank keeps its best: a new one has to be worth more than the worst.
        """
        for record in records:
            if record.usable and record.id not in self._records:
                self._records[record.id] = record
                uses, wins = float(record.uses), float(record.wins)
                self._counts[record.id] = Counts(uses, wins, own_uses=uses, own_wins=wins)
        excess = len(self._records) - self._config.capacity
        if excess > 0:  # of equals the oldest go
            for name in sorted(self._records, key=self.value)[:excess]:
                self._remove(name)

    def learn(self, uses: Iterable[Use]) -> None:
        """Counts plays, and removes what has proven worthless."""
        c = self._config
        for use in uses:
            record, counts = self._records.get(use.id), self._counts.get(use.id)
            if record is None:
                continue
            features = self._features(use.task, record, use.similarity)
            for reward in use.rewards:
                counts.q += c.rate * (2 * reward - 1 - counts.q)
                error = reward - _sigmoid(self._head @ features)
                self._head = self._head + _HEAD_RATE * error * features
            counts.uses += len(use.rewards)
            counts.wins += sum(use.rewards)
            counts.base_uses += len(use.free)
            counts.base_wins += sum(use.free)
        for name, counts in list(self._counts.items()):
            if counts.uses_for(c.value) >= c.min_uses and self.value(name) < c.min_value:
                self._remove(name)

    def _remove(self, name: str) -> None:
        del self._records[name], self._counts[name]

    def _features(self, task: Task, record: SkillRecord, cosine: float) -> np.ndarray:
        counts = self._counts[record.id]
        group = bool(task.group) and record.meta.get("group") == task.group
        success = counts.value("laplace")
        return np.array([1.0, cosine, math.log1p(counts.uses), success, counts.q, float(group)])

    def _predicted(self, task: Task, record: SkillRecord, cosine: float) -> float:
        return _sigmoid(self._head @ self._features(task, record, cosine))

    # -- saving ------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What `restore` takes, as JSON values: everything but the records themselves."""
        counts = {name: list(dataclasses.astuple(c)) for name, c in self._counts.items()}
        return {"counts": counts, "head": self._head.tolist()}

    def restore(self, state: Mapping[str, Any] | None, records: Sequence[SkillRecord]) -> None:
        """Goes on from a `state`; None = an empty bank.

        Args:
          state: of the checkpoint.
          records: of the run's bank.

        Raises:
          ValueError: the bank lacks a record that the state names.
        """
        state = state or {"counts": {}, "head": [0.0] * len(self._head)}
        known = {record.id: record for record in records}
        missing = sorted(set(state["counts"]) - set(known))
        if missing:
            raise ValueError(
                f"skills/bank.jsonl must hold the skills that the checkpoint counts, got none of "
                f"the name {missing[0]!r}"
            )
        self._records = {name: known[name] for name in state["counts"]}
        self._counts = {name: Counts(*map(float, c)) for name, c in state["counts"].items()}
        self._head = np.array(state["head"], np.float64)

    def figures(self) -> dict[str, float]:
        """By the names of docs/metrics.md."""
        found = {"bank/skills": float(len(self))}
        if self._records:
            found["bank/value"] = float(np.mean([self.value(name) for name in self._records]))
            found["bank/uses"] = float(np.mean([c.uses for c in self._counts.values()]))
        return found


def _z(values: np.ndarray) -> np.ndarray:
    """Standardised, 0 without spread."""
    std = values.std()
    if std <= 1e-9:
        return np.zeros_like(values)
    return np.clip((values - values.mean()) / std, -_MOST_Z, _MOST_Z)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, x))))
