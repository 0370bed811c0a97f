"""Embedders: a conformance table of vectors, and the cache on disk that instances and processes share."""

import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
from embedders import EMBEDDERS, CountEmbedder, _pool, _task

from evolving_rl_jax.skills import (
    CachedEmbedder,
    Retriever,
    SentenceTransformerEmbedder,
    TfidfEmbedder,
)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_conformance_of_vectors(name):
    embedder = EMBEDDERS[name]()
    texts = [task.text for task in _pool(20)]
    embedder.fit(texts)
    rows = embedder.embed(texts)
    assert rows.shape[0] == 20 and rows.shape == embedder.embed(texts[::-1]).shape
    one = embedder.embed(texts[3:4])
    difference = np.abs(np.asarray((rows[3:4] - one).sum()))
    assert difference < 1e-4 and np.isfinite(np.asarray(rows.sum()))


@pytest.mark.parametrize("name", EMBEDDERS)
def test_a_pool_that_grows_gives_what_a_whole_one_gives(name):
    pool = _pool(40)
    growing = Retriever(pool[:10], EMBEDDERS[name]())
    for start in range(10, 40, 10):
        growing.retrieve(pool[0], 3)
        growing.add(pool[start : start + 10])
    whole = Retriever(pool, EMBEDDERS[name]())
    for task in pool[:8]:
        a, b = (r.retrieve_scored(task, 5) for r in (growing, whole))
        assert [score for _, score in a] == pytest.approx([score for _, score in b], abs=2e-2)
        if name == "counts":
            assert a == b
    with pytest.raises(ValueError, match="unique, got 't0003' twice"):
        growing.add([pool[3]])
    assert len(growing) == 40 == len(growing.tasks)


# -- texts are embedded once -----------------------------------------------------------------------


class Recording(CountEmbedder):
    fingerprint = "counts"

    def __init__(self):
        self.texts, self.queries = [], []

    def embed(self, texts):
        self.texts += texts
        return super().embed(texts)

    def embed_queries(self, texts):
        self.queries += texts
        return super().embed(texts)


def test_new_texts_alone_are_embedded_and_each_text_once():
    embedder = Recording()
    retriever = Retriever([_task("a", "mug"), _task("b", "mug"), _task("c", "egg")], embedder)
    assert embedder.texts == ["mug", "egg"]
    retriever.add([_task("d", "egg"), _task("e", "pan")])
    assert embedder.texts == ["mug", "egg", "pan"]
    query = _task("q", "mug")
    assert [t.id for t in retriever.retrieve(query, 2)] == ["a", "b"]
    retriever.retrieve(query, 3)
    assert embedder.queries == ["mug"] and embedder.texts == ["mug", "egg", "pan"]


def test_the_cache_on_disk_is_kept_between_processes(tmp_path):
    first = Recording()
    rows = CachedEmbedder(first, tmp_path).embed(["mug", "egg", "mug"])
    second = Recording()
    cached = CachedEmbedder(second, tmp_path)
    np.testing.assert_array_equal(cached.embed(["egg", "mug"]), rows[[1, 0]])
    assert first.texts == ["mug", "egg"] and second.texts == []
    cached.embed_queries(["mug"])  # a query is not the text
    assert second.queries == ["mug"]
    other = Recording()
    other.fingerprint = "another model"
    assert CachedEmbedder(other, tmp_path).path != cached.path


def test_two_caches_on_one_file_lose_nothing(tmp_path):
    one, other = CachedEmbedder(Recording(), tmp_path), CachedEmbedder(Recording(), tmp_path)
    texts = [f"text {'abcdefghijk'[i % 11]} {'x' * i}" for i in range(110)]
    for i in range(0, 110, 10):
        (one if i % 20 else other).embed(texts[i : i + 10])
    late = Recording()
    rows = CachedEmbedder(late, tmp_path).embed(texts)
    assert late.texts == []
    np.testing.assert_array_equal(rows, Recording().embed(texts))


EMBED = """
import sys
import numpy as np
from evolving_rl_jax.skills import CachedEmbedder

class Lengths:
    fingerprint = "lengths"
    def embed(self, texts):
        return np.array([[len(text), int(text.split()[1])] for text in texts], float)

cache = CachedEmbedder(Lengths(), sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for i in range(0, 200, 5):
    texts = [f"text {j}" for j in range(i + int(sys.argv[2]), i + 10)]
    assert cache.embed(texts)[:, 1].tolist() == [int(text.split()[1]) for text in texts]
"""


def test_two_processes_embed_into_one_file(tmp_path):
    command = [sys.executable, "-c", EMBED, str(tmp_path)]
    pipes = {"text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    running = [subprocess.Popen([*command, str(i)], **pipes) for i in range(2)]
    assert [process.stdout.readline() for process in running] == ["ready\n"] * 2
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    for process in running:
        process.communicate()
    late = Recording()
    late.fingerprint = "lengths"
    rows = CachedEmbedder(late, tmp_path).embed([f"text {j}" for j in range(205)])
    assert late.texts == [] and rows[:, 1].tolist() == list(range(205))


DAMAGES = {
    "no data base": lambda data: b"no data base" * 99,
    "cut": lambda data: data[: len(data) // 2],
    "a hole": lambda data: data[:5000] + bytes(5000) + data[10000:],
    "emptied": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    texts = [f"{i} {'mug egg pan'[: i % 11]}" for i in range(300)]
    expected = CachedEmbedder(Recording(), tmp_path).embed(texts)
    path = CachedEmbedder(Recording(), tmp_path).path
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(CachedEmbedder(Recording(), tmp_path).embed(texts), expected)
    third = Recording()
    np.testing.assert_array_equal(CachedEmbedder(third, tmp_path).embed(texts), expected)
    assert third.texts == []


def test_tfidf_is_fit_again_when_its_policy_says_so():
    embedder = TfidfEmbedder()
    texts = [f"find mug {i % 5}" for i in range(100)]
    embedder.fit(texts)
    assert not embedder.refit([*texts, "find mug 3"], ["find mug 3"])
    assert embedder.refit([*texts, "find egg 3"], ["find egg 3"])  # a new word
    grown = texts + ["find mug 1"] * 30
    assert embedder.refit(grown, ["find mug 1"])  # a quarter more
    assert not embedder.refit(grown, ["find mug 1"])
    retriever = Retriever([_task("a", "put mug at elm")])
    retriever.add([_task("b", "put egg at oak"), _task("c", "put egg at elm")])
    assert retriever.retrieve(_task("q", "cool egg at oak"), 1)[0].id == "b"


def test_a_missing_library_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError):
        SentenceTransformerEmbedder("a-model")


def test_sentence_transformers_gets_the_prompt_of_queries(monkeypatch):
    calls = []

    class Model:
        prompts = {"query": "Q: ", "document": ""}

        def __init__(self, name):
            self.name = name

        def encode(self, texts, **options):
            calls.append((self.name, texts, options["prompt_name"]))
            return np.ones((len(texts), 2), np.float64)

    module = types.SimpleNamespace(SentenceTransformer=Model)
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    embedder = SentenceTransformerEmbedder("a-model")
    assert embedder.embed(["x"]).dtype == np.float32
    embedder.embed_queries(["y"])
    assert calls == [("a-model", ["x"], None), ("a-model", ["y"], "query")]


# -- exclusions and skills -------------------------------------------------------------------------
