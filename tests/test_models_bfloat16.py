"""A forward and backward pass in bfloat16 against float32: what is summed over tokens keeps its value."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evolving_rl_jax import models
from evolving_rl_jax.models import lora as lora_lib

B, T = 4, 512
BASE = models.ModelConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8,
)  # fmt: skip
FAMILIES = {
    "qwen2": {"model_type": "qwen2", "qkv_bias": True},
    "qwen3": {"model_type": "qwen3", "qk_norm": True, "tie_word_embeddings": False},
}


def rounded(tree):
    """Values that bfloat16 holds exactly, so that nothing is lost before the first sum."""
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), tree)


def frequent_tokens(share):
    """[B, T] tokens of which ``share`` are token 7, as a padding-like or newline token would be."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(8, BASE.vocab_size, (B, T))
    return jnp.asarray(np.where(rng.random((B, T)) < share, 7, tokens))


def gradients(cfg, params, tokens, adapters=None, lora=None):
    """Gradients of a loss that is linear in the hidden states and has a mean: sums that grow with T."""
    direction = 1.0 + jax.random.normal(jax.random.key(5), (cfg.hidden_size,))

    def loss(trained):
        whole = lora_lib.attach(params, trained, lora) if lora else trained
        hidden, _ = models.apply(whole, cfg, tokens, remat="none")
        return jnp.sum(hidden.astype(jnp.float32) @ direction)

    return jax.jit(jax.grad(loss))(adapters if lora else params)


def worst(exact, got):
    """Relative error of each array, largest of the layers."""
    errors = {}
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(exact), jax.tree.leaves(got), strict=True
    ):
        a, b = (np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in (a, b))
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        errors[name] = np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12)
    return errors


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_gradients_that_are_sums_over_tokens_are_those_of_float32(family, share):
    cfg = dataclasses.replace(BASE, **FAMILIES[family])
    params = rounded(models.init(cfg, jax.random.key(0)))
    tokens = frequent_tokens(share)
    exact = gradients(cfg, params, tokens)
    got = gradients(dataclasses.replace(cfg, dtype="bfloat16"), params, tokens)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(got))
    row = np.linalg.norm(got["embedding"][7] - exact["embedding"][7])
    assert row / np.linalg.norm(exact["embedding"][7]) < 0.02
    errors = worst(exact, got)
    assert max(errors.values()) < 0.04, errors


def test_gradients_of_adapters_are_those_of_float32():
    lora = lora_lib.LoraConfig(rank=4)
    params = rounded(models.init(BASE, jax.random.key(0)))
    adapters = lora_lib.init(BASE, lora, jax.random.key(1))
    # B is zero at first, and A then has no gradient to compare.
    adapters = rounded(jax.tree.map(lambda x: x + 0.01, adapters))
    tokens = frequent_tokens(0.5)
    exact = gradients(BASE, params, tokens, adapters, lora)
    low = dataclasses.replace(BASE, dtype="bfloat16")
    errors = worst(exact, gradients(low, params, tokens, adapters, lora))
    assert max(errors.values()) < 0.04, errors


def test_the_gradient_of_a_lookup_counts_every_token():
    """4,096 ones in bfloat16 would sum to 256."""
    cfg = dataclasses.replace(BASE, dtype="bfloat16", num_layers=1)
    params = models.init(cfg, jax.random.key(0))
    params["layers"] = jax.tree.map(jnp.zeros_like, params["layers"])  # hidden = norm(embedding)

    def loss(embedding, tokens):
        hidden, _ = models.apply(params | {"embedding": embedding}, cfg, tokens, remat="none")
        return jnp.sum(hidden.astype(jnp.float32)[..., 0])

    one, many = (
        jax.grad(loss)(params["embedding"], jnp.full(shape, 3))[3] for shape in ((1, 1), (8, 512))
    )
    np.testing.assert_allclose(many, 4096 * one, rtol=0.02)
