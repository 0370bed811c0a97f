"""Evaluation that does not depend on what else is played: the same bits in bfloat16, whatever shares a call."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_generate_engine import CFG, PARAMS, observation

from evolving_rl_jax import models
from evolving_rl_jax.config import default_config
from evolving_rl_jax.eval.journal import play_settings
from evolving_rl_jax.eval.results import batching_note
from evolving_rl_jax.generate import Engine
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
