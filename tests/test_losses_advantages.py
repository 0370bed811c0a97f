"""Advantages against numpy loops, and the properties that training relies on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evolving_rl_jax import losses

G, K, N, R, S = 2, 3, 4, 2, 5
skill_advantages = jax.jit(functools.partial(losses.skill_advantages, extractor_weight=0.2))
step_advantages = jax.jit(losses.step_advantages, static_argnames="pool")


def loop_normalize(values, eps):
    """(x - mean) / (std + eps) of a list in float64; 0 for lone members and constant groups."""
    values = np.asarray(values, np.float64)
    if len(values) < 2 or np.all(values == values[0]):
        return np.zeros(len(values))
    return (values - values.mean()) / (values.std() + eps)


def random_outcomes(seed):
    rng = np.random.default_rng(seed)
    wins = rng.integers(0, 2, (G, K, N, R)).astype(np.float32)
    valid = (rng.random((G, N)) < 0.7).astype(np.float32)
    mask = (rng.random((G, K, N, R)) < 0.6).astype(np.float32)
    mask[0, :, 1], valid[0, 1] = 0, 1  # valid but never played
    mask[0, :, 2], valid[0, 2] = 0, 0  # invalid and never played
    return wins, valid, mask


def loop_skill_advantages(wins, valid, mask):
    extractor, reward, solver = np.zeros((G, N)), np.zeros((G, N)), np.zeros(wins.shape)
    for g in range(G):
        judged = []
        for n in range(N):
            scores = [wins[g, k, n, r] for k in range(K) for r in range(R) if mask[g, k, n, r]]
            reward[g, n] = np.mean(scores) if valid[g, n] and scores else 0.0
            if scores or not valid[g, n]:
                judged.append(n)
        extractor[g, judged] = 0.2 * loop_normalize(reward[g, judged], 1e-6)
        for k in range(K):
            played = mask[g, k] > 0
            solver[g, k][played] = loop_normalize(10 * wins[g, k][played], 1e-6)
    return extractor, solver, reward


@pytest.mark.parametrize("seed", range(5))
def test_skill_advantages_equal_a_loop(seed):
    wins, valid, mask = random_outcomes(seed)
    got = skill_advantages(wins, skill_valid=valid, episode_mask=mask)
    for name, ours, theirs in zip(
        got._fields, got, loop_skill_advantages(wins, valid, mask), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=name)
    assert not np.any(np.asarray(got.solver)[mask == 0])


def test_unplayed_valid_skill_is_left_out_but_unplayed_invalid_skill_scores_zero():
    wins = jnp.ones((1, 1, 3, 1))
    mask = jnp.array([1.0, 1.0, 0.0]).reshape(wins.shape)
    valid = skill_advantages(wins, skill_valid=jnp.array([[1, 1, 1]]), episode_mask=mask)
    assert valid.extractor.tolist() == [[0.0, 0.0, 0.0]]
    invalid = skill_advantages(wins, skill_valid=jnp.array([[1, 1, 0]]), episode_mask=mask)
    assert invalid.extractor[0, 2] < 0 < invalid.extractor[0, 0]
    assert invalid.extractor_reward.tolist() == [[1.0, 1.0, 0.0]]


def test_an_infrastructure_failure_changes_nobody_else():
    wins, valid, mask = random_outcomes(7)
    failed = jnp.where(mask > 0, wins, jnp.nan)
    for ours, theirs in zip(
        skill_advantages(failed, skill_valid=valid, episode_mask=mask),
        skill_advantages(wins, skill_valid=valid, episode_mask=mask),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def loop_step_advantages(rewards, mask, pool):
    out = np.zeros(rewards.shape)
    for g in range(G):
        for tasks in [[k] for k in range(K)] if pool == "task" else [range(K)]:
            for s in range(S):
                at = [(g, k, n, r, s) for k in tasks for n in range(N) for r in range(R)]
                at = [i for i in at if mask[i]]
                for i, value in zip(
                    at, loop_normalize([rewards[i] for i in at], 1e-8), strict=True
                ):
                    out[i] = value
                if pool == "all" and len(at) == 1:
                    before = (*at[0][:-1], s - 1)
                    copied = out[before] if s and mask[before] else 1.0
                    out[at[0]] = copied if rewards[at[0]] > 0 else -1.0
    return out


@pytest.mark.parametrize("pool", ["task", "all"])
@pytest.mark.parametrize("density", [0.5, 0.08])
def test_step_advantages_equal_a_loop(pool, density):
    rng = np.random.default_rng(3)
    rewards = rng.choice([0.0, 0.5, 1.0], (G, K, N, R, S)).astype(np.float32)
    mask = (rng.random(rewards.shape) < density).astype(np.float32)
    want = loop_step_advantages(rewards, mask, pool)
    got = step_advantages(np.where(mask > 0, rewards, np.nan), mask, pool=pool)
    np.testing.assert_allclose(got, want, atol=1e-5)
    doubled = step_advantages(rewards, mask, pool=pool, solver_weight=2.0)
    np.testing.assert_allclose(doubled, 2 * want, atol=1e-5)


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 7.7, -1e-3, 1e6, 0.0])
@pytest.mark.parametrize("size", [2, 7, 33])
def test_a_constant_group_is_exactly_zero(constant, size):
    rewards = np.full((size,), constant, np.float32)
    assert not np.any(losses.group_normalize(rewards, axis=0, eps=1e-8))
    rewards[0] = np.nextafter(rewards[0], np.float32(np.inf))  # the same number, rounded otherwise
    if constant:
        assert not np.any(losses.group_normalize(rewards, axis=0, eps=1e-8))


@pytest.mark.parametrize("members", [0, 1])
def test_a_group_below_two_members_is_exactly_zero(members):
    mask = np.arange(4) < members
    assert not np.any(losses.group_normalize(np.array([5.0, 1.0, 2.0, 3.0]), mask, axis=0))


def test_a_large_common_offset_costs_no_precision():
    rewards = np.array([0.0, 1.0, 1.0, 0.0])
    got = losses.group_normalize(4096.0 + rewards, axis=0)
    np.testing.assert_allclose(got, losses.group_normalize(rewards, axis=0), atol=1e-6)


def test_group_normalize_accepts_integers_booleans_and_low_precision():
    want = [1.0, -1.0]
    for rewards in ([3, 1], [True, False], jnp.array([3, 1], jnp.bfloat16), np.array([3.0, 1.0])):
        got = losses.group_normalize(jnp.asarray(rewards), axis=-1)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_jit_vmap_and_grad_agree_with_plain_calls():
    wins, valid, mask = random_outcomes(1)
    one = functools.partial(losses.group_normalize, axis=(1, 2))
    stacked = jax.jit(jax.vmap(one))(wins, mask)
    for g in range(G):
        np.testing.assert_allclose(stacked[g], one(wins[g], mask[g]), atol=1e-6)
    nested = jax.vmap(lambda w: skill_advantages(w, skill_valid=valid, episode_mask=mask))(
        jnp.stack([wins, 1 - wins])
    )
    plain = skill_advantages(1 - wins, skill_valid=valid, episode_mask=mask)
    np.testing.assert_allclose(nested.solver[1], plain.solver, atol=1e-6)

    def squared(x):
        return jnp.sum(losses.group_normalize(x, axis=1) ** 3)

    x = jnp.array([[0.2, 0.9, 0.4], [0.1, 0.1, 0.1], [1.0, 0.0, 0.0]])
    grad = jax.grad(squared)(x)
    step = 1e-2 * jnp.eye(3)
    numeric = [(squared(x.at[0].add(e)) - squared(x.at[0].add(-e))) / 2e-2 for e in step]
    np.testing.assert_allclose(grad[0], numeric, rtol=2e-2, atol=2e-2)
    assert not np.any(grad[1]) and np.all(np.isfinite(grad))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.group_normalize(jnp.ones((2, 3)), jnp.ones(3), axis=1), r"mask .*\(3,\)"),
        (lambda: losses.group_normalize(jnp.ones((2, 3)), axis=2), r"axis .* 2 .*\(2, 3\)"),
        (
            lambda: skill_advantages(jnp.ones((2, 3, 4)), skill_valid=jnp.ones((2, 4))),
            r"wins must be \[G, K, N, R\], got shape \(2, 3, 4\)",
        ),
        (
            lambda: skill_advantages(jnp.ones((2, 3, 4, 1)), skill_valid=jnp.ones((2, 3))),
            r"skill_valid .* \(2, 4\), got shape \(2, 3\)",
        ),
        (
            lambda: skill_advantages(
                jnp.ones((2, 3, 4, 1)), skill_valid=jnp.ones((2, 4)), episode_mask=jnp.ones(2)
            ),
            r"episode_mask .*\(2,\)",
        ),
        (lambda: losses.step_advantages(jnp.ones((2, 3)), jnp.ones((2, 3))), r"rewards .*\(2, 3\)"),
        (
            lambda: losses.step_advantages(jnp.ones((1,) * 5), jnp.ones((1,) * 5), pool="source"),
            r"pool must be one of .*got 'source'",
        ),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
