"""Rollouts that are stopped before their end: who counts does not depend on who won."""

import dataclasses

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

from evolving_rl_jax.record.figures import rollout_figures
from evolving_rl_jax.rollout.batch import BatchShape, make_batch
from evolving_rl_jax.rollout.episode import Driver
from evolving_rl_jax.rollout.evolve import Evolver
from evolving_rl_jax.types import ROLE_NONE, TIMEOUT, TRUNCATED


def collect(windows, method="collect", numbers=None, count=G):
    """The experience after ``windows`` decoding windows (None = all)."""
    pool = [make_task(f"t{i}") for i in range(G + 3)]
    engine, envs = FakeEngine(PROMPTS.tokenizer, speak()), FakePool()
    asked = []
    driver = Driver(engine, envs, PROMPTS, SETTINGS, iteration=3, clock=lambda: float(len(asked)))

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
def test_who_counts_keeps_the_outcome_and_the_others_are_masked(windows):
    complete, partial = collect(None)[0], collect(windows)[0]
    played = partial.episode_mask > 0
    assert (partial.wins[~played] == 0).all()
    for whole, source in zip(complete.sources, partial.sources, strict=True):
        assert None not in source.candidates
        assert [c.raw for c in source.candidates] in ([], [c.raw for c in whole.candidates])
        for key, episode in source.episodes.items():
            if not episode.scored:
                assert episode.status == TIMEOUT and episode.error == "too late"
            else:
                assert episode.won == (whole.episodes[key].won and not episode.cut)
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


# -- what a deadline says of outcomes --------------------------------------------------------------


class SlottedEngine(FakeEngine):
    """Only so many sessions at a time, in the order in which they came; the others wait."""

    def __init__(self, *args, slots, **options):
        super().__init__(*args, window=slots, **options)
        self.slots = slots

    def step(self):
        admitted = sorted(self.open_now, key=lambda s: s.order)[: self.slots]
        now = [item for item in self._waiting if item[0] in admitted]
        self._waiting = [item for item in self._waiting if item[0] not in admitted]
        return [self._generate(*item) for item in now]

    def open(self, iteration, episode):
        session = super().open(iteration, episode)
        session.order = len(self.log)
        return session


def under_deadline(say, *, slots, windows):
    """A driver whose clock counts the engine's windows, and a stop after so many of them."""
    engine = SlottedEngine(PROMPTS.tokenizer, say, slots=slots)
    settings = dataclasses.replace(SETTINGS, max_steps=50)
    asked = []
    driver = Driver(
        engine, FakePool(), PROMPTS, settings, iteration=0, clock=lambda: float(len(asked))
    )

    def stop():
        asked.append(1)
        return "too late" if len(asked) > windows else ""

    return driver, stop


def deadlined(seed, *, slots, windows, win_at, lose_at):
    """G x K tasks in groups of N x R without skills; each episode wins with a chance of one half.

    A win takes ``win_at`` turns and a loss ``lose_at``; all is stopped after ``windows`` windows.
    """
    wins = np.random.default_rng(seed).random(G * K * N * R) < 0.5

    def say(key, turn):
        won = wins[key - 2_000_000]
        last = turn + 1 == (win_at if won else lose_at)
        return ("mug> win" if won else "mug> lose") if last else "mug> look"

    driver, stop = under_deadline(say, slots=slots, windows=windows)
    tasks = [make_task(f"t{i}", step_limit=50) for i in range(G * K)]
    evolver = Evolver(driver, None, PROMPTS, rollout_config(), stop)
    return evolver.collect_groups(tasks), wins.reshape(G, K, N, R)


@pytest.mark.parametrize(
    ("slots", "windows"),
    [
        (48, 10),  # all play at once: every win has ended, every loss is cut off
        (16, 10),  # the last ones begin when there is not time left for any win
        (16, 30),  # some losses end too
        (8, 45),
    ],
)
def test_a_deadline_does_not_make_the_rate_of_wins_a_matter_of_their_length(slots, windows):
    """Wins take 3 turns, losses 20."""
    won = counted = 0.0
    for seed in range(60):
        found, truth = deadlined(seed, slots=slots, windows=windows, win_at=3, lose_at=20)
        played = found.episode_mask > 0
        np.testing.assert_array_equal(found.wins[played], truth[played])
        won, counted = won + found.wins[played].sum(), counted + played.sum()
        for source in found.sources:
            for place, episode in source.episodes.items():
                assert episode.scored == played[(found.sources.index(source), *place)]
                assert all(s.loss_mask.any() for s in episode.samples)
                if episode.cut:
                    assert (episode.status == TRUNCATED) == episode.scored
                    assert episode.error == "too late"
    assert counted >= 60 * 4
    # Five standard errors of a share of so many independent episodes.
    assert abs(won / counted - 0.5) < 2.5 / np.sqrt(counted)


def test_a_deadline_before_any_end_says_nothing_of_anyone():
    found, _ = deadlined(0, slots=48, windows=2, win_at=3, lose_at=20)
    assert not found.episode_mask.any()


def test_a_deadline_counts_in_the_success_of_sources_too():
    """Their losses take longer, and so they are still playing, or writing, when it comes."""
    pool = [make_task(f"t{i}", step_limit=50) for i in range(G + 3)]
    lines = {0: ["mug> win"], 1: ["mug> look"], 2: ["mug> look", "mug> win"]}

    def say(key, turn):
        return lines[key][min(turn, len(lines[key]) - 1)] if key < G else "{"

    driver, stop = under_deadline(say, slots=3, windows=6)
    found = Evolver(driver, FakeRetriever(pool), PROMPTS, rollout_config(), stop).collect(pool[:G])
    figures = rollout_figures(found)
    assert figures["rollout/sources"] == 3 and figures["rollout/source_failures"] == 0
    assert figures["rollout/source_success"] == pytest.approx(2 / 3)
    assert found.sources[1].episode.status == TRUNCATED and not found.sources[1].candidates
