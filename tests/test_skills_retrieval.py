"""Retrieval: a conformance table of embedders against brute force, exclusions and errors."""

import random
from collections import Counter

import numpy as np
import pytest

from evolving_rl_jax.skills import Retriever, TfidfEmbedder
from evolving_rl_jax.types import Task


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


EMBEDDERS = {"tfidf": TfidfEmbedder, "counts": CountEmbedder}


def _pool(size=200, seed=0):
    rng = random.Random(seed)
    words = ["heat", "cool", "clean", "mug", "apple", "pan", "maple", "oak", "elm", "shelf", "3"]
    return [_task(f"t{i:04d}", " ".join(rng.choices(words, k=6))) for i in range(size)]


@pytest.mark.parametrize("name", EMBEDDERS)
def test_equals_brute_force(name):
    pool = _pool()
    random.Random(5).shuffle(pool)
    retriever = Retriever(pool, EMBEDDERS[name]())
    embedder = EMBEDDERS[name]().fit([task.text for task in pool])
    vectors = {}
    for task in pool:
        row = embedder.embed([task.text])
        vectors[task.id] = np.asarray(row.toarray() if hasattr(row, "toarray") else row, float)[0]

    def cosine(a, b):
        return vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b])

    for source in pool[:25]:
        others = [task for task in pool if task.id != source.id]
        ranked = sorted(others, key=lambda t: (-round(cosine(source.id, t.id), 9), t.id))
        found = retriever.retrieve(source, 12)
        assert [task.id for task in found] == [task.id for task in ranked[:12]]
        scores = [score for _, score in retriever.retrieve_scored(source, 12)]
        expected = [cosine(source.id, task.id) for task in ranked[:12]]
        assert scores == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_order_of_the_pool_does_not_matter(name):
    pool = _pool(60)
    expected = [Retriever(pool, EMBEDDERS[name]()).retrieve(task, 5) for task in pool]
    retriever = Retriever(pool[::-1], EMBEDDERS[name]())
    assert [retriever.retrieve(task, 5) for task in pool] == expected
    assert [retriever.retrieve(task, 5) for task in pool] == expected  # from the cache


def test_source_and_planted_copy_are_excluded():
    source = _task("a-source", "put a hot mug on the shelf in maple", "same")
    copy = _task("z-copy", source.text, "same")
    twin = _task("m-twin", source.text, "other")  # same words, another game: allowed
    pool = [source, copy, twin, *_pool(10)]
    found = Retriever(pool).retrieve(source, 11)
    assert [task.id for task in found][0] == "m-twin"
    assert not {"a-source", "z-copy"} & {task.id for task in found}
    renamed = _task("not-in-pool", source.text, "same")  # a test task that hides in the pool
    assert not {"a-source", "z-copy"} & {t.id for t in Retriever(pool).retrieve(renamed, 11)}


def test_further_exclusions():
    pool = _pool(10)
    retriever = Retriever(pool)
    found = retriever.retrieve(
        pool[0], 7, exclude_ids={"t0001", "unknown"}, exclude_hashes={"hash of t0002"}
    )
    assert {task.id for task in found} == {f"t{i:04d}" for i in range(3, 10)}


def test_household_and_object_come_first():
    texts = [
        f"put a {o} on the {t} in {h}"
        for h in ("maple", "oak")
        for o in ("mug", "pan", "egg")
        for t in ("shelf", "desk")
    ]
    pool = [_task(f"{i}", text) for i, text in enumerate(texts)]
    query = _task("q", "heat a pan and put it on the sofa in oak")
    assert {task.text for task in Retriever(pool).retrieve(query, 2)} == {
        "put a pan on the shelf in oak",
        "put a pan on the desk in oak",
    }


def test_unknown_words_fall_back_to_ids():
    retriever = Retriever(_pool(5))
    found = retriever.retrieve_scored(_task("q", "zzz"), 2)
    assert [(task.id, score) for task, score in found] == [("t0000", 0.0), ("t0001", 0.0)]


@pytest.mark.parametrize("k", [10, 11, 0, -1])
def test_impossible_k_names_both_numbers(k):
    retriever = Retriever(_pool(10))
    with pytest.raises(ValueError, match=r"K must be at (most 9|least 1).* got " + str(k)):
        retriever.retrieve(_pool(10)[3], k)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ([], "at least one task"),
        ([_task("a", "x"), _task("a", "y")], "unique, got 'a' twice"),
        ([Task("a", "alfworld", "train", "t", "x", "/g", "")], "content_hash of task 'a'"),
        ([_task("a", "..."), _task("b", "")], "got 2 texts without any"),
    ],
)
def test_bad_pools_are_refused(pool, message):
    with pytest.raises(ValueError, match=message):
        Retriever(pool)


def test_embeddings_must_be_finite():
    class Broken(CountEmbedder):
        def embed(self, texts):
            return super().embed(texts) * np.nan

    with pytest.raises(ValueError, match="embeddings must be finite"):
        Retriever(_pool(3), Broken())


def test_ten_thousand_tasks():
    pool = _pool(10_000, seed=4)
    retriever = Retriever(pool)
    assert len(retriever) == 10_000
    for source in pool[:20]:
        found = retriever.retrieve(source, 8)
        assert len({task.id for task in found} - {source.id}) == 8
