"""Texts to vectors: the protocol, TF-IDF, sentence-transformers, and a cache on disk.

The embedding model that runs on this project's own transformer is in ``models/embedding.py``,
because nothing here imports jax.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import sqlite3
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from evolving_rl_jax.files import sample_hash

TIE_DECIMALS = 9  # sums in another order differ by 1e-16; that must not decide a tie
_LOCK_TIMEOUT_S = 60.0  # how long a write may wait for those of other processes


class Embedder(Protocol):
    """Turns texts into vectors.  Rows need not have unit length.

    An embedder may have two more methods.  ``embed_queries(texts)`` embeds what is searched for
    where that differs from what is found (an instruction prefix).  ``refit(texts, new)`` is asked
    when ``new`` texts have joined the pool ``texts``, and returns True when it has learned from
    them, so that vectors it gave before are void.
    """

    def fit(self, texts: Sequence[str]) -> Any:
        """Learns from the pool what it needs (nothing, for a pretrained embedder)."""

    def embed(self, texts: Sequence[str]) -> Any:
        """Returns [n, D], a numpy array or a scipy sparse matrix."""


class TfidfEmbedder:
    """Word 1-grams and 2-grams weighted by TF-IDF, fit on the pool (scikit-learn).

    Refit policy: when the pool has grown by a quarter since the last fit, or a new text has a word
    that is not in the vocabulary.  In between, new texts are weighted by the document frequencies
    of that fit.  Both depend on the pool alone, so the same arrivals give the same vectors.
    """

    GROWTH = 1.25

    def __init__(self) -> None:
        # imported here because environment workers import this package and need no scikit-learn
        from sklearn.feature_extraction.text import TfidfVectorizer

        # single characters count: "cabinet 3" and "cabinet 4" differ by one
        self._vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
        self._words = self._vectorizer.build_tokenizer()
        self._fitted = 0

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
        self._fitted = len(texts)
        return self

    def refit(self, texts: Sequence[str], new: Sequence[str]) -> bool:
        """Learns from the pool again if the policy says so; see `Embedder`."""
        known = self._vectorizer.vocabulary_
        words = {word for text in new for word in self._words(text.lower())}
        if len(texts) < self._fitted * self.GROWTH and words <= known.keys():
            return False
        self.fit(texts)
        return True

    def embed(self, texts: Sequence[str]) -> Any:
        """Returns a scipy sparse matrix [n, D]; a text of unknown words gives a zero row."""
        return self._vectorizer.transform(texts)


class SentenceTransformerEmbedder:
    """A model of the sentence-transformers library, if that is installed.

    Args:
      name: folder or hub id of the model.
      batch_size: texts at a time.

    Raises:
      ImportError: the library is not installed.
    """

    def __init__(self, name: str, *, batch_size: int = 32) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(name)
        self._batch_size = batch_size
        prompts = getattr(self._model, "prompts", None) or {}
        self._query_prompt = "query" if prompts.get("query") else None
        files = sorted(
            p for end in ("safetensors", "bin") for p in pathlib.Path(name).rglob(f"*.{end}")
        )
        kept = "".join(f" {p.name} {sample_hash(p)}" for p in files)  # nothing of a hub id
        self.fingerprint = f"sentence-transformers:{name}{kept}"

    def fit(self, texts: Sequence[str]) -> SentenceTransformerEmbedder:
        """Does nothing: the model is pretrained."""
        return self

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """[n, D] float32."""
        return self._encode(texts, None)

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """[n, D] float32, with the model's own prompt for queries if it has one."""
        return self._encode(texts, self._query_prompt)

    def _encode(self, texts, prompt_name) -> np.ndarray:
        return np.asarray(
            self._model.encode(
                list(texts),
                prompt_name=prompt_name,
                batch_size=self._batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
            ),
            np.float32,
        )


class CachedEmbedder:
    """Keeps the vectors of a pretrained embedder in a file, so that no text is embedded twice.

    Any number of instances and processes may share the file; a damaged one is made anew.

    Args:
      embedder: with a ``fingerprint`` that names the model; not one that learns from its pool.
      folder: of the cache; made where needed.
    """

    def __init__(self, embedder: Any, folder: str | os.PathLike[str]) -> None:
        self._embedder = embedder
        self.fingerprint = embedder.fingerprint
        name = hashlib.sha256(self.fingerprint.encode()).hexdigest()[:16]
        self.path = pathlib.Path(folder) / f"embeddings-{name}.sqlite"

    def fit(self, texts: Sequence[str]) -> CachedEmbedder:
        """Does nothing: the model is pretrained."""
        return self

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """[n, D] float32."""
        return self._cached("text", texts, self._embedder.embed)

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """[n, D] float32."""
        compute = getattr(self._embedder, "embed_queries", self._embedder.embed)
        return self._cached("query", texts, compute)

    def _cached(self, kind: str, texts: Sequence[str], compute) -> np.ndarray:
        keys = [hashlib.sha256(f"{kind}\0{text}".encode()).hexdigest() for text in texts]
        found = self._with_file(lambda connection: _read(connection, set(keys)))
        new = {k: t for k, t in zip(keys, texts, strict=True) if k not in found}
        if new:
            vectors = np.asarray(compute(list(new.values())), np.float32)
            added = dict(zip(new, vectors, strict=True))
            self._with_file(lambda connection: _write(connection, added))
            found |= added
        return np.stack([found[key] for key in keys])

    def _with_file(self, use: Callable[[sqlite3.Connection], Any]) -> Any:
        """Calls ``use`` with the open file; where that finds it damaged, with a new one."""
        try:
            return self._open_and(use)
        except sqlite3.OperationalError:  # locked, disk full, not writable: the file is sound
            raise
        except sqlite3.DatabaseError as error:
            warnings.warn(f"{self.path}: made anew, it was damaged ({error})", stacklevel=2)
            self.path.unlink(missing_ok=True)
            return self._open_and(use)

    def _open_and(self, use: Callable[[sqlite3.Connection], Any]) -> Any:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.path, timeout=_LOCK_TIMEOUT_S)) as connection:
            with connection:  # one transaction
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS vectors"
                    " (key TEXT PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER NOT NULL)"
                )
                return use(connection)


def _read(connection: sqlite3.Connection, keys: Iterable[str]) -> dict[str, np.ndarray]:
    found = {}
    for key in keys:
        row = connection.execute("SELECT vector, checksum FROM vectors WHERE key = ?", (key,))
        for vector, checksum in row:
            if zlib.crc32(vector) != checksum:
                raise sqlite3.DatabaseError("a vector does not have its checksum")
            found[key] = np.frombuffer(vector, "<f4")
    return found


def _write(connection: sqlite3.Connection, vectors: Mapping[str, np.ndarray]) -> None:
    """Adds vectors; those that another process has added meanwhile stay."""
    blobs = ((key, vector.astype("<f4").tobytes()) for key, vector in vectors.items())
    connection.executemany(
        "INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)",
        ((key, blob, zlib.crc32(blob)) for key, blob in blobs),
    )


def cosine(a: Any, b: Any) -> np.ndarray:
    """Cosines of the rows of dense or sparse [n, D] and [m, D], float64 [n, m]; 0 for zero rows."""
    products = a @ b.T
    products = products.toarray() if hasattr(products, "toarray") else products
    norms = np.outer(_row_norms(a), _row_norms(b))
    products = np.asarray(products, np.float64).reshape(norms.shape)
    return np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)


def _row_norms(matrix: Any) -> np.ndarray:
    """Euclidean length of the rows of a dense or sparse [n, D], in float64, [n]."""
    sparse = hasattr(matrix, "multiply")
    squares = matrix.multiply(matrix) if sparse else np.square(np.asarray(matrix, np.float64))
    norms = np.sqrt(np.asarray(squares.sum(axis=1), np.float64).ravel())
    if not np.isfinite(norms).all():
        raise ValueError("embeddings must be finite, got NaN or infinity")
    return norms


def stack(a: Any, b: Any) -> Any:
    """Rows of ``a`` and then those of ``b``, dense or sparse."""
    if hasattr(a, "multiply"):
        import scipy.sparse

        return scipy.sparse.vstack([a, b], format="csr")
    return np.concatenate([np.asarray(a), np.asarray(b)])
