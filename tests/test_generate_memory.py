"""What an engine takes of a device's memory, and how weights come into its layout."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evolving_rl_jax import models
from evolving_rl_jax.config import ConfigError, default_config, validate
from evolving_rl_jax.generate import Engine, MemoryPlan, memory
from evolving_rl_jax.generate.weights import Relayout, changes

CFG = models.ModelConfig(61, 32, 48, 2, 4, 2, 8, qk_norm=True, model_type="qwen3")
PARAMS = models.init(CFG, jax.random.key(0))


def make_engine(**options):
    return Engine(
        CFG, PARAMS, num_slots=4, max_length=64, prefill_chunk=(8,), decode_window=4,
        row_buckets=(2,), column_buckets=(64,), **options,
    )  # fmt: skip


def test_the_plan_is_what_is_allocated():
    for dtype, size in ((jnp.float32, 4), (jnp.bfloat16, 2)):
        engine = make_engine(dtype=dtype)
        cache = jax.tree.leaves(engine._runner.cache)
        assert engine.memory.cache == sum(x.nbytes for x in cache)
        assert engine.memory.cache == 4 * 64 * CFG.num_layers * 2 * CFG.num_kv_heads * 8 * size
        assert engine.memory.working == engine.memory.cache // 2  # two of four rows a call
        own = sum(x.nbytes for x in jax.tree.leaves(engine._runner.params))
        layers = sum(x.nbytes for x in jax.tree.leaves(PARAMS["layers"]))
        assert engine.memory.weights == (own if size == 2 else layers)
    assert make_engine(copies_weights=True).memory.weights == sum(
        x.nbytes for x in jax.tree.leaves(PARAMS)
    )


def test_a_plan_that_does_not_fit_says_what_would():
    cfg = models.ModelConfig(1000, 1536, 8960, 28, 12, 2, 128, dtype="bfloat16")
    plan = MemoryPlan.of(cfg, num_slots=128, max_length=4096, rows=128, weights=3_100_000_000)
    plan.check(None, "a device that does not say")
    plan.check(plan.total, "a device")
    with pytest.raises(ValueError) as error:
        plan.check(24e9, "cuda:0")
    message = str(error.value)
    for part in (
        "cuda:0",
        "24 GB",
        "128 x 4096",
        "15 GB of cache",
        "3.1 GB of weights",
        "at most 88",
    ):
        assert part in message, message
    with pytest.raises(ValueError, match="not one slot fits"):
        plan.check(3e9, "cuda:0")


def test_an_engine_that_does_not_fit_is_refused_before_anything_is_compiled(monkeypatch):
    def refuse(*_):
        raise AssertionError("compiled")

    monkeypatch.setattr(models, "init_cache", refuse)
    with pytest.raises(ValueError, match="num_slots x max_length must fit what memory_limit"):
        make_engine(memory_limit=90_000)
    monkeypatch.setattr("evolving_rl_jax.generate.engine.free_bytes", lambda device: 50_000)
    with pytest.raises(ValueError, match="must fit what"):
        make_engine()


def test_free_bytes_are_what_the_device_says():
    def device(stats):
        return types.SimpleNamespace(memory_stats=lambda: stats)

    assert memory.free_bytes(device(None)) is None and memory.free_bytes(device({})) is None
    assert memory.free_bytes(device({"bytes_limit": 100, "bytes_in_use": 30})) == 70


def test_the_configuration_is_checked_before_a_run_starts():
    config = default_config()
    config.rollout.update(
        num_slots=100, max_length=1000, max_skill_tokens=100, memory_limit_gb=0.05
    )
    config.train.row_length = 1000
    with pytest.raises(ConfigError, match="100 x 1000 = 0.102 GB"):
        validate(config)
    config.rollout.weights_dtype = "bfloat16"
    with pytest.raises(ConfigError, match="100 x 1000 = 0.0512 GB"):
        validate(config)


def test_weights_are_cast_by_one_function_compiled_once():
    relayout = Relayout(jnp.bfloat16, jax.devices()[0])
    for scale in (1.0, 2.0):
        params = jax.tree.map(lambda x, s=scale: x * s, PARAMS)
        got = relayout(params)
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(
                np.asarray(a, np.float32), np.asarray(b.astype(jnp.bfloat16), np.float32)
            ),
            got,
            models.by_layer(params),
        )
    assert relayout._cast._cache_size() == 1


def test_weights_are_shared_unless_a_copy_is_asked_for_and_layers_are_apart():
    relayout = Relayout(jnp.float32, jax.devices()[0])

    def places(params):
        return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(params)]

    got = relayout(PARAMS)
    for name in ("embedding", "final_norm"):
        assert places(got[name]) == places(PARAMS[name])
    assert len(got["layers"]) == CFG.num_layers
    for i, layer in enumerate(got["layers"]):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_array_equal(a, b[i]), layer, PARAMS["layers"]
        )
    assert places(relayout(got)) == places(got)
    assert not set(places(relayout(PARAMS, copy=True))) & set(places(PARAMS))
    assert not set(places(relayout(got, copy=True))) & set(places(got))


def test_an_engine_with_a_copy_outlives_the_donation_of_the_trainers_weights():
    engine = make_engine()

    def sample(episode):
        session = engine.open(0, episode, np.arange(9))
        engine.submit(session, (), max_new_tokens=8)
        tokens = []
        while engine.busy:
            tokens += [g.tokens for g in engine.step()]
        engine.close(session)
        return tokens[0]

    mine = jax.tree.map(jnp.copy, PARAMS)
    engine.set_params(mine, 3, copy=True)
    before = sample(1)
    train = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
    jax.block_until_ready(train(mine))
    assert all(x.is_deleted() for x in jax.tree.leaves(mine))
    cache = [x.shape for x in jax.tree.leaves(engine._runner.cache)]
    engine.set_params(engine._runner.params, 4)
    np.testing.assert_array_equal(sample(1), before)
    assert engine.version == 4 and cache == [x.shape for x in jax.tree.leaves(engine._runner.cache)]


def test_a_turn_carries_the_version_of_its_weights():
    engine = make_engine()
    for version in (5, 6):
        engine.set_params(PARAMS, version)
        session = engine.open(0, version, [1, 2])
        engine.submit(session, (), max_new_tokens=3)
        done = []
        while engine.busy:
            done += engine.step()
        assert [g.version for g in done] == [version]
        engine.close(session)


def test_bfloat16_generation_of_a_float32_policy():
    engine = make_engine(dtype=jnp.bfloat16)
    assert engine.cfg == dataclasses.replace(CFG, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(engine._runner.cache)} == {jnp.dtype(jnp.bfloat16)}
    params = engine._runner.params  # but for the scales of norms, which act in float32
    assert params["final_norm"].dtype == params["layers"][0]["mlp"]["norm"].dtype == jnp.float32
    assert params["embedding"].dtype == jnp.bfloat16
    assert params["layers"][0]["mlp"]["up_proj"]["kernel"].dtype == jnp.bfloat16


def test_taking_weights_traces_nothing(monkeypatch):
    """Whether a cast changes them is read off their dtypes."""
    mixed = {"a": np.ones(3, np.float32), "input_norm": np.ones(2, np.float32)}
    assert changes(mixed, "bfloat16") and not changes(mixed, "float32")
    half = {**mixed, "a": jnp.ones(3, jnp.bfloat16)}
    assert not changes(half, "bfloat16")  # the scales of norms stay in float32
    assert changes(half, "float32")

    def refuse(*_args, **_options):
        raise AssertionError("traced")

    monkeypatch.setattr(jax, "eval_shape", refuse)
    assert not changes(PARAMS, CFG.dtype) and changes(PARAMS, "bfloat16")


def test_after_the_warm_up_the_plan_is_the_compilers():
    engine = make_engine()
    planned = engine.memory
    assert not planned.compiled
    engine.warmup()
    programs = engine._runner.programs._compiled
    largest = max(p.memory_analysis().temp_size_in_bytes for p in programs.values())
    assert engine.memory.compiled and engine.memory.working == largest > planned.working
    assert engine.memory.cache == planned.cache and engine.memory.weights == planned.weights
    # A limit that the plan kept and the programs do not.
    tight = make_engine(memory_limit=planned.total + 1)
    with pytest.raises(ValueError, match="GB of working memory"):
        tight.warmup()


def test_weights_that_only_change_their_layout_are_counted():
    whole = sum(x.nbytes for x in jax.tree.leaves(PARAMS))
    device = jax.local_devices()[0]
    layers = sum(x.nbytes for x in jax.tree.leaves(PARAMS["layers"]))  # taken apart
    assert memory.own_weights(PARAMS, CFG.dtype, place=device) == layers
    assert memory.own_weights(models.by_layer(PARAMS), CFG.dtype, place=device) == 0
    assert memory.own_weights(jax.device_get(PARAMS), CFG.dtype, place=device) == whole
    if jax.device_count() > 1:
        elsewhere = jax.device_put(PARAMS, jax.local_devices()[1])
        assert memory.own_weights(elsewhere, CFG.dtype, place=device) == whole
    assert memory.own_weights(PARAMS, CFG.dtype, copy=True, place=device) == whole
    assert memory.own_weights(PARAMS, "bfloat16", place=device) < whole
