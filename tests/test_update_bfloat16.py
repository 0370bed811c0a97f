"""An update in bfloat16 starts where its reference stands: KL and ratio say so before the first step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_updates import MODEL, G, K, N, R, make_batch, make_sequences, small_config

from evolving_rl_jax import models, parallel
from evolving_rl_jax.models.lora import LoraConfig
from evolving_rl_jax.update import optimizer as optimizer_lib
from evolving_rl_jax.update import state as state_lib
from evolving_rl_jax.update import step as step_lib

BF16 = dataclasses.replace(MODEL, dtype="bfloat16", qk_norm=True, model_type="qwen3")


def warm_started():
    """Float32 parameters as training leaves them: no norm scale is a number that bfloat16 holds."""
    params = models.init(BF16, jax.random.key(0))
    noise = iter(jax.random.split(jax.random.key(1), 100))
    return jax.tree.map(lambda x: x * (1 + 0.05 * jax.random.normal(next(noise), x.shape)), params)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_the_kl_to_the_reference_is_zero_before_the_first_update(lora):
    config = small_config()
    mesh = parallel.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    optimizer = optimizer_lib.make_optimizer(config)
    state = state_lib.state_from_params(
        warm_started(), BF16, optimizer, mesh, lora=lora, key=jax.random.key(2)
    )
    train_step = step_lib.make_train_step(config, BF16, optimizer, mesh, lora=lora)
    _, metrics = train_step(state, make_batch(make_sequences(), 16))
    assert G * K * N * R and float(metrics["trained_tokens"]) > 50
    assert float(metrics["kl_solver"]) == 0 and float(metrics["kl_extractor"]) == 0


def test_a_cast_keeps_what_acts_in_float32_and_the_forward_pass():
    params = warm_started()
    low = parallel.cast(params, "bfloat16")
    kinds = jax.tree_util.tree_map_with_path(lambda p, x: (p[-1].key, x.dtype.name), low)
    for name, kind in jax.tree.leaves(kinds, is_leaf=lambda x: isinstance(x, tuple)):
        assert kind == ("float32" if name.endswith("norm") else "bfloat16"), name
    tokens = jnp.arange(24).reshape(2, 12)
    a, b = (models.apply(p, BF16, tokens)[0] for p in (params, low))
    np.testing.assert_array_equal(a.astype(jnp.float32), b.astype(jnp.float32))
