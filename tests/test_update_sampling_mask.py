"""Tokens that top-p and top-k left out: recorded by the engine, left out again by the update."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_updates import MODEL, ONE_DEVICE, built, make_sequences, mesh_of, run, small_config
from small_updates import make_batch as pack

from evolving_rl_jax import losses, models, parallel
from evolving_rl_jax.config import default_config
from evolving_rl_jax.generate import Engine
from evolving_rl_jax.rollout.batch import BatchShape, fill_rows, make_batch
from evolving_rl_jax.rollout.contexts import Transcript
from evolving_rl_jax.rollout.evolve import Candidate, Experience, Source
from evolving_rl_jax.update import optimizer as optimizer_lib
from evolving_rl_jax.update import step as step_lib

TEMPERATURE = 0.6
SHAPE = BatchShape(
    g=2, k=1, n=4, r=1, row_length=24, micro_batch_rows=8, sampling_mask=True
)  # fmt: skip


def config_at(temperature=TEMPERATURE, **algorithm):
    config = small_config(**algorithm)
    config.rollout.temperature = temperature
    return config


def policy():
    """The parameters that `small_updates.run` starts from, with logits far from uniform."""
    return built(small_config().to_json(), json.dumps(ONE_DEVICE))[1].params


def experience(top_p=0.9, top_k=0, temperature=TEMPERATURE) -> Experience:
    """What an engine with the policy sampled: eight sequences of two turns each."""
    engine = Engine(
        MODEL, policy(), num_slots=8, max_length=24, prefill_chunk=(4,), decode_window=4,
        row_buckets=(8,), column_buckets=(24,),
    )  # fmt: skip
    rng, written = np.random.default_rng(0), {}
    for episode in range(8):
        transcript = written[engine.open(0, episode)] = Transcript()
        transcript.append_forced(rng.integers(0, MODEL.vocab_size, 3))
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "max_new_tokens": 8}
    for _ in range(2):
        for session, transcript in written.items():
            engine.submit(session, transcript.tokens[-1], **sampling)
        while engine.busy:
            for done in engine.step():
                transcript = written[done.session]
                transcript.append_sampled(
                    done.tokens, done.logprobs, done.sampling_logprobs, done.floor_logprobs
                )
                transcript.append_forced(rng.integers(0, MODEL.vocab_size, 2))
    samples = [t.sample() for t in written.values()]
    sources = [Source(task=None), Source(task=None)]
    for i, sample in enumerate(samples):
        sources[i // 4].candidates.append(Candidate("", sample, None, "", True))
    wins = np.zeros((2, 1, 4, 1), np.float32)
    return Experience(sources, wins, wins, np.ones((2, 4), np.float32))


@pytest.mark.parametrize("top_p,top_k", [(0.9, 0), (0.5, 0), (1.0, 3), (0.9, 7)])
def test_the_ratio_on_policy_is_one(top_p, top_k):
    played = experience(top_p, top_k)
    _, replayed = run(config_at(), make_batch(played, SHAPE))
    assert replayed["logprob_gap_max"] < 2e-5 and replayed["ratio_deviation"] < 1e-5
    assert replayed["logprob_outside_clip"] == 0 and replayed["trained_tokens"] >= 100
    # Without the mask the ratio is the probability of what was kept, on every token.
    without = make_batch(played, SHAPE)._replace(floor_logprobs=None)
    _, ignored = run(config_at(), without)
    assert ignored["ratio_deviation"] > 0.03


def test_kl_and_entropy_are_those_of_the_whole_vocabulary():
    played = experience()
    batch = make_batch(played, SHAPE)
    _, replayed = run(config_at(), batch)
    _, ignored = run(config_at(), batch._replace(floor_logprobs=None))
    for name in ("kl", "kl_extractor", "entropy_extractor"):
        np.testing.assert_allclose(replayed[name], ignored[name], rtol=1e-4)
    # What enters the loss is what is reported.
    c = config_at()
    expected = replayed["policy_loss"] + c.algorithm.kl_coef.extractor * replayed["kl"]
    expected -= c.algorithm.entropy_coef.extractor * _entropy_per_sequence(batch)
    np.testing.assert_allclose(replayed["loss"], expected, rtol=1e-4)


def _entropy_per_sequence(batch):
    hidden, _ = models.apply(
        policy(), MODEL, batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids
    )
    logp = jax.nn.log_softmax(models.logits(policy(), MODEL, hidden) / TEMPERATURE)
    entropy = np.asarray(-jnp.sum(jnp.exp(logp) * logp, -1))
    means = []
    for m in range(8):
        row, column = np.nonzero((batch.sequence_ids == m) & (batch.loss_mask > 0))
        means.append(entropy[row, column - 1].mean())
    return np.mean(means)


def test_the_gradient_is_that_of_a_masked_softmax():
    """Of the policy term, the weights of the whole model, against one written out."""
    kl = {"solver": 0.0, "extractor": 0.0}
    config = config_at(kl_coef=kl, entropy_coef=kl, old_logprobs="trainer")
    batch = make_batch(experience(), SHAPE)
    advantages = np.linspace(-1, 1, SHAPE.num_sequences).astype(np.float32)
    tokens, mask = jnp.asarray(batch.tokens), jnp.asarray(batch.loss_mask)

    def plain(params):
        hidden, _ = models.apply(
            params, MODEL, tokens, positions=batch.positions, segment_ids=batch.segment_ids
        )
        logits = models.logits(params, MODEL, hidden)[:, :-1] / TEMPERATURE
        whole = jax.lax.stop_gradient(jax.nn.log_softmax(logits))
        kept = whole >= batch.floor_logprobs[:, 1:, None]
        logp = jax.nn.log_softmax(jnp.where(kept, logits, -jnp.inf))
        picked = jnp.take_along_axis(logp, tokens[:, 1:, None], -1)[..., 0]
        ratio = jnp.exp(picked - jax.lax.stop_gradient(picked))
        ids = batch.sequence_ids[:, 1:]
        total = 0.0
        for m in range(8):
            own = (ids == m) & (mask[:, 1:] > 0)
            total -= jnp.sum(jnp.where(own, ratio * advantages[m], 0.0)) / own.sum()
        return total

    from evolving_rl_jax.update.loss import make_loss

    loss_fn = make_loss(
        config, MODEL, None, policy(), batch, advantages, mesh_of(json.dumps(ONE_DEVICE)), "auto"
    )
    rows = step_lib._rows(batch)
    got, want = jax.grad(lambda p: loss_fn(p, rows)[0])(policy()), jax.grad(plain)(policy())
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(want))
    assert scale > 1e-3
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5 * scale), got, want)


def test_later_updates_of_an_iteration_compare_with_the_kept_tokens_too():
    config = config_at(old_logprobs="trainer")
    mesh, optimizer = mesh_of(json.dumps(ONE_DEVICE)), optimizer_lib.make_optimizer(config)
    batch = make_batch(experience(), SHAPE)
    score = step_lib.make_scoring(config, MODEL, optimizer, mesh)
    _, start = built(small_config().to_json(), json.dumps(ONE_DEVICE))
    old = np.asarray(score(jax.device_put(start, parallel.shardings(start, mesh)), batch))
    trained = batch.loss_mask > 0
    np.testing.assert_allclose(old[trained], batch.rollout_logprobs[trained], atol=2e-5)


def test_a_batch_carries_the_mask_only_where_it_is_asked_for():
    config = default_config()
    assert not BatchShape.from_config(config).sampling_mask
    config.algorithm.sampling_mask = "replay"
    assert BatchShape.from_config(config).sampling_mask
    played = experience()
    plain = make_batch(played, BatchShape(2, 1, 4, 1, 24, 8))
    assert plain.floor_logprobs is None
    replay = make_batch(played, SHAPE)
    for row, column in zip(*np.nonzero(replay.loss_mask), strict=True):
        assert plain.rollout_logprobs[row, column] <= replay.rollout_logprobs[row, column]
    sample = played.sources[0].candidates[0].sample
    sample.floor_logprobs = None
    with pytest.raises(ValueError, match="sampling_mask 'replay' needs sequences with floor"):
        fill_rows([sample], [[0]], 1, 24, sampling_mask=True)


def test_greedy_and_unrestricted_sampling_have_no_border():
    sample = experience(1.0, 0).sources[0].candidates[0].sample
    assert (sample.floor_logprobs[sample.loss_mask > 0] == -np.inf).all()
    np.testing.assert_allclose(sample.logprobs, sample.sampling_logprobs, atol=1e-6)
    hidden, matrix = jnp.ones((1, 1, 1)), jnp.log(jnp.array([[0.6], [0.4]]))
    greedy = losses.kept_token_logprobs(hidden, matrix, jnp.array([[0]]), jnp.full((1, 1), jnp.inf))
    assert greedy.of_kept == 0


def test_the_update_compiles_once_with_the_mask_and_leaves_out_rows_of_padding():
    batch = make_batch(experience(), SHAPE)
    _, metrics = run(config_at(), batch, steps=2)
    assert all(np.isfinite(value) for value in metrics.values())
    without = pack(make_sequences(), num_rows=16)
    assert without.floor_logprobs is None
