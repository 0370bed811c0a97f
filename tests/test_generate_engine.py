"""The engine against full, uncached forwards, whatever the slots, sharing and evictions."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evolving_rl_jax import models
from evolving_rl_jax.generate import Engine
from evolving_rl_jax.models import cached

VOCAB, LENGTH = 61, 96
CFG = models.ModelConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    qk_norm=True,
)


def make_params(seed):
    params = models.init(CFG, jax.random.key(seed))
    params["embedding"] = params["embedding"] * 15  # far from uniform, so that a wrong cache shows
    return params


PARAMS = make_params(0)


def make_engine(num_slots=4, params=PARAMS, **options):
    defaults = {"prefill_chunk": (4,), "decode_window": 5, "row_buckets": (4,), "seed": 7}
    options = defaults | {"column_buckets": (LENGTH,)} | options
    return Engine(CFG, params, num_slots=num_slots, max_length=LENGTH, **options)


@pytest.fixture(scope="module", params=["copied", "in_place"])
def shared_engine(request):
    """With the programs of a CPU, and with those of a GPU in blocks of 32 columns."""
    engine = make_engine(prefill_chunk=(4, 8), column_buckets=(48,))
    engine._runner.programs.in_place = request.param == "in_place"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached, "_block", lambda *_: 32)
        yield engine


@pytest.fixture
def engine(shared_engine):
    """One engine for all tests that need no special one, so that its programs compile once."""
    shared_engine.set_params(PARAMS, 0)
    shared_engine.reset_stats()
    yield shared_engine
    assert not shared_engine.busy
    for session in [s for s in shared_engine._slots.owner if s is not None]:
        shared_engine.close(session)
    shared_engine._open.clear()


@functools.partial(jax.jit, static_argnums=2)
def _full_logits(params, tokens, cfg):
    return models.logits(params, cfg, models.apply(params, cfg, tokens)[0])


def full_logits(context, params=PARAMS):
    """Logits [n, V] of an uncached forward; entry i is for token i + 1."""
    tokens = np.zeros((1, LENGTH), np.int32)
    tokens[0, : len(context)] = context
    return np.asarray(_full_logits(params, tokens, CFG)[0, : len(context)])


def check_against_full_forward(context, generations, params=PARAMS, temperature=1.0):
    """Finds the sampled runs in the final context and compares their log-probs."""
    log_softmax = np.asarray(jax.nn.log_softmax(full_logits(context, params) / temperature))
    for start, generation in generations:
        n = len(generation.tokens)
        np.testing.assert_array_equal(context[start : start + n], generation.tokens)
        rows = np.arange(start - 1, start + n - 1)
        np.testing.assert_allclose(
            log_softmax[rows, generation.tokens], generation.logprobs, atol=1e-4
        )


def observation(episode, turn, last):
    """What the pretend environment answers: ids that depend on what was said."""
    rng = np.random.default_rng([episode, turn, last])
    return rng.integers(0, VOCAB, rng.integers(0 if turn else 1, 12))


def play(engine, episodes, turns=4, delay=0, prefix=(), iteration=0, **options):
    """Plays episodes to the end; {episode: (context, [(start, generation), ...])}."""
    options = dict(max_new_tokens=7, stop_ids=(3, 4)) | options
    result, pending, clock = {}, [], 0
    for episode in episodes:
        session = engine.open(iteration, episode)
        result[episode] = session, []
        ids = np.concatenate([prefix, observation(episode, 0, 0)]).astype(np.int32)
        engine.submit(session, ids, **options)
    while engine.busy or pending:
        clock += 1
        for generation in engine.step():
            session = generation.session
            done = result[session.episode][1]
            done.append((len(session.context) - len(generation.tokens), generation))
            if len(done) == turns:
                engine.close(session)
            else:
                pending.append((clock + delay, session, generation.tokens[-1]))
        for _, session, last in [p for p in pending if p[0] <= clock]:
            engine.submit(session, observation(session.episode, session.turn, last), **options)
        pending = [p for p in pending if p[0] > clock]
    return {e: (session.context, done) for e, (session, done) in result.items()}


def assert_same_text(a, b):
    assert a.keys() == b.keys()
    for episode in a:
        np.testing.assert_array_equal(a[episode][0], b[episode][0])


def test_multi_turn_logprobs_equal_a_full_forward(engine):
    played = play(engine, range(12), turns=5)
    for context, generations in played.values():
        assert len(generations) == 5
        check_against_full_forward(context, generations)
    assert engine.stats.turn_reused_tokens > engine.stats.prefilled_tokens
    assert len({tuple(context) for context, _ in played.values()}) == 12


@pytest.mark.parametrize("length", [1, 2, 4, 5, 8, 9, 12, 13, 31, 47, 48, 49, 50, 80])
def test_chunk_and_bucket_boundaries(engine, length):
    prompt = np.random.default_rng(length).integers(0, VOCAB, length)
    session = engine.open(0, length, prompt)
    engine.submit(session, (), max_new_tokens=12)
    while engine.busy:
        for generation in engine.step():
            check_against_full_forward(session.context, [(length, generation)])
    assert len(session.context) == length + 12


def test_text_does_not_depend_on_the_number_of_slots_or_on_eviction(engine):
    reference = play(engine, range(8))
    assert_same_text(reference, play(make_engine(1, prefill_chunk=(3,)), range(8), delay=3))
    many = make_engine(16, decode_window=9, row_buckets=(8,))
    assert_same_text(reference, play(many, range(8)))
    assert_same_text(reference, play(engine, reversed(range(8)), delay=2))
    other = play(engine, range(8), iteration=1)
    assert all(tuple(other[e][0]) != tuple(reference[e][0]) for e in range(8))


def test_idle_sessions_make_room_and_are_recomputed(engine):
    played = play(engine, range(10), delay=6)
    assert engine.stats.evictions > 0
    for context, generations in played.values():
        check_against_full_forward(context, generations)


def test_no_eviction_while_enough_slots_are_at_work(engine):
    play(engine, range(10))
    assert engine.stats.evictions == 0


def test_forks_equal_independent_sessions_and_prefill_once(engine):
    prompt = np.random.default_rng(0).integers(0, VOCAB, 40)
    suffixes = [np.array([5 + episode, 6, 7]) for episode in range(6)]
    parent = engine.open(0, 100, prompt)
    engine.submit(parent, (), max_new_tokens=5)
    while engine.busy:
        engine.step()
    engine.reset_stats()
    forks = engine.fork(parent, 6, range(6))
    for fork in forks:
        engine.submit(fork, suffixes[fork.episode], max_new_tokens=9)
    done = {}
    while engine.busy:
        for generation in engine.step():
            done[generation.session.episode] = generation
            engine.close(generation.session)
    # The cache of a session lacks its last token: the first fork adds that of the parent and its
    # own suffix without the last; the others find the whole parent in the first.
    assert engine.stats.prefilled_tokens == 3 + 5 * 2
    assert engine.stats.prefix_reused_tokens == 6 * len(parent.context) - 1
    start = len(parent.context) + 3
    for fork in forks:
        check_against_full_forward(fork.context, [(start, done[fork.episode])])

    independent = make_engine(2)
    for fork in forks:
        session = independent.open(0, fork.episode, parent.context)
        independent.submit(session, suffixes[fork.episode], max_new_tokens=9, turn=1)
        while independent.busy:
            for generation in independent.step():
                np.testing.assert_array_equal(generation.tokens, done[fork.episode].tokens)
        independent.close(session)
        independent.set_params(PARAMS, 0)
    assert independent.stats.prefix_reused_tokens == 0


def test_a_copy_of_a_copy_is_made_before_decoding(engine):
    rng = np.random.default_rng(1)
    others = [engine.open(0, 100 + i, rng.integers(0, VOCAB, 60)) for i in range(2)]
    parent = engine.open(0, 102, rng.integers(0, VOCAB, 40))
    for session in (*others, parent):
        engine.submit(session, (), max_new_tokens=5)
    while engine.busy:
        engine.step()
    for session in (*others, parent):
        engine.close(session)
    # All forks ask the same, so each finds the whole context in the first slot that will hold it:
    # the last one in a slot that is itself still waiting for its copy.
    forks = engine.fork(parent, 4, range(4))
    for fork in forks:
        engine.submit(fork, (5, 6, 7), max_new_tokens=9)
    engine._admit()
    assert {source for source, _ in engine._runner.copies.values()} & set(engine._runner.copies)
    done = {}
    while engine.busy:
        for generation in engine.step():
            done[generation.session.episode] = generation
            engine.close(generation.session)
    for fork in forks:
        check_against_full_forward(fork.context, [(len(parent.context) + 3, done[fork.episode])])


def test_a_common_prompt_is_prefilled_once_even_when_all_start_together(engine):
    prefix = np.random.default_rng(1).integers(0, VOCAB, 33)
    played = play(engine, range(4), prefix=prefix, turns=2)
    assert engine.stats.prefix_reused_tokens >= 3 * 33
    for context, generations in played.values():
        check_against_full_forward(context, generations)


def test_stop_tokens_end_a_turn_and_are_kept(engine):
    stops = (1, 2, 9, 11, 30, 40, 41, 42)
    played = play(engine, range(30), turns=3, stop_ids=stops, max_new_tokens=20)
    reasons = set()
    for _, generations in played.values():
        for _, g in generations:
            reasons.add(g.reason)
            is_stop = np.isin(g.tokens, stops)
            assert not is_stop[:-1].any()
            assert is_stop[-1] == (g.reason == "stop")
            assert len(g.tokens) == len(g.logprobs) == len(g.sampling_logprobs)
            assert g.reason == "stop" or len(g.tokens) == 20
            assert g.tokens.dtype == np.int32 and g.logprobs.dtype == np.float32
    assert reasons == {"stop", "length"}


def test_overflow(engine):
    session = engine.open(0, 0, np.arange(50))
    engine.submit(session, np.arange(40), max_new_tokens=100)
    (generation,) = run(engine)
    assert generation.reason == "overflow" and len(session.context) == LENGTH
    check_against_full_forward(session.context, [(90, generation)])
    engine.submit(session, (), max_new_tokens=1)
    (generation,) = run(engine)
    assert generation.reason == "overflow" and len(generation.tokens) == 0


def run(engine):
    finished = []
    while engine.busy:
        finished += engine.step()
    return finished


def test_greedy_and_restricted_sampling(engine):
    prompt = np.arange(10)
    greedy, restricted = engine.open(0, 0, prompt), engine.open(0, 1, prompt)
    engine.submit(greedy, (), max_new_tokens=10, temperature=0.0)
    engine.submit(restricted, (), max_new_tokens=10, temperature=0.7, top_k=2)
    by_episode = {g.session.episode: g for g in run(engine)}
    logits = full_logits(greedy.context)[9:-1]
    np.testing.assert_array_equal(by_episode[0].tokens, logits.argmax(-1))
    assert not by_episode[0].sampling_logprobs.any()
    logits = full_logits(restricted.context)[9:-1] / 0.7
    best = np.sort(logits, axis=-1)[:, -2:]
    chosen = np.take_along_axis(logits, by_episode[1].tokens[:, None], -1)[:, 0]
    np.testing.assert_allclose(
        by_episode[1].sampling_logprobs, chosen - np.logaddexp(*best.T), atol=1e-4
    )
    check_against_full_forward(greedy.context, [(10, by_episode[0])])
    check_against_full_forward(restricted.context, [(10, by_episode[1])], temperature=0.7)


def test_new_weights_invalidate_every_cache_even_in_the_middle_of_a_turn(engine):
    play(engine, range(4), turns=2)
    other = make_params(1)
    idle = engine.open(0, 0, np.arange(20))
    engine.submit(idle, (), max_new_tokens=3)
    run(engine)
    working = engine.open(0, 1, np.arange(20))
    engine.submit(working, (), max_new_tokens=20)
    engine.step()
    assert working.request is not None
    engine.set_params(other, 1)
    engine.submit(idle, (), max_new_tokens=6)
    by_episode = {g.session.episode: g for g in run(engine)}
    check_against_full_forward(idle.context, [(23, by_episode[0])], other)
    log_softmax = jax.nn.log_softmax(full_logits(working.context, other))
    tail = np.asarray(log_softmax)[np.arange(24, 39), by_episode[1].tokens[5:]]
    np.testing.assert_allclose(tail, by_episode[1].logprobs[5:], atol=1e-4)
    assert engine.version == 1


def test_values_that_are_not_finite_do_not_outlive_their_session(engine, caplog):
    broken = jax.tree.map(lambda x: x * np.nan, PARAMS)
    engine.set_params(broken, 0)
    session = engine.open(0, 0, np.arange(30))
    engine.submit(session, (), max_new_tokens=3)
    with caplog.at_level(logging.WARNING):
        run(engine)
    assert "not finite" in caplog.text
    engine.close(session)
    engine.set_params(PARAMS, 1)
    for context, generations in play(engine, range(4), turns=2).values():
        check_against_full_forward(context, generations)


def test_closing_in_the_middle_of_a_turn_frees_the_slot(engine):
    sessions = [engine.open(0, e, np.arange(e + 1)) for e in range(6)]
    for session in sessions:
        engine.submit(session, (), max_new_tokens=20)
    engine.step()
    for session in (sessions[0], sessions[5]):
        engine.close(session)
    assert {g.session.episode for g in run(engine)} == {1, 2, 3, 4}


def test_nothing_compiles_after_warmup_and_a_cold_shape_warns(caplog):
    engine = make_engine(3, row_buckets=(3,))
    engine.warmup()
    count = engine.compile_count
    rng = np.random.default_rng(0)
    with caplog.at_level(logging.WARNING):
        for iteration in range(3):
            play(
                engine,
                range(30),
                turns=int(rng.integers(1, 6)),
                delay=int(rng.integers(0, 3)),
                iteration=iteration,
                max_new_tokens=int(rng.integers(1, 15)),
                prefix=np.arange(iteration * 9),
                top_p=rng.choice([0.9, 1.0]),
            )
    assert engine.compile_count == count and "cold shape" not in caplog.text
    del engine._runner.programs._compiled[("decode", 3, 5, LENGTH)]
    with caplog.at_level(logging.WARNING):
        play(engine, range(2))
    assert "cold shape" in caplog.text


def test_bfloat16_stays_near_a_full_bfloat16_forward():
    engine = make_engine(2, dtype=jnp.bfloat16)
    params = models.init(CFG, jax.random.key(0))
    engine.set_params(params, 0)
    session = engine.open(0, 0, np.arange(20))
    engine.submit(session, (), max_new_tokens=10)
    (generation,) = run(engine)
    log_softmax = np.asarray(jax.nn.log_softmax(full_logits(session.context, params)))
    expected = log_softmax[np.arange(19, 29), generation.tokens]
    np.testing.assert_allclose(generation.logprobs, expected, atol=0.05)


@pytest.mark.parametrize(
    "options,message",
    [
        (dict(max_new_tokens=0), "max_new_tokens must be at least 1, got 0"),
        (dict(top_p=0.0), "top_p in"),
        (dict(stop_ids=range(9)), "stop_ids must be at most 8"),
    ],
)
def test_bad_requests_name_the_argument(engine, options, message):
    session = engine.open(0, 0)
    with pytest.raises(ValueError, match=message):
        engine.submit(session, [1], **{"max_new_tokens": 4, **options})
    assert not engine.busy


def test_bad_calls_name_what_was_found(engine):
    session = engine.open(0, 0)
    with pytest.raises(ValueError, match="must not be empty"):
        engine.submit(session, [], max_new_tokens=1)
    with pytest.raises(ValueError, match=r"token_ids must be in \[0, 61\), got 1 to 61"):
        engine.submit(session, [1, 61], max_new_tokens=1)
    with pytest.raises(ValueError, match=r"got \(0, 0\) twice"):
        engine.open(0, 0)
    engine.submit(session, [1], max_new_tokens=1)
    with pytest.raises(ValueError, match="between turns"):
        engine.submit(session, [1], max_new_tokens=1)
    run(engine)
    with pytest.raises(ValueError, match="num_slots must be at least 1"):
        make_engine(0)
