"""Rollouts that are stopped before their end: what is unfinished is masked, what is finished stays."""

import numpy as np
import pytest
from doubles import FakeEngine, FakePool, make_task
from test_rollout_evolve import (
    PROMPTS,
    SETTINGS,
    FakeRetriever,
    G,
    K,
    N,
    R,
    rollout_config,
    speak,
)

from evolving_rl_jax.rollout.batch import BatchShape, make_batch
from evolving_rl_jax.rollout.episode import Driver
from evolving_rl_jax.rollout.evolve import Evolver
from evolving_rl_jax.types import ROLE_NONE, TIMEOUT


def collect(windows, method="collect", numbers=None, count=G):
    """The experience after ``windows`` decoding windows (None = all)."""
    pool = [make_task(f"t{i}") for i in range(G + 3)]
    engine, envs = FakeEngine(PROMPTS.tokenizer, speak()), FakePool()
    driver = Driver(engine, envs, PROMPTS, SETTINGS, iteration=3)
    asked = []

    def stop():
        asked.append(1)
        return "too late" if windows is not None and len(asked) > windows else ""

    evolver = Evolver(driver, FakeRetriever(pool), PROMPTS, rollout_config(), stop)
    tasks = pool[:count] if method == "collect" else (pool * 2)[: count * K]
    experience = getattr(evolver, method)(tasks, numbers)
    assert not engine.open_now and not envs.running
    return experience, engine, len(asked)


TOTAL = collect(None)[2]


@pytest.mark.parametrize("windows", range(0, TOTAL + 1, 7))
def test_the_unfinished_is_masked_and_the_finished_kept(windows):
    complete, partial = collect(None)[0], collect(windows)[0]
    played = partial.episode_mask > 0
    assert np.array_equal(partial.wins[played], complete.wins[played])
    assert (partial.wins[~played] == 0).all()
    for whole, source in zip(complete.sources, partial.sources, strict=True):
        assert None not in source.candidates
        assert [c.raw for c in source.candidates] in ([], [c.raw for c in whole.candidates])
        for key, episode in source.episodes.items():
            if not episode.scored:
                assert episode.status == TIMEOUT and episode.error == "too late"
            else:
                assert episode.won == whole.episodes[key].won
    shape = BatchShape(G, K, N, R, 2048, 1)
    batch = make_batch(partial, shape)
    solver = int(played.sum())
    extractor = sum(len(s.candidates) for s in partial.sources)
    assert (batch.role != ROLE_NONE).sum() == solver + extractor


def test_a_stop_at_once_leaves_nothing_and_one_at_the_end_everything():
    assert collect(0)[0].episode_mask.sum() == 0
    assert collect(0)[0].sources[0].episode.status == TIMEOUT
    assert collect(TOTAL)[0].episode_mask.sum() == G * K * N * R


def test_groups_are_stopped_too():
    experience, _, total = collect(None, "collect_groups")
    assert experience.episode_mask.all()
    half = collect(total // 2, "collect_groups")[0]
    assert 0 < half.episode_mask.sum() < half.episode_mask.size


def test_the_numbers_of_sources_name_their_sampling():
    """A host that plays sources 1 and 2 of three samples what one that plays all of them does."""
    _, every, _ = collect(None)
    pool = [make_task(f"t{i}") for i in range(G + 3)]
    engine, envs = FakeEngine(PROMPTS.tokenizer, speak()), FakePool()
    driver = Driver(engine, envs, PROMPTS, SETTINGS, iteration=3)
    evolver = Evolver(driver, FakeRetriever(pool), PROMPTS, rollout_config())
    evolver.collect(pool[1:G], [1, 2])
    assert 0 not in engine.sessions and engine.sessions.keys() < every.sessions.keys()
    for episode, session in engine.sessions.items():
        assert np.array_equal(session.tokens, every.sessions[episode].tokens), episode
