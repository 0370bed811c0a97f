"""All calls of a step are under way before the host reads the first, and nothing but time changes."""

import jax
import numpy as np
import pytest
from test_generate_engine import PARAMS, check_against_full_forward, make_engine, play

from evolving_rl_jax.generate import runner


@pytest.fixture(scope="module")
def engine():
    engine = make_engine(6, row_buckets=(2,))
    engine.warmup()
    return engine


@pytest.fixture
def events(engine, monkeypatch):
    """``start`` and ``read`` of decode calls, in their order."""
    seen, get, read = [], engine._runner.programs.get, jax.device_get

    def noted_get(params, cache, kind, *sizes):
        program, rows = get(params, cache, kind, *sizes)

        def noted(*args):
            seen.append("start")
            return program(*args)

        return (noted if kind == "decode" else program), rows

    def noted_read(out):
        seen.append("read")
        return read(out)

    monkeypatch.setattr(engine._runner.programs, "get", noted_get)
    monkeypatch.setattr(runner.jax, "device_get", noted_read)
    return seen


def test_every_call_of_a_step_starts_before_the_first_is_read(engine, events):
    sessions = [engine.open(0, episode, np.arange(1 + episode)) for episode in range(5)]
    for session in sessions:
        engine.submit(session, (), max_new_tokens=5)  # a window
    assert len(engine.step()) == 5 and not engine.busy
    assert events == ["start"] * 3 + ["read"] * 3
    for session in sessions:
        engine.close(session)


def test_what_is_sampled_does_not_depend_on_when_it_is_read(engine, monkeypatch):
    """Eviction, forks of prompts and turns that end within a window included; to the last bit."""
    compiled = engine.compile_count
    options = dict(turns=3, delay=2, prefix=np.arange(20))
    ahead = play(engine, range(10), **options)
    start = engine._runner._start_window
    monkeypatch.setattr(
        engine._runner, "_start_window", lambda slots: jax.block_until_ready(start(slots))
    )
    engine.set_params(PARAMS, 0)
    one_by_one = play(engine, range(10), **options)
    assert engine.compile_count == compiled
    for episode, (context, generations) in ahead.items():
        np.testing.assert_array_equal(context, one_by_one[episode][0])
        for (_, a), (_, b) in zip(generations, one_by_one[episode][1], strict=True):
            np.testing.assert_array_equal(a.logprobs, b.logprobs)
        check_against_full_forward(context, generations)
