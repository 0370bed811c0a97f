"""Which tasks of a declared pool are most like a given one: exact cosine search over embeddings.

A task never finds itself: its id and its content hash are both excluded, so a copy under another id
is excluded too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np

from evolving_rl_jax.types import Task

_CACHED_QUERIES = 256
_TIE_DECIMALS = 9  # sums in another order differ by 1e-16; that must not decide a tie


class Embedder(Protocol):
    """Turns texts into vectors.  Rows need not have unit length."""

    def fit(self, texts: Sequence[str]) -> Any:
        """Learns from the pool what it needs (nothing, for a pretrained embedder)."""

    def embed(self, texts: Sequence[str]) -> Any:
        """Returns [n, D], a numpy array or a scipy sparse matrix."""


class TfidfEmbedder:
    """Word 1-grams and 2-grams weighted by TF-IDF, fit on the pool (scikit-learn)."""

    def __init__(self) -> None:
        # imported here because environment workers import this package and need no scikit-learn
        from sklearn.feature_extraction.text import TfidfVectorizer

        # single characters count: "cabinet 3" and "cabinet 4" differ by one
        self._vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")

    def fit(self, texts: Sequence[str]) -> TfidfEmbedder:
        """Learns vocabulary and document frequencies.

        Raises:
          ValueError: no text has a word.
        """
        try:
            self._vectorizer.fit(texts)
        except ValueError as error:
            raise ValueError(
                f"task texts must contain words, got {len(texts)} texts without any"
            ) from error
        return self

    def embed(self, texts: Sequence[str]) -> Any:
        """Returns a scipy sparse matrix [n, D]; a text of unknown words gives a zero row."""
        return self._vectorizer.transform(texts)


class Retriever:
    """Top-k search over a fixed pool, deterministic, with exclusions.

    Args:
      tasks: the pool; at least one task, unique ids, every one with a content hash.
      embedder: fit on the texts of the pool here; ``TfidfEmbedder()`` by default.

    Raises:
      ValueError: the pool is empty, has a duplicate id or a task without a content hash.
    """

    def __init__(self, tasks: Sequence[Task], embedder: Embedder | None = None) -> None:
        # sorted by id, so that a stable sort by score breaks ties by id, whatever the pool's order
        self._tasks = sorted(tasks, key=lambda task: task.id)
        if not self._tasks:
            raise ValueError("the retrieval pool must hold at least one task, got none")
        for previous, task in zip(self._tasks, self._tasks[1:], strict=False):
            if previous.id == task.id:
                raise ValueError(f"ids in the retrieval pool must be unique, got {task.id!r} twice")
        for task in self._tasks:
            _require_hash(task)
        self._by_id: dict[str, list[int]] = {}
        self._by_hash: dict[str, list[int]] = {}
        for row, task in enumerate(self._tasks):
            self._by_id.setdefault(task.id, []).append(row)
            self._by_hash.setdefault(task.content_hash, []).append(row)
        texts = [task.text for task in self._tasks]
        self._embedder = TfidfEmbedder() if embedder is None else embedder
        self._embedder.fit(texts)
        self._matrix = self._embedder.embed(texts)
        self._norms = _row_norms(self._matrix)
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tasks)

    def retrieve(
        self,
        task: Task,
        k: int,
        *,
        exclude_ids: Collection[str] = (),
        exclude_hashes: Collection[str] = (),
    ) -> list[Task]:
        """The ``k`` most similar tasks of the pool, best first, ties in the order of their ids.

        Args:
          task: the query, in the pool or not; tasks with its id or its content hash are left out.
          k: how many.
          exclude_ids: further ids to leave out.
          exclude_hashes: further content hashes to leave out.

        Raises:
          ValueError: ``k`` is below 1 or more than what is left of the pool, or the query has no
            content hash.
        """
        found = self.retrieve_scored(
            task, k, exclude_ids=exclude_ids, exclude_hashes=exclude_hashes
        )
        return [match for match, _ in found]

    def retrieve_scored(
        self,
        task: Task,
        k: int,
        *,
        exclude_ids: Collection[str] = (),
        exclude_hashes: Collection[str] = (),
    ) -> list[tuple[Task, float]]:
        """As ``retrieve``, with the cosine of each task (for reports of what was retrieved)."""
        _require_hash(task)
        excluded = self._excluded_rows(
            {task.id, *exclude_ids}, {task.content_hash, *exclude_hashes}
        )
        available = len(self._tasks) - len(excluded)
        if k < 1:
            raise ValueError(f"K must be at least 1, got {k}")
        if k > available:
            raise ValueError(
                f"K must be at most {available}, the tasks that a pool of {len(self._tasks)} "
                f"allows for {task.id!r}, got {k}"
            )
        scores = self._scores(task.text).copy()
        scores[excluded] = -np.inf
        rows = np.argsort(-scores, kind="stable")[:k]
        return [(self._tasks[row], float(scores[row])) for row in rows]

    def _excluded_rows(self, ids: set[str], hashes: set[str]) -> list[int]:
        rows: set[int] = set()
        for value in ids:
            rows.update(self._by_id.get(value, ()))
        for value in hashes:
            rows.update(self._by_hash.get(value, ()))
        return sorted(rows)

    def _scores(self, text: str) -> np.ndarray:
        """Cosine of every task of the pool with the text, [pool]."""
        if text in self._cache:
            self._cache.move_to_end(text)
            return self._cache[text]
        query = self._embedder.embed([text])
        products = self._matrix @ query.T
        products = products.toarray() if hasattr(products, "toarray") else products
        norms = self._norms * _row_norms(query)
        products = np.asarray(products, np.float64).ravel()
        scores = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
        scores = np.round(scores, _TIE_DECIMALS)
        self._cache[text] = scores
        if len(self._cache) > _CACHED_QUERIES:
            self._cache.popitem(last=False)
        return scores


def _require_hash(task: Task) -> None:
    if not task.content_hash:
        raise ValueError(f"content_hash of task {task.id!r} must be a non-empty text, got ''")


def _row_norms(matrix: Any) -> np.ndarray:
    """Euclidean length of the rows of a dense or sparse [n, D], in float64, [n]."""
    sparse = hasattr(matrix, "multiply")
    squares = matrix.multiply(matrix) if sparse else np.square(np.asarray(matrix, np.float64))
    norms = np.sqrt(np.asarray(squares.sum(axis=1), np.float64).ravel())
    if not np.isfinite(norms).all():
        raise ValueError("embeddings must be finite, got NaN or infinity")
    return norms
