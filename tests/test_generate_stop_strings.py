"""Stop strings: matched on text, cut at the token that completes them, in sample and cache."""

import dataclasses
import string

import jax
import numpy as np
import pytest
from doubles import FakePool, compact_prompts, make_task
from test_generate_families import LENGTH, VOCAB, family, full_logprobs, run

from evolving_rl_jax.generate import Engine
from evolving_rl_jax.generate.sessions import tokens_to_stop

# Tokens of one to three letters, so that texts have many spellings and stops end inside tokens.
LETTERS = tuple(string.ascii_letters)
PIECES = [chr(97 + i % 5) * (1 + i % 3) for i in range(VOCAB)]


def decode(ids):
    return "".join(PIECES[int(i)] for i in ids)


def make_engine(**options):
    cfg, params, _ = family("qwen3")
    options = dict(num_slots=3, prefill_chunk=(8,), decode_window=6, row_buckets=(3,)) | options
    return Engine(
        cfg, params, max_length=LENGTH, column_buckets=(LENGTH,), seed=5, decode=decode, **options
    )


@pytest.fixture(scope="module")
def engine():
    return make_engine()


def test_the_turn_ends_with_the_token_that_completes_the_stop_and_the_next_goes_on(engine):
    """The same draws without the stop tell where the text first holds it."""
    stops = ("bb", "ca")
    for episode in range(12):
        free = engine.open(0, episode, [episode, 7])
        engine.submit(free, (), max_new_tokens=30)
        (whole,) = run(engine)
        engine.close(free)
        cuts = [n for n in range(31) if any(s in decode(whole.tokens[:n]) for s in stops)]
        session = engine.open(0, episode, [episode, 7])
        engine.submit(session, (), max_new_tokens=30, stop_strings=stops)
        (g,) = run(engine)
        assert g.reason == ("stop" if cuts else "length")
        count = cuts[0] if cuts else 30
        np.testing.assert_array_equal(g.tokens, whole.tokens[:count])
        np.testing.assert_array_equal(g.logprobs, whole.logprobs[:count])
        assert len(g.sampling_logprobs) == count and len(session.context) == 2 + count
        # What was sampled beyond is neither in the context nor in the cache of the next turn.
        engine.submit(session, [3, 1], max_new_tokens=8)
        (after,) = run(engine)
        assert after.turn_reused == 1 + count
        start = len(session.context) - len(after.tokens)
        rows = np.arange(start - 1, len(session.context) - 1)
        expected = full_logprobs("qwen3", session.context)[rows, after.tokens]
        np.testing.assert_allclose(after.logprobs, expected, atol=2e-5)
        engine.close(session)
    assert engine.stats.dropped_tokens > 0


@pytest.mark.parametrize("window", [1, 4, 11])
def test_the_window_changes_nothing(engine, window):
    other = make_engine(decode_window=window)
    for episode in range(6):
        found = []
        for e in (engine, other):
            session = e.open(1, episode, [episode, 9])
            for ids in ((), [4]):
                e.submit(session, ids, max_new_tokens=20, stop_strings=("aab", "dd"))
                run(e)
            found.append(session.context)
            e.close(session)
        np.testing.assert_array_equal(*found)
    assert (other.stats.dropped_tokens == 0) == (window == 1)


def test_counters_leave_out_what_was_dropped(engine):
    engine.reset_stats()
    sessions = [engine.open(2, e, [e]) for e in range(8)]
    for session in sessions:
        engine.submit(session, (), max_new_tokens=25, stop_strings=("a",))
    kept = sum(len(g.tokens) for g in run(engine))
    assert engine.stats.decoded_tokens == kept
    for session in sessions:
        engine.close(session)


def test_a_stop_token_after_the_stop_text_is_dropped_too(engine):
    session = engine.open(3, 0, [5])
    engine.submit(session, (), max_new_tokens=30)
    (whole,) = run(engine)
    engine.close(session)
    text = PIECES[whole.tokens[2]]
    session = engine.open(3, 0, [5])
    stop = int(whole.tokens[4])
    engine.submit(session, (), max_new_tokens=30, stop_strings=(text,), stop_ids=(stop,))
    (g,) = run(engine)
    engine.close(session)
    assert g.reason == "stop" and len(g.tokens) <= 3 and text in decode(g.tokens)


def test_stop_strings_need_text(engine):
    cfg, params, silent = family("qwen3")
    session = silent.open(4, 0, [1])
    with pytest.raises(ValueError, match="stop_strings need an Engine with decode"):
        silent.submit(session, (), max_new_tokens=1, stop_strings=("a",))
    silent.close(session)
    session = engine.open(4, 0, [1])
    with pytest.raises(ValueError, match="stop_strings must not be empty texts"):
        engine.submit(session, (), max_new_tokens=1, stop_strings=("a", ""))
    engine.close(session)


@pytest.mark.parametrize("seed", range(5))
def test_fewest_tokens_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    for _ in range(50):
        tokens = rng.integers(0, VOCAB, rng.integers(0, 30))
        stops = [decode(rng.integers(0, VOCAB, 2)) for _ in range(2)]
        found = [n for n in range(len(tokens) + 1) if any(s in decode(tokens[:n]) for s in stops)]
        assert tokens_to_stop(decode, tokens, stops) == (found[0] if found else None)


@pytest.mark.parametrize("cut", ["letters", "bytes", "silent"])
def test_only_new_tokens_are_decoded_until_a_stop_is_found(cut):
    """Windows of a turn one after the other, against a search of the whole turn in each."""
    rng, lengths = np.random.default_rng(3), []
    text = "a line of words, é and 漢字, " * 3 + "</action> and more"
    pieces = {
        "letters": [c.encode() for c in text],
        "bytes": [bytes([b]) for b in text.encode()],  # characters in parts
        "silent": [x for b in text.encode() for x in (bytes([b]), b"", b"")],  # tokens without text
    }[cut]

    def read(ids):
        lengths.append(len(ids))
        return b"".join(pieces[i] for i in ids).decode("utf-8", "replace")

    whole = next(n for n in range(len(pieces) + 1) if "</action>" in read(range(n)))
    for _ in range(20):
        searched = 0
        while True:
            count = min(searched + int(rng.integers(1, 9)), len(pieces))
            lengths.clear()
            found = tokens_to_stop(read, range(count), ["</action>", "</end>"], searched)
            if count >= whole:
                break
            assert found is None
            assert sum(lengths) <= 4 * (count - searched) + (60 if cut != "silent" else 200)
            searched = count
        assert found == whole


def test_an_episode_trains_its_stop_text_and_nothing_after_it():
    """Through the driver: solver turns stop at the text, extractions do not."""
    from evolving_rl_jax.rollout.episode import Driver, PlaySettings

    prompts = compact_prompts()
    cfg = dataclasses.replace(family("qwen3")[0], vocab_size=prompts.tokenizer.vocab_size)
    params = jax.tree.map(lambda x: x, family("qwen3")[1])
    rng = np.random.default_rng(0)
    for name in ("embedding", "unembedding"):
        params[name] = rng.normal(size=(cfg.vocab_size, cfg.hidden_size)).astype(np.float32)
    engine = Engine(
        cfg, params, num_slots=2, max_length=400, prefill_chunk=(64,), decode_window=16,
        row_buckets=(2,), column_buckets=(400,), decode=prompts.tokenizer.decode,
    )  # fmt: skip
    settings = PlaySettings(40, 40, 3, 1.0, 1.0, 0, stop_strings=LETTERS)
    driver = Driver(engine, FakePool(), prompts, settings, iteration=0)
    episodes, skills = [], []

    def done(episode, handle):
        episodes.append(episode)
        driver.extract(handle, False, [100, 101], lambda i, text, sample: skills.append(sample))
        driver.release(handle)

    driver.play(0, make_task("t0"), "", done, keep_session=True)
    driver.run()
    sample = episodes[0].samples[0]
    starts = np.flatnonzero(np.diff(sample.loss_mask) == 1) + 1
    ends = np.append(np.flatnonzero(np.diff(sample.loss_mask) == -1) + 1, len(sample.tokens))
    texts = [
        prompts.tokenizer.decode(sample.tokens[a:b])
        for a, b in zip(starts, ends[: len(starts)], strict=True)
    ]
    assert len(texts) == 3
    for text, turn in zip(texts, episodes[0].turns, strict=True):
        assert text == turn.output and not any(s in text[:-1] for s in LETTERS)
    assert any(text[-1:] in LETTERS for text in texts)
    assert len(skills) == 2 and all(s.loss_mask.sum() > 10 for s in skills)
