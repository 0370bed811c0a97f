"""Cached against full forward passes, packing, remat, initialisation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evolving_rl_jax import models

CFG = models.ModelConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=10,
    qkv_bias=True,
    qk_norm=True,
)


@pytest.fixture(scope="module")
def params():
    return models.init(CFG, jax.random.key(0))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (3, 24), 0, CFG.vocab_size)


@functools.partial(jax.jit, static_argnums=2)
def forward(params, tokens, cfg=CFG):
    return models.apply(params, cfg, tokens)[0]


@functools.partial(jax.jit, static_argnames="kv_limit")
def cached(params, tokens, positions, cache, kv_limit=None):
    return models.apply(params, CFG, tokens, positions=positions, cache=cache, kv_limit=kv_limit)


def test_cached_steps_equal_the_full_forward(params, tokens):
    full = forward(params, tokens)
    cache = models.init_cache(CFG, 3, 40)
    # Columns left by an earlier occupant must never be seen.
    cache = jax.tree.map(lambda x: x + 1e3, cache)
    positions = jnp.tile(jnp.arange(24), (3, 1))
    parts = []
    for start, stop, limit in ((0, 9, 16), (9, 10, None), (10, 24, 32)):
        window = slice(start, stop)
        hidden, cache = cached(params, tokens[:, window], positions[:, window], cache, limit)
        parts.append(hidden)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full, atol=2e-5)


def test_rows_at_different_depths_and_padding(params, tokens):
    full = forward(params, tokens)
    cache = models.init_cache(CFG, 3, 24)
    lengths = np.array([5, 0, 9])
    first = np.where(np.arange(10) < lengths[:, None], np.arange(10), -1)
    _, cache = cached(params, tokens[:, :10], jnp.asarray(first), cache)
    untouched = cache["k"][0][1]
    assert not np.asarray(untouched).any()
    window = lengths[:, None] + np.arange(4)
    hidden, _ = cached(
        params, jnp.take_along_axis(tokens, window, axis=1), jnp.asarray(window), cache
    )
    expected = jnp.take_along_axis(full, window[..., None], axis=1)
    np.testing.assert_allclose(hidden, expected, atol=2e-5)


@pytest.mark.parametrize("implementation", ["plain", "blockwise"])
def test_packed_equals_unpacked_in_hidden_states_and_gradients(params, implementation):
    lengths, total = [11, 20, 7], 48
    rows = np.asarray(jax.random.randint(jax.random.key(2), (3, 20), 0, 50))
    used = np.arange(20) < np.array(lengths)[:, None]

    @jax.jit
    def step(params, tokens, segment_ids, positions):
        def loss(params):
            hidden, _ = models.apply(
                params,
                CFG,
                tokens,
                positions=positions,
                segment_ids=segment_ids,
                implementation=implementation,
            )
            weights = jnp.sin(jnp.arange(CFG.hidden_size)) * (segment_ids > 0)[..., None]
            return jnp.mean(hidden * weights) * hidden.size, hidden

        return jax.value_and_grad(loss, has_aux=True)(params)

    padding = total - sum(lengths)
    packed = np.concatenate([rows[used], np.full(padding, 3)])[None]
    segments = np.repeat([1, 2, 3, 0], [*lengths, padding])[None]
    positions = np.concatenate([np.arange(n) for n in (*lengths, padding)])[None]
    (value, hidden), gradient = step(params, packed, segments, positions)
    apart = step(params, rows, used.astype(np.int32), np.tile(np.arange(20), (3, 1)))
    (expected_value, expected), expected_gradient = apart
    np.testing.assert_allclose(value, expected_value, rtol=1e-4)
    np.testing.assert_allclose(hidden[0, :-padding], np.asarray(expected)[used], atol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()),
        gradient,
        expected_gradient,
    )


def test_remat_changes_no_gradient(params, tokens):
    def gradient(remat):
        def loss(p):
            row = tokens[:1, :16]
            hidden, _ = models.apply(p, CFG, row, remat=remat, implementation="blockwise")
            return jnp.sum(jnp.square(models.logits(p, CFG, hidden)))

        return jax.jit(jax.grad(loss))(params)

    expected = gradient("none")
    for remat in ("full", "dots"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2),
            gradient(remat),
            expected,
        )
    with pytest.raises(ValueError, match="remat must be one of none, full, dots, got 'some'"):
        gradient("some")


def test_decode_loop_keeps_the_cache_in_place(params):
    """A loop of decode steps over a donated cache holds no second copy of it."""
    cache = jax.eval_shape(lambda: models.init_cache(CFG, 4, 4096))

    @functools.partial(jax.jit, donate_argnums=1)
    def decode(params, cache, tokens):
        def body(i, state):
            tokens, cache = state
            positions = jnp.full((4, 1), i)
            hidden, cache = models.apply(
                params, CFG, tokens, positions=positions, cache=cache, kv_limit=64
            )
            return jnp.argmax(models.logits(params, CFG, hidden), -1), cache

        return jax.lax.fori_loop(0, 8, body, (tokens, cache))

    tokens = jax.ShapeDtypeStruct((4, 1), jnp.int32)
    memory = decode.lower(params, cache, tokens).compile().memory_analysis()
    one_layer = 4 * 2 * 4096 * 10 * 4
    assert memory.alias_size_in_bytes >= 6 * one_layer
    assert memory.temp_size_in_bytes < one_layer


def test_bfloat16_compute_and_first_logits_near_uniform(params, tokens):
    cfg = dataclasses.replace(CFG, dtype="bfloat16")
    full = forward(params, tokens)
    half = forward(params, tokens, cfg)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), full, atol=0.2)
    logits = models.logits(params, CFG, full)
    assert logits.shape == (3, 24, 50) and logits.dtype == jnp.float32
    assert float(jnp.abs(logits).max()) < 1.0
    assert models.unembedding(params, CFG) is params["embedding"]
    assert models.init_cache(cfg, 2, 8)["v"][2].dtype == jnp.bfloat16


def test_layers_are_stacked_and_of_the_configured_sizes(params):
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes["layers"]["attention"]["q_proj"] == {"kernel": (3, 32, 40), "bias": (3, 40)}
    assert shapes["layers"]["attention"]["v_proj"] == {"kernel": (3, 32, 20), "bias": (3, 20)}
    assert shapes["layers"]["mlp"]["down_proj"] == {"kernel": (3, 48, 32)}
    assert "unembedding" not in shapes
