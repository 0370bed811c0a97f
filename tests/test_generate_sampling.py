"""Sampling against numpy with a sort; frequencies against the exact distribution."""

import jax
import numpy as np
import pytest
from scipy import stats

from evolving_rl_jax.generate.sampling import sample, token_uniforms, turn_key

DRAWS = 40_000


def exact(logits, temperature, top_p, top_k):
    """Probabilities [V] after temperature, then top-k, then top-p of the rest, by sorting."""
    x = logits.astype(np.float64) / temperature
    p = np.exp(x - x.max())
    order = np.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    if top_p < 1:
        mass_before = np.cumsum(p[order]) - p[order]
        p[order[mass_before >= top_p]] = 0
    return p / p.sum()


def draw(logits, temperature, top_p, top_k, rows=DRAWS, first=0):
    keys = np.tile(turn_key(3, 0, 0, 0), (rows, 1))
    uniforms = token_uniforms(keys, first + np.arange(rows, dtype=np.int32), 1)[0]
    logits = np.broadcast_to(logits, (rows, logits.shape[-1]))

    def full(value, dtype):
        return np.broadcast_to(np.asarray(value, dtype), (rows,))

    out = jax.jit(sample)(
        logits,
        uniforms,
        full(temperature, np.float32),
        full(top_p, np.float32),
        full(top_k, np.int32),
    )
    return [np.asarray(a) for a in out]


@pytest.mark.parametrize("vocab", [3, 61])
@pytest.mark.parametrize(
    "temperature,top_p,top_k",
    [
        (1.0, 1.0, 0),
        (0.5, 1.0, 0),
        (1.7, 0.8, 0),
        (1.0, 0.3, 0),
        (1.0, 1.0, 5),
        (0.8, 0.9, 7),
        (1.0, 1.0, 1000),
    ],
)
def test_frequencies_match_the_exact_distribution(vocab, temperature, top_p, top_k):
    logits = np.random.default_rng(vocab).normal(size=vocab).astype(np.float32) * 2
    probabilities = exact(logits, temperature, top_p, top_k)
    tokens, logprobs, sampling_logprobs, floors = draw(logits, temperature, top_p, top_k)
    counts = np.bincount(tokens, minlength=vocab)
    kept = probabilities > 0
    assert counts[~kept].sum() == 0
    if kept.sum() > 1:
        assert stats.chisquare(counts[kept], probabilities[kept] * DRAWS).pvalue > 1e-3
    np.testing.assert_allclose(sampling_logprobs, np.log(probabilities[tokens]), atol=1e-5)
    np.testing.assert_allclose(
        logprobs, np.log(exact(logits, temperature, 1.0, 0)[tokens]), atol=1e-5
    )
    everything = np.log(exact(logits, temperature, 1.0, 0))
    if kept.all():
        assert (floors == -np.inf).all()
    else:  # as far from the last one kept as from the first one left out
        least, most = everything[kept].min(), everything[~kept].max()
        np.testing.assert_allclose(floors, (least + most) / 2, atol=1e-5)


def test_rows_with_different_settings_do_not_mix():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(64, 97)).astype(np.float32) * 3
    temperature = rng.choice([0.0, 0.7, 1.0], 64).astype(np.float32)
    top_p = rng.choice([0.5, 0.9, 1.0], 64).astype(np.float32)
    top_k = rng.choice([0, 3, 20], 64).astype(np.int32)
    tokens, _, sampling_logprobs, floors = draw(logits, temperature, top_p, top_k, rows=64)
    for i in range(64):
        if temperature[i] == 0:
            assert tokens[i] == logits[i].argmax() and sampling_logprobs[i] == 0
            assert floors[i] == np.inf
        else:
            p = exact(logits[i], temperature[i], top_p[i], top_k[i])
            np.testing.assert_allclose(sampling_logprobs[i], np.log(p[tokens[i]]), atol=1e-5)
            whole = np.log(exact(logits[i], temperature[i], 1.0, 0))
            np.testing.assert_array_equal(whole > floors[i], p > 0)


def test_tokens_that_tie_with_the_last_one_kept_lie_above_the_floor():
    logits = np.log(np.array([0.4, 0.2, 0.2, 0.15, 0.05], np.float32))
    for top_p, top_k in ((0.5, 0), (1.0, 2)):  # both cut inside the tie
        tokens, _, sampling_logprobs, floors = draw(logits, 1.0, top_p, top_k, rows=200)
        assert set(tokens) == {0, 1, 2}
        np.testing.assert_allclose(floors, 0.5 * (logits[2] + logits[3]), atol=1e-5)
        np.testing.assert_allclose(
            np.exp(sampling_logprobs), np.exp(logits)[tokens] / 0.8, atol=1e-5
        )


def test_extreme_logits():
    logits = np.full((1, 300), -1e9, np.float32)
    logits[0, 211] = 50.0
    for top_p, top_k in ((1.0, 0), (0.9, 0), (1.0, 2)):
        tokens, logprobs, sampling_logprobs, _ = draw(logits, 1.0, top_p, top_k, rows=500)
        assert (tokens == 211).all() and not logprobs.any() and not sampling_logprobs.any()


def test_keys_differ_in_every_part_and_uniforms_in_every_index():
    base = (1, 2, 3, 4)
    keys = [tuple(turn_key(*base))]
    keys += [tuple(turn_key(*(v + (i == j) for j, v in enumerate(base)))) for i in range(4)]
    assert len(set(keys)) == 5
    key = np.array([keys[0]], np.uint32)
    uniforms = np.asarray(token_uniforms(key, np.array([0], np.int32), 2000))
    assert len(np.unique(uniforms)) > 3990 and 0 <= uniforms.min() and uniforms.max() < 1
    assert stats.kstest(uniforms.ravel(), "uniform").pvalue > 1e-3
    # A window that starts later continues the same stream.
    later = np.asarray(token_uniforms(key, np.array([700], np.int32), 10))
    np.testing.assert_array_equal(later, uniforms[700:710])
