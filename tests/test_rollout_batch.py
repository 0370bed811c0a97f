"""Packing: every token once, in its place; every sequence mapped to its win."""

import dataclasses
import itertools

import numpy as np
import pytest

from evolving_rl_jax.config import default_config
from evolving_rl_jax.rollout.batch import (
    Batcher,
    BatchShape,
    make_batch,
    pack_rows,
    split_experience,
)
from evolving_rl_jax.rollout.evolve import Candidate, Experience, Source
from evolving_rl_jax.types import (
    ENV_ERROR,
    OK,
    ROLE_EXTRACTOR,
    ROLE_NONE,
    ROLE_SOLVER,
    TRUNCATED,
    Episode,
    Sample,
)

SHAPE = BatchShape(g=4, k=2, n=3, r=2, row_length=40, micro_batch_rows=8)


def random_sample(rng, number, length):
    """Tokens that say which sequence (1000 x number) and which position they belong to."""
    sampled = rng.integers(0, 2, length).astype(np.float32)
    sampled[rng.integers(length)] = 1.0
    return Sample(
        tokens=np.arange(length, dtype=np.int32) + 1000 * number,
        loss_mask=sampled,
        logprobs=-rng.random(length).astype(np.float32),
        sampling_logprobs=-rng.random(length).astype(np.float32),
    )


def random_experience(seed=0, shape=SHAPE):
    """Sources of all kinds: failed ones, invalid skills, failed episodes; (experience, samples)."""
    rng = np.random.default_rng(seed)
    size = (shape.g, shape.k, shape.n, shape.r)
    wins, mask = np.zeros(size, np.float32), np.zeros(size, np.float32)
    valid = np.zeros((shape.g, shape.n), np.float32)
    samples, number = {}, itertools.count(1)

    def sample(key):
        length = int(rng.integers(1, shape.row_length + 1))
        samples[key] = random_sample(rng, next(number), length)
        return samples[key]

    sources = []
    for g in range(shape.g):
        source = Source(task=None)
        sources.append(source)
        if g == 2:
            continue  # its environment failed
        for n in range(shape.n):
            valid[g, n] = rng.random() < 0.7
            key = ROLE_EXTRACTOR, g * shape.n + n
            source.candidates.append(Candidate("", sample(key), None, "", bool(valid[g, n])))
        for place in itertools.product(range(shape.k), range(shape.n), range(shape.r)):
            k, n, r = place
            if not valid[g, n]:
                continue
            status = rng.choice([OK, OK, TRUNCATED, ENV_ERROR])
            flat = ((g * shape.k + k) * shape.n + n) * shape.r + r
            key = (ROLE_SOLVER, flat) if status != ENV_ERROR else ("failed", flat)
            won = bool(status == OK and rng.random() < 0.5)
            source.episodes[place] = Episode(None, [], won, status, [sample(key)])
            wins[g, k, n, r], mask[g, k, n, r] = won, status != ENV_ERROR
    samples = {key: s for key, s in samples.items() if key[0] != "failed"}
    return Experience(sources, wins, mask, valid), samples


@pytest.mark.parametrize("seed", range(5))
def test_every_token_is_there_once_with_all_that_belongs_to_it(seed):
    experience, samples = random_experience(seed)
    batch = make_batch(experience, SHAPE)
    assert batch.tokens.shape == (SHAPE.num_rows, SHAPE.row_length)
    used = [m for m in range(SHAPE.num_sequences) if batch.role[m] != ROLE_NONE]
    found = {}
    for m in used:
        rows, columns = np.nonzero(batch.sequence_ids == m)
        key = int(batch.role[m]), int(batch.index[m])
        sample = found[key] = samples[key]
        assert len(set(rows)) == 1  # in one row, without a gap, from its first token on
        np.testing.assert_array_equal(columns, columns[0] + np.arange(len(sample.tokens)))
        at = rows, columns
        np.testing.assert_array_equal(batch.tokens[at], sample.tokens)
        np.testing.assert_array_equal(batch.positions[at], np.arange(len(sample.tokens)))
        np.testing.assert_array_equal(batch.loss_mask[at], sample.loss_mask)
        np.testing.assert_array_equal(batch.rollout_logprobs[at], sample.logprobs)
        assert len(set(batch.segment_ids[at])) == 1
    assert found.keys() == samples.keys()
    padding = batch.sequence_ids == -1
    assert (~padding).sum() == sum(len(s.tokens) for s in samples.values())
    np.testing.assert_array_equal(padding, batch.segment_ids == 0)
    for name in ("tokens", "positions", "loss_mask", "rollout_logprobs"):
        assert not getattr(batch, name)[padding].any()


@pytest.mark.parametrize("seed", range(5))
def test_segments_count_up_and_used_rows_come_first(seed):
    batch = make_batch(random_experience(seed)[0], SHAPE)
    for row, segments in enumerate(batch.segment_ids):
        used = segments[segments > 0]
        assert (row < batch.num_rows) == bool(len(used))
        assert (np.diff(used) >= 0).all() and (np.diff(used) <= 1).all()
        assert not len(used) or used[0] == 1
        assert (segments[: len(used)] > 0).all()  # no padding between sequences
        ids = batch.sequence_ids[row][: len(used)]
        np.testing.assert_array_equal(np.diff(used) > 0, np.diff(ids) != 0)


@pytest.mark.parametrize("seed", range(5))
def test_index_finds_the_win_and_the_mask_of_an_episode(seed):
    experience, _ = random_experience(seed)
    batch = make_batch(experience, SHAPE)
    solver = batch.index[batch.role == ROLE_SOLVER]
    extractor = batch.index[batch.role == ROLE_EXTRACTOR]
    assert batch.episode_mask.reshape(-1)[solver].all() and len(set(solver)) == len(solver)
    assert len(solver) == experience.episode_mask.sum()
    assert sorted(extractor) == [g * SHAPE.n + n for g in (0, 1, 3) for n in range(SHAPE.n)]
    for m in np.flatnonzero(batch.role == ROLE_SOLVER):
        g, k, n, r = np.unravel_index(batch.index[m], batch.wins.shape)
        episode = experience.sources[g].episodes[k, n, r]
        assert batch.wins[g, k, n, r] == episode.won
        first = batch.tokens[batch.sequence_ids == m][0]
        assert first == episode.samples[0].tokens[0]


def test_a_sequence_without_a_sampled_token_is_no_part_of_the_divisor():
    experience, _ = random_experience(1)
    before = (make_batch(experience, SHAPE).role != ROLE_NONE).sum()
    for candidate in experience.sources[0].candidates:
        candidate.sample.loss_mask[:] = 0
    batch = make_batch(experience, SHAPE)
    assert (batch.role != ROLE_NONE).sum() == before - SHAPE.n
    for m in np.flatnonzero(batch.role != ROLE_NONE):
        assert batch.loss_mask[batch.sequence_ids == m].any()


def test_shapes_follow_from_the_configuration_alone():
    empty = Experience(
        [Source(task=None) for _ in range(SHAPE.g)],
        *(np.zeros((SHAPE.g, SHAPE.k, SHAPE.n, SHAPE.r), np.float32) for _ in range(2)),
        np.zeros((SHAPE.g, SHAPE.n), np.float32),
    )
    experiences = [empty, *(random_experience(seed)[0] for seed in (0, 1))]
    batches = [make_batch(experience, SHAPE) for experience in experiences]
    shapes = [[(np.shape(x), np.asarray(x).dtype) for x in batch] for batch in batches]
    assert shapes[0] == shapes[1] == shapes[2]
    assert batches[0].num_rows == 0 and (batches[0].role == ROLE_NONE).all()
    config = default_config()
    config.rollout.update(num_sources=8, num_retrieved=3, num_skills=4, num_repeats=2)
    config.train.update(minibatches=2, row_length=100, micro_batch_rows=16)
    shape = BatchShape.from_config(config)
    assert (shape.g, shape.k, shape.n, shape.r, shape.row_length) == (4, 3, 4, 2, 100)
    assert shape.num_sequences == 4 * 4 + 4 * 3 * 4 * 2
    assert shape.num_rows == 112 and shape.num_rows % 16 == 0


@pytest.mark.parametrize("seed", range(5))
def test_an_episode_of_several_sequences_fits_the_worst_case(seed):
    """Every turn its own sequence: all of an episode point at its win, with the number of the turn."""
    rng = np.random.default_rng(seed)
    shape = dataclasses.replace(SHAPE, row_length=45, episode_samples=4, longest=15)
    experience, _ = random_experience(seed)
    expected = {}
    for g, source in enumerate(experience.sources):
        for candidate in source.candidates:
            candidate.sample = random_sample(rng, 1, 15)
        for place, episode in source.episodes.items():
            flat = np.ravel_multi_index((g, *place), experience.wins.shape)
            lengths = rng.integers(2, 16, rng.integers(0, 5)) if seed else [15] * 4
            episode.samples = [
                dataclasses.replace(random_sample(rng, 1, n), step=t) for t, n in enumerate(lengths)
            ]
            if episode.scored:
                expected |= {(flat, s.step): s.tokens for s in episode.samples}
    batch = make_batch(experience, shape)
    assert batch.tokens.shape == (shape.num_rows, 45) and batch.num_rows <= shape.num_rows
    assert shape.num_sequences == 4 * 3 * (1 + 2 * 2 * 4) and shape.num_rows == 72
    found = {}
    for m in np.flatnonzero(batch.role == ROLE_SOLVER):
        found[int(batch.index[m]), int(batch.step[m])] = batch.tokens[batch.sequence_ids == m]
    assert found.keys() == expected.keys()
    for key, tokens in expected.items():
        np.testing.assert_array_equal(found[key], tokens)
    assert not batch.step[batch.role != ROLE_SOLVER].any()


def test_a_recent_context_counts_a_sequence_for_every_step():
    config = default_config()
    config.rollout.update(context="recent", max_steps=7, max_length=1000, num_sources=2)
    config.train.update(row_length=4000, micro_batch_rows=8)
    shape = BatchShape.from_config(config)
    assert shape.num_sequences == 2 * 8 * (1 + 4 * 7) and shape.num_rows == 120


def test_shares_of_an_iteration_keep_sources_and_wins_together():
    experience, _ = random_experience(3)
    shares = split_experience(experience, 2)
    assert [s for share in shares for s in share.sources] == experience.sources
    for name in ("wins", "episode_mask", "skill_valid"):
        whole = np.concatenate([getattr(share, name) for share in shares])
        np.testing.assert_array_equal(whole, getattr(experience, name))
        assert len(getattr(shares[0], name)) == 2


def test_a_sequence_longer_than_a_row_is_an_error():
    experience, _ = random_experience()
    rng = np.random.default_rng(0)
    experience.sources[0].candidates[0].sample = random_sample(rng, 1, SHAPE.row_length + 1)
    with pytest.raises(ValueError, match="train.row_length must be >= every sequence, got 40"):
        make_batch(experience, SHAPE)


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_never_overfull_and_no_two_could_be_one(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 41, rng.integers(0, 60)).tolist()
    rows, left = pack_rows(lengths, 40)
    assert sorted(m for row in rows for m in row) == list(range(len(lengths))) and not left
    sums = sorted(sum(lengths[m] for m in row) for row in rows)
    assert all(s <= 40 for s in sums) and (len(sums) < 2 or sums[0] + sums[1] > 40)
    some, rest = pack_rows(lengths, 40, max_rows=3)
    assert len(some) <= 3
    assert sorted([m for row in some for m in row] + rest) == list(range(len(lengths)))
    assert pack_rows(lengths, 40) == (rows, left)


# -- no more rows than a batch needs ---------------------------------------------------------------

# The paper's web setting: 8 or so rows in use of a worst case of thousands.
WIDE = BatchShape(
    g=16, k=4, n=8, r=1, row_length=16384, micro_batch_rows=8, episode_samples=14, longest=16384
)


def test_buckets_of_rows_are_few_and_reach_the_worst_case():
    assert WIDE.num_rows == 7296
    assert WIDE.row_buckets == (64, 128, 256, 512, 1024, 2048, 4096, 7296)
    assert SHAPE.row_buckets == (SHAPE.num_rows,)  # where nothing is to be saved there is one
    for shape in (WIDE, SHAPE):
        assert all(n % shape.micro_batch_rows == 0 for n in shape.row_buckets)


def test_a_batch_is_as_large_as_what_it_holds_and_never_smaller_than_the_last(monkeypatch):
    monkeypatch.setattr("evolving_rl_jax.rollout.batch._LEAST_TOKENS", 8 * SHAPE.row_length)
    told = []
    batcher = Batcher(SHAPE, lambda n: told.append(n) or n)
    assert SHAPE.row_buckets == (8, 16, 32, 64)
    empty = Experience(
        [Source(task=None) for _ in range(SHAPE.g)],
        *(np.zeros((SHAPE.g, SHAPE.k, SHAPE.n, SHAPE.r), np.float32) for _ in range(2)),
        np.zeros((SHAPE.g, SHAPE.n), np.float32),
    )
    full, _ = random_experience(0)
    sizes = []
    for shares in ([empty], [empty, full], [full], [empty]):
        batches = batcher(shares)
        whole = [make_batch(share, SHAPE) for share in shares]
        assert told[-1] == max(int(b.num_rows) for b in whole)  # what the hosts agree on
        assert len({b.tokens.shape for b in batches}) == 1
        sizes.append(len(batches[0].tokens))
        for small, large in zip(batches, whole, strict=True):
            assert small.num_rows == large.num_rows <= sizes[-1]
            for name in ("tokens", "segment_ids", "sequence_ids", "loss_mask", "rollout_logprobs"):
                cut = getattr(large, name)[: sizes[-1]]
                np.testing.assert_array_equal(getattr(small, name), cut)
    assert sizes[0] == 8 and sizes[1] == sizes[2] == sizes[3] > told[1] > 8
    # The largest of several hosts decides.
    assert len(Batcher(SHAPE, lambda n: 33)([empty])[0].tokens) == 64


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_rows_in_use_come_first_on_every_device(shards):
    shape = dataclasses.replace(SHAPE, shards=shards)
    experience, _ = random_experience(1)
    plain, dealt = make_batch(experience, SHAPE), make_batch(experience, shape)
    used = (dealt.segment_ids > 0).any(axis=1).reshape(shards, -1)
    assert (np.diff(used.astype(int), axis=1) <= 0).all()
    assert used.sum() == plain.num_rows and np.ptp(used.sum(axis=1)) <= 1
    rows = [{r.tobytes() for r in b.tokens} for b in (plain, dealt)]
    assert rows[0] == rows[1]
