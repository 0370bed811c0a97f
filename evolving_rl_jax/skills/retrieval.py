"""What of a declared pool is most like a task: tasks for training, skills of a bank for playing.

A task never finds itself: its id and its content hash are both excluded, so a copy under another id
is excluded too.  Beside the text, a pool can be searched by the group of its tasks (``PREFERENCES``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from evolving_rl_jax.skills.curate import worth
from evolving_rl_jax.skills.embedders import Embedder, TfidfEmbedder
from evolving_rl_jax.skills.index import Index
from evolving_rl_jax.skills.records import SkillRecord
from evolving_rl_jax.skills.rotation import Lots
from evolving_rl_jax.skills.schema import Skill
from evolving_rl_jax.types import Task

__all__ = [
    "PREFERENCES",
    "Embedder",
    "Retriever",
    "SkillRetriever",
    "TfidfEmbedder",
    "shortage",
]

# What a pool of tasks is searched by, before the text: nothing | tasks of the query's group first |
# tasks of its group never.
PREFERENCES = ("text", "group", "other")
_FIRST = 4.0  # added to a cosine, which is in [-1, 1]: whoever has it comes before whoever has not


class _Rows:
    """Which rows of a pool of tasks have an id, a content hash, a text or a group."""

    def __init__(self, tasks: Iterable[Task] = ()) -> None:
        self._rows: dict[tuple[str, str], list[int]] = {}
        self.count = 0
        self.add(tasks)

    def __contains__(self, task_id: str) -> bool:
        return ("id", task_id) in self._rows

    def add(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            for key in (("id", task.id), ("hash", task.content_hash), ("text", task.text)):
                self._rows.setdefault(key, []).append(self.count)
            for key, _ in _kin(task):
                self._rows.setdefault(key, []).append(self.count)
            self.count += 1

    def excluded(
        self,
        task: Task,
        same_text: bool,
        same_group: bool,
        ids: Collection[str] = (),
        hashes: Collection[str] = (),
    ) -> list[int]:
        """Rows of the task itself, of its copies, of ``ids`` and ``hashes``; of its text and its
        group if asked."""
        keys = {("id", i) for i in (task.id, *ids)}
        keys |= {("hash", h) for h in (task.content_hash, *hashes)}
        keys |= {("text", task.text)} if same_text else set()
        keys |= {("group", task.group)} if same_group else set()
        return sorted({row for key in keys for row in self._rows.get(key, ())})

    def kinship(self, task: Task) -> np.ndarray:
        """What each row gains over a cosine by what it shares with the task."""
        gained = np.zeros(self.count)
        for key, weight in _kin(task):
            gained[self._rows.get(key, [])] += weight
        return gained


def _kin(task: Task) -> list[tuple[tuple[str, str], float]]:
    """Where a task belongs, narrowest first, each with what sharing it adds: more than all wider ones."""
    names = [("group", task.group)]
    names += [(f"kin {i}", name) for i, name in enumerate(task.meta.get("kin", ()))]
    weights = [_FIRST * 2.0**i for i in reversed(range(len(names)))]
    return [(name, w) for name, w in zip(names, weights, strict=True) if name[1]]


def shortage(
    pool: Sequence[Task],
    queries: Iterable[Task],
    k: int,
    *,
    others: Sequence[Task] = (),
    same_text: bool = True,
    same_group: bool = False,
) -> str:
    """Why a ``Retriever`` over the pool would not find ``k`` tasks for a query; "" if it will for all.

    Args:
      pool: of the retriever.
      queries: what will be searched for.
      k: how many tasks each must find.
      others: tasks that are excluded too, by id and by content hash.
      same_text: whether it excludes tasks with the text of the query.
      same_group: whether it excludes tasks of the group of the query.
    """
    ids, hashes = {t.id for t in others}, {t.content_hash for t in others}
    rows = _Rows(t for t in pool if t.id not in ids and t.content_hash not in hashes)
    for task in queries:
        left = rows.count - len(rows.excluded(task, same_text, same_group))
        if left < k:
            return _too_few(task, k, left, rows.count)
    return ""


def _too_few(task: Task, k: int, left: int, size: int) -> str:
    return (
        f"K must be at most {left}, the tasks that a pool of {size} allows for {task.id!r}, got {k}"
    )


class Retriever:
    """Top-k search over a pool of tasks, deterministic, with exclusions.

    Args:
      tasks: the pool; at least one task, unique ids, every one with a content hash.
      embedder: fit on the texts of the pool here; ``TfidfEmbedder()`` by default.
      exclude_identical_text: leave out tasks whose text equals that of the query.
      prefer: out of ``PREFERENCES``: "text" ranks by similarity alone; "group" takes tasks of the
        query's group first, then those that share the most of its ``meta["kin"]`` (what its group
        belongs to, narrowest first), the most similar of them first; "other" leaves out
        tasks of the query's group.  A task whose group is unknown ("") shares it with none.

    Raises:
      ValueError: the pool is empty, has a duplicate id or a task without a content hash, or
        ``prefer`` is none of ``PREFERENCES``.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        embedder: Embedder | None = None,
        *,
        exclude_identical_text: bool = False,
        prefer: str = "text",
    ) -> None:
        if not tasks:
            raise ValueError("the retrieval pool must hold at least one task, got none")
        if prefer not in PREFERENCES:
            raise ValueError(f"prefer must be one of {', '.join(PREFERENCES)}, got {prefer!r}")
        self._prefer = prefer
        self._index = Index(embedder)
        self._exclude_text = exclude_identical_text
        self._tasks: list[Task] = []
        self._rows = _Rows()
        self.add(tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The pool, in the order in which its tasks came (those of one call by id)."""
        return tuple(self._tasks)

    def add(self, tasks: Sequence[Task]) -> None:
        """Adds tasks to the pool; only their own texts are embedded (but see the embedder).

        Raises:
          ValueError: an id is in the pool already, or a task has no content hash.
        """
        tasks = sorted(tasks, key=lambda task: task.id)
        for previous, task in zip([None, *tasks], tasks, strict=False):
            if task.id in self._rows or previous is not None and previous.id == task.id:
                raise ValueError(f"ids in the retrieval pool must be unique, got {task.id!r} twice")
            _require_hash(task)
        self._index.add([task.text for task in tasks])
        self._rows.add(tasks)
        self._tasks += tasks
        # By id, whatever the order in which the pool came: where ties are not drawn, and for draws.
        self._order = np.argsort(np.array([task.id for task in self._tasks]), kind="stable")

    def retrieve(
        self,
        task: Task,
        k: int,
        *,
        exclude_ids: Collection[str] = (),
        exclude_hashes: Collection[str] = (),
        lots: Lots | None = None,
    ) -> list[Task]:
        """The ``k`` most similar tasks of the pool, best first (see ``prefer``).

        Args:
          task: the query, in the pool or not; tasks with its id or its content hash are left out.
          k: how many.
          exclude_ids: further ids to leave out.
          exclude_hashes: further content hashes to leave out.
          lots: which of equally similar tasks are taken; None = those with the first ids.

        Raises:
          ValueError: ``k`` is below 1 or more than what is left of the pool, or the query has no
            content hash.
        """
        found = self.retrieve_scored(
            task, k, exclude_ids=exclude_ids, exclude_hashes=exclude_hashes, lots=lots
        )
        return [match for match, _ in found]

    def retrieve_scored(
        self,
        task: Task,
        k: int,
        *,
        exclude_ids: Collection[str] = (),
        exclude_hashes: Collection[str] = (),
        lots: Lots | None = None,
    ) -> list[tuple[Task, float]]:
        """As ``retrieve``, with the cosine of each task (for reports of what was retrieved)."""
        _require_hash(task)
        excluded = self._rows.excluded(
            task, self._exclude_text, self._prefer == "other", exclude_ids, exclude_hashes
        )
        if k < 1:
            raise ValueError(f"K must be at least 1, got {k}")
        if k > len(self) - len(excluded):
            raise ValueError(_too_few(task, k, len(self) - len(excluded), len(self)))
        scores = self._index.scores(task.text)
        ranks = scores.copy()
        if self._prefer == "group":
            ranks += self._rows.kinship(task)
        ranks[excluded] = -np.inf
        rows = self._highest(ranks, k, lots)
        return [(self._tasks[row], float(scores[row])) for row in rows]

    def _highest(self, scores: np.ndarray, k: int, lots: Lots | None) -> list[int]:
        least = np.partition(scores, len(scores) - k)[len(scores) - k]  # the k-th highest
        rows = self._order[scores[self._order] >= least]
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        if lots is None:
            return rows[:k].tolist()
        above = rows[scores[rows] > least]
        tied = rows[len(above) :]
        drawn = lots.draw([self._tasks[row].id for row in tied], k - len(above))
        rows = [*above.tolist(), *tied[drawn].tolist()]
        lots.take([self._tasks[row].id for row in rows])
        return rows


class SkillRetriever:
    """Top-k search over the usable skills of a bank, by what their source tasks are about.

    Args:
      embedder: as for ``Retriever``.
      min_similarity: skills below this cosine are not returned; a cosine of 0 never is.
      exclude_identical_text: leave out skills of sources whose text equals that of the query.
      prefer: as for ``Retriever``, of their source tasks; with "group" a skill of the query's group
        needs no similar text.
    """

    def __init__(
        self,
        embedder: Embedder | None = None,
        *,
        min_similarity: float = 0.0,
        exclude_identical_text: bool = False,
        prefer: str = "text",
    ) -> None:
        self._prefer = prefer
        self._index = Index(embedder)
        self._records: list[SkillRecord] = []
        self._texts: list[str] = []
        self._min_similarity = min_similarity
        self._exclude_text = exclude_identical_text

    def __len__(self) -> int:
        return len(self._records)

    def add(self, records: Sequence[SkillRecord]) -> int:
        """Adds the usable ones of ``records``; returns how many these are."""
        usable = [record for record in records if record.usable]
        texts = [_searched_text(record) for record in usable]
        if usable:
            self._index.add(texts)
        self._records += usable
        self._texts += texts
        return len(usable)

    def retrieve(
        self, task: Task, k: int = 1, *, exclude_hashes: Collection[str] = ()
    ) -> list[tuple[SkillRecord, float]]:
        """At most ``k`` (record, cosine), best first (see ``prefer``); ties by worth, then the newest.

        Skills from the task itself, by id or by content hash, are left out.
        """
        _require_hash(task)
        hashes = {task.content_hash, *exclude_hashes}
        found = [
            (record, float(score))
            for record, text, score in zip(
                self._records, self._texts, self._index.scores(task.text), strict=True
            )
            if (score > 0 and score >= self._min_similarity or self._first(record, task))
            and not (self._prefer == "other" and _same_group(record, task))
            and record.source_task_id != task.id
            and record.source_task_hash not in hashes
            and not (self._exclude_text and text == task.text)
        ]
        newest = reversed(found)  # sorting keeps the order of equals

        def rank(pair):
            near = _kinship(pair[0], task) if self._prefer == "group" else 0.0
            return -near - pair[1], *(-w for w in worth(pair[0]))

        return sorted(newest, key=rank)[:k]

    def _first(self, record: SkillRecord, task: Task) -> bool:
        return self._prefer == "group" and _same_group(record, task)


def _same_group(record: SkillRecord, task: Task) -> bool:
    return bool(task.group) and record.meta.get("group") == task.group


def _kinship(record: SkillRecord, task: Task) -> float:
    """What a record gains over a cosine by what its source shares with a task."""
    about = [("group", record.meta.get("group", ""))]
    about += [(f"kin {i}", name) for i, name in enumerate(record.meta.get("kin", ()))]
    return sum(weight for key, weight in _kin(task) if key in about)


def _searched_text(record: SkillRecord) -> str:
    """The sentence of the source task; for a skill of unknown origin what it says of itself."""
    if record.source_text:
        return record.source_text
    skill: Skill = record.as_skill()
    return "\n".join([skill.name, skill.description, *skill.when_to_use])


def _require_hash(task: Task) -> None:
    if not task.content_hash:
        raise ValueError(f"content_hash of task {task.id!r} must be a non-empty text, got ''")
