"""Credit of single steps: groups of steps that read the same, their returns, and the tokens that get it."""

import itertools

import numpy as np
import pytest
from ml_collections import ConfigDict

from evolving_rl_jax.config import ConfigError, default_config
from evolving_rl_jax.config.checks import validate
from evolving_rl_jax.rollout.batch import BatchShape, make_batch
from evolving_rl_jax.rollout.beside import BANK, FREE, beside_extras
from evolving_rl_jax.rollout.evolve import Candidate, Experience, Source
from evolving_rl_jax.rollout.step_credit import (
    add_credit,
    alike,
    credit_figures,
    step_credit,
    token_credit,
)
from evolving_rl_jax.types import ENV_ERROR, OK, TRUNCATED, Episode, Sample, Turn


def by_hand(observations, rewards, discount, scale):
    """The equations of GiGPO, step by step."""
    steps = [(e, s) for e, texts in enumerate(observations) for s in range(len(texts))]
    returns = {
        (e, s): sum(discount ** (t - s) * rewards[e][t] for t in range(s, len(rewards[e])))
        for e, s in steps
    }
    found = [np.zeros(len(texts)) for texts in observations]
    for e, s in steps:
        group = [returns[i, t] for i, t in steps if observations[i][t] == observations[e][s]]
        away = returns[e, s] - np.mean(group)
        if scale == "std":
            found[e][s] = away / np.std(group) if np.std(group) > 1e-9 else 0.0
        elif scale == "leave_one_out":
            found[e][s] = away * len(group) / max(len(group) - 1, 1)
        else:
            found[e][s] = away
    return found


@pytest.mark.parametrize("scale", ["std", "none", "leave_one_out"])
def test_steps_that_read_the_same_are_compared_by_what_followed(scale):
    rng = np.random.default_rng(3)
    for _ in range(20):
        lengths = rng.integers(0, 7, 6)
        observations = [[f"room {rng.integers(3)}" for _ in range(n)] for n in lengths]
        rewards = [np.where(rng.random(n) < 0.3, rng.normal(size=n), 0).tolist() for n in lengths]
        found = step_credit(observations, rewards, discount=0.9, scale=scale)
        want = by_hand(observations, rewards, 0.9, scale)
        for mine, other in zip(found, want, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


def test_two_wins_of_unlike_length_differ_where_episodes_do_not():
    """The episode's advantage is 0 when all win; the step that saved time is still worth more."""
    observations = [["hall", "desk"], ["hall", "shelf", "desk"]]
    quick, slow = step_credit(observations, [[0, 1], [0, 0, 1]], discount=0.5)
    assert quick[0] == pytest.approx(1, abs=1e-4) and slow[0] == pytest.approx(-1, abs=1e-4)
    assert quick[1] == slow[1] == slow[2] == 0


def test_observations_may_be_alike_only():
    texts = ["you see a mug 1", "a cold stove", "you see a mug 2", "you see a mug 1"]
    assert alike(texts) == [0, 1, 2, 0]
    assert alike(texts, 0.85) == [0, 1, 0, 0]
    assert alike(texts, 0.0) == [0, 0, 0, 0]


def sample(mask, step=0):
    mask = np.asarray(mask, np.float32)
    zeros = np.zeros(len(mask), np.float32)
    return Sample(np.arange(len(mask), dtype=np.int32), mask, zeros, zeros, step=step)


def test_the_tokens_of_a_turn_have_its_credit():
    whole = sample([0, 0, 1, 1, 0, 1, 0, 0, 1])
    assert token_credit(whole, [0.5, -1, 2]).tolist() == [0, 0, 0.5, 0.5, 0, -1, 0, 0, 2]
    assert token_credit(sample([0, 1, 1], step=2), [0.5, -1, 2]).tolist() == [0, 2, 2]
    assert token_credit(sample([1, 0, 1]), [1, 3]).tolist() == [1, 0, 3]
    assert token_credit(whole, []).tolist() == [0] * 9


def episode(reads, won, status=OK):
    turns = [Turn(text, "go", "go", True) for text in reads]
    mask = [0, *itertools.chain.from_iterable([1, 1, 0] for _ in reads)]
    rewards = [0.0] * len(reads)
    return Episode(None, turns, won, status, [sample(mask)], float(won), rewards=rewards)


def experience():
    """Two tasks with three skills each, plays beside them, and one that its environment failed."""
    source = Source(task=None)
    source.candidates = [Candidate("", sample([0, 1]), None, "", True) for _ in range(3)]
    source.episodes = {
        (0, 0, 0): episode(["hall", "desk"], True),
        (0, 1, 0): episode(["hall", "shelf"], False, TRUNCATED),
        (0, 2, 0): episode(["hall", "bed"], True, ENV_ERROR),
        (1, 0, 0): episode(["hall"], True),
        (1, 1, 0): episode(["hall"], True),
    }
    source.beside = {
        (FREE, 0, 0): episode(["hall"], False),
        (FREE, 0, 1): episode(["hall"], True),
        (BANK, 0, 0): episode(["hall"], True),
    }
    wins, mask = np.zeros((1, 2, 3, 1), np.float32), np.zeros((1, 2, 3, 1), np.float32)
    for (k, n, r), played in source.episodes.items():
        wins[0, k, n, r], mask[0, k, n, r] = played.won, played.scored
    return Experience([source], wins, mask, np.ones((1, 3), np.float32))


def algorithm(**step):
    config = default_config().algorithm
    config.step_credit.update(step)
    return config


def test_groups_are_those_of_the_episodes():
    """One task and one kind of guidance each; what an environment failed is in none."""
    played = experience()
    add_credit(played, algorithm(weight=0.5), 2.0)
    (source,) = played.sources
    credit = {place: e.credit for place, e in source.episodes.items()}
    assert credit[0, 0, 0] == pytest.approx([1.0, 0], abs=1e-4)  # 2 x 0.5 x 1
    assert credit[0, 1, 0] == pytest.approx([-1.0, 0], abs=1e-4)
    assert credit[0, 2, 0] == [] and credit[1, 0, 0] == credit[1, 1, 0] == [0.0]
    assert source.beside[FREE, 0, 0].credit == pytest.approx([-1.0], abs=1e-4)
    assert source.beside[FREE, 0, 1].credit == pytest.approx([1.0], abs=1e-4)
    assert source.beside[BANK, 0, 0].credit == [0.0]
    assert credit_figures(played) == {"rollout/turns_with_credit": 4 / 9}
    extras = beside_extras(played, algorithm(), 1.0, None)[0]
    assert [list(e.credit) for e in extras][0] == [0.0]  # of the bank, the first in order
    assert credit_figures(experience()) == {}


def test_source_episodes_are_a_group_where_they_are_trained_on():
    played = experience()
    (source,) = played.sources
    source.attempts = [episode(["hall"], True), episode(["hall"], False)]
    add_credit(played, algorithm(weight=1.0), 1.0)
    assert source.attempts[0].credit == []
    played.source_mask = np.ones((1, 2), np.float32)
    add_credit(played, algorithm(weight=1.0), 1.0)
    assert source.attempts[0].credit == pytest.approx([1.0], abs=1e-4)


def test_a_batch_has_the_credit_of_its_tokens():
    played = experience()
    add_credit(played, algorithm(weight=1.0), 1.0)
    shape = BatchShape(1, 2, 3, 1, 16, 2, extra=4)
    assert make_batch(played, shape).step_credit is None
    shape = BatchShape(1, 2, 3, 1, 16, 2, extra=4, step_credit=True)
    extras = beside_extras(played, algorithm(), 1.0, None)[0]
    batch = make_batch(played, shape, extras=extras)
    want = [token_credit(c.sample, []) for c in played.sources[0].candidates]
    scored = [e for _, e in sorted(played.sources[0].episodes.items()) if e.scored]
    want += [token_credit(e.samples[0], e.credit) for e in scored]
    want += [token_credit(e.sample, e.credit) for e in extras]
    for m, credit in enumerate(want):
        np.testing.assert_array_equal(batch.step_credit[batch.sequence_ids == m], credit)
    assert (batch.step_credit[batch.loss_mask == 0] == 0).all() and batch.step_credit.any()
    other = ConfigDict(default_config().to_dict())
    assert not BatchShape.from_config(other).step_credit
    other.algorithm.step_credit.weight = 1.0
    assert BatchShape.from_config(other).step_credit


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm.empty_groups": "drop"}, "0 with empty_groups 'drop'"),
        ({"env.name": "mind2web", "rollout.context": "recent"}, "0 with env.name 'mind2web'"),
        ({"algorithm.step_credit.discount": 1.5}, "step_credit.discount must be in"),
    ],
)
def test_where_there_is_none(changes, said):
    config = default_config()
    config.algorithm.step_credit.weight = 1.0
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=said):
        validate(config)
