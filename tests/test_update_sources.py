"""Source episodes that are trained on: a group of their own, in batches, advantages and records."""

import dataclasses
import gzip
import itertools
import json

import numpy as np
import pytest
from attempt_runs import ORDER, PLANS, PROMPTS, SETTINGS, E, G, K, N, R, collect
from small_updates import small_config

from evolving_rl_jax.config import default_config
from evolving_rl_jax.record.episodes import episode_records
from evolving_rl_jax.rollout.attempts import attempt_key
from evolving_rl_jax.rollout.batch import BatchShape, make_batch
from evolving_rl_jax.rollout.evolve import StepScoring
from evolving_rl_jax.rollout.past_episodes import read_episodes
from evolving_rl_jax.types import ROLE_SOURCE
from evolving_rl_jax.update.advantages import source_advantages, spread_of_sequences
from evolving_rl_jax.update.step import sequence_advantages


def shape(sources):
    return BatchShape(G, K, N, R, 2048, 2, sources=sources)


def test_source_episodes_are_not_trained_on_unless_asked_for():
    experience, _, _ = collect()
    assert experience.source_mask is None
    batch = make_batch(experience, shape(0))
    assert (batch.role != ROLE_SOURCE).all() and batch.source_wins is None
    assert shape(0).num_sequences == G * N * (1 + K * R)


def test_trained_source_episodes_are_a_group_of_their_own():
    experience, _, _ = collect(fail={attempt_key(0, 2): 1}, train_sources=True)
    won = [[PLANS[g, s][1] == "win" for s in range(E)] for g in range(G)]
    mask = np.ones((G, E))
    mask[0, 2] = 0
    np.testing.assert_array_equal(experience.source_mask, mask)
    np.testing.assert_array_equal(experience.source_wins, won * mask)
    batch = make_batch(experience, shape(E))
    used = np.flatnonzero(batch.role == ROLE_SOURCE)
    assert sorted(batch.index[used]) == [0, 1, 3, 4, 5]
    for m in used:
        g, s = divmod(int(batch.index[m]), E)
        sample = experience.sources[g].attempts[s].samples[0]
        where = batch.sequence_ids == m
        assert batch.tokens[where].tolist() == sample.tokens.tolist()
        assert batch.loss_mask[where].tolist() == sample.loss_mask.tolist()


@pytest.mark.parametrize("arm", ["joint", "solver_only", "extractor_only"])
def test_the_advantage_of_a_source_episode_is_among_the_attempts_at_its_task(arm):
    config = small_config(arm=arm)
    fail = {attempt_key(0, 2): 1}
    without, _, _ = collect(fail=fail)
    experience, _, _ = collect(fail=fail, train_sources=True)
    batch = make_batch(experience, shape(E))
    values, _ = sequence_advantages(config, batch)
    plain, _ = sequence_advantages(config, make_batch(without, shape(0)))
    others = batch.role != ROLE_SOURCE
    np.testing.assert_array_equal(
        np.asarray(values)[others & (batch.role >= 0)],
        np.asarray(plain)[: int((others & (batch.role >= 0)).sum())],
    )
    weight = 0.0 if arm == "extractor_only" else 1.0
    for m in np.flatnonzero(~others):
        g, s = divmod(int(batch.index[m]), E)
        scored = [e for e in experience.sources[g].attempts if e.scored]
        wins = np.array([float(e.won) for e in scored])
        own = float(experience.sources[g].attempts[s].won)
        assert values[m] == pytest.approx(weight * (own - wins.mean()) / wins.std(), abs=1e-4)
    spread = spread_of_sequences(config.algorithm, batch)
    assert spread[~others].all()


def test_steps_of_source_episodes_are_compared_with_the_same_step_of_other_attempts():
    scoring = StepScoring(3, "correct_steps")
    settings = dataclasses.replace(SETTINGS, context="recent", recent_turns=0)
    experience, _, _ = collect(train_sources=True, scoring=scoring, settings=settings)
    rewards, taken = experience.source_step_rewards, experience.source_step_mask
    assert rewards.shape == taken.shape == (G, E, 3)
    for g, s in itertools.product(range(G), range(E)):
        looks, last = PLANS[g, s]
        assert taken[g, s].tolist() == [1.0] * (looks + 1) + [0.0] * (2 - looks)
        assert rewards[g, s].tolist() == [float(i == looks and last == "win") for i in range(3)]
    found = np.asarray(source_advantages(small_config().algorithm, experience))
    for g, i in itertools.product(range(G), range(3)):
        members = [s for s in range(E) if taken[g, s, i]]
        if not members:
            continue
        scores = np.array([rewards[g, s, i] for s in members])
        wanted = (scores - scores.mean()) / scores.std() if scores.std() > 0 else 0 * scores
        np.testing.assert_allclose([found[g, s, i] for s in members], wanted, atol=1e-5)
        assert not any(found[g, s, i] for s in range(E) if s not in members)


def test_records_and_past_wins_have_every_attempt(tmp_path):
    experience, _, _ = collect(train_sources=True)
    config = default_config()
    records = episode_records(experience, 0, config, PROMPTS.tokenizer)
    text = "".join(json.dumps(r) + "\n" for r in records)
    (tmp_path / "iteration_00000.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    for g, record in enumerate(records):
        source = experience.sources[g]
        assert [e["won"] for e in record["attempts"]] == [e.won for e in source.attempts]
        assert record["best"] == ORDER[g][-1]
        assert all(isinstance(e["advantage"], float) for e in record["attempts"])
        assert record["attempts"][record["best"]]["turns"] == record["source"]["turns"]
        (extraction,) = record["skills"][0]["sequences"]  # begins with another attempt: whole
        assert extraction["shared"] == 0
    found = read_episodes(tmp_path, PROMPTS.tokenizer, 0.5)
    text_of = PROMPTS.tokenizer.decode  # the double's special tokens have no text
    kept = {text_of(s.sample.tokens) for s in found.sequences}
    for source in experience.sources:
        for episode in source.attempts:
            assert (text_of(episode.samples[0].tokens) in kept) == episode.won
    plain, _, _ = collect(1)
    assert "attempts" not in episode_records(plain, 0, config, PROMPTS.tokenizer)[0]
