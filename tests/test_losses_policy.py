"""The policy losses against a numpy loop; packing, padding and extreme values change nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evolving_rl_jax import losses
from evolving_rl_jax.losses.policy import _token_weights

M = 4
KINDS = ("k1", "k2", "k3", "low_var_kl")


def make_sequences(seed=0):
    """M sequences of different lengths; the last one has no trained token."""
    rng = np.random.default_rng(seed)
    sequences = []
    for m, length in enumerate([5, 1, 7, 3]):
        new = -rng.exponential(1.0, length)
        sequences.append(
            {
                "logprobs": new,
                "old_logprobs": new + rng.normal(0, 0.3, length),
                "ref_logprobs": new + rng.normal(0, 0.5, length),
                "entropy": rng.exponential(1.0, length),
                "mask": (rng.random(length) < 0.7) | (np.arange(length) == 0) if m < 3 else [0] * 3,
            }
        )
    coefs = {
        "advantages": np.array([1.3, -0.7, 0.4, 2.0], np.float32),
        "entropy_coef": np.array([-0.03, 0.0, 0.01, 0.5], np.float32),
        "kl_coef": np.array([0.01, 0.5, 0.02, 1.0], np.float32),
    }
    return sequences, coefs


def lay_out(sequences, rows, width, junk=np.nan):
    """Packs the sequences into [B, T] arrays; ``rows`` lists the sequences of each row."""
    arrays = {name: np.full((len(rows), width), junk, np.float32) for name in sequences[0]}
    arrays["mask"] = np.ones((len(rows), width), np.float32)
    ids = np.full((len(rows), width), -1, np.int32)
    for b, members in enumerate(rows):
        at = 0
        for m in members:
            end = at + len(sequences[m]["mask"])
            for name, values in sequences[m].items():
                arrays[name][b, at:end] = values
            ids[b, at:end] = m
            at = end
    return arrays, ids


@functools.partial(jax.jit, static_argnames="kl_kind")
def run(arrays, ids, coefs, kl_kind="low_var_kl"):
    return losses.evolving_rl_loss(
        **arrays, sequence_ids=ids, num_sequences=M, **coefs, kl_kind=kl_kind
    )


def loop_loss(sequences, coefs, kind):
    """The objective written with loops and scalars."""
    total = {"loss": 0.0, "policy_loss": 0.0, "entropy": 0.0, "kl": 0.0, "tokens": 0.0}
    for m, s in enumerate(sequences):
        at = [t for t in range(len(s["mask"])) if s["mask"][t]]
        for t in at:
            ratio = np.exp(s["logprobs"][t] - s["old_logprobs"][t])
            a = coefs["advantages"][m]
            policy = max(-ratio * a, -min(max(ratio, 0.9), 1.15) * a)
            d = s["logprobs"][t] - s["ref_logprobs"][t]
            k3 = np.exp(-d) - 1 + d
            kl = {"k1": d, "k2": d * d / 2, "k3": k3, "low_var_kl": min(k3, 10.0)}[kind]
            loss = policy - coefs["entropy_coef"][m] * s["entropy"][t] + coefs["kl_coef"][m] * kl
            parts = {"loss": loss, "policy_loss": policy, "entropy": s["entropy"][t], "kl": kl}
            for name, value in parts.items():
                total[name] += value / len(at)
        total["tokens"] += len(at)
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_loss_equals_a_loop(kind):
    sequences, coefs = make_sequences()
    arrays, ids = lay_out(sequences, [[0, 1], [2], [3]], width=8)
    loss_sum, metrics = run(arrays, ids, coefs, kl_kind=kind)
    want = loop_loss(sequences, coefs, kind)
    np.testing.assert_allclose(loss_sum, want["loss"], rtol=1e-5)
    for name, value in want.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    assert metrics["sequences"] == 3


def test_packing_and_padding_change_nothing():
    sequences, coefs = make_sequences(1)
    reference = run(*lay_out(sequences, [[0], [1], [2], [3]], width=8), coefs)
    layouts = (([[2, 0, 3, 1]], 16, np.nan), ([[1, 2], [], [3, 0], []], 30, np.inf))
    for rows, width, junk in layouts:
        got = run(*lay_out(sequences, rows, width, junk), coefs)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), got, reference)


def test_padding_gets_no_gradient_and_never_nan():
    sequences, coefs = make_sequences(2)
    arrays, ids = lay_out(sequences, [[0, 1], [2, 3]], width=12)

    def total(logprobs, entropy):
        return run({**arrays, "logprobs": logprobs, "entropy": entropy}, ids, coefs)[0]

    grads = jax.grad(total, argnums=(0, 1))(arrays["logprobs"], arrays["entropy"])
    untrained = (ids < 0) | (arrays["mask"] == 0)
    for grad in grads:
        assert np.all(np.isfinite(grad)) and np.any(grad)
        assert not np.any(np.asarray(grad)[untrained])


def test_gradient_equals_finite_differences():
    sequences, coefs = make_sequences(3)
    arrays, ids = lay_out(sequences, [[0, 1, 2, 3]], width=16, junk=0.0)
    trained = np.argwhere((ids >= 0) & (arrays["mask"] > 0))
    grad = jax.grad(lambda x: run({**arrays, "logprobs": x}, ids, coefs)[0])(arrays["logprobs"])
    for b, t in trained:
        up, down = (
            run({**arrays, "logprobs": arrays["logprobs"] + step}, ids, coefs)[0]
            for step in (1e-2 * np.eye(16)[None, t], -1e-2 * np.eye(16)[None, t])
        )
        np.testing.assert_allclose(grad[b, t], (up - down) / 2e-2, rtol=0.05, atol=2e-3)


def test_only_the_trained_policy_gets_a_gradient():
    sequences, coefs = make_sequences(4)
    arrays, ids = lay_out(sequences, [[0, 1, 2, 3]], width=16)

    def total(old, ref, advantages):
        changed = {**arrays, "old_logprobs": old, "ref_logprobs": ref}
        return run(changed, ids, {**coefs, "advantages": advantages})[0]

    constants = arrays["old_logprobs"], arrays["ref_logprobs"], coefs["advantages"]
    assert not any(np.any(g) for g in jax.grad(total, argnums=(0, 1, 2))(*constants))


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("difference", [-1e3, -90.0, 0.0, 90.0, 1e3])
def test_extreme_ratios_stay_finite(difference, advantage):
    def total(d):
        loss, _ = losses.clipped_policy_loss(d, 0.0, advantage)
        return loss + losses.kl_estimate(d, 0.0)

    value, grad = jax.value_and_grad(total)(difference)
    assert np.isfinite(value) and np.isfinite(grad)


def test_clipping_takes_the_gradient_away_on_the_favoured_side_only():
    grad = jax.grad(lambda d, a: losses.clipped_policy_loss(d, 0.0, a)[0])
    assert grad(0.5, 1.0) == 0 and grad(-0.5, -1.0) == 0
    np.testing.assert_allclose([grad(0.5, -1.0), grad(-0.5, 1.0)], [np.exp(0.5), -np.exp(-0.5)])
    np.testing.assert_allclose(grad(0.0, 1.0), -1.0)


def test_vmap_over_batches_equals_separate_calls():
    pairs = [lay_out(make_sequences(seed)[0], [[0, 1], [2, 3]], width=12) for seed in (5, 6)]
    coefs = make_sequences()[1]
    stacked = jax.tree.map(lambda *x: np.stack(x), *pairs)
    got = jax.vmap(lambda arrays, ids: run(arrays, ids, coefs)[0])(*stacked)
    want = [run(*pair, coefs)[0] for pair in pairs]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_token_weights_sum_to_one_a_sequence():
    sequences, _ = make_sequences()
    arrays, ids = lay_out(sequences, [[0, 1], [2, 3]], width=12)
    weights, _, _ = _token_weights(arrays["mask"], ids, M)
    sums = [float(weights[ids == m].sum()) for m in range(M)]
    np.testing.assert_allclose(sums, [1, 1, 1, 0], rtol=1e-6)
    assert not np.any(weights[ids < 0])


def test_low_precision_input_is_computed_in_float32():
    x = jnp.array([-1.0, -2.0], jnp.bfloat16)
    assert losses.kl_estimate(x, x).dtype == jnp.float32
    assert all(y.dtype == jnp.float32 for y in losses.clipped_policy_loss(x, x, x))


def call_loss(**changed):
    shape, ones = (2, 3), jnp.ones((2, 3))
    arguments = {name: ones for name in ("logprobs", "old_logprobs", "ref_logprobs", "entropy")}
    arguments |= {"mask": ones, "sequence_ids": jnp.zeros(shape, int), "num_sequences": 1}
    arguments |= {name: jnp.ones(1) for name in ("advantages", "entropy_coef", "kl_coef")}
    return losses.evolving_rl_loss(**{**arguments, **changed})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: call_loss(logprobs=jnp.ones(3)), r"logprobs must be \[B, T\], got shape \(3,\)"),
        (lambda: call_loss(entropy=jnp.ones((2, 4))), r"entropy .*\(2, 3\), got shape \(2, 4\)"),
        (lambda: call_loss(mask=jnp.ones((3, 2))), r"mask .*\(3, 2\)"),
        (lambda: call_loss(sequence_ids=jnp.zeros((2, 4), int)), r"sequence_ids .*\(2, 4\)"),
        (lambda: call_loss(sequence_ids=jnp.zeros((2, 3))), "sequence_ids .*float32"),
        (lambda: call_loss(advantages=jnp.ones(2)), r"advantages .*\(1,\), got shape \(2,\)"),
        (
            lambda: call_loss(clip_low=jnp.ones((2, 3))),
            r"clip_low must be a number or \[M\] = \(1,\)",
        ),
        (lambda: call_loss(kl_coef=0.01), r"kl_coef must be \[M\] = \(1,\), got shape \(\)"),
        (lambda: call_loss(kl_kind="k4"), "kind must be one of .*low_var_kl.* got 'k4'"),
        (lambda: losses.kl_estimate(jnp.ones(2), jnp.ones(3)), r"ref_logprobs .*\(3,\)"),
        (
            lambda: losses.clipped_policy_loss(jnp.ones(2), jnp.ones(2), jnp.ones(1)),
            r"advantages .*\(2,\), got shape \(1,\)",
        ),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
