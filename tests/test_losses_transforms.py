"""The public losses under jit, grad, vmap and shard_map, with the inputs that other projects give them."""

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
B, T, D, V = 2, 6, 4, 300


def make_inputs(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    hidden = jax.random.normal(keys[0], (B, T, D))
    unembedding = jax.random.normal(keys[1], (V, D))
    return hidden, unembedding, jax.random.randint(keys[2], (B, T), 0, V)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32"])
def test_targets_of_any_integer_dtype_give_the_same(dtype):
    hidden, unembedding, targets = make_inputs()
    targets = targets % 128  # what each of them can hold, in a vocabulary larger than 256
    want = losses.token_logprobs(hidden, unembedding, targets)
    got = losses.token_logprobs(hidden, unembedding, targets.astype(dtype))
    for x, y in zip(got, want, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("junk", [np.nan, np.inf])
@pytest.mark.parametrize("with_mask", [False, True])
def test_junk_at_a_masked_position_reaches_no_gradient(junk, with_mask):
    hidden, unembedding, targets = make_inputs()
    mask = jnp.ones((B, T)).at[0, 2].set(0).at[1, 5].set(0)

    def total(hidden, unembedding):
        extra = {"mask": mask} if with_mask else {}
        logprobs, entropy = losses.token_logprobs(
            hidden, unembedding, targets, chunk_size=3, **extra
        )
        return losses.evolving_rl_loss(
            logprobs, logprobs - 0.1, logprobs - 0.2, entropy, mask,
            sequence_ids=jnp.zeros((B, T), int), num_sequences=1, advantages=jnp.ones(1),
            entropy_coef=jnp.ones(1), kl_coef=jnp.ones(1),
        )[0]  # fmt: skip

    clean = jax.grad(total, argnums=(0, 1))(hidden, unembedding)
    dirty = jax.grad(total, argnums=(0, 1))(
        hidden.at[0, 2].set(junk).at[1, 5].set(junk), unembedding
    )
    for got, want in zip(dirty, clean, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
    assert np.abs(clean[1]).max() > 0 and not np.any(clean[0][0, 2])


@pytest.mark.parametrize("sizes", [(0, T), (B, 0), (0, 0)])
def test_no_rows_and_no_tokens(sizes):
    _, unembedding, _ = make_inputs()
    hidden, targets = jnp.zeros((*sizes, D)), jnp.zeros(sizes, int)

    def total(hidden, unembedding):
        results = losses.token_logprobs(hidden, unembedding, targets, chunk_size=2)
        assert all(x.shape == sizes for x in results)
        return sum(map(jnp.sum, results))

    grads = jax.grad(total, argnums=(0, 1))(hidden, unembedding)
    assert grads[0].shape == hidden.shape and not np.any(grads[1])


def test_k3_of_a_stray_token_is_finite_in_value_and_gradient():
    for d in (-100.0, -21.0, 100.0, 1e4):
        value, grad = jax.value_and_grad(lambda d: losses.kl_estimate(d, 0.0, kind="k3"))(d)
        assert np.isfinite(value) and np.isfinite(grad), d
    inside = losses.kl_estimate(-3.0, 0.0, kind="k3")
    np.testing.assert_allclose(inside, np.exp(3.0) - 1 - 3, rtol=1e-6)


def loss_of(advantages, coefficients=(0.1, 0.1)):
    """The loss of sequence 1 in a row that ends in padding; sequence 0 is empty."""
    logprobs = -jnp.ones((1, 4))
    entropy_coef, kl_coef = (jnp.full_like(advantages, c) for c in coefficients)
    return losses.evolving_rl_loss(
        logprobs, logprobs, logprobs, jnp.ones((1, 4)), jnp.array([[1, 1, 0, 0]]),
        sequence_ids=jnp.array([[1, 1, -1, -1]]), num_sequences=2, advantages=advantages,
        entropy_coef=entropy_coef, kl_coef=kl_coef,
    )[0]  # fmt: skip


@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_the_advantage_of_an_empty_sequence_is_never_read(junk):
    assert loss_of(jnp.array([junk, 2.0])) == loss_of(jnp.array([0.0, 2.0]))


def test_a_traced_cap():
    new, old = jnp.log(jnp.array([0.2, 0.8])), jnp.log(jnp.array([0.4, 0.1]))
    got = jax.jit(lambda cap: losses.truncated_importance(new, old, cap=cap))(2.0)
    np.testing.assert_allclose(got, [0.5, 2.0], rtol=1e-6)
    with pytest.raises(ValueError, match="cap must be positive, got 0"):
        losses.truncated_importance(new, old, cap=0)


def objective(hidden, unembedding, targets, mask, advantages, ids, *, masked):
    """Everything that the README shows, with each hyper-parameter given; a sum over sequences."""
    logprobs, entropy = losses.token_logprobs(
        hidden, unembedding, targets, temperature=0.7, chunk_size=4, mask=mask if masked else None
    )
    count = advantages.shape[0]
    loss, _ = losses.evolving_rl_loss(
        logprobs, logprobs + 0.05, logprobs - 0.2, entropy, mask, sequence_ids=ids,
        num_sequences=count, advantages=advantages, entropy_coef=jnp.full(count, 0.03),
        kl_coef=jnp.full(count, 0.1), importance_weights=losses.truncated_importance(logprobs, -5.0 + 0 * logprobs),
    )  # fmt: skip
    return loss


def whole_batch(rows=8):
    keys = jax.random.split(jax.random.key(3), 4)
    mask = (jax.random.uniform(keys[3], (rows, T)) < 0.6).astype(jnp.float32)
    mask = mask.at[:, 4:].set(0)  # a chunk that nobody wants
    return {
        "hidden": jax.random.normal(keys[0], (rows, T, D)),
        "unembedding": jax.random.normal(keys[1], (V, D)),
        "targets": jax.random.randint(keys[2], (rows, T), 0, V),
        "mask": mask,
        "advantages": jnp.linspace(-1, 1, 2),
        "ids": jnp.broadcast_to(jnp.arange(T) // 3, (rows, T)),
    }


def by_rows_and_summed(check_vma, masked):
    """(loss, gradients) of 8 rows over 4 devices by shard_map, and of each row by itself."""
    P = jax.sharding.PartitionSpec
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    batch = whole_batch()
    rows = P("data")
    specs = (rows, P(), rows, rows, P(), rows)

    def sharded(hidden, unembedding, targets, mask, advantages, ids):
        # A group of two rows for each device: sequences never leave their device.
        part = objective(hidden, unembedding, targets, mask, advantages, ids, masked=masked)
        return jax.lax.psum(part, "data")

    def loss(hidden, unembedding, batch):
        call = jax.shard_map(sharded, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)
        return call(
            hidden, unembedding, batch["targets"], batch["mask"], batch["advantages"], batch["ids"]
        )

    def alone(hidden, unembedding, batch):
        parts = [
            objective(
                hidden[i : i + 2], unembedding, batch["targets"][i : i + 2],
                batch["mask"][i : i + 2], batch["advantages"], batch["ids"][i : i + 2],
                masked=masked,
            )
            for i in range(0, 8, 2)
        ]  # fmt: skip
        return sum(parts)

    inputs = batch["hidden"], batch["unembedding"], batch
    return [jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(*inputs) for f in (loss, alone)]


def compare_shard_map():
    for check_vma in (True, False):
        for masked in (False, True):
            got, want = by_rows_and_summed(check_vma, masked)
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), got, want
            )
    print("shard_map ok")


def test_shard_map_over_rows_gives_the_value_and_gradient_of_the_whole():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    code = "import test_losses_transforms as t; t.compare_shard_map()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=ROOT / "tests", capture_output=True, text=True
    )
    assert "shard_map ok" in done.stdout, done.stderr


def test_vmap_of_the_whole_objective_is_each_alone():
    batches = [whole_batch(), whole_batch()]
    batches[1]["hidden"] = -batches[1]["hidden"]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
    for masked in (False, True):
        one = jax.value_and_grad(
            lambda batch, masked=masked: objective(**batch, masked=masked), allow_int=True
        )
        got = jax.jit(jax.vmap(one))(stacked)
        for i, batch in enumerate(batches):
            value, grads = one(batch)
            np.testing.assert_allclose(got[0][i], value, rtol=1e-5)
            for name in ("hidden", "unembedding"):
                np.testing.assert_allclose(got[1][name][i], grads[name], rtol=1e-4, atol=1e-6)


def test_the_gradient_of_a_frozen_matrix_is_not_computed():
    """Adapters train below a frozen unembedding, whose gradient is as large as itself."""
    hidden, targets = jnp.ones((1, 8, 16)), jnp.zeros((1, 8), int)
    matrix = jax.ShapeDtypeStruct((5000, 16), jnp.bfloat16)

    def total(hidden, matrix):
        return jnp.sum(losses.token_logprobs(hidden, matrix, targets, chunk_size=2)[0])

    def temporaries(argnums):
        compiled = jax.jit(jax.grad(total, argnums)).lower(hidden.astype(jnp.bfloat16), matrix)
        return compiled.compile().memory_analysis().temp_size_in_bytes

    assert temporaries((0, 1)) - temporaries(0) >= 0.9 * 4 * 5000 * 16
