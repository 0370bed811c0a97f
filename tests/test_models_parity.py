"""Logits of every family against those of ``transformers``, and the files it wrote against ours.

The references are stored (see golden/make_model_logits.py), so torch is not needed; where it is
installed the exported folders are loaded with it too.
"""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evolving_rl_jax import models

GOLDEN = pathlib.Path(__file__).parent / "golden" / "models"
FAMILIES = sorted(p.name for p in GOLDEN.iterdir() if p.is_dir())
SPELLINGS = ("config.json", "config_older.json")


def folder_of(family, spelling, tmp_path):
    """A model folder with the stored weights and one spelling of their config."""
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copyfile(GOLDEN / family / "model.safetensors", folder / "model.safetensors")
    shutil.copyfile(GOLDEN / family / spelling, folder / "config.json")
    return folder


def reference(family):
    with np.load(GOLDEN / family / "logits.npz") as file:
        return file["tokens"], file["logits"]


def our_logits(params, cfg, tokens, **options):
    hidden, _ = models.apply(params, cfg, jnp.asarray(tokens), **options)
    return np.asarray(models.logits(params, cfg, hidden))


def test_every_family_and_option_is_stored():
    configs = [models.config_from_hf(GOLDEN / f) for f in FAMILIES]
    assert {(c.model_type, c.tie_word_embeddings) for c in configs} >= {
        ("qwen2", True),
        ("qwen2", False),
        ("qwen3", True),
        ("llama", False),
        ("llama", True),
    }
    assert any(c.head_dim * c.num_heads != c.hidden_size for c in configs if c.qk_norm)
    assert any(c.rope_scaling for c in configs) and any(c.qkv_bias for c in configs)
    for family in FAMILIES:
        newer, older = (json.loads((GOLDEN / family / name).read_text()) for name in SPELLINGS)
        assert "rope_parameters" in newer and "rope_theta" not in newer
        assert "rope_theta" in older and "rope_parameters" not in older


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family, spelling, tmp_path):
    params, cfg = models.load_hf(folder_of(family, spelling, tmp_path))
    tokens, expected = reference(family)
    assert np.abs(our_logits(params, cfg, tokens) - expected).max() < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_gives_the_same_logits(family):
    params, cfg = models.load_hf(GOLDEN / family)
    tokens, expected = reference(family)
    apply = jax.jit(models.apply, static_argnums=1)
    cache = models.init_cache(cfg, tokens.shape[0], 64)
    got = []
    for start, stop in ((0, 24), (24, 48)):
        positions = jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start))
        part = jnp.asarray(tokens[:, start:stop])
        hidden, cache = apply(params, cfg, part, positions=positions, cache=cache)
        got.append(np.asarray(models.logits(params, cfg, hidden)))
    assert np.abs(np.concatenate(got, 1) - expected).max() < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_export_of_an_import_is_the_same_file(family, tmp_path):
    params, cfg = models.load_hf(GOLDEN / family)
    models.save_hf(params, cfg, tmp_path / "out")
    before, after = (p / "model.safetensors" for p in (GOLDEN / family, tmp_path / "out"))
    assert before.read_bytes() == after.read_bytes()
    assert models.config_from_hf(tmp_path / "out") == cfg
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {}


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same_with_the_exported_folder(family, shards, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    params, cfg = models.load_hf(GOLDEN / family)
    size = (GOLDEN / family / "model.safetensors").stat().st_size
    models.save_hf(params, cfg, tmp_path, max_shard_bytes=size // shards + 1)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards > 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    tokens, expected = reference(family)
    with torch.no_grad():
        got = model(torch.from_numpy(tokens).long()).logits.numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    model.generation_config.validate()
