"""What an update is given beside its own sequences, by plain arithmetic; and what a run keeps of it."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
from doubles import FakeEngine, FakePool, compact_prompts, make_task

from evolving_rl_jax.config import ConfigError, default_config, validate
from evolving_rl_jax.rollout.batch import BatchShape, make_batch
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.rollout.evolve import Candidate, Experience, Source
from evolving_rl_jax.rollout.extra import Extra, deal, most_dealt
from evolving_rl_jax.train.replay import Harvest, Replay, harvest
from evolving_rl_jax.types import ROLE_EXTRACTOR, ROLE_NONE, ROLE_SOLVER, Episode, Sample

G, K, N = 2, 2, 3


def settings(sequences=8, **kinds):
    """``config.replay`` with some kinds on."""
    replay = default_config().replay
    replay.sequences = sequences
    for name, changes in kinds.items():
        replay[name].update(changes)
    return replay


def sample(number, length=6):
    mask = np.ones(length, np.float32)
    mask[0] = 0
    tokens = np.full(length, number, np.int32)
    return Sample(tokens, mask, -0.5 * mask, -0.4 * mask)


def experience(won, valid=None):
    """``won`` [G, K, N]; the episode (g, k, n) reads 100 g + 10 k + n, its skill 1000 + 10 g + n."""
    won = np.array(won, bool)
    valid = np.ones((G, N), bool) if valid is None else np.array(valid, bool)
    sources = []
    for g in range(G):
        skills = [
            Candidate("", sample(1000 + 10 * g + n), None, "", bool(valid[g, n])) for n in range(N)
        ]
        episodes = {}
        for k, n in itertools.product(range(K), range(N)):
            if valid[g, n]:
                tokens = sample(100 * g + 10 * k + n)
                shorter = dataclasses.replace(tokens, tokens=-tokens.tokens)
                episodes[k, n, 0] = Episode(
                    None, [None], bool(won[g, k, n]), "ok", [tokens], skill_text="s",
                    without_skill=[shorter],
                )  # fmt: skip
        sources.append(Source(make_task(f"t{g}"), None, skills, [], episodes))
    wins = (won & valid[:, None])[..., None].astype(np.float32)
    mask = np.broadcast_to(valid[:, None, :, None], wins.shape).astype(np.float32)
    return Experience(sources, wins, mask, valid.astype(np.float32))


MIXED = [[[1, 0, 0], [1, 1, 0]], [[1, 1, 1], [0, 0, 0]]]


def numbers(extras):
    return sorted(int(e.sample.tokens[0]) for e in extras)


def test_replayed_wins_are_worth_what_exceeds_the_median_of_recent_groups():
    replay = Replay(settings(wins={"weight": 2.0, "min_advantage": 1.0, "max_age": 2}), 0, 100)
    first = harvest(experience(MIXED), [0, 1], 0, replay._replay)
    assert replay.take(0, first) == []  # nothing was stored before
    # z of the groups: (1,0,0) -> 1.41, -0.71, -0.71; (1,1,0) -> 0.71; without spread 0.
    assert [key for key, _ in first.wins] == [(0, 0, 0, 0)]
    nothing = Harvest()
    given = replay.take(1, nothing)
    median = np.median([1 / 3, 2 / 3, 1.0, 0.0])
    assert numbers(given) == [0] and given[0].detached and given[0].role == ROLE_SOLVER
    assert given[0].advantage == pytest.approx(2.0 * (1.0 - median))
    assert len(replay.take(2, nothing)) == 1
    assert replay.take(3, nothing) == []  # too old now


def test_where_steps_are_scored_only_what_was_won_is_imitated():
    """What was not won ends with a step that was wrong, however much better than the others it was."""
    played = experience([[[0, 0, 0], [1, 0, 0]]] * 2)
    steps = np.zeros((*played.wins.shape, 4), np.float32)
    steps[0, 0, 0, 0, :3] = 1.0  # three right steps of a lost episode
    steps[:, 1, 0, 0] = 1.0
    mask = np.ones_like(steps)
    played = dataclasses.replace(played, step_rewards=steps, step_mask=mask, scores=steps.mean(-1))
    replay = settings(wins={"weight": 1.0, "min_advantage": 0.0})
    found = harvest(played, range(G), 0, replay)
    assert [key for key, _ in found.wins] == [(0, 1, 0, 0), (1, 1, 0, 0)]


def test_a_ramp_is_half_a_cosine():
    replay = Replay(settings(wins={"weight": 1.0, "ramp": 8, "max_age": 50}), 0, 100)
    replay.take(0, harvest(experience(MIXED), [0, 1], 0, replay._replay))
    for iteration in (2, 4, 8, 20):
        (extra,) = replay.take(iteration, Harvest())
        grown = (1 - math.cos(math.pi * min(iteration / 8, 1))) / 2
        assert extra.advantage == pytest.approx(0.5 * grown)


def test_guided_wins_come_without_their_skill():
    replay = Replay(settings(20, guided={"weight": 0.3}), 0, 100)
    given = replay.take(0, harvest(experience(MIXED), [0, 1], 0, replay._replay))
    assert numbers(given) == sorted([0, -10, -11, -100, -101, -102])
    assert {e.advantage for e in given} == {0.3}
    few = Replay(settings(2, guided={"weight": 0.3}), 0, 100)
    assert len(few.take(0, harvest(experience(MIXED), [0, 1], 0, few._replay))) == 2


def test_guided_plays_may_come_with_their_advantage_lost_ones_too():
    replay = Replay(settings(20, guided={"weight": 0.3, "signal": "advantage"}), 0, 100)
    given = replay.take(0, harvest(experience(MIXED), [0, 1], 0, replay._replay))
    found = {int(e.sample.tokens[0]): e.advantage for e in given}
    high, low = 2 / math.sqrt(2), -1 / math.sqrt(2)  # of one win among three, and mirrored
    want = {0: high, -1: low, -2: low, -10: -low, -11: -low, -12: -high}
    assert found == pytest.approx({n: 0.3 * a for n, a in want.items()}, rel=1e-4)
    assert all(e.detached and e.role == ROLE_SOLVER for e in given)


def test_proven_skills_are_of_mixed_sources_and_won_with():
    won = [[[1, 0, 0], [1, 1, 0]], [[1, 1, 1], [1, 1, 1]]]
    replay = Replay(settings(skills={"weight": 0.5, "min_reward": 0.5}), 0, 100)
    given = replay.take(0, harvest(experience(won), [0, 1], 0, replay._replay))
    assert numbers(given) == [1000, 1001] and {e.role for e in given} == {ROLE_EXTRACTOR}


def test_stored_extractions_are_paid_about_the_mean_of_those_drawn_and_rest():
    replay = Replay(settings(3, extractions={"weight": 1.0, "cooldown": 1}), 0, 100)
    valid = [[1, 1, 0], [1, 1, 1]]
    found = harvest(experience(MIXED, valid), [0, 1], 0, replay._replay)
    assert [s.reward for _, s in found.extractions] == [1.0, 0.0, -1.0, 0.0, 0.0, 0.0]
    assert replay.take(0, found) == [] and replay.take(1, Harvest()) == []  # they rest
    given = replay.take(2, Harvest())
    assert len(given) == 3
    rewards = {int(s.samples[0].tokens[0]): s.reward for s in replay.extractions}
    mean = np.mean([rewards[i] for i in numbers(given)])
    for extra in given:
        want = rewards[int(extra.sample.tokens[0])] - mean
        assert extra.advantage == pytest.approx(want)
    again = replay.take(3, Harvest())
    assert not set(numbers(again)) & set(numbers(given))  # those rest, the other three do not
    assert [s.trained for s in replay.extractions] == [2] * 6


def test_what_was_trained_on_often_is_drawn_seldom():
    often = 0
    for seed in range(200):
        replay = Replay(settings(1, extractions={"weight": 1.0, "exponent": 2.0}), seed, 100)
        found = harvest(experience(MIXED), [0, 1], 0, replay._replay)
        replay.extractions = [s for _, s in found.extractions[:2]]
        replay.extractions[0].trained = 3
        replay.take(5, Harvest())
        often += replay.extractions[0].trained == 4
    # in proportion to (1 + 3)^-2 and (1 + 1)^-2: 0.2
    assert 20 <= often <= 60


def test_a_run_goes_on_with_what_was_written(tmp_path):
    kinds = {"wins": {"weight": 1.0}, "extractions": {"weight": 1.0}}
    replay = Replay(settings(6, **kinds), 0, 100)
    replay.take(0, harvest(experience(MIXED), [0, 1], 0, replay._replay))
    replay.take(1, Harvest())
    replay.write(tmp_path / "replay" / "00000002.npz")
    other = Replay(settings(6, **kinds), 0, 100)
    other.read(tmp_path / "replay" / "00000002.npz")
    for iteration in (2, 3):
        ours, theirs = replay.take(iteration, Harvest()), other.take(iteration, Harvest())
        assert len(ours) == len(theirs) > 0
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a.sample.tokens, b.sample.tokens)
            assert (a.advantage, a.role) == (b.advantage, b.role)
    with pytest.raises(ConfigError, match="must hold the replay buffer"):
        other.read(tmp_path / "replay" / "00000003.npz")


def test_one_host_and_two_are_given_the_same():
    kinds = {name: {"weight": 1.0} for name in ("wins", "guided", "skills", "extractions")}
    one, two = (Replay(settings(8, **kinds), 0, 100) for _ in range(2))
    whole = experience(MIXED)
    halves = [
        Experience([whole.sources[g]], *(x[g : g + 1] for x in (whole.wins, whole.episode_mask)),
                   whole.skill_valid[g : g + 1]) for g in range(G)
    ]  # fmt: skip
    for iteration in range(4):
        a = one.take(iteration, harvest(copy.deepcopy(whole), [0, 1], iteration, one._replay))
        parts = [
            harvest(copy.deepcopy(h), [g], iteration, two._replay) for g, h in enumerate(halves)
        ]
        b = two.take(iteration, Harvest.joined(parts))
        assert [(numbers([x]), x.advantage) for x in a] == [(numbers([x]), x.advantage) for x in b]
        assert len(a) <= 8


@pytest.mark.parametrize(
    ("sequences", "parts", "hosts"), [(7, 2, 2), (8, 2, 2), (1, 3, 2), (0, 1, 1)]
)
def test_extras_are_dealt_to_steps_and_hosts(sequences, parts, hosts):
    extras = [Extra(sample(i), float(i)) for i in range(sequences)]
    dealt = [deal(extras, parts, hosts, host) for host in range(hosts)]
    assert sorted(e.advantage for h in dealt for p in h for e in p) == list(range(sequences))
    for part in range(parts):  # the same sequences in a step on any number of hosts
        together = sorted(e.advantage for h in dealt for e in h[part])
        assert together == [e.advantage for e in deal(extras, parts, 1, 0)[part]]
    assert max(len(p) for h in dealt for p in h) <= most_dealt(sequences, parts, hosts)


def test_a_batch_says_which_sequences_are_given():
    shape = BatchShape(G, K, N, 1, row_length=16, micro_batch_rows=2, extra=3)
    extras = [Extra(sample(7), 0.5), Extra(sample(8), -0.25, ROLE_EXTRACTOR, False)]
    batch = make_batch(experience(MIXED), shape, extras=extras)
    own = G * N + G * K * N
    assert len(batch.role) == own + 3 and batch.role[-1] == ROLE_NONE
    assert np.isnan(batch.given[:own]).all() and not batch.detached[:own].any()
    assert batch.given[own : own + 2].tolist() == [0.5, -0.25]
    assert batch.detached[own:].tolist() == [1.0, 0.0, 0.0]
    assert (batch.tokens[batch.sequence_ids == own] == 7).all()
    plain = dataclasses.replace(shape, extra=0)
    assert make_batch(experience(MIXED), plain).given is None


@pytest.mark.parametrize("context", ["full", "recent"])
def test_a_guided_win_reads_as_if_it_had_been_played_without_its_skill(context):
    """What the driver keeps is, token by token, what an unguided episode with the same answers reads."""
    prompts = compact_prompts()

    def play(skill, keeps, words=("look", "look", "win")):
        engine = FakeEngine(prompts.tokenizer, lambda _episode, turn: words[turn])
        rules = PlaySettings(20, 20, 5, 1.0, 1.0, 0, context=context, recent_turns=1)
        driver = Driver(engine, FakePool(), prompts, rules, iteration=0, keeps_unguided=keeps)
        episodes = []
        driver.play(0, make_task("t0"), skill, lambda episode, _handle: episodes.append(episode))
        driver.run()
        return episodes[0]

    guided, free = play("the mug is in drawer 1", True), play("", True)
    assert guided.won and free.without_skill == [] and play("skill", False).without_skill == []
    assert (lost := play("skill", True, ["look"] * 5)).without_skill and not lost.won
    assert len(guided.without_skill) == len(free.samples) == (1 if context == "full" else 3)
    for ours, theirs in zip(guided.without_skill, free.samples, strict=True):
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        np.testing.assert_array_equal(ours.loss_mask, theirs.loss_mask)
        assert ours.step == theirs.step
    assert not np.array_equal(guided.samples[0].tokens, free.samples[0].tokens)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("replay.sequences", {"sequences": 0, "wins.weight": 1.0}),
        ("replay.sequences", {"sequences": 4}),
        ("replay.guided.weight", {"sequences": 4, "guided.weight": 1.0, "arm": "grpo"}),
        (
            "replay.guided.signal",
            {"sequences": 4, "guided.weight": 1.0, "guided.signal": "advantage", "env": "mind2web"},
        ),
    ],
)
def test_combinations_that_cannot_run(key, changes):
    config = default_config()
    config.algorithm.arm = changes.pop("arm", "joint")
    config.env.name = changes.pop("env", "alfworld")
    if config.env.name == "mind2web":
        config.rollout.context = "recent"
    config.rollout.num_repeats = 2
    config.replay.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=key):
        validate(config)
