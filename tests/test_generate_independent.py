"""Evaluation that does not depend on what else is played: the same bits in bfloat16, whatever shares a call."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from doubles import FakePool, compact_prompts, make_task
from ml_collections import ConfigDict
from test_generate_engine import CFG, PARAMS, observation

from evolving_rl_jax import models
from evolving_rl_jax.config import default_config
from evolving_rl_jax.eval.journal import play_settings
from evolving_rl_jax.eval.results import batching_note
from evolving_rl_jax.generate import Engine
from evolving_rl_jax.rollout.attempts import play_attempts
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.run.engine import evaluating

MODEL = dataclasses.replace(CFG, dtype="bfloat16")
EPISODES = tuple(range(7))


def make_params():
    params = models.init(MODEL, jax.random.key(0))
    params["embedding"] = params["embedding"] * 8
    return params


def make_engine(num_slots, rows=(2, 4, 16), fixed_rows=8, chunks=(4, 16), columns=(32,)):
    return Engine(
        MODEL, make_params(), num_slots=num_slots, max_length=64, prefill_chunk=chunks,
        decode_window=4, row_buckets=rows, column_buckets=columns, seed=7, fixed_rows=fixed_rows,
    )  # fmt: skip


def play(engine, episodes, turns=3, together=None):
    """{episode: [(tokens, log-probabilities) of each turn]}; ``together`` sessions are open at a time.

    All share the beginning of their prompt.
    """
    prefix = np.random.default_rng(5).integers(0, CFG.vocab_size, 21)
    waiting, sessions, found = list(episodes), {}, {}
    while waiting or engine.busy:
        while waiting and len(sessions) < (together or len(EPISODES)):
            episode = waiting.pop(0)
            sessions[episode] = session = engine.open(0, episode)
            found[episode] = []
            first = np.concatenate([prefix[: 21 - episode], observation(episode, 0, 0)])
            engine.submit(session, first, max_new_tokens=7, stop_ids=(3,))
        for done in engine.step():
            session, turn = done.session, found[done.session.episode]
            turn.append((done.tokens, done.logprobs, done.sampling_logprobs))
            if len(turn) == turns:
                engine.close(session)
                del sessions[session.episode]
            else:
                ids = observation(session.episode, session.turn, done.tokens[-1])
                engine.submit(session, ids, max_new_tokens=7, stop_ids=(3,))
    return found


def differing(a, b):
    """Episodes of both that are not the same to the last bit."""
    same = [
        e
        for e in a.keys() & b.keys()
        if all(
            np.array_equal(x, y)
            for t, u in zip(a[e], b[e], strict=True)
            for x, y in zip(t, u, strict=True)
        )
    ]
    return sorted((a.keys() & b.keys()) - set(same))


@pytest.fixture(scope="module")
def alone():
    """Every episode by itself, in a cache of its own."""
    engine = make_engine(num_slots=1, rows=(1,))
    engine.independent = True
    return {e: found for e in EPISODES for e, found in play(engine, [e]).items()}


@pytest.mark.parametrize(
    "num_slots,rows,together",
    [(12, (2, 12), None), (3, (2,), 2)],
)
def test_other_slots_rows_and_neighbours_change_no_bit(alone, num_slots, rows, together):
    engine = make_engine(num_slots, rows)
    engine.independent = True
    assert not differing(alone, play(engine, EPISODES, together=together))
    assert not differing(alone, play(engine, EPISODES[::-1], together=together))
    order = np.random.default_rng(1).permutation(EPISODES).tolist()
    assert not differing(alone, play(engine, order[:4], together=together))


def test_nothing_is_compiled_after_the_warm_up_either_way():
    engine = make_engine(3, rows=(3,), fixed_rows=2, chunks=(8,), columns=(64,))
    engine.warmup()
    count = engine.compile_count
    play(engine, EPISODES[:3])
    engine.independent = True
    play(engine, EPISODES)
    engine.independent = False
    play(engine, EPISODES[:3])
    assert engine.compile_count == count


def test_it_is_set_between_sessions_and_needs_a_number_of_rows():
    engine = make_engine(num_slots=2)
    session = engine.open(0, 0)
    with pytest.raises(ValueError, match="while no session is open, got 1 open"):
        engine.independent = True
    engine.close(session)
    engine.independent = True
    with pytest.raises(ValueError, match="needs an Engine with fixed_rows"):
        Engine(CFG, PARAMS, num_slots=2, max_length=64).independent = True


def test_a_result_says_how_it_was_played():
    config, engine = default_config(), ConfigDict({"independent": False})
    assert "config.eval.independent_rows" not in play_settings(config)
    with evaluating(config, engine) as batching:
        assert batching == {"dtype": "float32", "independent_rows": 0} and not engine.independent
    assert "rounding only" in batching_note(batching)
    config.model.dtype = "bfloat16"
    with evaluating(config, engine) as batching:
        assert "draw other tokens" in batching_note(batching)
    config.eval.independent_rows = 16
    with evaluating(config, engine) as batching:
        assert engine.independent
        assert "independent of slots and batch size: every call had 16 rows" in batching_note(
            batching
        )
    assert not engine.independent
    assert play_settings(config)["config.eval.independent_rows"] == 16


@pytest.mark.parametrize("num_slots", [1, 2])
def test_more_attempts_than_slots_come_to_an_end(num_slots):
    """Ended attempts wait for the others of their source; they must not hold what these need."""
    prompts = compact_prompts()
    cfg = dataclasses.replace(CFG, vocab_size=prompts.tokenizer.vocab_size)
    engine = Engine(
        cfg, models.init(cfg, jax.random.key(0)), num_slots=num_slots, max_length=160,
        prefill_chunk=(64,), decode_window=8, row_buckets=(2,), column_buckets=(160,),
        fixed_rows=2, decode=prompts.tokenizer.decode,
    )  # fmt: skip
    engine.independent = True
    driver = Driver(engine, FakePool(), prompts, PlaySettings(8, 16, 2, 1.0, 1.0, 0), iteration=0)
    extracted, asked = [], itertools.count()

    def after(source):
        def done(attempts):
            attempts.extract([9_000_000 + source], lambda i, raw, sample: extracted.append(source))
            attempts.release()

        return done

    for source in range(4):
        play_attempts(driver, make_task(f"t{source}"), 8_000_000 + source, 2, after(source))
    driver.run(stop=lambda: "it does not end" if next(asked) > 200 else "")
    assert sorted(extracted) == [0, 1, 2, 3]
