"""The field's losses in the compiled step: each key of ``config.algorithm`` does what it says."""

import jax
import numpy as np
import pytest
from small_updates import assert_same, make_batch, make_sequences, run, small_config

from evolving_rl_jax.types import ROLE_EXTRACTOR, ROLE_SOLVER
from evolving_rl_jax.update.advantages import spread_of_sequences
from evolving_rl_jax.update.step import sequence_advantages
from evolving_rl_jax.update.variants import Variant


@pytest.fixture(scope="module")
def sequences():
    return make_sequences()


@pytest.fixture(scope="module")
def batch(sequences):
    return make_batch(sequences, len(sequences) // 2)


def trained_of(sequences):
    return np.array([mask[1:].sum() for _, mask, *_ in sequences] + [0, 0])


@pytest.mark.parametrize("scale", ["none", "leave_one_out"])
def test_advantages_keep_the_unit_of_the_reward(batch, scale):
    config = small_config(advantage=scale, extractor_weight=1.0, solver_reward=1.0)
    got, _ = sequence_advantages(config, batch)
    for m in np.flatnonzero(batch.role == ROLE_SOLVER):
        g, k, n, r = np.unravel_index(batch.index[m], batch.wins.shape)
        played = batch.episode_mask[g, k] > 0
        group = batch.wins[g, k][played]
        want = batch.wins[g, k, n, r] - group.mean()
        if scale == "leave_one_out":
            want *= len(group) / (len(group) - 1)
        assert got[m] == pytest.approx(want if played[n, r] else 0.0, abs=1e-6)


def test_clips_of_the_roles(batch):
    config = small_config(extractor_clip={"low": 0.3, "high": 0.0})
    options = Variant(config.algorithm, batch, np.zeros(len(batch.role))).options(None, None)
    want = np.where(batch.role == ROLE_EXTRACTOR, 0.3, 0.1)
    np.testing.assert_allclose(options["clip_low"], want, rtol=1e-6)
    assert options["clip_high"] == 0.15


def test_aggregates_are_over_the_whole_batch(sequences, batch):
    """One micro-batch of all rows, or many: the loss is the mean over the batch's tokens."""
    config = small_config(aggregate="token")
    state, metrics = run(config, batch)
    config.train.micro_batch_rows = 2
    others, other_metrics = run(config, batch)
    assert_same(state.params, others.params)
    assert metrics["policy_loss"] == pytest.approx(other_metrics["policy_loss"], rel=1e-4)
    divisor = Variant(config.algorithm, batch, np.zeros(len(batch.role))).options(None, None)
    assert divisor["token_divisor"] == pytest.approx(trained_of(sequences).sum() / len(sequences))


def test_constant_aggregate_scales_with_its_length(batch):
    losses = [
        run(small_config(aggregate="constant", aggregate_length=length), batch)[1]["loss"]
        for length in (10.0, 20.0)
    ]
    assert losses[0] == pytest.approx(2 * losses[1], rel=1e-5)


def test_clip_cov_takes_the_gradient_of_outliers_only(batch):
    plain = run(small_config(old_logprobs="trainer"), batch)
    chosen = {"kind": "clip", "share": 0.1, "low": -1e9, "high": 1e9}
    some = run(small_config(old_logprobs="trainer", covariance=chosen), batch)
    none = run(
        small_config(old_logprobs="trainer", covariance={"kind": "clip", "low": 1e8, "high": 1e9}),
        batch,
    )
    assert_same(plain[0].params, none[0].params)
    assert some[1]["policy_loss"] != pytest.approx(plain[1]["policy_loss"], rel=1e-6)
    for name in ("kl", "entropy_solver"):
        assert some[1][name] == pytest.approx(plain[1][name], rel=1e-6)


def test_kl_cov_adds_to_the_policy_loss(batch):
    config = small_config(covariance={"kind": "kl", "share": 1.0, "coef": 2.0})
    with_term, without = run(config, batch)[1], run(small_config(), batch)[1]
    assert with_term["policy_loss"] > without["policy_loss"]


def test_kl_of_groups_without_spread_can_be_left_out(batch):
    won = batch._replace(wins=np.ones_like(batch.wins))
    assert not spread_of_sequences(
        small_config().algorithm,
        batch._replace(wins=won.wins, skill_valid=np.ones_like(batch.skill_valid)),
    ).any()
    quiet = small_config(kl_without_spread=False, entropy_coef={"solver": 0.0, "extractor": 0.0})
    every_skill_counts = won._replace(skill_valid=np.ones_like(batch.skill_valid))
    assert run(quiet, every_skill_counts)[1]["loss"] == 0
    loud = small_config(entropy_coef={"solver": 0.0, "extractor": 0.0})
    assert run(loud, every_skill_counts)[1]["loss"] > 0


def test_all_switches_at_once(batch):
    config = small_config(
        advantage="leave_one_out", ratio="gspo", dual_clip=3.0, aggregate="token",
        extractor_clip={"low": 0.3, "high": 0.4}, kl_without_spread=False, solver_reward=1.0,
        covariance={"kind": "clip", "share": 0.05, "low": 0.0, "high": 9.0},
    )  # fmt: skip
    state, metrics = run(config, batch, steps=2)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    assert metrics["grad_norm"] > 0 and metrics["skipped_updates"] == 0
