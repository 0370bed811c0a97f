"""The compiled updates against a plain computation, other layouts, other meshes and other arms."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_updates import (
    MODEL,
    ONE_DEVICE,
    G,
    N,
    assert_same,
    built,
    make_batch,
    make_sequences,
    mesh_of,
    new_state,
    run,
    small_config,
)

from evolving_rl_jax import losses, models, parallel
from evolving_rl_jax.types import ROLE_EXTRACTOR, ROLE_NONE, ROLE_SOLVER, TokenBatch
from evolving_rl_jax.update import microbatch
from evolving_rl_jax.update import optimizer as optimizer_lib
from evolving_rl_jax.update import step as step_lib


@pytest.fixture(scope="module")
def sequences():
    return make_sequences()


@pytest.fixture(scope="module")
def batch(sequences):
    return make_batch(sequences, num_rows=16)


@pytest.fixture(scope="module")
def joint(batch):
    return run(small_config(), batch)


def plain_loss(config, sequences, batch, state):
    """(loss, gradient) of the objective written out: one sequence at a time, whole logits."""
    a = config.algorithm
    advantages = losses.skill_advantages(
        batch.wins,
        skill_valid=batch.skill_valid,
        episode_mask=batch.episode_mask,
        extractor_weight=a.extractor_weight,
        solver_weight=a.solver_weight,
        solver_reward=a.solver_reward,
    )

    @jax.jit
    @jax.value_and_grad
    def one(params, tokens, mask, old, advantage, entropy_coef, kl_coef):
        def log_softmax(p):
            hidden, _ = models.apply(p, MODEL, tokens[None])
            return jax.nn.log_softmax(models.logits(p, MODEL, hidden)[0, :-1])

        logp_all, picked = log_softmax(params), (jnp.arange(len(tokens) - 1), tokens[1:])
        logp, ref = logp_all[picked], log_softmax(state.ref_params)[picked]
        weight = 1.0
        if a.importance.kind == "truncated":
            weight = jnp.minimum(jnp.exp(jax.lax.stop_gradient(logp) - old[1:]), a.importance.cap)
            old = jnp.pad(jax.lax.stop_gradient(logp), (1, 0))
        ratio = jnp.exp(logp - old[1:])
        clipped = jnp.clip(ratio, 1 - a.clip_low, 1 + a.clip_high)
        policy = -jnp.minimum(ratio * advantage, clipped * advantage)
        kl = jnp.exp(ref - logp) - 1 - (ref - logp)
        entropy = -jnp.sum(jnp.exp(logp_all) * logp_all, -1)
        token = weight * policy - entropy_coef * entropy + kl_coef * kl
        return jnp.sum(token * mask[1:]) / jnp.maximum(mask[1:].sum(), 1)

    total, grads = 0.0, jax.tree.map(jnp.zeros_like, state.params)
    for tokens, mask, old, role, index in sequences:
        name = "extractor" if role == ROLE_EXTRACTOR else "solver"
        # Zeros at the end are harmless to a causal model, and one length compiles once.
        padded = (np.pad(x, (0, 16 - len(x))) for x in (tokens, mask, old))
        advantage = getattr(advantages, name).reshape(-1)[index]
        loss, g = one(state.params, *padded, advantage, a.entropy_coef[name], a.kl_coef[name])
        total, grads = total + loss, jax.tree.map(jnp.add, grads, g)
    return total / len(sequences), jax.tree.map(lambda g: g / len(sequences), grads)


def test_update_equals_plain_computation(sequences, batch, joint):
    config = small_config()
    _, state = new_state(config)
    loss, grads = plain_loss(config, sequences, batch, state)
    optimizer = optimizer_lib.make_optimizer(config)
    updates, _ = optimizer.update(grads, optimizer.init(state.params), state.params)
    after, metrics = joint
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(grads), rtol=1e-4)
    expected = optax.apply_updates(state.params, updates)
    # One Adam step moves every weight by about the learning rate: compare on that scale.
    assert_same(after.params, jax.device_get(expected), rtol=0, atol=2e-5)
    assert_same(after.opt_state[1][0].mu, jax.tree.map(lambda g: _clipped(grads, g), grads))
    assert_same(after.ref_params, jax.device_get(state.ref_params), rtol=0, atol=0)


def test_truncated_importance_equals_plain_computation(sequences, batch):
    config = small_config(old_logprobs="trainer", importance={"kind": "truncated", "cap": 1.05})
    _, start = new_state(config)
    loss, grads = plain_loss(config, sequences, batch, start)
    after, metrics = run(config, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(grads), rtol=1e-4)
    assert_same(after.opt_state[1][0].mu, jax.tree.map(lambda g: _clipped(grads, g), grads))
    assert metrics["clip_fraction"] == 0  # the cap has taken its place
    new, old = trained_logprobs(start.params, sequences)
    weights = [min(math.exp(a - b), 1.05) for a, b in zip(new, old, strict=True)]
    capped = [math.exp(a - b) >= 1.05 for a, b in zip(new, old, strict=True)]
    np.testing.assert_allclose(metrics["importance_mean"], np.mean(weights), rtol=1e-5)
    np.testing.assert_allclose(metrics["importance_capped"], np.mean(capped), rtol=1e-5)
    assert 0.1 < np.mean(capped) < 0.9


def test_agreement_of_trainer_and_engine(sequences, batch, joint):
    new, old = trained_logprobs(new_state(small_config())[1].params, sequences)
    gaps, metrics = np.abs(new - old), joint[1]
    np.testing.assert_allclose(metrics["logprob_gap_mean"], gaps.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["logprob_gap_max"], gaps.max(), rtol=1e-4)
    correlation = np.corrcoef(new, old)[0, 1]
    np.testing.assert_allclose(metrics["logprob_correlation"], correlation, atol=1e-4)
    assert metrics["importance_mean"] == 1 and metrics["importance_capped"] == 0


def test_what_is_outside_the_clip_is_so_by_the_bounds_of_its_role(sequences, batch):
    config = small_config(extractor_clip={"low": 0.9, "high": 9.0}, clip_low=0.01, clip_high=0.01)
    params = new_state(config)[1].params
    outside = total = 0
    for sequence in sequences:
        new, old = map(np.array, trained_logprobs(params, [sequence]))
        low, high = (0.9, 9.0) if sequence[3] == ROLE_EXTRACTOR else (0.01, 0.01)
        ratio = np.exp(new - old)
        outside += ((ratio < 1 - low) | (ratio > 1 + high)).sum()
        total += len(new)
    _, metrics = run(config, batch)
    assert 0 < outside < total
    assert metrics["logprob_outside_clip"] == pytest.approx(outside / total, rel=1e-4)


def trained_logprobs(params, sequences):
    """(log-probabilities now, in the rollout) of all trained tokens, from one forward a sequence."""
    new, old = [], []
    for tokens, mask, rollout, _, _ in sequences:
        hidden, _ = models.apply(params, MODEL, np.pad(tokens, (0, 16 - len(tokens)))[None])
        logp = np.asarray(jax.nn.log_softmax(models.logits(params, MODEL, hidden)))[0]
        for t in np.flatnonzero(mask[1:]) + 1:
            new.append(logp[t - 1, tokens[t]])
            old.append(rollout[t])
    return np.array(new, np.float64), np.array(old, np.float64)


def test_sequences_of_one_episode_share_its_advantage(sequences, batch):
    """Turns that are trained apart: each is a sequence in the mean, with the episode's advantage."""
    config = small_config()
    episode = next(s for s in sequences if s[3] == ROLE_SOLVER)
    whole = make_batch([episode], num_rows=16)
    twice = make_batch([episode, episode], num_rows=16)
    assert (twice.index[:2] == whole.index[0]).all()
    advantages = [step_lib.sequence_advantages(config, b)[0] for b in (whole, twice)]
    np.testing.assert_array_equal(advantages[1][:2], np.repeat(advantages[0][:1], 2))
    (one, one_metrics), (two, two_metrics) = run(config, whole), run(config, twice)
    assert two_metrics["sequences_solver"] == 2 * one_metrics["sequences_solver"] == 2
    np.testing.assert_allclose(two_metrics["loss"], one_metrics["loss"], rtol=1e-5)
    assert_same(two.opt_state, one.opt_state)


def _clipped(grads, g):
    return np.asarray(0.1 * g / jnp.maximum(optax.global_norm(grads), 1.0))


def test_packed_equals_unpacked(sequences, joint):
    alone = make_batch(sequences, num_rows=24, length=16, per_row=1)
    state, metrics = run(small_config(), alone)
    assert_same(metrics, joint[1])
    assert_same(state.opt_state, joint[0].opt_state)


def test_micro_batches_and_remat_change_nothing(batch, joint):
    config = small_config()
    config.train.update(micro_batch_rows=3, remat="full")
    state, metrics = run(config, batch)
    assert_same(metrics, joint[1])
    assert_same(state.opt_state, joint[0].opt_state)


def test_rows_may_lie_anywhere(batch, joint):
    order = np.random.default_rng(0).permutation(batch.tokens.shape[0])
    mixed = batch._replace(**{f: getattr(batch, f)[order] for f in TokenBatch._fields[:6]})
    assert_same(run(small_config(), mixed)[1], joint[1])


def test_short_batch_equals_padded_and_does_not_recompile(sequences, batch):
    exact = make_batch(sequences[:5], num_rows=3)
    state, metrics = run(small_config(), exact)
    # The same content in the shape of the full batch.
    unused = np.full_like(batch.role, ROLE_NONE), np.zeros_like(batch.index)
    short = make_batch(sequences[:5], num_rows=16)._replace(
        role=unused[0], index=unused[1], step=np.zeros_like(batch.step)
    )
    short.role[: exact.role.size], short.index[: exact.index.size] = exact.role, exact.index
    train_step, first = new_state(small_config())
    train_step(first, batch)
    compiled = train_step._cache_size()
    padded_state, padded_metrics = train_step(new_state(small_config())[1], short)
    assert train_step._cache_size() == compiled
    assert_same(padded_metrics, metrics)
    assert_same(padded_state.opt_state, state.opt_state)


def test_unused_sequences_and_rows_are_not_read(sequences, batch, joint):
    rubbish = jax.tree.map(np.copy, batch)
    rubbish.tokens[10:], rubbish.rollout_logprobs[10:] = 7, np.nan
    state, metrics = run(small_config(), rubbish)
    assert_same((state.params, metrics), (joint[0].params, joint[1]), rtol=0, atol=0)
    dropped = jax.tree.map(np.copy, batch)
    dropped.role[3] = ROLE_NONE
    fewer = [s for m, s in enumerate(sequences) if m != 3]
    loss, _ = plain_loss(small_config(), fewer, batch, new_state(small_config())[1])
    np.testing.assert_allclose(run(small_config(), dropped)[1]["loss"], loss, atol=1e-6)


@pytest.mark.parametrize("arm", ["joint", "solver_only", "extractor_only", "grpo"])
def test_advantages_of_each_arm(batch, arm):
    config = small_config(arm=arm)
    values, _ = jax.jit(lambda b: step_lib.sequence_advantages(config, b))(batch)
    valid = np.ones_like(batch.skill_valid) if arm == "grpo" else batch.skill_valid
    expected = losses.skill_advantages(
        batch.wins,
        skill_valid=valid,
        episode_mask=batch.episode_mask,
        extractor_weight=0.4 if arm in ("joint", "extractor_only") else 0.0,
        solver_weight=0.0 if arm == "extractor_only" else 1.0,
    )
    flat = {ROLE_SOLVER: expected.solver.ravel(), ROLE_EXTRACTOR: expected.extractor.ravel()}
    pairs = zip(batch.role, batch.index, strict=True)
    by_hand = [flat[r][i] if r != ROLE_NONE else 0.0 for r, i in pairs]
    np.testing.assert_allclose(values, by_hand, atol=1e-6)
    trained = {r: np.abs(values[batch.role == r]).max() > 0 for r in flat}
    assert trained[ROLE_SOLVER] == (arm != "extractor_only")
    assert trained[ROLE_EXTRACTOR] == (arm in ("joint", "extractor_only"))
    assert not values[batch.role == ROLE_NONE].any()


def test_grpo_groups_repeats_of_a_task_without_skills():
    config = small_config(arm="grpo")
    wins = np.array([1, 0, 0, 0, 1, 1, 1, 1], np.float32).reshape(2, 1, 1, 4)
    batch = make_batch(make_sequences()[G * N : G * N + 8], 8)._replace(
        wins=wins,
        episode_mask=np.ones_like(wins),
        skill_valid=np.zeros((2, 1), np.float32),
        index=np.arange(10, dtype=np.int32) % 8,
    )
    values, stats = step_lib.sequence_advantages(config, batch)
    first = (np.array([1, 0, 0, 0]) - 0.25) / np.sqrt(0.1875)
    np.testing.assert_allclose(values, [*first, 0, 0, 0, 0, 0, 0], atol=1e-5)
    assert float(stats["zero_variance_solver"]) == 0.5
    assert run(config, batch)[1]["sequences_solver"] == 8


def test_groups_without_spread_still_have_kl_and_entropy(batch):
    flat = batch._replace(wins=np.zeros_like(batch.wins))
    _, metrics = run(small_config(), flat)
    assert metrics["policy_loss"] == 0 and metrics["grad_norm"] > 0
    assert metrics["zero_variance_solver"] == metrics["zero_variance_extractor"] == 1
    coefficients = {"kl_coef": {"solver": 0.0, "extractor": 0.0}}
    coefficients["entropy_coef"] = coefficients["kl_coef"]
    _, metrics = run(small_config(**coefficients), flat)
    assert metrics["grad_norm"] == 0 and metrics["kl"] == 0


def test_repeats_are_bit_identical(batch):
    first, second = (run(small_config(), batch, steps=2) for _ in range(2))
    assert_same(first, second, rtol=0, atol=0)


def test_update_without_finite_gradient_is_left_out(batch):
    train_step, state = new_state(small_config())
    before = jax.device_get(state)
    bad = jax.tree.map(np.copy, batch)
    bad.rollout_logprobs[0] = np.nan
    state, metrics = train_step(state, bad)
    assert metrics["skipped_updates"] == 1 and metrics["update_norm"] == 0
    assert_same(jax.device_get(state), before._replace(step=1, skipped=1), rtol=0, atol=0)
    empty = batch._replace(role=np.full_like(batch.role, ROLE_NONE), num_rows=np.int32(0))
    state, metrics = train_step(state, empty)
    assert metrics["skipped_updates"] == 2
    state, metrics = train_step(state, batch)
    assert metrics["skipped_updates"] == 2 and metrics["update_norm"] > 0


def test_metrics_are_the_documented_ones(sequences, batch, joint):
    metrics = joint[1]
    assert set(metrics) == set(step_lib.STEP_METRICS)
    assert all(v.dtype == np.float32 and np.isfinite(v) for v in metrics.values())
    played = batch.episode_mask > 0
    np.testing.assert_allclose(metrics["reward"], batch.wins[played].mean(), rtol=1e-6)
    assert metrics["sequences_extractor"] == G * N
    assert metrics["tokens"] == sum(len(s[0]) for s in sequences)
    assert metrics["trained_tokens"] == batch.loss_mask.sum()
    assert 0 < metrics["logprob_gap_mean"] < metrics["logprob_gap_max"]


def test_unknown_arm_is_an_error():
    with pytest.raises(ValueError, match="algorithm.arm must be one of joint, .* got 'both'"):
        new_state(small_config(arm="both"))


# -- which policy the ratio is to ------------------------------------------------------------------


def test_one_update_starts_inside_the_clip_whatever_the_engine_recorded():
    batch = make_batch(make_sequences(), num_rows=16)
    off = batch.rollout_logprobs - 0.5 * batch.loss_mask  # a ratio of 1.65, far outside
    _, recorded = run(small_config(), batch._replace(rollout_logprobs=off))
    _, computed = run(small_config(old_logprobs="trainer"), batch._replace(rollout_logprobs=off))
    assert recorded["ratio_deviation"] > 0.3 and recorded["clip_fraction"] > 0.1
    assert computed["ratio_deviation"] == 0 and computed["clip_fraction"] == 0
    for metrics in (recorded, computed):  # what the engine recorded is still told of
        assert metrics["logprob_gap_mean"] > 0.3 and metrics["logprob_outside_clip"] > 0.9


def test_scoring_gives_the_policy_that_later_batches_are_compared_with():
    """Scored before the first update, a batch has the ratio of the first update when it is taken."""
    config = small_config(old_logprobs="trainer")
    config.optimizer.learning_rate = 1e-2
    train_step, start = built(config.to_json(), json.dumps(ONE_DEVICE))
    mesh, optimizer = mesh_of(json.dumps(ONE_DEVICE)), optimizer_lib.make_optimizer(config)
    score = step_lib.make_scoring(config, MODEL, optimizer, mesh)
    first, second = (make_batch(make_sequences(s), num_rows=16, seed=s) for s in (0, 1))
    state = jax.device_put(start, parallel.shardings(start, mesh))
    old = jax.device_get(score(state, second))
    # Each row by itself, in one forward pass of the model.
    for row in range(int(second.num_rows)):
        hidden, _ = models.apply(
            start.params, MODEL, second.tokens[None, row],
            positions=second.positions[None, row], segment_ids=second.segment_ids[None, row],
        )  # fmt: skip
        logp = jax.nn.log_softmax(models.logits(start.params, MODEL, hidden))[0]
        for t in np.flatnonzero(second.loss_mask[row]):
            np.testing.assert_allclose(old[row, t], logp[t - 1, second.tokens[row, t]], atol=2e-5)
    assert not old[second.loss_mask == 0].any()

    unscored = np.full_like(old, np.nan)
    state, metrics = train_step(state, first._replace(old_logprobs=unscored))
    assert metrics["ratio_deviation"] == 0
    moved, metrics = train_step(state, second._replace(old_logprobs=old))
    assert metrics["ratio_deviation"] > 1e-3 and np.isfinite(metrics["loss"])
    assert train_step._cache_size() == 1


def test_tokens_are_scored_at_the_temperature_that_sampled_them():
    config = small_config(old_logprobs="rollout")
    config.rollout.temperature = 0.6
    batch = make_batch(make_sequences(), num_rows=16)
    mesh, optimizer = mesh_of(json.dumps(ONE_DEVICE)), optimizer_lib.make_optimizer(config)
    _, start = built(small_config().to_json(), json.dumps(ONE_DEVICE))
    score = step_lib.make_scoring(config, MODEL, optimizer, mesh)
    recorded = jax.device_get(score(jax.device_put(start), batch))  # as an engine at 0.6 would
    _, metrics = run(config, batch._replace(rollout_logprobs=recorded))
    assert metrics["ratio_deviation"] < 1e-5 and metrics["logprob_gap_max"] < 1e-5
    _, at_one = run(small_config(), batch._replace(rollout_logprobs=recorded))
    assert at_one["ratio_deviation"] > 0.01


def test_gradients_are_summed_in_place():
    """Beside the sums there is the gradient of one micro-batch, and nothing else of that size."""
    mesh = mesh_of(json.dumps(ONE_DEVICE))
    params = {"embedding": jax.ShapeDtypeStruct((1024, 256), jnp.float32)}
    rows = jax.ShapeDtypeStruct((6, 2, 1024), jnp.float32)

    def loss_fn(params, rows):
        return jnp.sum(jnp.sin(rows @ params["embedding"])), microbatch.MicroResult({}, {})

    @jax.jit
    def sums(params, rows, num_micro):
        return microbatch.accumulate_gradients(loss_fn, params, rows, num_micro, mesh)

    count = jax.ShapeDtypeStruct((), jnp.int32)
    memory = sums.lower(params, rows, count).compile().memory_analysis()
    size = 1024 * 256 * 4
    assert size <= memory.output_size_in_bytes < 1.1 * size
    assert memory.temp_size_in_bytes < 1.1 * size
