"""Training of adapters on a frozen policy, bfloat16 computation, the end of a diverging run."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_updates import (
    MODEL,
    ONE_DEVICE,
    assert_same,
    make_batch,
    make_sequences,
    small_config,
)

from evolving_rl_jax import models, parallel
from evolving_rl_jax.config import ConfigError, default_config
from evolving_rl_jax.generate.engine import Engine
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.run.parts import read_adapter
from evolving_rl_jax.train import limits
from evolving_rl_jax.train.checkpoint import Checkpoints
from evolving_rl_jax.update import optimizer as optimizer_lib
from evolving_rl_jax.update import rows as rows_lib
from evolving_rl_jax.update import state as state_lib
from evolving_rl_jax.update import step as step_lib

LORA = lora_lib.LoraConfig(rank=2, alpha=4.0)
BF16 = dataclasses.replace(MODEL, dtype="bfloat16")


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(**ONE_DEVICE, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def batch():
    return make_batch(make_sequences(), num_rows=16)


@pytest.fixture(scope="module")
def optimizer():
    return optimizer_lib.make_optimizer(small_config())


@pytest.fixture(scope="module")
def base():
    return jax.device_get(jax.jit(lambda: models.init(MODEL, jax.random.key(1)))())


@pytest.fixture(scope="module")
def adapters():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: lora_lib.init(MODEL, LORA, jax.random.key(0)))
    return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def start(base, adapters, optimizer, mesh):
    """A state, on the host, whose adapters have been trained a little."""
    state = state_lib.state_from_params(
        base, MODEL, optimizer, mesh, lora=LORA, key=jax.random.key(2)
    )
    return jax.device_get(state)._replace(params=adapters)


@pytest.fixture(scope="module")
def place(mesh):
    return lambda state: jax.device_put(state, parallel.shardings(state, mesh))


@pytest.fixture(scope="module")
def lora_step(optimizer, mesh):
    return step_lib.make_train_step(small_config(), MODEL, optimizer, mesh, lora=LORA)


@pytest.fixture(scope="module")
def full_step(optimizer, mesh):
    return step_lib.make_train_step(small_config(), MODEL, optimizer, mesh)


def names(tree):
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/").split("/")[-1] for p, _ in paths}


def test_only_adapters_are_trained(lora_step, start, place, batch):
    state, metrics = start, []
    for _ in range(3):
        state, new = lora_step(place(state), batch)
        state = jax.device_get(state)
        metrics.append(jax.device_get(new))
    assert_same(state.ref_params, start.ref_params, rtol=0, atol=0)
    assert names(state.params) == {"lora_a", "lora_b"}
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, start.params)
    assert all(jax.tree.leaves(changed))
    moments = state.opt_state[1][0]
    assert jax.tree.structure(moments.mu) == jax.tree.structure(state.params)
    assert metrics[0]["update_norm"] > 0 and metrics[0]["kl"] > 0
    assert lora_step._cache_size() == 1


def test_gradient_is_that_of_the_merged_policy(
    lora_step, full_step, start, place, batch, adapters, base, optimizer, mesh
):
    """The chain rule by hand: dA = scale dW B^T and dB = scale A^T dW, with dW of a full update."""
    merged = jax.device_get(lora_lib.merge(base, adapters, LORA))
    full = jax.device_get(state_lib.state_from_params(merged, MODEL, optimizer, mesh))
    full, full_metrics = full_step(place(full._replace(ref_params=start.ref_params)), batch)
    state, metrics = lora_step(place(start), batch)
    for name in ("loss", "kl", "policy_loss", "entropy_solver", "logprob_gap_mean"):
        np.testing.assert_allclose(metrics[name], full_metrics[name], rtol=1e-4, err_msg=name)

    def gradient(state, norm):
        # Adam's first moment is (1 - b1) times the gradient after clipping to 1.
        mu = jax.device_get(state.opt_state[1][0].mu)
        return jax.tree.map(lambda m: m * 10 * max(float(norm), 1.0), mu["layers"])

    kernels = gradient(full, full_metrics["grad_norm"])
    for block, projections in gradient(state, metrics["grad_norm"]).items():
        for name, got in projections.items():
            p, dw = adapters["layers"][block][name], kernels[block][name]["kernel"]
            by_hand = {
                "lora_a": 2.0 * np.einsum("lio,lro->lir", dw, p["lora_b"]),
                "lora_b": 2.0 * np.einsum("lir,lio->lro", p["lora_a"], dw),
            }
            assert_same(got, by_hand, rtol=1e-3, atol=1e-5)


def test_without_adapters_yet_the_policy_is_the_reference(lora_step, place, batch, base, mesh):
    optimizer = optimizer_lib.make_optimizer(small_config())
    state = state_lib.state_from_params(
        base, MODEL, optimizer, mesh, lora=LORA, key=jax.random.key(2)
    )
    _, metrics = lora_step(state, batch)
    assert metrics["kl"] == 0 and metrics["grad_norm"] > 0


def test_engine_with_merged_weights_agrees_with_the_trainer(start, place, mesh):
    state = place(start)
    merged = lora_lib.Merger(LORA)(state.ref_params, state.params)
    engine = Engine(
        MODEL, merged, num_slots=1, max_length=32, prefill_chunk=(16,), decode_window=8,
        row_buckets=(1,), column_buckets=(32,),
    )  # fmt: skip
    session = engine.open(0, 0)
    prompt = list(range(3, 12))
    engine.submit(session, prompt, max_new_tokens=16, stop_ids=())
    generations = []
    while engine.busy:
        generations += engine.step()
    sampled, logprobs = generations[0].tokens, generations[0].logprobs
    tokens = np.array([prompt + list(sampled)], np.int32)
    length = tokens.shape[1]
    mask = (np.arange(length) >= len(prompt)).astype(np.float32)[None]
    rows = rows_lib.make_rows(
        tokens, np.arange(length)[None], np.ones((1, length), np.int32), jnp.asarray(mask)
    )
    policy = lora_lib.attach(state.ref_params, state.params, LORA)
    trainer, *_ = jax.jit(
        lambda p: rows_lib.row_logprobs(p, MODEL, rows, chunk=8, remat="none", mesh=mesh)
    )(policy)
    assert len(sampled) == 16
    np.testing.assert_allclose(trainer[0, :16], logprobs, atol=2e-4)


def test_checkpoint_holds_adapters_and_optimizer_only(
    tmp_path, lora_step, start, place, batch, optimizer, mesh
):
    state, _ = lora_step(place(start), batch)
    keep = ConfigDict({"keep_last": 1, "keep_best": 0})
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep)
    checkpoints.save(1, state_lib.kept(state, LORA), {"iteration": 1})
    checkpoints.close()
    abstract = state_lib.abstract_state(MODEL, optimizer, mesh, lora=LORA)
    again = Checkpoints(tmp_path / "checkpoints", keep)
    restored, extra = again.restore(state_lib.kept(abstract, LORA))
    again.close()
    assert restored.ref_params is None and extra["iteration"] == 1
    restored = restored._replace(ref_params=place(start.ref_params))
    assert_same(jax.device_get(restored), jax.device_get(state), rtol=0, atol=0)
    # The step goes on with it as it would have gone on without.
    expected, _ = lora_step(state, batch)
    resumed, _ = lora_step(restored, batch)
    assert_same(jax.device_get(resumed), jax.device_get(expected), rtol=0, atol=0)
    assert lora_step._cache_size() == 1


def kinds_of(params):
    """Dtypes but for the scales of norms, which act in float32 and are kept as they are."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {x.dtype for path, x in leaves if not path[-1].key.endswith("norm")}


def test_frozen_weights_are_kept_in_the_compute_dtype(base, optimizer, mesh):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    for params in (base, half):
        state = state_lib.state_from_params(
            params, BF16, optimizer, mesh, lora=LORA, key=jax.random.key(0)
        )
        assert kinds_of(state.ref_params) == {jnp.dtype("bfloat16")}
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


# -- bfloat16 --------------------------------------------------------------------------------------


def test_bfloat16_computes_and_float32_is_kept(batch, base, full_step, place, mesh):
    config = small_config()
    config.optimizer.learning_rate = 1e-6  # far below what bfloat16 weights could take up
    optimizer = optimizer_lib.make_optimizer(config)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)  # as an imported folder is
    state = state_lib.state_from_params(half, BF16, optimizer, mesh)
    before = jax.device_get(state)
    assert_same(before.params, jax.tree.map(lambda x: x.astype(np.float32), half), 0, 0)
    train_step = step_lib.make_train_step(config, BF16, optimizer, mesh)
    state, metrics = train_step(state, batch)
    after = jax.device_get(state)
    floats = [x for x in jax.tree.leaves((after.params, after.opt_state)) if x.ndim]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}
    assert kinds_of(after.ref_params) == {jnp.dtype("bfloat16")}
    moved = jax.tree.map(lambda a, b: np.mean(a != b), after.params, before.params)
    assert min(jax.tree.leaves(moved["layers"]["mlp"]["up_proj"])) > 0.5
    single = state_lib.state_from_params(base, MODEL, optimizer, mesh)
    _, expected = full_step(place(jax.device_get(single)), batch)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=0.02, atol=0.01)
    np.testing.assert_allclose(metrics["grad_norm"], expected["grad_norm"], rtol=0.05)
    assert_same(train_step(state, batch)[1]["skipped_updates"], 0.0)


# -- divergence ------------------------------------------------------------------------------------


def test_run_ends_after_too_many_updates_without_a_finite_gradient():
    limit = limits.SkipLimit(3)
    limit.check([math.nan, math.inf, 1.0, math.nan])
    limit.check([np.float32("nan")])
    limit.check([0.5])
    limit.check([math.nan, math.nan])
    with pytest.raises(ConfigError) as caught:
        limit.check([math.nan])
    message = str(caught.value)
    assert isinstance(caught.value, limits.DivergedError) and "\n" not in message
    assert "got 3 updates in a row" in message and "config.optimizer.max_skipped = 3" in message
    assert "checkpoints are kept" in message and "learning_rate" in message


# -- an adapter of PEFT to start from --------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path):
    """A saved adapter, and a configuration that starts from it."""
    adapters = lora_lib.init(MODEL, LORA, jax.random.key(9))
    adapters = jax.tree.map(lambda x: np.asarray(x + 0.25), adapters)
    lora_lib.save_adapter(adapters, LORA, tmp_path / "adapter")
    config = default_config()
    config.model.hf_path, config.model.lora_adapter = "org/base", str(tmp_path / "adapter")
    config.model.lora.update(rank=LORA.rank, alpha=LORA.alpha, targets=LORA.targets)
    return adapters, config


def test_training_starts_from_an_adapter_of_peft(adapter, base, optimizer, mesh):
    adapters, config = adapter
    found = read_adapter(config, MODEL)
    state = state_lib.state_from_params(
        base, MODEL, optimizer, mesh, lora=LORA, key=jax.random.key(0), adapters=found
    )
    assert_same(jax.device_get(state.params), adapters, rtol=0, atol=0)
    config.model.lora_adapter = ""
    assert read_adapter(config, MODEL) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 7}, "config.model.lora.rank must be that of the adapter .*, got 7"),
        ({"alpha": 3.0}, r"config.model.lora.alpha must be .*, got 3\.0"),
        ({"targets": ("q_proj",)}, "config.model.lora.targets must be .*, got .'q_proj'."),
    ],
)
def test_an_adapter_that_the_configuration_does_not_describe(adapter, change, message):
    config = adapter[1]
    config.model.lora.update(change)
    with pytest.raises(ConfigError, match=message):
        read_adapter(config, MODEL)


def test_a_folder_without_an_adapter_is_named(adapter, tmp_path):
    config = adapter[1]
    config.model.lora_adapter = str(tmp_path)
    with pytest.raises(ConfigError, match="config.model.lora_adapter.*adapter_config.json"):
        read_adapter(config, MODEL)
