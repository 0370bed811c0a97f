"""Advantages of single tokens beside those of their sequences: the loss, its gradient, the whole step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_updates import assert_same, make_batch, make_sequences, run, small_config

from evolving_rl_jax import losses
from evolving_rl_jax.types import ROLE_SOLVER
from evolving_rl_jax.update.step import sequence_advantages


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    ids = np.array([[0] * 5 + [1] * 4 + [-1] * 3, [2] * 7 + [-1] * 5])
    mask = np.where(ids >= 0, rng.random(ids.shape) < 0.7, 0).astype(np.float32)
    new = rng.normal(-1, 0.3, ids.shape)
    old, ref = (new + rng.normal(0, 0.2, ids.shape) for _ in range(2))
    credit = np.where(mask > 0, rng.normal(size=ids.shape), np.nan)  # untrained: never read
    return (*(x.astype(np.float32) for x in (new, old, ref, credit)), mask, ids)


@pytest.mark.parametrize("ratio", ["ppo", "cispo"])
def test_the_loss_reads_the_advantage_of_each_token(ratio):
    new, old, ref, credit, mask, ids = inputs()
    advantages = np.array([0.5, -1.0, 0.2], np.float32)

    def loss(logprobs):
        return losses.evolving_rl_loss(
            logprobs, old, ref, np.zeros_like(new), mask, sequence_ids=ids, num_sequences=3,
            advantages=advantages, token_advantages=credit, entropy_coef=np.zeros(3),
            kl_coef=np.zeros(3), ratio=ratio, clip_low=0.1, clip_high=0.15,
        )[0]  # fmt: skip

    want, gradient = 0.0, np.zeros(new.shape)
    for b, t in zip(*np.nonzero(mask), strict=True):
        count = (mask * (ids == ids[b, t])).sum()
        a, r = advantages[ids[b, t]] + credit[b, t], np.exp(new[b, t] - old[b, t])
        clipped = np.clip(r, 0.9, 1.15)
        if ratio == "cispo":
            want += -clipped * a * new[b, t] / count
            gradient[b, t] = -clipped * a / count
        else:
            want += max(-r * a, -clipped * a) / count
            gradient[b, t] = -r * a / count if -r * a >= -clipped * a else 0.0
    value, found = jax.value_and_grad(loss)(jnp.asarray(new))
    assert float(value) == pytest.approx(want, rel=1e-4)
    np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-6)


def test_the_same_credit_for_every_token_is_that_of_the_sequence():
    """An update with a credit of 0.3 for all solver tokens: that with 0.3 more for the sequences."""
    batch = make_batch(make_sequences(), 10)
    config = small_config()  # whose covariances are of the tokens' advantages
    config.algorithm.covariance.update(kind="kl", share=0.1)
    config.replay = {"kl_coef": 0.0}
    solver = batch.role == ROLE_SOLVER
    of_tokens = np.where(batch.sequence_ids >= 0, solver[batch.sequence_ids], False)
    credit = np.where(of_tokens & (batch.loss_mask > 0), 0.3, 0.0).astype(np.float32)
    with_credit, figures = run(config, batch._replace(step_credit=credit))
    computed = np.asarray(sequence_advantages(config, batch)[0])
    given = np.where(solver, computed + 0.3, np.nan).astype(np.float32)
    given_too, others = run(config, batch._replace(given=given, detached=np.zeros_like(given)))
    assert figures["loss"] == pytest.approx(others["loss"], rel=1e-4)
    assert_same(with_credit.params, given_too.params, rtol=1e-4, atol=1e-6)
    none, plain = run(config, batch._replace(step_credit=np.zeros_like(credit)))
    assert plain["loss"] != pytest.approx(figures["loss"], rel=1e-3)
    assert_same(none.params, run(config, batch)[0].params, rtol=0, atol=0)
