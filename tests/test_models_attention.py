"""Blockwise against plain attention in values and gradients; packing, padding, memory, cache."""

import functools
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evolving_rl_jax.models import attention as lib


def inputs(batch, heads, kv_heads, length, dim=8, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = [(batch, n, length, dim) for n in (heads, kv_heads, kv_heads, heads)]
    return [jax.random.normal(key, s, dtype) for key, s in zip(keys, shapes, strict=True)]


def packed_segments(batch, length, seed=0):
    """Rows of random segments 1, 2, ... that end in padding."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((batch, length), np.int32)
    for row in rows:
        used = rng.integers(length // 2, length + 1)
        cuts = np.sort(rng.integers(1, used, 3))
        row[:used] = 1 + np.searchsorted(cuts, np.arange(used), side="right")
    return jnp.asarray(rows)


def value_and_gradients(implementation, q, k, v, w, segment_ids=None):
    def loss(q, k, v):
        out = lib.attention(q, k, v, segment_ids=segment_ids, implementation=implementation)
        return jnp.sum(out.astype(jnp.float32) * w.astype(jnp.float32)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return (out, *gradients)


def assert_close(got, expected, tolerance):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=tolerance)


@pytest.mark.parametrize(
    "batch, heads, kv_heads, length, queries, tile",
    [
        (4, 4, 2, 96, 48, 2 << 20),  # two blocks, all rows at a time
        (6, 4, 4, 130, 16, 70_000),  # groups of rows, a length that needs padding
        (2, 6, 1, 200, 8, 1),  # the smallest blocks, all six widths
    ],
)
def test_blockwise_equals_plain(monkeypatch, batch, heads, kv_heads, length, queries, tile):
    monkeypatch.setattr(lib, "_QUERIES", queries)
    monkeypatch.setattr(lib, "_TILE_BYTES", tile)
    arrays = inputs(batch, heads, kv_heads, length)
    for segments in (None, packed_segments(batch, length)):
        expected = value_and_gradients("plain", *arrays, segments)
        assert_close(value_and_gradients("blockwise", *arrays, segments), expected, 2e-5)


def test_blockwise_reads_nothing_before_the_segments_of_a_block():
    """What is there may be anything: no number of the first three segments reaches the last, nor its gradients."""
    length, last = 384, slice(288, None)  # segments of two blocks each
    q, k, v, w = inputs(2, 4, 2, length)
    segments = jnp.broadcast_to(1 + jnp.arange(length) // 96, (2, length))
    earlier = jnp.arange(length)[:, None] < 288
    k, v = (jnp.where(earlier, jnp.nan, x) for x in (k, v))
    got = value_and_gradients("blockwise", q, k, v, w, segments)
    alone = [x[:, :, last] for x in (q, k, v, w)]
    assert_close([x[:, :, last] for x in got], value_and_gradients("plain", *alone), 2e-5)


@pytest.mark.parametrize("tile", [1, 60_000, 128 << 20])
def test_tiles_for_a_gpu_equal_plain(monkeypatch, tile):
    """The devices of the mesh choose them; the arithmetic is that of any device."""
    monkeypatch.setattr(lib, "_GPU_TILE_BYTES", tile)
    monkeypatch.setattr(lib, "_TILE_BYTES", None)  # not a CPU's
    mesh = SimpleNamespace(size=1, devices=np.array([SimpleNamespace(platform="gpu")]))
    arrays, segments = inputs(4, 4, 2, 130), packed_segments(4, 130)
    monkeypatch.setattr(lib, "attention", functools.partial(lib.attention, mesh=mesh))
    got = value_and_gradients("auto", *arrays, segments)
    assert_close(got, value_and_gradients("plain", *arrays, segments), 2e-5)


@pytest.mark.parametrize("implementation", ["splash_interpreted", "pallas_gpu_interpreted"])
@pytest.mark.parametrize(
    "batch, heads, kv_heads, length, dim", [(2, 4, 2, 130, 8), (1, 2, 1, 256, 128)]
)
def test_kernels_interpreted_equal_plain(implementation, batch, heads, kv_heads, length, dim):
    arrays = inputs(batch, heads, kv_heads, length, dim)
    for segments in (None, packed_segments(batch, length)):
        expected = value_and_gradients("plain", *arrays, segments)
        assert_close(value_and_gradients(implementation, *arrays, segments), expected, 2e-5)


def test_kernels_for_other_devices_are_refused_by_name():
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform="gpu")]))
    for name in ("auto", "plain", "blockwise", "pallas_gpu"):
        lib.check_platform(name, mesh)
    with pytest.raises(ValueError, match="config.model.attention .* gpu .*'splash', .* for tpu"):
        lib.check_platform("splash", mesh)


def test_the_gpu_kernel_compiles_to_one_for_gpus():
    """Its Triton program is made without a GPU; only running it needs one."""
    arrays = [jax.ShapeDtypeStruct((2, n, 1000, 64), jnp.bfloat16) for n in (4, 2, 2)]

    def loss(q, k, v, segments):
        out = lib.attention(q, k, v, segment_ids=segments, implementation="pallas_gpu")
        return jnp.sum(out.astype(jnp.float32))

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(
        *arrays, jax.ShapeDtypeStruct((2, 1000), jnp.int32)
    )
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for kernel in ("mha_forward", "mha_backward"):
        assert kernel in text


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_at_16k_tokens_blockwise_equals_plain(packed):
    """Every query, in values and gradients; ``plain`` holds all 16,384 x 16,384 scores."""
    length = 16_384
    arrays = inputs(1, 1, 1, length)
    segments = packed_segments(1, length) if packed else None
    expected = value_and_gradients("plain", *arrays, segments)
    assert_close(value_and_gradients("blockwise", *arrays, segments), expected, 5e-5)


def test_long_packed_rows_equal_the_formula():
    """At 16k tokens the formula is evaluated for some queries only: all scores would take 1 GB."""
    length, dim = 16_384, 8
    q, k, v, w = inputs(1, 1, 1, length, dim)
    segments = packed_segments(1, length)
    some = np.sort(np.random.default_rng(0).choice(length, 64, replace=False))
    w = jnp.zeros_like(w).at[:, :, some].set(w[:, :, some])
    got = value_and_gradients("blockwise", q, k, v, w, segments)

    def formula(q, k, v):
        scores = q[0, 0, some] @ k[0, 0].T / np.sqrt(dim)
        seen = (segments[0, some, None] == segments[0]) & (some[:, None] >= np.arange(length))
        out = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1) @ v[0, 0]
        return jnp.sum(out * w[0, 0, some]), out

    (_, out), gradients = jax.value_and_grad(formula, (0, 1, 2), has_aux=True)(q, k, v)
    assert_close([got[0][0, 0, some], *got[1:]], [out, *gradients], 2e-5)


ON_MESH = """
import jax, jax.numpy as jnp, numpy as np
from evolving_rl_jax import parallel
from evolving_rl_jax.models import attention as lib

keys = jax.random.split(jax.random.key(0), 3)
segments = jnp.asarray(np.repeat([1, 2, 0], [60, 50, 40]))[None].repeat(4, 0)
for sizes, kv_heads in (((2, 2, 2), 4), ((1, 2, 4), 2), ((8, 1, 1), 1)):
    mesh = parallel.make_mesh(*sizes)
    q, k, v = (jax.random.normal(x, (4, n, 150, 8)) for x, n in zip(keys, (8, kv_heads, kv_heads)))

    def loss(q, k, v, implementation):
        out = lib.attention(q, k, v, segment_ids=segments, implementation=implementation, mesh=mesh)
        return jnp.sum(jnp.sin(out)), out

    f = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True), static_argnums=3)
    for name in ("blockwise", "splash_interpreted", "pallas_gpu_interpreted"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5),
                     f(q, k, v, name)[1], f(q, k, v, "plain")[1])
    assert lib._choose(150, mesh) == "blockwise"
text = jax.jit(lib.attention, static_argnames=("implementation", "mesh")).lower(
    *(jax.ShapeDtypeStruct((8, 8, 512, 8), jnp.float32, sharding=jax.sharding.NamedSharding(
        parallel.make_mesh(8, 1, 1), jax.sharding.PartitionSpec("data"))) for _ in range(3)),
    implementation="blockwise", mesh=parallel.make_mesh(8, 1, 1)).compile().as_text()
assert "all-gather" not in text and "all-reduce" not in text
print("all equal")
"""


def test_on_a_mesh_each_device_has_its_own_rows_and_heads():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    root = str(pathlib.Path(__file__).parents[1])
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", ON_MESH], env=env, capture_output=True, text=True)
    assert "all equal" in done.stdout, done.stderr


def test_kernel_for_tpus_is_chosen_by_the_mesh_not_by_this_process():
    devices = np.array([SimpleNamespace(platform="tpu")])
    mesh = SimpleNamespace(devices=devices)
    assert lib._choose(1024, mesh) == "splash" and lib._choose(16, mesh) == "plain"
    assert lib._choose(1024, None) == "blockwise"


def test_a_long_chunk_against_the_cache_takes_turns(monkeypatch):
    q, k, v, _ = inputs(2, 4, 2, 24)
    positions = jnp.broadcast_to(jnp.arange(24), (2, 24))
    whole = lib.cached_attention(q, k, v, positions)
    monkeypatch.setattr(lib, "_CACHED_SCORE_BYTES", 4 * 2 * 4 * 24 * 7)  # 7 queries: 6 divides 24
    np.testing.assert_allclose(lib.cached_attention(q, k, v, positions), whole, atol=1e-6)
    np.testing.assert_allclose(whole, lib.attention(q, k, v, implementation="plain"), atol=1e-6)


def test_plain_equals_a_loop():
    arrays, segments = inputs(2, 4, 2, 9), packed_segments(2, 9)
    out = value_and_gradients("plain", *arrays, segments)[0]
    q, k, v, out, segments = map(np.asarray, (*arrays[:3], out, segments))
    for b, h, t in np.ndindex(2, 4, 9):
        seen = [j for j in range(t + 1) if segments[b, j] == segments[b, t]]
        scores = np.array([float(q[b, h, t] @ k[b, h // 2, j]) for j in seen]) / np.sqrt(8)
        weights = np.exp(scores) / np.exp(scores).sum()
        expected = weights @ np.array([v[b, h // 2, j] for j in seen])
        np.testing.assert_allclose(out[b, h, t], expected, atol=1e-5)


@pytest.mark.parametrize("implementation", ["plain", "blockwise"])
def test_packed_equals_unpacked_and_padding_changes_nothing(implementation):
    lengths, total = [30, 47, 12], 96
    apart = inputs(3, 4, 2, total)  # one sequence a row, garbage after it
    used = np.arange(total) < np.array(lengths)[:, None]
    apart[3] = apart[3] * used[:, None, :, None]  # padding takes no part in a loss
    expected = value_and_gradients(implementation, *apart, jnp.asarray(used, jnp.int32))

    def pack(x):
        return np.concatenate([x[i, :, :n] for i, n in enumerate(lengths)], axis=1)[None]

    padding = total - sum(lengths)
    wide = [np.pad(pack(x), ((0, 0), (0, 0), (0, padding), (0, 0))) for x in apart]
    wide[0][:, :, -padding:] = wide[1][:, :, -padding:] = wide[2][:, :, -padding:] = 7.0
    segments = jnp.asarray(np.repeat([1, 2, 3, 0], [*lengths, padding]))[None]
    together = value_and_gradients(implementation, *wide, segments)
    assert_close([x[:, :, :-padding] for x in together], [pack(x) for x in expected], 2e-5)
    assert all(bool(jnp.isfinite(x).all()) for x in together)
    assert not any(float(jnp.abs(x[:, :, -padding:]).max()) for x in together[1:])


def test_bfloat16_is_close_to_float32():
    arrays = inputs(2, 4, 2, 160, dtype=jnp.bfloat16)
    expected = value_and_gradients("plain", *(x.astype(jnp.float32) for x in arrays))
    got = value_and_gradients("blockwise", *arrays)
    assert all(x.dtype == jnp.bfloat16 for x in got)
    assert_close(got, expected, 0.06)


def test_memory_is_linear_in_length():
    def temporary_bytes(implementation, length):
        arrays = [jax.ShapeDtypeStruct((1, 2, length, 8), jnp.float32)] * 4
        f = functools.partial(value_and_gradients, implementation)
        return jax.jit(f).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    short, long = (temporary_bytes("blockwise", n) for n in (4096, 16384))
    assert long < 6 * short
    assert long < temporary_bytes("plain", 4096)


def test_rematerialised_layers_keep_no_masks():
    """Segments are the same in every layer, so jax would rather keep what follows from them than compute it again."""
    batch, heads, length, dim = 2, 2, 768, 8
    segments, shape = packed_segments(batch, length), (3, 16, heads, dim)

    def layer(x, weights):
        q = jnp.einsum("btd,dhk->bhtk", x, weights)
        out = lib.attention(q, q, q, segment_ids=segments, implementation="blockwise")
        return x + jnp.einsum("bhtk,dhk->btd", out, weights), None

    def loss(weights, x):
        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, weights)[0])

    args = jnp.ones(shape), jnp.ones((batch, length, 16))
    found = jax.jit(jax.grad(loss)).lower(*args).compile().memory_analysis()
    # 2.4 MB; with the masks of all blocks and widths 53.
    assert found.temp_size_in_bytes < batch * length * length * 4


def test_arguments_are_checked():
    q, k, v, _ = inputs(2, 4, 2, 8)
    with pytest.raises(ValueError, match="implementation must be one of auto, plain, blockwise"):
        lib.attention(q, k, v, implementation="fast")
    with pytest.raises(ValueError, match=r"segment_ids must be \[B, T\] = \(2, 8\), got \(2, 7\)"):
        lib.attention(q, k, v, segment_ids=jnp.ones((2, 7), jnp.int32))
    with pytest.raises(ValueError, match="Hkv dividing H"):
        lib.attention(q, k[:, :1], v)


def test_cache_write_drops_padding_and_keeps_the_rest():
    cache = jnp.arange(2 * 3 * 5 * 4, dtype=jnp.float32).reshape(2, 3, 5, 4)
    values = -jnp.ones((2, 3, 2, 4))
    got = np.asarray(lib.write_cache(cache, values, jnp.array([[1, 4], [-1, 0]])))
    expected = np.array(cache)
    expected[0, :, [1, 4]] = expected[1, :, 0] = -1
    np.testing.assert_array_equal(got, expected)


def test_cache_write_in_a_loop_is_in_place():
    @functools.partial(jax.jit, donate_argnums=0)
    def steps(cache, values, positions):
        def body(i, cache):
            return lib.write_cache(cache, values * i, positions + i)

        return jax.lax.fori_loop(0, 5, body, cache)

    cache = jax.ShapeDtypeStruct((8, 2, 2048, 16), jnp.float32)
    values = jax.ShapeDtypeStruct((8, 2, 1, 16), jnp.float32)
    positions = jax.ShapeDtypeStruct((8, 1), jnp.int32)
    memory = steps.lower(cache, values, positions).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 8 * 2 * 2048 * 16 * 4
    assert memory.temp_size_in_bytes < 100_000
