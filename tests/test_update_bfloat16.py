"""An update in bfloat16 starts where its reference stands: KL and ratio say so before the first step."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_updates import MODEL, G, K, N, R, make_batch, make_sequences, small_config

from evolving_rl_jax import models, parallel
from evolving_rl_jax.models.lora import LoraConfig
from evolving_rl_jax.update import microbatch
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


def casts(text):
    """Shapes of what a program casts from float32 to bfloat16, one for each cast in its text."""
    pattern = r"stablehlo.convert [^\n]*: \(tensor<([\dx]+)xf32>\) -> tensor<[\dx]+xbf16>"
    return re.findall(pattern, text)


@pytest.mark.parametrize("kind", ["train", "scoring", "cloning", "cloning score"])
def test_weights_are_cast_once_an_update_and_not_in_every_layer_of_every_micro_batch(kind):
    cfg, config = dataclasses.replace(BF16, tie_word_embeddings=False), small_config()
    mesh = parallel.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    optimizer = optimizer_lib.make_optimizer(config)
    batch = make_batch(make_sequences(), 16)
    make = {
        "train": step_lib.make_train_step,
        "scoring": step_lib.make_scoring,
        "cloning": step_lib.make_cloning_step,
        "cloning score": step_lib.make_cloning_score,
    }[kind]
    if kind.startswith("cloning"):
        fields = ("tokens", "positions", "segment_ids", "loss_mask")
        batch = {name: getattr(batch, name) for name in fields}
    reference = not kind.startswith("cloning")
    state = state_lib.abstract_state(cfg, optimizer, mesh, reference=reference)
    found = casts(make(config, cfg, optimizer, mesh).lower(state, batch).as_text())
    kernels = [x.shape for x in jax.tree.leaves(state.params["layers"]) if x.ndim == 3]
    for shape in set(kernels):
        assert found.count("x".join(map(str, shape))) == kernels.count(shape), (shape, found)
        assert "x".join(map(str, shape[1:])) not in found, (shape, found)
    # The gradient of the unembedding, summed in float32, is cast to its dtype as well.
    unembedding = "x".join(map(str, state.params["unembedding"].shape))
    assert found.count(unembedding) == 1 + (kind in ("train", "cloning"))


def test_casting_first_changes_no_gradient():
    params = warm_started()
    rows = {"tokens": jnp.arange(96).reshape(4, 2, 12) % BF16.vocab_size}
    mesh = parallel.make_mesh(1, 1, 1, devices=jax.devices()[:1])

    def loss(params, rows):
        hidden, _ = models.apply(params, BF16, rows["tokens"], remat="none")
        total = jnp.sum(jax.nn.log_softmax(models.logits(params, BF16, hidden))[..., 3])
        return total, microbatch.MicroResult({"total": total}, {})

    def gradients(params):
        return microbatch.accumulate_gradients(loss, params, rows, jnp.int32(4), mesh)[0]

    within = jax.jit(gradients)(params)
    first = jax.jit(lambda p: gradients(step_lib.cast_once(p, BF16, None)))(params)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(first))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(within), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=1e-3 * float(jnp.abs(b).max()))
