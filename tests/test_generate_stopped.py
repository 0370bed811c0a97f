"""Iterations that are stopped at random moments: the engine keeps nothing of them for the next."""

import random

import jax
import pytest
from doubles import FakePool, compact_prompts, make_task
from test_rollout_evolve import FakeRetriever, rollout_config

from evolving_rl_jax import models
from evolving_rl_jax.generate import Engine
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.rollout.evolve import Evolver

PROMPTS, MAX_LENGTH = compact_prompts(), 64
SETTINGS = PlaySettings(
    max_turn_tokens=3, max_skill_tokens=6, max_steps=3, temperature=1.0, top_p=1.0, top_k=0
)


@pytest.fixture(scope="module")
def engine():
    cfg = models.ModelConfig(PROMPTS.tokenizer.vocab_size, 8, 8, 1, 1, 1, 8, model_type="llama")
    return Engine(
        cfg, models.init(cfg, jax.random.key(0)), num_slots=4, max_length=MAX_LENGTH,
        prefill_chunk=(16,), decode_window=2, row_buckets=(4,), column_buckets=(MAX_LENGTH,),
        pad_id=0,
    )  # fmt: skip


def play(engine, iteration, windows):
    """One iteration of sources of which some leave no room for a turn; stopped after ``windows``."""
    rng = random.Random(iteration)
    tasks = [make_task(f"{iteration}-{i} " + "x" * rng.randrange(70)) for i in range(6)]
    driver = Driver(engine, FakePool(seed=iteration), PROMPTS, SETTINGS, iteration=iteration)
    asked = []

    def stop():
        asked.append(1)
        return "too late" if windows is not None and len(asked) > windows else ""

    evolver = Evolver(driver, FakeRetriever(tasks), PROMPTS, rollout_config(), stop)
    experience = evolver.collect(tasks[:4])
    assert [s.task.id for s in experience.sources] == [t.id for t in tasks[:4]]
    return experience


def test_a_closed_session_is_not_heard_of_again(engine):
    session = engine.open(7, 1)
    engine.submit(session, list(range(7, 7 + MAX_LENGTH)), max_new_tokens=2)
    assert engine.busy  # its answer, that there is no room, waits
    engine.close(session)
    assert not engine.busy and engine.step() == []


def test_iterations_that_were_stopped_leave_nothing_to_the_next(engine):
    rng = random.Random(0)
    for iteration in range(60):
        play(engine, iteration, rng.randrange(12))
        assert not engine.busy and engine.step() == []
    whole = play(engine, 1000, None)
    assert all(s.episode.error != "too late" for s in whole.sources)
