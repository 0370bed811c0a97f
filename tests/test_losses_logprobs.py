"""token_logprobs against full logits: values, gradients, memory and sharding."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evolving_rl_jax import losses

ROOT = pathlib.Path(__file__).resolve().parents[1]
B, T, D, V = 2, 11, 6, 37


def make_inputs(seed=0, scale=1.0):
    keys = jax.random.split(jax.random.key(seed), 3)
    hidden = scale * jax.random.normal(keys[0], (B, T, D))
    unembedding = jax.random.normal(keys[1], (V, D))
    return hidden, unembedding, jax.random.randint(keys[2], (B, T), 0, V)


def full_logits(hidden, unembedding, targets, temperature):
    """The same from the [B, T, V] logits, differentiated by jax itself."""
    logits = jnp.einsum("btd,vd->btv", hidden, unembedding, precision="highest") / temperature
    logp = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.exp(logp) * logp, -1)
    return jnp.take_along_axis(logp, targets[..., None], -1)[..., 0], entropy


def grads_of(function, hidden, unembedding, targets):
    """Gradients of a weighted sum of both outputs, so that no cotangent is constant."""
    weights = jax.random.normal(jax.random.key(9), (2, B, T))

    def total(hidden, unembedding):
        return jnp.sum(weights * jnp.stack(function(hidden, unembedding, targets)))

    return jax.jit(jax.grad(total, argnums=(0, 1)))(hidden, unembedding)


@pytest.mark.parametrize("chunk_size", [1, 4, 11, 512])
def test_values_and_gradients_equal_full_logits(chunk_size):
    inputs = make_inputs()
    ours = functools.partial(losses.token_logprobs, temperature=0.7, chunk_size=chunk_size)
    full = functools.partial(full_logits, temperature=0.7)
    for got, want in zip(jax.jit(ours)(*inputs), full(*inputs), strict=True):
        assert got.shape == (B, T) and got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for got, want in zip(grads_of(ours, *inputs), grads_of(full, *inputs), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_large_logits_stay_finite():
    inputs = make_inputs(scale=300.0)
    ours = functools.partial(losses.token_logprobs, chunk_size=4)
    for got, want in zip(ours(*inputs), full_logits(*inputs, 1.0), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)
    assert all(np.all(np.isfinite(g)) for g in grads_of(ours, *inputs))


def test_low_precision_weights_get_gradients_summed_in_float32():
    hidden, unembedding, targets = make_inputs(1)
    low = hidden.astype(jnp.bfloat16), unembedding.astype(jnp.bfloat16)
    exact = [x.astype(jnp.float32) for x in low]
    logprobs, entropy = losses.token_logprobs(*low, targets, chunk_size=1)
    want = losses.token_logprobs(*exact, targets)
    np.testing.assert_allclose(logprobs, want[0], atol=1e-4)
    np.testing.assert_allclose(entropy, want[1], atol=1e-4)
    ours = functools.partial(losses.token_logprobs, chunk_size=1)
    for got, want in zip(
        grads_of(ours, *low, targets), grads_of(ours, *exact, targets), strict=True
    ):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=0.02, atol=0.02)


def test_vmap_equals_separate_calls_in_value_and_gradient():
    pairs = [make_inputs(seed) for seed in (2, 3)]
    stacked = [jnp.stack(x) for x in zip(*pairs, strict=True)]

    def total(hidden, unembedding, targets):
        logprobs, entropy = losses.token_logprobs(hidden, unembedding, targets, chunk_size=4)
        return jnp.sum(logprobs * entropy)

    both = jax.jit(jax.vmap(jax.value_and_grad(total)))
    value, grad = both(*stacked)
    for i, pair in enumerate(pairs):
        want_value, want_grad = jax.value_and_grad(total)(*pair)
        np.testing.assert_allclose(value[i], want_value, rtol=1e-5)
        np.testing.assert_allclose(grad[i], want_grad, rtol=1e-4, atol=1e-5)


def test_padding_is_finite_and_changes_no_neighbour():
    hidden, unembedding, targets = make_inputs(4)
    ours = jax.jit(functools.partial(losses.token_logprobs, chunk_size=4))
    longer = (
        jnp.pad(hidden, ((0, 0), (0, 5), (0, 0))),
        jnp.pad(targets, ((0, 0), (0, 5)), constant_values=-1),
    )
    got = ours(longer[0], unembedding, longer[1])
    for x, want in zip(got, ours(hidden, unembedding, targets), strict=True):
        np.testing.assert_allclose(x[:, :T], want, rtol=1e-5, atol=1e-5)
        assert np.all(np.isfinite(x))


def test_full_logits_never_exist_forward_or_backward():
    rows, length, width, vocab, chunk = 2, 64, 8, 1000, 8
    shapes = [(rows, length, width), (vocab, width)]
    hidden, unembedding = (jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)
    targets = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def total(hidden, unembedding, targets):
        logprobs, entropy = losses.token_logprobs(hidden, unembedding, targets, chunk_size=chunk)
        return jnp.sum(logprobs) + jnp.sum(entropy)

    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(hidden, unembedding, targets)
    used = compiled.compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * rows * length * vocab, "as much memory as the full logits take"


def test_chunks_without_wanted_tokens_are_skipped_and_change_nothing_else():
    hidden, unembedding, targets = make_inputs()
    wanted = jnp.broadcast_to(jnp.arange(T) < 5, (B, T))  # chunks of 4: two in use, one not

    def total(hidden, unembedding, mask):
        logprobs, entropy = losses.token_logprobs(
            hidden, unembedding, targets, chunk_size=4, mask=mask
        )
        return jnp.sum(jnp.where(wanted, logprobs * entropy, 0.0)), (logprobs, entropy)

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (value, results), gradients = step(hidden, unembedding, wanted)
    (expected, all_results), all_gradients = step(hidden, unembedding, None)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for got, want in zip(gradients, all_gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    for got, want in zip(results, all_results, strict=True):
        np.testing.assert_allclose(got[:, :8], want[:, :8], rtol=1e-6)
        assert not got[:, 8:].any() and want[:, 8:].all()


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, re
from jax.sharding import NamedSharding, PartitionSpec as P
from evolving_rl_jax import losses

mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
B, T, D, V = 4, 10, 8, 1048
keys = jax.random.split(jax.random.key(0), 3)
hidden = jax.random.normal(keys[0], (B, T, D))
unembedding = jax.random.normal(keys[1], (V, D))
targets = jax.random.randint(keys[2], (B, T), 0, V)

def total(hidden, unembedding, targets):
    logprobs, entropy = losses.token_logprobs(hidden, unembedding, targets, chunk_size=4)
    return jnp.sum(logprobs * entropy), (logprobs, entropy)

step = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
want = jax.jit(step)(hidden, unembedding, targets)
specs = P("data"), P("tensor"), P("data")
inputs = [jax.device_put(x, NamedSharding(mesh, s))
          for x, s in zip((hidden, unembedding, targets), specs)]
compiled = jax.jit(step).lower(*inputs).compile()
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
             compiled(*inputs), want)
text = compiled.as_text()
assert re.search(r"f32\\[\\d+,262\\]", text), "no logits of a vocabulary shard"
assert not re.search(r"f32\\[[\\d,]*1048[\\d,]*\\]", text), "an array of the whole vocabulary"
print("sharded ok")
"""


def test_vocabulary_sharded_over_a_mesh_axis():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True)
    assert "sharded ok" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": jnp.ones((T, D))}, r"hidden must be \[B, T, D\], got shape \(11, 6\)"),
        ({"unembedding": jnp.ones((D, V))}, r"unembedding .*\(6, 6\), got shape \(6, 37\)"),
        ({"targets": jnp.zeros((B, T + 1), int)}, r"targets .*\(2, 12\)"),
        ({"targets": jnp.zeros((B, T))}, "targets .*float32"),
        ({"chunk_size": 0}, "chunk_size .*got 0"),
        ({"temperature": 0.0}, r"temperature must be > 0, got 0\.0"),
        ({"mask": jnp.ones((B, T + 1))}, r"mask .*\(2, 12\)"),
    ],
)
def test_wrong_input_is_named(changed, message):
    hidden, unembedding, targets = make_inputs()
    arguments = {"hidden": hidden, "unembedding": unembedding, "targets": targets} | changed
    with pytest.raises(ValueError, match=message):
        losses.token_logprobs(**arguments)


# -- tokens that sampling kept ---------------------------------------------------------------------


def kept_by_sort(logits, top_p):
    """(kept [B, T, V], floor [B, T]) of a plain nucleus: numpy in float64, with a sort."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    order = np.argsort(-p, -1)
    ordered = np.take_along_axis(p, order, -1)
    count = (np.cumsum(ordered, -1) - ordered < top_p).sum(-1)  # tokens kept
    at = np.stack([count - 1, np.minimum(count, p.shape[-1] - 1)], -1)
    border = np.log(np.take_along_axis(ordered, at, -1)).mean(-1)
    kept = np.zeros_like(p, bool)
    np.put_along_axis(kept, order, np.arange(p.shape[-1]) < count[..., None], -1)
    return kept, np.where(count == p.shape[-1], -np.inf, border).astype(np.float32)


def masked_softmax(hidden, unembedding, targets, kept, temperature):
    """Log-probability of the targets in a softmax over what is kept; jax differentiates it."""
    logits = jnp.einsum("btd,vd->btv", hidden, unembedding, precision="highest") / temperature
    logp = jax.nn.log_softmax(jnp.where(kept, logits, -jnp.inf))
    return jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]


@pytest.mark.parametrize("chunk_size", [1, 4, 512])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_kept_tokens_equal_a_masked_softmax_and_its_gradients(chunk_size, top_p):
    hidden, unembedding, targets = make_inputs()
    logits = np.asarray(hidden, np.float64) @ np.asarray(unembedding, np.float64).T / 0.6
    kept, floor = kept_by_sort(logits, top_p)
    kept |= np.arange(V) == np.asarray(targets)[..., None]  # what was sampled is kept
    ours = functools.partial(losses.kept_token_logprobs, temperature=0.6, chunk_size=chunk_size)
    found = jax.jit(ours)(hidden, unembedding, targets, floor)
    want = masked_softmax(hidden, unembedding, targets, kept, 0.6)
    np.testing.assert_allclose(found.of_kept, want, rtol=1e-5, atol=1e-5)
    mass = (np.exp(logits) * kept).sum(-1) / np.exp(logits).sum(-1)
    np.testing.assert_allclose(found.log_kept, np.log(mass), rtol=1e-4, atol=1e-5)
    full = losses.token_logprobs(hidden, unembedding, targets, temperature=0.6)
    for got, same in zip(found[:2], full, strict=True):
        np.testing.assert_allclose(got, same, rtol=1e-6, atol=1e-6)
    if top_p == 1:
        np.testing.assert_array_equal(found.log_kept, 0)

    # Also together with the other outputs: a loss reads all of them.
    weights = jax.random.normal(jax.random.key(3), (3, B, T))

    def of_ours(hidden, unembedding):
        found = ours(hidden, unembedding, targets, floor)
        return jnp.sum(weights * jnp.stack([found.of_kept, found.logprobs, found.entropy]))

    def of_plain(hidden, unembedding):
        logprobs, entropy = full_logits(hidden, unembedding, targets, 0.6)
        kept_logprobs = masked_softmax(hidden, unembedding, targets, kept, 0.6)
        return jnp.sum(weights * jnp.stack([kept_logprobs, logprobs, entropy]))

    got, want = (
        jax.jit(jax.grad(f, argnums=(0, 1)))(hidden, unembedding) for f in (of_ours, of_plain)
    )
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5)


def test_the_target_is_kept_and_ties_stay_together():
    hidden = jnp.ones((1, 3, 1))
    p = jnp.array([0.3, 0.2, 0.2, 0.2, 0.1])
    targets = jnp.array([[0, 2, 4]])
    floor = jnp.log(jnp.array([[0.25, 0.14, 0.15]]))  # one is kept, four, and the target besides
    found = losses.kept_token_logprobs(hidden, jnp.log(p)[:, None], targets, floor)
    np.testing.assert_allclose(jnp.exp(found.of_kept), [[1.0, 0.2 / 0.9, 0.1 / 1.0]], rtol=1e-5)
    # Nothing but a target whose probability is no float32: still log 1, with a gradient of 0.
    far = jnp.array([[0.0], [-200.0]])

    def only_the_target(matrix):
        target, floor = jnp.array([[1]]), jnp.full((1, 1), jnp.inf)
        return jnp.sum(losses.kept_token_logprobs(hidden[:, :1], matrix, target, floor).of_kept)

    value, gradient = jax.value_and_grad(only_the_target)(far)
    assert value == 0 and not np.asarray(gradient).any()


def test_a_bfloat16_trainer_finds_the_tokens_that_a_float32_engine_kept():
    """The floor lies between the kept and the left out, so rounding moves few of them across."""
    keys = jax.random.split(jax.random.key(4), 2)
    hidden = jax.random.normal(keys[0], (1, 400, 32))
    unembedding = 0.5 * jax.random.normal(keys[1], (300, 32))
    logits = np.asarray(hidden, np.float64) @ np.asarray(unembedding, np.float64).T
    kept, floor = kept_by_sort(logits, 0.9)
    targets = jnp.asarray(logits.argmax(-1))
    low = hidden.astype(jnp.bfloat16), unembedding.astype(jnp.bfloat16)
    found = losses.kept_token_logprobs(*low, targets, floor)
    exact = np.log((np.exp(logits) * kept).sum(-1) / np.exp(logits).sum(-1))
    gaps = np.abs(np.asarray(found.log_kept) - exact)
    # Without a mask the ratio would be off by -log of the mass, a tenth and more, on every token.
    assert gaps.mean() < 2e-3 and -exact.mean() > 0.05


def test_kept_tokens_under_a_mask_and_vmap_and_junk():
    hidden, unembedding, targets = make_inputs(2)
    floor = jnp.full((B, T), -2.5)
    whole = losses.kept_token_logprobs(hidden, unembedding, targets, floor)
    each = jax.vmap(lambda h, t, f: losses.kept_token_logprobs(h, unembedding, t, f))(
        hidden[:, None], targets[:, None], floor[:, None]
    )
    for x, y in zip(whole, each, strict=True):
        np.testing.assert_allclose(x, y[:, 0], atol=1e-5)
    mask = jnp.arange(T)[None] < jnp.full((B, 1), 4)
    junk = hidden.at[:, 4:].set(jnp.nan)

    def total(hidden, unembedding):
        found = losses.kept_token_logprobs(
            hidden, unembedding, targets, floor, chunk_size=2, mask=mask
        )
        return jnp.sum(jnp.where(mask, found.of_kept, 0.0))

    value, grads = jax.value_and_grad(total, argnums=(0, 1))(junk, unembedding)
    np.testing.assert_allclose(value, jnp.sum(whole.of_kept[:, :4]), rtol=1e-5)
    assert all(np.isfinite(g).all() for g in grads)
    with pytest.raises(ValueError, match=r"floor must be \[B, T\] = \(2, 11\)"):
        losses.kept_token_logprobs(hidden, unembedding, targets, floor[:1])
