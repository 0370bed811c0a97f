"""Embedders for the tests of retrieval: a table of them, tasks, and pools of tasks."""

import pathlib
import random
from collections import Counter

import numpy as np
import pytest

from evolving_rl_jax.skills import (
    SentenceTransformerEmbedder,
    TfidfEmbedder,
)
from evolving_rl_jax.types import Task

MODEL = pathlib.Path(__file__).parent / "golden" / "embedding"


def _task(name, text, content=None):
    return Task(
        id=name,
        env="alfworld",
        split="train",
        task_type="pick_and_place_simple",
        text=text,
        path=f"/games/{name}",
        content_hash=content or f"hash of {name}",
    )


class CountEmbedder:
    """Dense counts of letters: a second embedder, not normalised, with many exact ties."""

    def fit(self, texts):
        return self

    def embed(self, texts):
        counts = [Counter(text) for text in texts]
        return np.array([[count[c] for c in "abcdefghijklmnopqrstuvwxyz"] for count in counts])


def _decoder():
    pytest.importorskip("jax")
    from evolving_rl_jax.models.embedding import DecoderEmbedder

    return DecoderEmbedder(MODEL)


def _sentence_transformer():
    pytest.importorskip("sentence_transformers")
    return SentenceTransformerEmbedder(str(MODEL))


EMBEDDERS = {
    "tfidf": TfidfEmbedder,
    "counts": CountEmbedder,
    "decoder": _decoder,
    "sentence-transformers": _sentence_transformer,
}


EXACT = ("tfidf", "counts")  # rows do not depend on what else is in the batch


def _vectors(embed, tasks):
    """task id -> vector [D]."""
    rows = embed([task.text for task in tasks])
    rows = np.asarray(rows.toarray() if hasattr(rows, "toarray") else rows, float)
    return dict(zip([task.id for task in tasks], rows, strict=True))


def _pool(size=200, seed=0):
    rng = random.Random(seed)
    words = ["heat", "cool", "clean", "mug", "apple", "pan", "maple", "oak", "elm", "shelf", "3"]
    return [_task(f"t{i:04d}", " ".join(rng.choices(words, k=6))) for i in range(size)]


def _worded_alike(groups=(1, 2, 4, 5, 9, 20, 40, 60)):
    """Tasks of few sentences, as those of real games: (objects x places) of many games each."""
    texts = [f"put a {o} in {p}" for o in ("mug", "pan", "egg", "pen") for p in ("desk", "shelf")]
    pairs = zip(texts, groups, strict=True)
    return [_task(f"g{t:02d}-{i:02d}", text) for t, (text, n) in enumerate(pairs) for i in range(n)]
