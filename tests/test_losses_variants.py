"""The losses of kindred methods against plain numpy, written from the papers' equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evolving_rl_jax import losses

M = 5


def batch(seed=0, shape=(4, 16)):
    """Packed sequences of different lengths, with untrained tokens and padding that holds nan."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, shape)
    ids = np.full(shape, -1)
    for m, (row, start, end) in enumerate([(0, 0, 9), (0, 9, 13), (1, 0, 16), (2, 3, 8)]):
        ids[row, start:end] = m  # sequence 4 has no token
    mask = (rng.random(shape) < 0.7) & (ids >= 0)
    arrays = {
        "logprobs": old + rng.normal(0, 0.3, shape),
        "old_logprobs": old,
        "ref_logprobs": old + rng.normal(0, 0.3, shape),
        "entropy": rng.exponential(1.0, shape),
    }
    arrays = {name: np.where(mask, a, np.nan).astype(np.float32) for name, a in arrays.items()}
    advantages = np.array([1.5, -1.0, 0.5, -2.0, 1.0], np.float32)
    return arrays, mask, ids, advantages


def loss(arrays, mask, ids, advantages, entropy_coef=0.0, kl_coef=0.0, **options):
    return losses.evolving_rl_loss(
        **arrays,
        mask=jnp.asarray(mask, jnp.float32),
        sequence_ids=jnp.asarray(ids),
        num_sequences=M,
        advantages=jnp.asarray(advantages),
        entropy_coef=jnp.full(M, entropy_coef),
        kl_coef=jnp.full(M, kl_coef),
        **options,
    )


def gradient(arrays, *rest, **options):
    others = {n: a for n, a in arrays.items() if n != "logprobs"}
    value = lambda x: loss({"logprobs": x, **others}, *rest, **options)[0]  # noqa: E731
    return np.asarray(jax.grad(value)(jnp.asarray(arrays["logprobs"])))


def tokens_of(mask, ids, m):
    return np.argwhere(mask & (ids == m))


@pytest.mark.parametrize("scale", ["std", "none", "leave_one_out"])
def test_scales_of_a_group(scale):
    rng = np.random.default_rng(3)
    rewards, member = rng.random((6, 5)), rng.random((6, 5)) < 0.7
    got = losses.group_normalize(rewards, member, axis=1, scale=scale)
    for row in range(6):
        x = rewards[row][member[row]]
        for i in np.flatnonzero(member[row]):
            others = [rewards[row, j] for j in np.flatnonzero(member[row]) if j != i]
            want = {
                "std": (rewards[row, i] - x.mean()) / (x.std() + 1e-6),
                "none": rewards[row, i] - x.mean(),
                "leave_one_out": rewards[row, i] - np.mean(others) if others else 0.0,
            }[scale]
            assert got[row, i] == pytest.approx(want if len(x) > 1 else 0.0, abs=1e-5)
        assert not np.asarray(got)[row][~member[row]].any()


def test_skill_and_step_advantages_take_the_scale():
    rng = np.random.default_rng(4)
    wins = rng.integers(0, 2, (2, 3, 4, 2)).astype(np.float32)
    got = losses.skill_advantages(
        wins, skill_valid=np.ones((2, 4)), extractor_weight=1.0, solver_reward=1.0, scale="none"
    )
    np.testing.assert_allclose(got.solver, wins - wins.mean((2, 3), keepdims=True), atol=1e-6)
    reward = wins.mean((1, 3))
    np.testing.assert_allclose(got.extractor, reward - reward.mean(1, keepdims=True), atol=1e-6)
    steps = rng.random((1, 2, 3, 1, 4)).astype(np.float32)
    found = losses.step_advantages(steps, np.ones_like(steps), scale="none")
    np.testing.assert_allclose(found, steps - steps.mean((2, 3), keepdims=True), atol=1e-6)


def test_cispo_keeps_the_gradient_of_every_token():
    arrays, mask, ids, advantages = data = batch()
    got = gradient(*data, ratio="cispo", clip_low=0.1, clip_high=0.2)
    want = np.zeros_like(got)
    for m in range(M):
        at = tokens_of(mask, ids, m)
        for b, t in at:
            r = np.exp(arrays["logprobs"][b, t] - arrays["old_logprobs"][b, t])
            want[b, t] = -min(max(r, 0.9), 1.2) * advantages[m] / len(at)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    assert (got[mask] != 0).all()


def test_gspo_clips_sequences_and_has_the_gradient_of_its_equation():
    arrays, mask, ids, advantages = data = batch(1)
    low, high = 0.05, 0.05
    value = float(loss(*data, ratio="gspo", clip_low=low, clip_high=high)[0])
    got = gradient(*data, ratio="gspo", clip_low=low, clip_high=high)
    want, total, clipped = np.zeros_like(got), 0.0, 0
    for m in range(M):
        at = tokens_of(mask, ids, m)
        if not len(at):
            continue
        change = [arrays["logprobs"][b, t] - arrays["old_logprobs"][b, t] for b, t in at]
        s, a = np.exp(np.mean(change)), advantages[m]
        bounded = min(max(s, 1 - low), 1 + high)
        total += -min(s * a, bounded * a)
        if s * a <= bounded * a:  # the unclipped side acts: d s = s * mean d logprob
            for b, t in at:
                want[b, t] = -s * a / len(at)
        else:
            clipped += 1
    assert value == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    assert 0 < clipped < 4  # both sides are met


def test_dual_clip_bounds_the_loss_of_negative_advantages():
    new, old = np.log([0.9, 0.9, 0.9]), np.log([0.1, 0.1, 0.6])
    a = np.array([-1.0, 1.0, -1.0])
    got, clipped = losses.clipped_policy_loss(new, old, a, clip_high=0.2, dual_clip=3.0)
    np.testing.assert_allclose(got, [3.0, -1.2, 1.5], rtol=1e-5)
    assert clipped.tolist() == [1.0, 1.0, 0.0]
    slope = jax.grad(lambda x: losses.clipped_policy_loss(x, old, a, dual_clip=3.0)[0].sum())(new)
    assert slope[0] == 0 and slope[2] == pytest.approx(1.5, rel=1e-5)
    with pytest.raises(ValueError, match="dual_clip must be above 1, got 0.5"):
        losses.clipped_policy_loss(new, old, a, dual_clip=0.5)


def test_aggregates_over_tokens_and_by_a_constant():
    arrays, mask, ids, advantages = data = batch(2)
    old = arrays | {"logprobs": arrays["old_logprobs"]}  # ratio 1: the loss of a token is -A
    data = (old, mask, ids, advantages)
    counts = np.array([len(tokens_of(mask, ids, m)) for m in range(M)])
    token_mean = float(loss(*data, token_divisor=counts.sum() / M)[0]) / M
    assert token_mean == pytest.approx(-(counts * advantages).sum() / counts.sum(), rel=1e-5)
    constant = float(loss(*data, token_divisor=100.0)[0])
    assert constant == pytest.approx(-(counts * advantages).sum() / 100, rel=1e-5)
    metrics = loss(*data, token_divisor=100.0, entropy_coef=0.1)[1]
    assert float(metrics["policy_loss"]) == pytest.approx(constant, rel=1e-5)
    plain = loss(*data)[1]
    for name in ("entropy", "kl", "tokens"):
        assert float(metrics[name]) == float(plain[name])


def test_clip_bounds_of_each_sequence():
    arrays, mask, ids, advantages = data = batch(5)
    low, high = np.array([0.1, 0.2, 0.1, 0.3, 0.1]), np.array([0.1, 0.1, 0.6, 0.1, 0.1])
    got = float(loss(*data, clip_low=jnp.asarray(low), clip_high=jnp.asarray(high))[0])
    want = 0.0
    for m in range(M):
        at = tokens_of(mask, ids, m)
        for b, t in at:
            r, a = np.exp(arrays["logprobs"][b, t] - arrays["old_logprobs"][b, t]), advantages[m]
            want += max(-r * a, -min(max(r, 1 - low[m]), 1 + high[m]) * a) / len(at)
    assert got == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("low, high", [(-np.inf, np.inf), (0.3, 1.5)])
@pytest.mark.parametrize("count", [3, 400])
def test_covariance_outliers_are_the_largest(count, low, high):
    rng = np.random.default_rng(6)
    logprobs = -rng.exponential(1.0, (8, count)).astype(np.float32)
    advantages = rng.normal(0, 1, (8, count)).astype(np.float32)
    mask = rng.random((8, count)) < 0.8
    logprobs[~mask] = np.nan
    limits = jax.jit(losses.covariance_limits, static_argnames=("share", "low", "high"))(
        logprobs, advantages, mask, share=0.05, low=low, high=high
    )
    got = np.asarray(losses.covariance_outliers(logprobs, advantages, mask, limits))
    assert not got[~mask].any()
    x, a = logprobs[mask].astype(float), advantages[mask].astype(float)
    cov = (a - a.mean()) * (x - x.mean())
    inside = np.sort(cov[(cov >= low) & (cov <= high)])
    wanted = min(max(int(0.05 * len(x)), 1), len(inside))
    np.testing.assert_allclose(np.sort(cov[got[mask]]), inside[len(inside) - wanted :], rtol=1e-4)
    assert got.sum() == wanted > 0


def test_no_outlier_where_no_token_is_within_the_bounds():
    args = (jnp.full((2, 3), -1.0), jnp.ones((2, 3)), jnp.ones((2, 3)))
    limits = losses.covariance_limits(*args, share=0.5, low=1.0, high=5.0)
    assert not losses.covariance_outliers(*args, limits).any()


def test_kl_cov_pulls_the_outliers_only():
    arrays, mask, ids, advantages = data = batch(7)
    pull = (np.arange(16) % 3 == 0) * np.ones((4, 1), np.float32) * 2.0
    got = gradient(*data, log_ratio_coef=pull) - gradient(*data)
    counts = {m: len(tokens_of(mask, ids, m)) for m in range(M)}
    for b, t in np.argwhere(mask):
        side = np.sign(arrays["logprobs"][b, t] - arrays["old_logprobs"][b, t])
        assert got[b, t] == pytest.approx(side * pull[b, t] / counts[ids[b, t]], abs=1e-5)


def test_unknown_choices_are_named():
    data = batch()
    with pytest.raises(ValueError, match="ratio must be one of .* got 'grpo'"):
        loss(*data, ratio="grpo")
    with pytest.raises(ValueError, match="scale must be one of .* got 'var'"):
        losses.group_normalize(np.ones(3), axis=0, scale="var")
    with pytest.raises(ValueError, match="share must be in"):
        losses.covariance_limits(np.ones(3), np.ones(3), np.ones(3), share=2.0)


@pytest.mark.parametrize("ratio", ["ppo", "gspo", "cispo"])
def test_every_ratio_under_jit_vmap_and_shard_map(ratio):
    arrays, mask, ids, advantages = batch(8)
    stacked = jax.tree.map(lambda x: np.stack([x, x]), arrays)
    value = jax.jit(lambda x: loss(x, mask, ids, advantages, ratio=ratio)[0])
    np.testing.assert_allclose(jax.vmap(value)(stacked), [value(arrays)] * 2, rtol=1e-6)
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("rows")
    rows = (arrays, mask, ids)
    inner = lambda x: jax.lax.psum(loss(*x, advantages, ratio=ratio)[0], "rows")  # noqa: E731
    mapped = jax.shard_map(
        inner, mesh=mesh, in_specs=(spec,), out_specs=jax.sharding.PartitionSpec()
    )
    assert float(mapped(rows)) == pytest.approx(float(value(arrays)), rel=1e-5)
