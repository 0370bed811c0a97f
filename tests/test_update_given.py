"""Advantages that the host gives: likelihood by the policy loss, and nothing else changed by it."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_updates import (
    MODEL,
    ONE_DEVICE,
    assert_same,
    make_batch,
    make_sequences,
    mesh_of,
    new_state,
    run,
    small_config,
)  # fmt: skip

from evolving_rl_jax import models
from evolving_rl_jax.types import ROLE_EXTRACTOR, ROLE_NONE, ROLE_SOLVER
from evolving_rl_jax.update import loss as loss_lib
from evolving_rl_jax.update import microbatch
from evolving_rl_jax.update import step as step_lib
from evolving_rl_jax.update.given import GIVEN_METRICS, averaged, counted, usable
from evolving_rl_jax.update.step import STEP_METRICS, sequence_advantages
from evolving_rl_jax.update.variants import Variant


def config_with(kl=0.0, **algorithm):
    config = small_config(**algorithm)
    config.replay = ConfigDict({"kl_coef": kl})
    return config


@pytest.fixture(scope="module")
def sequences():
    return make_sequences()


def with_extras(sequences, advantages, seed=5):
    """The batch with as many detached sequences after its own; whose log-probabilities are stale."""
    rng = np.random.default_rng(seed)
    extras = []
    for _ in advantages:
        mask = (rng.random(10) < 0.5).astype(np.float32)
        mask[0], mask[1] = 0, 1
        extras.append((rng.integers(0, 40, 10), mask, -9.0 * mask, ROLE_SOLVER, 0))
    whole = [*sequences, *extras]
    batch = make_batch(whole, -(-len(whole) // 2))
    given = np.full(len(batch.role), np.nan, np.float32)
    given[len(sequences) : len(whole)] = advantages
    return batch._replace(given=given, detached=(~np.isnan(given)).astype(np.float32)), extras


def nll(params, tokens, mask):
    """Mean negative log-probability of the masked tokens of one sequence, by the plain forward pass."""
    hidden, _ = models.apply(params, MODEL, np.asarray(tokens)[None])
    logprobs = jax.nn.log_softmax(models.logits(params, MODEL, hidden)[0], axis=-1)
    picked = logprobs[np.arange(len(tokens) - 1), np.asarray(tokens)[1:]]
    return -(picked * mask[1:]).sum() / mask[1:].sum()


@pytest.mark.parametrize("variant", [{}, {"ratio": "cispo", "old_logprobs": "trainer"}])
def test_a_detached_sequence_has_the_gradient_of_its_likelihood(sequences, variant):
    """The update of own and detached sequences is that of own ones plus w x grad of the likelihood."""
    weights = np.array([0.7, 0.3], np.float32)
    batch, extras = with_extras(sequences, weights)
    config = config_with(**variant)
    mesh = mesh_of(json.dumps(ONE_DEVICE))
    _, state = new_state(config)

    @jax.jit
    def gradient(batch):
        advantages, _ = sequence_advantages(config, batch)
        loss = loss_lib.make_loss(
            config, MODEL, None, state.ref_params, batch, advantages, mesh, "auto"
        )
        rows, count = step_lib._micro_batches(batch, config, mesh)
        return microbatch.accumulate_gradients(loss, state.params, rows, count, mesh)[0]

    plain = make_batch(sequences, len(sequences) // 2)
    own, both = jax.device_get((gradient(plain), gradient(batch)))
    added = jax.tree.map(np.subtract, both, own)

    def likelihood(params):
        return sum(
            w * nll(params, tokens, mask)
            for w, (tokens, mask, *_) in zip(weights, extras, strict=True)
        )

    want = jax.device_get(jax.grad(likelihood)(state.params))
    assert_same(added, want, rtol=2e-3, atol=2e-5)


def test_extras_change_no_figure_of_the_batch_and_not_its_divisor(sequences):
    plain = make_batch(sequences, len(sequences) // 2)
    _, before = run(config_with(), plain)
    batch, extras = with_extras(sequences, [0.0, 0.0])
    state, after = run(config_with(), batch)
    assert set(after) == {*STEP_METRICS, *GIVEN_METRICS}
    same = set(STEP_METRICS) - {"tokens", "kl"}  # which are of all sequences
    for name in sorted(same):
        assert after[name] == pytest.approx(before[name], rel=1e-3, abs=1e-6), name
    assert after["sequences_detached"] == 2 and after["sequences_given"] == 0
    start = new_state(config_with())[1].params
    total = [(nll(start, t, m) * m[1:].sum(), m[1:].sum()) for t, m, *_ in extras]
    want = sum(a for a, _ in total) / sum(n for _, n in total)
    assert after["detached_nll"] == pytest.approx(float(want), rel=1e-4)


def test_a_kl_weight_of_their_own(sequences):
    """As much as the KL of their tokens, by the plain forward passes of policy and reference."""
    batch, extras = with_extras(sequences, [0.0, 0.0])
    _, without = run(config_with(), batch)
    _, held = run(config_with(kl=0.5), batch)
    _, state = new_state(config_with())
    added = 0.0
    for tokens, mask, *_ in extras:
        hidden = [models.apply(p, MODEL, tokens[None])[0] for p in (state.params, state.ref_params)]
        params = (state.params, state.ref_params)
        new, ref = (
            np.asarray(jax.nn.log_softmax(models.logits(p, MODEL, h)[0]))[range(9), tokens[1:]]
            for p, h in zip(params, hidden, strict=True)
        )
        estimate = np.clip(np.exp(ref - new) - 1 + new - ref, -10, 10)
        added += 0.5 * (estimate * mask[1:]).sum() / mask[1:].sum()
    count = len(sequences)
    assert held["loss"] - without["loss"] == pytest.approx(added / count, rel=2e-2, abs=1e-6)


def test_an_advantage_given_to_an_own_sequence_takes_the_place_of_the_computed_one(sequences):
    batch = make_batch(sequences, len(sequences) // 2)
    config = config_with()
    computed, _ = sequence_advantages(config, batch)
    given = np.full(len(batch.role), np.nan, np.float32)
    chosen = int(np.flatnonzero(batch.role == ROLE_EXTRACTOR)[1])
    given[chosen] = 0.25
    found, _ = sequence_advantages(
        config, batch._replace(given=given, detached=np.zeros_like(given))
    )
    want = np.array(computed)
    want[chosen] = 0.25
    np.testing.assert_allclose(found, want)


def test_variants_count_own_sequences_only(sequences):
    config = config_with(aggregate="token", kl_without_spread=False)
    plain = make_batch(sequences, len(sequences) // 2)
    batch, _ = with_extras(sequences, [0.0, 0.0])
    a, b = run(config, plain), run(config, batch)
    assert_same(a[0].params, b[0].params)
    assert (batch.role == ROLE_NONE).sum() == 2


@pytest.mark.parametrize(
    "covariance", [{}, {"covariance": {"kind": "kl", "share": 0.3}, "ratio": "cispo"}]
)
def test_dropped_groups_are_as_if_never_played(sequences, covariance):
    """The same update as of a batch whose other sequences are in nobody's use."""
    kinds = {"old_logprobs": "rollout"} if covariance else {"old_logprobs": "trainer"}
    config = config_with(empty_groups="drop", **kinds, **covariance)
    batch = make_batch(sequences, len(sequences) // 2)
    wins = np.array(batch.wins)
    wins[0] = 1.0  # the plays of source 0 are alike, and so are its valid skills
    batch = batch._replace(wins=wins, skill_valid=np.ones_like(batch.skill_valid))
    flat = wins.reshape(wins.shape[0], wins.shape[1], -1)
    rewards = wins.mean((1, 3))
    role = np.array(batch.role)
    for m in range(len(role)):
        if role[m] == ROLE_SOLVER:
            g, k, *_ = np.unravel_index(batch.index[m], wins.shape)
            played = batch.episode_mask[g, k].reshape(-1) > 0
            if flat[g, k][played].std() == 0:
                role[m] = ROLE_NONE
        elif role[m] == ROLE_EXTRACTOR and batch.index[m] // 2 == 0:
            assert rewards[0].std() == 0
            role[m] = ROLE_NONE
    assert 0 < (role != ROLE_NONE).sum() < (batch.role != ROLE_NONE).sum()
    ours, theirs = run(config, batch), run(config, batch._replace(role=role))
    assert_same(ours[0].params, theirs[0].params)
    assert ours[1]["kl"] != pytest.approx(0)
    for name in ("loss", "policy_loss", "kl", "ratio_deviation", "clip_fraction"):
        assert ours[1][name] == pytest.approx(theirs[1][name], rel=1e-4), name


def test_detached_sequences_alone_are_something_to_learn_from(sequences):
    batch, _ = with_extras(sequences, [0.5, 0.5])
    algorithm = config_with().algorithm
    assert np.asarray(counted(algorithm, batch)).sum() == len(sequences)
    own = np.where(batch.detached > 0, batch.role, ROLE_NONE)
    alone = batch._replace(role=own)
    assert np.asarray(counted(algorithm, alone)).sum() == 0 and bool(usable(alone, 0.0))
    assert not bool(usable(batch._replace(role=np.full_like(own, ROLE_NONE)), 0.0))
    assert not bool(usable(batch._replace(given=None, detached=None), np.float32(0)))


@pytest.mark.parametrize("aggregate", ["sequence", "token"])
def test_detached_sequences_weigh_no_more_where_every_group_is_dropped(sequences, aggregate):
    """They are divided by what they are beside, played or dropped, not by 1."""
    batch, _ = with_extras(sequences, [0.5, 0.5])
    won = batch._replace(wins=np.ones_like(batch.wins), skill_valid=np.ones_like(batch.skill_valid))
    kept, dropped = (
        config_with(aggregate=aggregate, empty_groups=kind) for kind in ("keep", "drop")
    )
    assert np.asarray(counted(dropped.algorithm, won)).sum() == 0
    own = np.asarray(averaged(dropped.algorithm, won))
    np.testing.assert_array_equal(own, counted(kept.algorithm, won))
    ours, theirs = (
        Variant(c.algorithm, won, np.zeros(len(won.role), np.float32)).options(won, None)
        for c in (dropped, kept)
    )
    assert set(ours) == set(theirs)
    if aggregate == "token":
        assert float(ours["token_divisor"]) == float(theirs["token_divisor"]) > 1
    alone = won._replace(role=np.where(batch.detached > 0, batch.role, ROLE_NONE))
    assert np.asarray(averaged(dropped.algorithm, alone)).sum() == 2


def test_detached_sequences_keep_their_kl_where_nothing_else_has_one(sequences):
    """The reference is not left out because the arm's own weights are 0."""
    batch, _ = with_extras(sequences, [0.7, 0.3])
    alone = {"kl_coef": {"solver": 0.0, "extractor": 0.0}}
    _, without = run(config_with(**alone), batch, steps=2)  # after one, the policy has left it
    _, some = run(config_with(kl=5.0, **alone), batch, steps=2)
    assert without["kl_solver"] == 0 and some["kl_solver"] > 0
    assert some["loss"] > without["loss"]
