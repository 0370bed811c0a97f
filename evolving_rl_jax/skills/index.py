"""Exact cosine search over a growing list of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cachetools
import numpy as np

from evolving_rl_jax.skills.embedders import TIE_DECIMALS, Embedder, TfidfEmbedder, cosine, stack

_CACHED_QUERIES = 256


class Index:
    """The vectors of a list of texts; every different text is embedded once.

    New texts are embedded when they come; an embedder that learns from its pool says whether it
    has to learn again, and then all vectors are computed anew (see `embedders.TfidfEmbedder`).

    Args:
      embedder: ``TfidfEmbedder()`` by default.
    """

    def __init__(self, embedder: Embedder | None = None) -> None:
        self._embedder = TfidfEmbedder() if embedder is None else embedder
        self._embed_queries = getattr(self._embedder, "embed_queries", self._embedder.embed)
        self._refit = getattr(self._embedder, "refit", lambda texts, new: False)
        self._texts: list[str] = []
        self._unique: dict[str, int] = {}  # text -> row of the matrix
        self._rows: list[int] = []  # of every text
        self._matrix: Any = None
        self._cache = cachetools.LRUCache(_CACHED_QUERIES)  # query -> scores

    def add(self, texts: Sequence[str]) -> None:
        """Appends texts.

        Raises:
          ValueError: the embedder refuses them, or gives vectors that are not finite.
        """
        new = list(dict.fromkeys(t for t in texts if t not in self._unique))
        matrix = self._matrix
        if new or matrix is None:
            matrix = self._embedded(list(texts), new)
        cosine(matrix[:1], matrix)  # finite, or an error before anything is changed
        for text in new:
            self._unique[text] = len(self._unique)
        self._texts += texts
        self._rows += [self._unique[text] for text in texts]
        self._matrix = matrix
        self._cache.clear()

    def _embedded(self, texts: list[str], new: list[str]) -> Any:
        if self._matrix is None:
            self._embedder.fit(texts)
            return self._embedder.embed(new)
        if self._refit([*self._texts, *texts], new):
            return self._embedder.embed([*self._unique, *new])
        return stack(self._matrix, self._embedder.embed(new))

    def scores(self, text: str) -> np.ndarray:
        """Cosine of every text with ``text``, float64 [n]."""
        if not self._texts:
            return np.zeros(0)
        if text not in self._cache:
            found = cosine(self._matrix, self._embed_queries([text]))[:, 0]
            self._cache[text] = np.round(found, TIE_DECIMALS)[self._rows]
        return self._cache[text]
