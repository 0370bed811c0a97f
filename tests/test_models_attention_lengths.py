"""Every choice of attention, at lengths of 1 to 16,384 tokens, against the formula in float64."""

import functools

import jax
import numpy as np
import pytest

from evolving_rl_jax.models import attention as lib
from evolving_rl_jax.models import cached

# Name -> (what `attention` calls it, sizes of blockwise); kernels are interpreted.
CHOICES = {
    "plain": ("plain", {}),
    "blockwise": ("blockwise", {}),  # as on a CPU
    # The smallest there are, one row at a time, and large ones, as on a GPU.
    "blockwise, small": ("blockwise", {"_QUERIES": 8, "_TILE_BYTES": 1}),
    "blockwise, large": ("blockwise", {"_QUERIES": 512, "_TILE_BYTES": 128 << 20}),
    "splash": ("splash_interpreted", {}),
    "pallas_gpu": ("pallas_gpu_interpreted", {}),
}
LENGTHS = [1, 7, 65, 250]  # a token, less and more than a tile, several tiles
HEADS = [(4, 2), (3, 1), (2, 2)]  # those of queries and of keys
QUERIES = 256  # that the reference looks at at a time


def reference(q, k, v, w, segments):
    """(out, and the gradients of sum(out * w) to q, k and v), by the formula, in float64."""
    q, k, v, w = (np.asarray(x, np.float64) for x in (q, k, v, w))
    out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
    group, scale = q.shape[1] // k.shape[1], q.shape[3] ** -0.5
    for b, h, start in np.ndindex(*q.shape[:2], -(-q.shape[2] // QUERIES)):
        one, key = slice(start * QUERIES, (start + 1) * QUERIES), (b, h // group)
        index = np.arange(q.shape[2])
        seen = (index <= index[one, None]) & (segments[b] == segments[b, one, None])
        scores = np.where(seen, q[b, h, one] @ k[key].T * scale, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        out[b, h, one] = p @ v[key]
        dp = w[b, h, one] @ v[key].T
        ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
        dq[b, h, one] = ds @ k[key]
        dk[key] += ds.T @ q[b, h, one]
        dv[key] += p.T @ w[b, h, one]
    return out, dq, dk, dv


def draw(batch, heads, kv_heads, length, dim, seed):
    rng = np.random.default_rng([seed, length, heads, kv_heads])
    shapes = [(batch, n, length, dim) for n in (heads, kv_heads, kv_heads, heads)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def layouts(length, seed=0):
    """[5, length]: one segment; several and padding; a token each; padding alone; segments that come
    back."""
    rng = np.random.default_rng([seed, length])
    cuts = np.sort(rng.integers(0, length + 1, 3))
    several = np.searchsorted(cuts, np.arange(length), side="right") + 1
    several[several == 4] = 0
    one = np.ones(length, int)
    rows = one, several, np.arange(length) + 1, one * 0, rng.integers(1, 4, length)
    return np.stack(rows).astype(np.int32)


def measured(choice, monkeypatch, q, k, v, w, segments):
    implementation, sizes = CHOICES[choice]
    for name, value in sizes.items():
        monkeypatch.setattr(lib, name, value)

    @jax.jit
    def run(q, k, v, w):
        attend = functools.partial(
            lib.attention, segment_ids=segments, implementation=implementation
        )
        out, backward = jax.vjp(attend, q, k, v)
        return out, *backward(w)

    return run(q, k, v, w)


def assert_near(got, expected, tolerance):
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, expected, strict=True):
        scale = max(1.0, np.abs(b).max())
        np.testing.assert_allclose(
            np.asarray(a, np.float64), b, rtol=0, atol=tolerance * scale, err_msg=name
        )


def test_the_gradients_of_the_reference_are_those_of_its_values():
    """By central differences, at every number that goes in."""
    arrays, segments = draw(1, 4, 2, 5, 3, seed=1), np.array([[1, 1, 2, 2, 2]])
    q, k, v, w = (x.astype(np.float64) for x in arrays)
    gradients = reference(q, k, v, w, segments)[1:]
    for x, gradient in zip((q, k, v), gradients, strict=True):
        for at in np.ndindex(x.shape):
            values = []
            for step in (1e-5, -2e-5):
                x[at] += step
                values.append((reference(q, k, v, w, segments)[0] * w).sum())
            x[at] += 1e-5
            assert gradient[at] == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-8)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("choice", CHOICES)
def test_values_and_gradients_are_those_of_the_formula(monkeypatch, choice, length):
    heads, kv_heads = HEADS[length % len(HEADS)]
    arrays, segments = draw(5, heads, kv_heads, length, 8, seed=0), layouts(length)
    got = measured(choice, monkeypatch, *arrays, segments)
    assert_near(got, reference(*arrays, segments), 1e-5)


@functools.cache
def long_rows(length, heads):
    """(inputs, for a whole and a packed row: its segments and what the formula gives)."""
    arrays = draw(1, heads, 1, length, 8, seed=1)
    return arrays, [(row, reference(*arrays, row)) for row in layouts(length)[:2, None]]


@pytest.mark.slow
@pytest.mark.parametrize("length", [1000, 4096, 16_384])
@pytest.mark.parametrize("choice", CHOICES)
def test_long_rows_are_those_of_the_formula(monkeypatch, choice, length):
    """A whole and a packed row, one after the other."""
    # ``plain`` holds several times 1 GB of scores for each head of 16,384 tokens.
    heads = 1 if choice == "plain" and length == 16_384 else 2
    arrays, rows = long_rows(length, heads)
    for segments, expected in rows:
        assert_near(measured(choice, monkeypatch, *arrays, segments), expected, 2e-5)


@pytest.mark.parametrize("columns", [1, 65, 250, 16_384])
@pytest.mark.parametrize("block_bytes", [None, 0, 64 << 20], ids=["gathered", "least", "large"])
def test_a_cache_read_is_the_formula(monkeypatch, block_bytes, columns):
    """Two of three slots, some tokens each, whose caches hold more columns than they see."""
    monkeypatch.setattr(cached, "_BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(columns)
    k, v = rng.normal(size=(2, 3, 2, columns, 8)).astype(np.float32)  # three slots
    tokens = min(3, columns)
    q = rng.normal(size=(2, 4, tokens, 8)).astype(np.float32)
    slots = np.array([2, 0])
    positions = np.sort(rng.integers(0, columns, (2, tokens)), axis=1)
    positions[0, -1] = columns - 1
    if block_bytes is None:
        got = jax.jit(lib.cached_attention)(q, k[slots], v[slots], positions)
    else:
        read = jax.jit(functools.partial(cached.rows_attention, columns=columns))
        got = read(q, k, v, slots, positions)
    for row, head, token in np.ndindex(2, 4, tokens):
        seen = slots[row], head // 2, slice(positions[row, token] + 1)
        scores = k[seen].astype(np.float64) @ q[row, head, token] / np.sqrt(8)
        weights = np.exp(scores - scores.max())
        expected = weights @ v[seen] / weights.sum()
        np.testing.assert_allclose(got[row, head, token], expected, atol=5e-6)
