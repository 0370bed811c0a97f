"""Adapters: a new one changes nothing, merging is W + scale A B, and PEFT reads and writes the same files."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from evolving_rl_jax import models
from evolving_rl_jax.config import LORA_TARGETS
from evolving_rl_jax.models import lora as lora_lib

QWEN3 = models.ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=12,  # not hidden / heads: q and o are not square
    qk_norm=True,
    model_type="qwen3",
)
QWEN2 = dataclasses.replace(
    QWEN3, head_dim=8, qk_norm=False, qkv_bias=True, model_type="qwen2", tie_word_embeddings=False
)
LLAMA = dataclasses.replace(QWEN3, qk_norm=False, model_type="llama")
LORA = lora_lib.LoraConfig(rank=3, alpha=6.0)
TOKENS = np.arange(2 * 9).reshape(2, 9) * 7 % 40


def random_adapters(cfg, lora, seed=0):
    """Adapters with a B that is not zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: lora_lib.init(cfg, lora, jax.random.key(0)))
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)


@functools.partial(jax.jit, static_argnums=1)
def hidden(params, cfg):
    return models.apply(params, cfg, TOKENS, remat="none")[0]


def new_params(cfg):
    return jax.jit(lambda key: models.init(cfg, key))(jax.random.key(0))


merge = jax.jit(lora_lib.merge, static_argnums=2)


@pytest.fixture(scope="module")
def params():
    return new_params(QWEN3)


def test_new_adapter_changes_nothing(params):
    fresh = lora_lib.init(QWEN3, LORA, jax.random.key(1))
    np.testing.assert_array_equal(
        hidden(lora_lib.attach(params, fresh, LORA), QWEN3), hidden(params, QWEN3)
    )
    merged = merge(params, fresh, LORA)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    bounds = {n: np.abs(p["lora_a"]).max() for n, p in fresh["layers"]["attention"].items()}
    assert all(0.5 < b * 4 <= 1 for n, b in bounds.items() if n != "o_proj")  # 1 / sqrt(16)
    assert 0.5 < bounds["o_proj"] * np.sqrt(24) <= 1


@pytest.mark.parametrize("targets", [lora_lib.TARGETS, ("q_proj", "down_proj")])
def test_merged_kernels_are_the_base_and_the_scaled_product(params, targets):
    lora = dataclasses.replace(LORA, targets=targets)
    adapters = random_adapters(QWEN3, lora)
    merged = lora_lib.merge(params, adapters, lora)
    for block in ("attention", "mlp"):
        for name, p in params["layers"][block].items():
            if name not in targets:
                assert merged["layers"][block][name] is p
                continue
            a, b = adapters["layers"][block][name].values()
            for i in range(QWEN3.num_layers):
                np.testing.assert_allclose(
                    merged["layers"][block][name]["kernel"][i],
                    np.asarray(p["kernel"][i]) + 2.0 * a[i] @ b[i],
                    rtol=1e-5,
                    atol=1e-6,
                )
    attached = lora_lib.attach(params, adapters, lora)
    np.testing.assert_allclose(hidden(attached, QWEN3), hidden(merged, QWEN3), atol=2e-5)
    assert np.abs(hidden(attached, QWEN3) - hidden(params, QWEN3)).max() > 0.1


def test_what_a_merge_loses_is_told_beforehand(params):
    """A change of 0.3 % of the weights in bfloat16, which has 8 bits; by numpy in float64."""
    adapters = random_adapters(QWEN3, LORA)
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    norms = np.array(lora_lib.merge_loss(base, adapters, LORA, "float32"))
    scaled = jax.tree_util.tree_map_with_path(
        lambda key, x: x * (0.003 / norms[0] if key[-1].key == "lora_b" else 1.0), adapters
    )
    squares = np.zeros(3)
    for dtype in ("bfloat16", "float32"):
        merged = lora_lib.merge(base, scaled, LORA, dtype=dtype)
        squares = np.zeros(3)
        for block in ("attention", "mlp"):
            for name, p in scaled["layers"][block].items():
                kernel = np.asarray(base["layers"][block][name]["kernel"], np.float64)
                a, b = (np.asarray(p[k], np.float64) for k in ("lora_a", "lora_b"))
                change = LORA.scale * np.einsum("lir,lro->lio", a, b)
                kept = np.asarray(merged["layers"][block][name]["kernel"], np.float64) - kernel
                squares += [np.sum(x**2) for x in (kernel, change, kept - change)]
        assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype(dtype)}
        change, lost = lora_lib.merge_loss(base, scaled, LORA, dtype)
        assert change == pytest.approx(0.003, rel=1e-2)
        assert change == pytest.approx(np.sqrt(squares[1] / squares[0]), rel=1e-4)
        assert lost == pytest.approx(np.sqrt(squares[2] / squares[1]), rel=1e-2, abs=1e-4)
        assert (lost > 0.1) == (dtype == "bfloat16")
    nothing = lora_lib.init(QWEN3, LORA, jax.random.key(1))
    assert lora_lib.merge_loss(base, nothing, LORA, "bfloat16") == (0.0, 0.0)


def test_cached_forward_runs_the_adapters_too(params):
    attached = lora_lib.attach(params, random_adapters(QWEN3, LORA), LORA)
    cache = models.init_cache(QWEN3, 2, 16)
    cached = jax.jit(lambda p: models.apply(p, QWEN3, TOKENS, cache=cache)[0])(attached)
    np.testing.assert_allclose(cached, hidden(attached, QWEN3), atol=1e-5)


def test_gradient_reaches_adapters_alone_and_equals_that_of_merged_kernels(params):
    adapters = random_adapters(QWEN3, LORA)

    @jax.grad
    def through_branch(adapters):
        return jnp.sum(hidden(lora_lib.attach(params, adapters, LORA), QWEN3) ** 3)

    @jax.grad
    def through_kernels(adapters):
        return jnp.sum(hidden(merge(params, adapters, LORA), QWEN3) ** 3)

    branch, kernels = through_branch(adapters), through_kernels(adapters)
    assert jax.tree.structure(branch) == jax.tree.structure(adapters)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(kernels))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4 * scale), branch, kernels
    )


def test_merger_renews_its_kernels_in_place(params):
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    merger, first_adapters = lora_lib.Merger(LORA), random_adapters(QWEN3, LORA, 1)
    first = merger(base, first_adapters)
    expected = models.by_layer(merge(base, first_adapters, LORA))
    jax.tree.map(np.testing.assert_array_equal, first, expected)
    assert first["embedding"] is base["embedding"]
    second_adapters = random_adapters(QWEN3, LORA, 2)
    second = merger(base, second_adapters)
    expected = models.by_layer(merge(base, second_adapters, LORA))
    jax.tree.map(np.testing.assert_array_equal, second, expected)
    for old, new in zip(first["layers"], second["layers"], strict=True):
        assert old["mlp"]["up_proj"]["kernel"].is_deleted()
        assert old["mlp"]["norm"] is new["mlp"]["norm"]
        assert new["mlp"]["up_proj"]["kernel"].dtype == jnp.bfloat16
    assert not base["layers"]["mlp"]["up_proj"]["kernel"].is_deleted()
    assert merger._program._cache_size() == 1


def test_configuration():
    assert lora_lib.TARGETS == LORA_TARGETS
    with pytest.raises(ValueError, match="targets must be some of q_proj, .* got .'lm_head',."):
        lora_lib.LoraConfig(rank=2, targets=("lm_head",))
    with pytest.raises(ValueError, match="rank must be >= 1, got 0"):
        lora_lib.LoraConfig(rank=0)


# -- PEFT's format ---------------------------------------------------------------------------------


def test_adapter_file_has_the_names_shapes_and_values_of_peft(tmp_path):
    lora = dataclasses.replace(LORA, targets=("o_proj", "gate_proj"))
    adapters = random_adapters(QWEN3, lora)
    lora_lib.save_adapter(adapters, lora, tmp_path, base_model="org/base")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers"
    modules = {"self_attn.o_proj": ("attention", 24, 16), "mlp.gate_proj": ("mlp", 16, 24)}
    expected = {}
    for module, (block, fan_in, fan_out) in modules.items():
        p = adapters["layers"][block][module.split(".")[1]]
        for i in range(2):
            a, b = (f"{prefix}.{i}.{module}.lora_{x}.weight" for x in "AB")
            expected |= {a: p["lora_a"][i].T, b: p["lora_b"][i].T}
            assert tensors[a].shape == (3, fan_in) and tensors[b].shape == (fan_out, 3)
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value)
    raw = json.loads((tmp_path / "adapter_config.json").read_text())
    assert raw["peft_type"] == "LORA" and raw["base_model_name_or_path"] == "org/base"
    assert (raw["r"], raw["lora_alpha"]) == (3, 6.0)
    assert raw["target_modules"] == ["o_proj", "gate_proj"]


def test_adapter_round_trip(tmp_path):
    adapters = random_adapters(QWEN3, LORA)
    lora_lib.save_adapter(adapters, LORA, tmp_path)
    loaded, lora = lora_lib.load_adapter(tmp_path, QWEN3)
    jax.tree.map(np.testing.assert_array_equal, loaded, adapters)
    assert (lora.rank, lora.alpha, set(lora.targets)) == (3, 6.0, set(LORA.targets))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora must be False, got True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must be True, got 'pissa'"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens must be None, got"),
        ({"peft_type": "IA3"}, "peft_type must be 'LORA', got 'IA3'"),
        ({"target_modules": "all-linear"}, "target_modules must be a list of names"),
        ({"target_modules": ["lm_head"]}, "targets must be some of"),
        ({"target_modules": ["q_proj"]}, "its targets only, got base_model.model.model.layers.0."),
        ({"r": 5}, "must have shape .5, 16., got shape .3, 16."),
    ],
)
def test_unsupported_adapters_are_named(tmp_path, change, message):
    lora_lib.save_adapter(random_adapters(QWEN3, LORA), LORA, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        lora_lib.load_adapter(tmp_path, QWEN3)


def test_missing_parts_of_an_adapter_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="adapter_config.json must be part"):
        lora_lib.load_adapter(tmp_path, QWEN3)
    lora_lib.save_adapter(random_adapters(QWEN3, LORA), LORA, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    del tensors[name]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=f"{name} must have shape .*, got no such tensor"):
        lora_lib.load_adapter(tmp_path, QWEN3)


# Runs where torch is: argv = folder of the base, of the adapter, for the results.
PEFT_PROGRAM = """
import sys
import numpy as np, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, adapter, out = sys.argv[1:]
tokens = torch.tensor(np.load(out + "/tokens.npy"))
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
with torch.no_grad():
    plain = model(tokens).logits
    model = PeftModel.from_pretrained(model, adapter)
    adapted = model(tokens).logits
    loaded = {n for n, _ in model.named_parameters() if "lora_" in n}
    model.save_pretrained(out + "/again")
    merged = model.merge_and_unload()(tokens).logits
np.savez(out + "/logits.npz", plain=plain, adapted=adapted, merged=merged, count=len(loaded))
"""


@pytest.mark.parametrize("cfg", [QWEN2, QWEN3, LLAMA], ids=lambda c: c.model_type)
def test_peft_computes_the_same_logits(tmp_path, cfg):
    """With the Python of the tests, or the one named by PEFT_PYTHON, whichever has peft."""
    python = os.environ.get("PEFT_PYTHON")
    if python is None:
        pytest.importorskip("torch")
        pytest.importorskip("peft")
        python = sys.executable
    params, adapters = new_params(cfg), random_adapters(cfg, LORA)
    models.save_hf(params, cfg, tmp_path / "base")
    lora_lib.save_adapter(adapters, LORA, tmp_path / "adapter", base_model=tmp_path / "base")
    np.save(tmp_path / "tokens.npy", TOKENS)
    command = [python, "-c", PEFT_PROGRAM, tmp_path / "base", tmp_path / "adapter", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    logits = np.load(tmp_path / "logits.npz")

    def mine(params):
        return models.logits(params, cfg, hidden(params, cfg))

    assert logits["count"] == 2 * 2 * len(LORA.targets)
    assert np.abs(logits["adapted"] - logits["plain"]).max() > 0.02
    np.testing.assert_allclose(mine(params), logits["plain"], atol=1e-4)
    attached = mine(lora_lib.attach(params, adapters, LORA))
    np.testing.assert_allclose(attached, logits["adapted"], atol=1e-4)
    merged = mine(merge(params, adapters, LORA))
    np.testing.assert_allclose(merged, logits["merged"], atol=1e-4)
    again, _ = lora_lib.load_adapter(tmp_path / "again", cfg)
    jax.tree.map(np.testing.assert_array_equal, again, adapters)
