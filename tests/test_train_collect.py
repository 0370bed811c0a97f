"""Playing ahead: what is taken, with which weights, and what happens when it fails."""

import threading
import types

import jax
import numpy as np
import pytest
from doubles import FakePool, compact_prompts, make_task
from ml_collections import ConfigDict

from evolving_rl_jax import models
from evolving_rl_jax.config import ConfigError, default_config, validate
from evolving_rl_jax.generate import Engine
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.rollout.evolve import Evolver
from evolving_rl_jax.train.collect import Collector

PROMPTS = compact_prompts()
CFG = models.ModelConfig(PROMPTS.tokenizer.vocab_size, 32, 48, 2, 4, 2, 8, model_type="llama")
SETTINGS = PlaySettings(12, 20, 3, 1.0, 1.0, 0)
ROLLOUT = ConfigDict(
    {
        "num_retrieved": 2,
        "num_skills": 2,
        "num_repeats": 1,
        "evaluate_invalid_skills": False,
        "max_skill_chars": 500,
        "num_source_episodes": 1,
        "train_sources": False,
    }
)


def make_params(seed=0):
    params = models.init(CFG, jax.random.key(seed))
    return params | {"embedding": params["embedding"] * 20}


def make_engine(num_slots=3, **options):
    return Engine(
        CFG, make_params(), num_slots=num_slots, max_length=160, prefill_chunk=(64,),
        decode_window=6, row_buckets=(num_slots,), column_buckets=(160,), **options,
    )  # fmt: skip


def idle_engine():
    """For what never generates."""

    def nothing(*_args, **_options):
        return None

    return types.SimpleNamespace(
        warmup=nothing, set_params=nothing, reset_stats=nothing, version=None
    )


class Retriever:
    """The tasks after the source."""

    def retrieve(self, task, k):
        return [make_task(f"{task.id}-{i}") for i in range(k)]


def make_collector(engine, order=None):
    def play(driver, iteration, stop):
        if order is not None:
            order.append((iteration, engine.version, threading.current_thread().name))
        evolver = Evolver(driver, Retriever(), PROMPTS, ROLLOUT, stop)
        groups = [make_task(f"t{iteration}-{i}") for i in range(4)]
        return evolver.collect_groups(groups)

    def driver(iteration):
        return Driver(engine, FakePool(), PROMPTS, SETTINGS, iteration=iteration)

    return Collector(engine, driver, play)


def tokens_of(rollout):
    return [
        episode.samples[0].tokens
        for source in rollout.experience.sources
        for _, episode in sorted(source.episodes.items())
    ]


def assert_same_tokens(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_number_of_slots_changes_no_text():
    """The same iteration on 1, 3 and 8 slots, through driver and stages."""
    rollouts = [make_collector(make_engine(n, seed=2)).take(4, make_params(1)) for n in (3, 1, 8)]
    for rollout in rollouts[1:]:
        assert_same_tokens(tokens_of(rollout), tokens_of(rollouts[0]))
    assert len({tuple(t) for t in tokens_of(rollouts[0])}) == len(tokens_of(rollouts[0])) == 8


def test_an_iteration_played_ahead_is_the_one_of_the_weights_before_the_update():
    order = []
    collector = make_collector(make_engine(), order)
    params = make_params(1)
    first = collector.take(0, params)
    assert (first.version, first.iteration) == (0, 0) and first.waited >= first.seconds
    collector.start(1, 0, params)
    # The update donates the weights that the thread generates with a copy of.
    update = jax.jit(lambda p: jax.tree.map(lambda x: x * 1.5, p), donate_argnums=0)
    params = jax.block_until_ready(update(params))
    weights, collector._weights = collector._weights, lambda _: pytest.fail("it was played already")
    ahead = collector.take(1, params)
    collector._weights = weights
    assert (ahead.version, ahead.iteration) == (0, 1)
    now = collector.take(2, params)
    assert [entry[:2] for entry in order] == [(0, 0), (1, 0), (2, 2)]
    assert [entry[2] == "rollout" for entry in order] == [False, True, False]
    alone = make_collector(make_engine())
    assert_same_tokens(tokens_of(ahead), tokens_of(alone.take(1, make_params(1))))
    assert_same_tokens(tokens_of(now), tokens_of(alone.take(2, params)))
    assert ahead.stats.decoded_tokens > 0 and now.stats is not ahead.stats


def test_what_fails_in_the_thread_is_raised_where_the_result_is_taken():
    engine = idle_engine()
    broken = make_collector(engine)

    def play(driver, iteration, stop):
        raise OSError("the disk is gone")

    broken._play = play
    params = make_params(1)
    broken.start(1, 0, params)
    broken.wait()  # not here
    with pytest.raises(OSError, match="the disk is gone"):
        broken.take(1, params)
    broken.close()


def test_closing_ends_what_is_played_ahead():
    engine = idle_engine()
    collector = make_collector(engine)
    stopped = []

    def play(driver, iteration, stop):
        while not stop():
            threading.Event().wait(0.01)
        stopped.append(stop())

    collector._play = play
    collector.start(1, 0, make_params(1))
    assert not stopped
    collector.close()
    assert stopped == ["closed"]


def test_iterations_are_taken_in_order():
    collector = make_collector(idle_engine())
    collector._play = lambda driver, iteration, stop: None
    collector.start(1, 0, make_params(1))
    with pytest.raises(RuntimeError, match="iteration 2 must be next, got 1"):
        collector.take(2, make_params(1))


def test_the_games_of_the_next_iteration_are_loaded_while_one_is_played():
    engine, order = idle_engine(), []
    pool = types.SimpleNamespace(load=lambda tasks: order.append([t.id for t in tasks]))
    collector = Collector(
        engine,
        lambda iteration: types.SimpleNamespace(pool=pool),
        lambda driver, iteration, stop: order.append(iteration),
        lambda iteration: [make_task(f"t{iteration}")] if iteration < 2 else [],
    )
    for iteration in range(2):
        collector.take(iteration, None)
    assert order == [["t1"], 0, 1]


def test_overlap_needs_importance_weights_and_room_between_checkpoints():
    config = default_config()
    config.rollout.overlap = 1
    with pytest.raises(ConfigError, match="algorithm.importance.kind must be 'truncated'"):
        validate(config)
    config.algorithm.importance.kind = "truncated"
    validate(config)
    config.checkpoint.every = 1
    with pytest.raises(ConfigError, match="checkpoint.every must be >= 2"):
        validate(config)
    config.rollout.overlap = 2
    with pytest.raises(ConfigError, match="rollout.overlap must be one of 0, 1, got 2"):
        validate(config)
