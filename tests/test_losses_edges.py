"""Ends of the number range, narrow types, and arguments that are missing or of another shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evolving_rl_jax import losses


def objective(logprobs, old=None, *, num_sequences=None, ids=None, advantages=None, **options):
    """The loss of [B, T] with a sequence for each row, and nothing but the policy's term."""
    rows, columns = np.shape(logprobs)
    number = num_sequences or rows
    ids = np.repeat(np.arange(rows)[:, None], columns, 1) if ids is None else ids
    arguments = {
        "old_logprobs": logprobs if old is None else old,
        "ref_logprobs": logprobs,
        "entropy": jnp.zeros_like(logprobs),
        "mask": jnp.ones_like(logprobs),
        "advantages": jnp.ones(number) if advantages is None else advantages,
        "entropy_coef": jnp.zeros(number),
        "kl_coef": jnp.zeros(number),
    } | options
    order = ("old_logprobs", "ref_logprobs", "entropy", "mask")
    tokens = [arguments.pop(name) for name in order]
    return losses.evolving_rl_loss(
        logprobs, *tokens, sequence_ids=ids, num_sequences=number, **arguments
    )


@pytest.mark.parametrize("ratio", ["ppo", "gspo", "cispo"])
@pytest.mark.parametrize("side", ["old", "both"])
def test_a_token_of_no_probability_leaves_the_batch_finite(ratio, side):
    new = jnp.full((4, 6), -1.0)
    old = new.at[0, 0].set(-jnp.inf)
    new = new.at[0, 0].set(-jnp.inf) if side == "both" and ratio != "cispo" else new

    def loss(new):
        total, metrics = objective(new, old, ref_logprobs=jnp.full((4, 6), -1.0), ratio=ratio)
        return total, metrics

    (total, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(new)
    assert np.isfinite(total) and np.isfinite(gradient).all()
    assert all(np.isfinite(x) for x in metrics.values())
    # The other sequences are as if it were not there.
    alone = jax.grad(lambda new: objective(new, ratio=ratio)[0])(jnp.full((4, 6), -1.0))
    np.testing.assert_array_equal(gradient[1:], alone[1:])


def test_k3_is_the_formula_as_far_as_numbers_go():
    d = np.array([-15.0, 0.5, 15.0, 25.0, 60.0])

    def k3(d):
        return losses.kl_estimate(d, jnp.zeros_like(d), kind="k3")

    np.testing.assert_allclose(k3(jnp.asarray(d)), np.expm1(-d) + d, rtol=1e-6)
    slopes = jax.grad(lambda d: k3(d).sum())(jnp.asarray(d))
    np.testing.assert_allclose(slopes, 1 - np.exp(-d), rtol=1e-6)
    far = jax.value_and_grad(lambda d: k3(d))(jnp.float32(-200.0))
    assert np.isfinite(far[0]) and far[1] == 0.0


@pytest.mark.parametrize("dtype, most", [("uint8", 200), ("int8", 126), ("int16", 300)])
def test_narrow_sequence_ids_lose_no_token(dtype, most):
    ids = np.array([[0, 1, most // 2, most]])
    new, number = jnp.full((1, 4), -1.0), 300
    advantages = jnp.arange(1.0, number + 1)
    expected = objective(new, ids=ids, num_sequences=number + 1, advantages=jnp.arange(1.0, 302.0))
    got = objective(
        new, ids=ids.astype(dtype), num_sequences=number + 1, advantages=jnp.arange(1.0, 302.0)
    )
    assert got[0] == expected[0] and got[1]["tokens"] == 4
    inside = ids < number
    assert float(got[0]) == -float((advantages[ids[inside]]).sum()) - (0 if inside.all() else 301)


def test_sequence_logprobs_are_the_old_ones_where_nothing_is_trained():
    new, old = jnp.array([[-0.5, -3.0]]), jnp.array([[-1.0, -2.0]])
    got = losses.sequence_logprobs(
        new, old, jnp.array([[1, 0]]), sequence_ids=jnp.zeros((1, 2), int), num_sequences=1
    )
    assert got.tolist() == [[-0.5, -2.0]]


def test_covariances_are_of_float32_whatever_comes_in():
    rng = np.random.default_rng(0)
    logprobs = rng.normal(-1, 0.5, 66_000).astype(np.float16)
    advantages = rng.choice([-1.0, 1.0], 66_000).astype(np.float16)
    found = []
    for dtype in (np.float16, np.float32):
        arrays = logprobs.astype(dtype), advantages.astype(dtype), np.ones(66_000, bool)
        limits = losses.covariance_limits(*arrays, share=0.002)
        assert all(x.dtype == jnp.float32 for x in limits)
        found.append(np.asarray(losses.covariance_outliers(*arrays, limits)))
    np.testing.assert_array_equal(*found)
    assert found[0].sum() >= 132


@pytest.mark.parametrize("clip", [losses.clipped_policy_loss, losses.cispo_loss])
def test_a_bound_of_a_narrow_type_is_used_in_float32(clip):
    new, old = jnp.array([np.log(1.0002)]), jnp.zeros(1)
    wide = clip(new, old, jnp.ones(1), clip_low=3e-4, clip_high=3e-4)
    narrow = clip(new, old, jnp.ones(1), clip_low=3e-4, clip_high=jnp.bfloat16(3e-4))
    np.testing.assert_array_equal(wide[0], narrow[0])
    assert narrow[1].tolist() == [0.0]
    with pytest.raises(ValueError, match=r"clip_low must be a number or shaped like .*got shape"):
        clip(new, old, jnp.ones(1), clip_low=jnp.ones((3, 1)))


@pytest.mark.parametrize("scale", ["std", "none", "leave_one_out"])
@pytest.mark.parametrize("reward", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_no_number_does_not_look_like_no_spread(scale, reward):
    rewards = np.array([[1.0, 0.0, reward, 1.0], [1.0, 0.0, 0.0, 1.0]])
    got = np.asarray(losses.group_normalize(rewards, axis=1, scale=scale))
    assert np.isnan(got[0]).all() and np.isfinite(got[1]).all() and got[1].any()
    mask = np.array([[1, 1, 0, 1], [1, 1, 1, 1]])
    masked = np.asarray(losses.group_normalize(rewards, mask, axis=1, scale=scale))
    assert np.isfinite(masked).all() and masked[0].any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"token_divisor": np.ones(4)}, r"token_divisor must be a number = \(\), got shape \(4,\)"),
        ({"token_divisor": 0}, "token_divisor must be above 0, got 0"),
        ({"token_divisor": -1.0}, "token_divisor must be above 0, got -1.0"),
        ({"ratio": "cispo", "dual_clip": 3.0}, "dual_clip must be None with ratio 'cispo'"),
        ({"ref_logprobs": None}, r"ref_logprobs must be \[B, T\] = \(4, 4\), got None"),
        ({"entropy": None}, "entropy must be .*got None"),
        ({"kl_coef": None}, r"kl_coef must be \[M\] = \(4,\), got None"),
    ],
)
def test_what_is_missing_or_makes_no_sense_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        objective(jnp.full((4, 4), -1.0), **options)
