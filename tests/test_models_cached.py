"""Rows of a cache used where they lie: against a gathered copy, and the memory that it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evolving_rl_jax import models
from evolving_rl_jax.generate.cache import copy_in_place
from evolving_rl_jax.generate.programs import Programs
from evolving_rl_jax.generate.weights import Relayout
from evolving_rl_jax.models import cached
from evolving_rl_jax.models.attention import cached_attention, write_cache

SLOTS, KV_HEADS, LENGTH, DIM = 5, 2, 96, 8


def random_cache(seed):
    return jax.random.normal(jax.random.key(seed), (SLOTS, KV_HEADS, LENGTH, DIM))


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("least", [16, 40, 96])  # 40: the last block is moved back
def test_rows_by_index_equal_a_gathered_copy(monkeypatch, tokens, least):
    monkeypatch.setattr(cached, "_LEAST", least)
    monkeypatch.setattr(cached, "_BLOCK_BYTES", 0)
    slots = jnp.array([3, 0, SLOTS])  # the last one is padding
    positions = jnp.array([[90], [5], [0]])
    positions = jnp.concatenate([positions + i for i in range(tokens - 1)] + [positions * 0 - 1], 1)
    positions = positions if tokens > 1 else jnp.array([[90], [5], [-1]])
    q = jax.random.normal(jax.random.key(2), (3, 4, tokens, DIM))
    new = jax.random.normal(jax.random.key(3), (3, KV_HEADS, tokens, DIM))
    before = random_cache(0), random_cache(1)
    keys, values = (cached.write_rows(x, new, slots, positions) for x in before)
    got = cached.rows_attention(q, keys, values, slots, positions, columns=LENGTH)
    for row, slot in ((0, 3), (1, 0)):
        one = slice(row, row + 1)
        k, v = (write_cache(x[slot][None], new[one], positions[one]) for x in before)
        np.testing.assert_array_equal(keys[slot], k[0])
        expected = cached_attention(q[one], k, v, positions[one])[0]
        real = np.asarray(positions[row] >= 0)
        np.testing.assert_allclose(got[row][:, real], expected[:, real], atol=1e-5)
    assert np.isfinite(got).all()
    for slot in (1, 2, 4):
        np.testing.assert_array_equal(keys[slot], before[0][slot])


def test_a_copy_in_blocks_moves_all_columns_and_nothing_else(monkeypatch):
    monkeypatch.setattr("evolving_rl_jax.generate.cache._COPIED", 40)
    cache = {"k": (random_cache(0),)}
    copied = copy_in_place(cache, jnp.array([0, 1, 2]), jnp.array([3, 4, SLOTS]), 90)["k"][0]
    expected = np.array(cache["k"][0])
    expected[3, :, :90], expected[4, :, :90] = expected[0, :, :90], expected[1, :, :90]
    np.testing.assert_array_equal(copied, expected)


def temporary_bytes(platform, length, kind):
    """What a program made for ``platform`` takes beside a cache of ``length`` columns."""
    cfg = models.ModelConfig(61, 16, 16, 2, 2, 1, 8)
    programs = Programs(
        cfg, num_slots=4, max_length=length, window=4, chunks=(16,), rows=(4,), columns=(length,),
        platform=platform,
    )  # fmt: skip
    cache = models.init_cache(cfg, 4, length)
    size = {"decode": 4, "prefill": 16, "copy": 0}[kind]
    lowered = programs.lower(models.init(cfg, jax.random.key(0)), cache, (kind, 4, size, length))
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("kind", ["decode", "prefill", "copy"])
def test_temporary_memory_does_not_grow_with_the_cache(monkeypatch, kind):
    monkeypatch.setattr(cached, "_BLOCK_BYTES", 0)
    small, large = (temporary_bytes("gpu", length, kind) for length in (2048, 16_384))
    assert large <= small + 1024
    cache_bytes = 16_384 * 4 * 2 * 2 * 8 * 4
    assert temporary_bytes("cpu", 16_384, kind) >= cache_bytes > 8 * large


@pytest.mark.parametrize("kind, size", [("decode", 4), ("prefill", 16)])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_weights_are_read_where_they_lie(platform, kind, size):
    """A copy of any layer's matrices would be larger than all else that a call needs."""
    cfg = models.ModelConfig(61, 64, 2048, 3, 2, 1, 8)
    params = models.init(cfg, jax.random.key(0))
    programs = Programs(
        cfg, num_slots=2, max_length=32, window=4, chunks=(16,), rows=(2,), columns=(32,),
        platform=platform,
    )  # fmt: skip
    cache, engine_params = (
        models.init_cache(cfg, 2, 32),
        Relayout("float32", jax.devices()[0])(params),
    )
    matrix = params["layers"]["mlp"]["up_proj"]["kernel"][0].nbytes

    def temporary(params):
        lowered = programs.lower(params, cache, (kind, 2, size, 32))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    used = 2 * size * cfg.intermediate_size * 4 * 3 if kind == "prefill" else 0  # activations
    assert temporary(engine_params) - used < matrix <= temporary(params) - used


@pytest.mark.parametrize("slots", [None, [2, 0]])
def test_layers_apart_give_what_their_stack_gives(slots):
    cfg = models.ModelConfig(61, 32, 48, 3, 4, 2, 8, qkv_bias=True)
    params = models.init(cfg, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 61)
    where = {} if slots is None else {"slots": jnp.array(slots)}

    @jax.jit
    def run(params):
        cache = models.init_cache(cfg, 3 if where else 2, 16)
        return models.apply(params, cfg, tokens, cache=cache, **where)

    stacked, apart = run(params), run(models.by_layer(params))
    jax.tree.map(np.testing.assert_array_equal, apart, stacked)
