"""Sentence embeddings in JAX against those that ``transformers`` gave (stored, no torch needed)."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from evolving_rl_jax.models.embedding import INSTRUCTION, DecoderEmbedder, query_prompt

GOLDEN = pathlib.Path(__file__).parent / "golden" / "embedding"


@pytest.fixture(scope="module")
def stored():
    with np.load(GOLDEN / "vectors.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("batch_size", [3, 16])
def test_vectors_equal_those_of_transformers(stored, batch_size):
    embedder = DecoderEmbedder(GOLDEN, batch_size=batch_size)
    texts = stored["texts"].tolist()
    found = embedder.embed(texts)
    assert found.dtype == np.float32 and found.shape == stored["documents"].shape
    np.testing.assert_allclose(found, stored["documents"], atol=2e-6)
    np.testing.assert_allclose(embedder.embed_queries(texts), stored["queries"], atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.abs(stored["documents"] - stored["queries"]).max() > 0.1  # the prompt matters


def test_the_instruction_can_be_given(stored, tmp_path):
    texts = stored["texts"].tolist()
    plain = DecoderEmbedder(GOLDEN, instruction="")
    np.testing.assert_array_equal(plain.embed_queries(texts), plain.embed(texts))
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN, folder)
    (folder / "config_sentence_transformers.json").unlink()
    default, given = DecoderEmbedder(folder), DecoderEmbedder(folder, instruction=INSTRUCTION)
    np.testing.assert_array_equal(default.embed_queries(["x"]), given.embed_queries(["x"]))
    expected = plain.embed([query_prompt(INSTRUCTION) + "x"])
    np.testing.assert_allclose(default.embed_queries(["x"]), expected, atol=2e-6)


def test_long_texts_keep_their_end_token(stored):
    embedder = DecoderEmbedder(GOLDEN, max_length=6)
    a, b = embedder.embed(["find mug at cedar mill now", "find mug at cedar mill now and then"])
    full = DecoderEmbedder(GOLDEN).embed(["find mug at cedar mill now and then"])[0]
    assert np.abs(b - full).max() > 1e-3
    ids = embedder._encode(["find mug at cedar mill now and then"])[0]
    assert len(ids) == 6 and ids[-1] == 0  # <|endoftext|>


def test_the_fingerprint_names_model_prompt_and_limits():
    prints = {
        DecoderEmbedder(GOLDEN).fingerprint,
        DecoderEmbedder(GOLDEN, instruction="x").fingerprint,
        DecoderEmbedder(GOLDEN, max_length=9).fingerprint,
        DecoderEmbedder(GOLDEN, dtype="bfloat16").fingerprint,
    }
    assert len(prints) == 4 and DecoderEmbedder(GOLDEN).fingerprint in prints


def test_what_cannot_be_used_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        DecoderEmbedder(tmp_path)
    shutil.copytree(GOLDEN, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.json must belong to an embedding"):
        DecoderEmbedder(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json must be a tokenizers file"):
        DecoderEmbedder(tmp_path / "m")
    with pytest.raises(ValueError, match="batch_size >= 1, got 512 and 0"):
        DecoderEmbedder(GOLDEN, batch_size=0)
    settings = json.loads((GOLDEN / "modules.json").read_text())
    assert [m["type"].rsplit(".", 1)[1] for m in settings] == [
        "Transformer",
        "Pooling",
        "Normalize",
    ]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False},
            "must pool by the last token, got .'pooling_mode_mean_tokens'.; use sentence-transformers:",
        ),
        (
            "config_sentence_transformers.json",
            {"prompts": {"document": "passage: "}},
            "no prompt for",
        ),
    ],
)
def test_what_it_would_do_otherwise_is_refused(tmp_path, file, change, message):
    folder = shutil.copytree(GOLDEN, tmp_path / "model")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(ValueError, match=message):
        DecoderEmbedder(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"type": "sentence_transformers.models.Dense", "path": "3_Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / file).write_text((GOLDEN / file).read_text())
    with pytest.raises(
        ValueError, match="no modules but Transformer, Pooling, Normalize, got Dense"
    ):
        DecoderEmbedder(folder)


def test_an_untied_model_needs_no_head(stored, tmp_path):
    """As embedding models are saved: the golden one says that it is tied, and has none either."""
    folder = shutil.copytree(GOLDEN, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    found = DecoderEmbedder(folder).embed(stored["texts"].tolist())
    np.testing.assert_allclose(found, stored["documents"], atol=2e-6)
