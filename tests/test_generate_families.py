"""Properties of the engine that must hold for every model family, on random tiny models."""

import dataclasses
import functools
import logging

import jax
import numpy as np
import pytest
from scipy import stats

from evolving_rl_jax import models
from evolving_rl_jax.generate import Engine
from evolving_rl_jax.models.config import RopeScaling

VOCAB, LENGTH = 53, 64
QWEN2 = models.ModelConfig(
    vocab_size=VOCAB,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    qkv_bias=True,
    model_type="qwen2",
)
FAMILIES = {
    "qwen2": QWEN2,
    "qwen3": dataclasses.replace(
        QWEN2, qkv_bias=False, qk_norm=True, num_kv_heads=1, tie_word_embeddings=False
    ),
    "llama": dataclasses.replace(
        QWEN2,
        qkv_bias=False,
        num_kv_heads=4,
        model_type="llama",
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32),
    ),
}


@functools.cache
def family(name):
    """(config, parameters far from uniform with biases and norms that matter, engine)."""
    cfg, key = FAMILIES[name], jax.random.key(3)
    params = models.init(cfg, key)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noise = (jax.random.normal(k, x.shape) * 0.2 for k, x in zip(keys, leaves, strict=True))
    params = jax.tree.unflatten(tree, [x + n for x, n in zip(leaves, noise, strict=True)])
    for name in ("embedding", "unembedding"):
        if name in params:
            params[name] = params[name] * 4
    engine = Engine(
        cfg, params, num_slots=3, max_length=LENGTH, prefill_chunk=(4, 16), decode_window=4,
        row_buckets=(3,), column_buckets=(LENGTH,), seed=5,
    )  # fmt: skip
    return cfg, params, engine


@functools.partial(jax.jit, static_argnums=2)
def _log_softmax(params, tokens, cfg):
    return jax.nn.log_softmax(models.logits(params, cfg, models.apply(params, cfg, tokens)[0]))


def full_logprobs(name, context):
    """[n, V] log-probabilities by an uncached forward; entry i is for token i + 1."""
    cfg, params, _ = family(name)
    tokens = np.zeros((1, LENGTH), np.int32)
    tokens[0, : len(context)] = context
    return np.asarray(_log_softmax(params, tokens, cfg)[0, : len(context)])


def run(engine):
    finished = []
    while engine.busy:
        finished += engine.step()
    return finished


def play(engine, episodes, seed, turns):
    """Random multi-turn sessions; {episode: (context, [(start, generation)])}."""
    rng = np.random.default_rng(seed)
    sessions = {e: engine.open(seed, e) for e in episodes}
    result = {e: [] for e in episodes}
    for _ in range(turns):
        for session in sessions.values():
            ids = rng.integers(0, VOCAB, rng.integers(1, 9))
            engine.submit(session, ids, max_new_tokens=int(rng.integers(1, 7)), stop_ids=(2, 3))
        for g in run(engine):
            start = len(g.session.context) - len(g.tokens)
            result[g.session.episode].append((start, g))
    for session in sessions.values():
        engine.close(session)
    return {e: (sessions[e].context, done) for e, done in result.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_cached_multi_turn_decoding_equals_a_full_forward(name):
    engine = family(name)[2]
    for seed in range(3):  # more sessions than slots, so that slots are used again and again
        for context, generations in play(engine, range(7), seed, turns=3).values():
            logprobs = full_logprobs(name, context)
            for start, g in generations:
                np.testing.assert_array_equal(context[start : start + len(g.tokens)], g.tokens)
                rows = np.arange(start - 1, start + len(g.tokens) - 1)
                np.testing.assert_allclose(logprobs[rows, g.tokens], g.logprobs, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_prompt_length_crosses_chunks_and_buckets_alike(name):
    engine = family(name)[2]
    for length in (1, 3, 4, 5, 15, 16, 17, 19, 20, 21, 27, 28, 31, 32, 33, 48, 59, 60):
        prompt = np.random.default_rng(length).integers(0, VOCAB, length)
        session = engine.open(9, length, prompt)
        engine.submit(session, (), max_new_tokens=4)
        (g,) = run(engine)
        rows = np.arange(length - 1, length + 3)
        expected = full_logprobs(name, session.context)[rows, g.tokens]
        np.testing.assert_allclose(expected, g.logprobs, atol=2e-5)
        engine.close(session)


@pytest.mark.parametrize("name", FAMILIES)
def test_clones_equal_independent_prefills(name):
    cfg, params, engine = family(name)
    prompt = np.random.default_rng(0).integers(0, VOCAB, 25)
    parent = engine.open(20, 0, prompt)
    engine.submit(parent, (), max_new_tokens=4)
    run(engine)
    engine.reset_stats()
    clones = engine.fork(parent, 5, range(1, 6))
    engine.close(parent)
    for clone in clones:
        engine.submit(clone, [clone.episode], max_new_tokens=6)
    cloned = {}
    while engine.busy:
        for g in engine.step():
            cloned[g.session.episode] = g
            engine.close(g.session)
    assert engine.stats.prefix_reused_tokens >= 5 * 28
    for episode, g in cloned.items():
        engine.set_params(params, 0)  # an empty cache
        engine.reset_stats()
        session = engine.open(20, episode, parent.context)
        engine.submit(session, [episode], max_new_tokens=6, turn=1)
        (alone,) = run(engine)
        assert engine.stats.prefix_reused_tokens == 0
        np.testing.assert_array_equal(alone.tokens, g.tokens)
        np.testing.assert_allclose(alone.logprobs, g.logprobs, atol=1e-5)
        engine.close(session)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_used_slot_leaks_nothing(name):
    """What an earlier session left behind in a slot changes no bit of a later one."""
    engine = family(name)[2]
    params = family(name)[1]

    def short():
        session = engine.open(30, 0, np.arange(2, 9))
        engine.submit(session, (), max_new_tokens=12)
        (g,) = run(engine)
        engine.close(session)
        return g

    engine.set_params(params, 0)
    clean = short()
    for seed in (40, 41):
        for _ in play(engine, range(3), seed, turns=4).values():
            pass
        engine.set_params(params, 0)  # forgets, but does not erase
        used = short()
        np.testing.assert_array_equal(clean.tokens, used.tokens)
        np.testing.assert_array_equal(clean.logprobs, used.logprobs)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.5, 1.0, 0), (2.5, 0.8, 0), (2.0, 1.0, 6), (3.0, 0.9, 9)]
)
def test_the_engine_samples_with_the_exact_frequencies(temperature, top_p, top_k):
    engine, draws = family("qwen2")[2], 3000
    prompt = np.arange(3, 20)
    x = full_logprobs("qwen2", prompt)[-1].astype(np.float64) / temperature
    p = np.exp(x - x.max())
    order = np.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    if top_p < 1:
        p[order[np.cumsum(p[order]) - p[order] >= top_p]] = 0
    p /= p.sum()
    counts = np.zeros(VOCAB)
    for first in range(0, draws, 3):
        sessions = [engine.open(50, first + i, prompt) for i in range(3)]
        for session in sessions:
            engine.submit(
                session, (), max_new_tokens=1, temperature=temperature, top_p=top_p, top_k=top_k
            )
        for g in run(engine):
            counts[g.tokens[0]] += 1
            np.testing.assert_allclose(g.sampling_logprobs[0], np.log(p[g.tokens[0]]), atol=1e-4)
        for session in sessions:
            engine.close(session)
    kept = p > 0
    assert counts[~kept].sum() == 0
    rare = kept & (p * draws < 5)  # chi-square wants five expected draws in a cell
    observed, expected = counts[kept & ~rare], p[kept & ~rare] * draws
    if rare.any():
        observed = np.append(observed, counts[rare].sum())
        expected = np.append(expected, p[rare].sum() * draws)
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_settings_are_those_of_the_row(caplog):
    """Limits, temperatures, top-k, top-p and stops of neighbours do not mix."""
    engine = family("llama")[2]
    prompt = np.arange(2, 12)
    settings = [
        dict(max_new_tokens=9, temperature=0.0),
        dict(max_new_tokens=3, temperature=1.0, top_k=1),
        dict(max_new_tokens=12, temperature=0.7, top_p=0.5, stop_ids=tuple(range(10, 18))),
        dict(max_new_tokens=5, temperature=1.5, stop_ids=tuple(range(30, 38))),
    ]

    def sample(chosen):
        sessions = [engine.open(60, i, prompt) for i in chosen]
        for i, session in zip(chosen, sessions, strict=True):
            engine.submit(session, (), **settings[i])
        tokens = {g.session.episode: g.tokens.tolist() for g in run(engine)}
        for session in sessions:
            engine.close(session)
        return tokens

    together = sample([0, 1, 2]) | sample([3, 0])
    for i in range(4):
        assert sample([i])[i] == together[i]
    assert len(together[0]) == 9 and len(together[1]) == 3
    assert together[0][:3] == together[1]  # top_k = 1 is greedy


@pytest.fixture
def compilations():
    """Everything that XLA compiles while the test runs."""
    seen = []

    def listen(event, _seconds, **_):
        if "backend_compile" in event:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_200_random_episodes_compile_nothing_after_warmup(compilations, caplog):
    cfg, params, _ = family("qwen3")
    engine = Engine(
        cfg, params, num_slots=9, max_length=LENGTH, prefill_chunk=(8,), decode_window=4,
        row_buckets=(9,), column_buckets=(LENGTH,), seed=1, evict_below=0.9,
        decode=lambda ids: "".join(chr(65 + i) for i in ids),
    )  # fmt: skip
    engine.warmup()
    rng = np.random.default_rng(0)
    left = {e: int(rng.integers(1, 6)) for e in range(200)}  # turns of every episode
    before, waiting, started = len(compilations), [], 0
    counts = engine.compile_count
    with caplog.at_level(logging.WARNING):
        while left:
            while started < 200 and rng.random() < 0.7:
                waiting.append(engine.open(70, started))
                started += 1
            for session in [s for s in waiting if rng.random() < 0.6]:
                waiting.remove(session)
                engine.submit(
                    session,
                    rng.integers(0, VOCAB, rng.integers(1, 25)),
                    max_new_tokens=int(rng.integers(1, 15)),
                    temperature=float(rng.choice([0.0, 0.7, 1.0])),
                    top_p=float(rng.choice([0.9, 1.0])),
                    top_k=int(rng.choice([0, 5])),
                    stop_ids=(1, 2) if rng.random() < 0.5 else (),
                    stop_strings=("AB", "Q") if rng.random() < 0.5 else (),
                )
            for g in engine.step():
                left[g.session.episode] -= 1
                if left[g.session.episode] == 0 or g.reason == "overflow":
                    del left[g.session.episode]
                    engine.close(g.session)
                else:
                    waiting.append(g.session)
            if rng.random() < 0.02:
                engine.set_params(params, started)
    assert len(compilations) == before and engine.compile_count == counts
    assert "cold shape" not in caplog.text
    assert engine.stats.evictions > 0 and engine.stats.dropped_tokens > 0
    engine._runner.programs._compiled.clear()
    with caplog.at_level(logging.WARNING):
        session = engine.open(71, 0, [1])
        engine.submit(session, (), max_new_tokens=1)
        run(engine)
    assert "cold shape" in caplog.text and len(compilations) > before
