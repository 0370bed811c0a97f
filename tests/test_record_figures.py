"""Figures of an iteration and of a panel by hand: what counts, of how many, and what is left out."""

import numpy as np
import pytest
from doubles import make_task
from test_envs_known_facts import HOME, web_episode

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.record.figures import (
    SOURCE_MEANS,
    SourceFigures,
    bank_records,
    pooled,
    rollout_figures,
    update_figures,
)
from evolving_rl_jax.rollout.evolve import Candidate, Experience, Source
from evolving_rl_jax.train.limits import UnscoredLimit
from evolving_rl_jax.types import Episode, Sample, Turn, worth

PLAIN = make_task("plain")  # states no facts


def sample(trained=3):
    mask = np.ones(trained, np.float32)
    return Sample(mask.astype(np.int32), mask, mask, mask)


def episode(task=PLAIN, won=False, status="ok", turns=1, valid=True, seen="nothing"):
    steps = [Turn(seen, "", "look", valid)] * turns
    return Episode(task, steps, won, status, [sample()], error="" if status == "ok" else "it broke")


def skill(text="", valid=True):
    return Candidate("{}", sample(), None, "", valid, text)


def experience(*sources):
    """G sources with one retrieved task each, N = 2 and R = 1, as the stages leave them."""
    wins, mask = np.zeros((2, len(sources), 1, 2, 1), np.float32)
    for g, source in enumerate(sources):
        for (k, n, r), e in source.episodes.items():
            wins[g, k, n, r], mask[g, k, n, r] = float(e.won and e.scored), float(e.scored)
    return Experience(list(sources), wins, mask, np.ones((len(sources), 2), np.float32))


def source(own, candidates=(), played=()):
    return Source(
        PLAIN, own, list(candidates), [PLAIN], {(0, n, 0): e for n, e in enumerate(played)}
    )


# -- the rollout -----------------------------------------------------------------------------------


def test_what_the_infrastructure_failed_is_no_loss():
    figures = rollout_figures(
        experience(
            source(episode(won=True), [skill(), skill()], [episode(won=True, turns=4),
                                                           episode(status="timeout", turns=0)]),
            source(episode(status="env_error")),
        )
    )  # fmt: skip
    assert figures["rollout/source_success"] == 1.0  # one won, one failed
    assert (figures["rollout/sources"], figures["rollout/source_failures"]) == (1, 1)
    assert figures["rollout/win_rate"] == 1.0 and figures["rollout/turns"] == 4
    assert (figures["rollout/scored_episodes"], figures["rollout/failed_episodes"]) == (1, 1)


def test_a_win_is_a_win_where_an_environment_pays_parts():
    """Four plays, none won, paid 0.75 with one skill and 0.25 with the other."""
    paid = [episode(), episode()]
    for e, reward in zip(paid, (0.75, 0.25), strict=True):
        e.reward = reward
    found = experience(source(episode(), [skill("a"), skill("b")], paid))
    assert "rollout/reward" not in rollout_figures(found)  # booked as lost by the helper
    found.wins[:] = np.array([0.75, 0.25], np.float32).reshape(found.wins.shape)
    figures = rollout_figures(found)
    assert figures["rollout/win_rate"] == 0.0 and figures["rollout/reward"] == 0.5
    assert [r.reward for r in bank_records(found, 0, 0)] == [0.75, 0.25]


@pytest.mark.parametrize(
    ("rewards", "won", "value"),
    [
        ([], True, 1.0),
        ([0.0, 0.0], True, 1.0),
        ([-1.0] * 10 + [10.0], True, 0.0),
        ([0.5], False, 0.5),
    ],
)
def test_what_an_episode_is_worth(rewards, won, value):
    assert worth(rewards, won) == value


def test_a_mean_over_nothing_is_left_out_and_every_mean_has_its_count():
    failed = source(episode(status="timeout"))
    nothing = rollout_figures(experience(failed, failed))
    assert nothing == {
        "rollout/scored_episodes": 0, "rollout/failed_episodes": 0, "rollout/scored_turns": 0,
        "rollout/sources": 0, "rollout/source_failures": 2, "rollout/extractions": 0,
    }  # fmt: skip
    some = rollout_figures(experience(source(episode(), [skill(), skill(valid=False)])))
    assert some["rollout/skill_valid"] == 0.5 and some["rollout/extractions"] == 2
    assert not any("fact" in name or "win_rate" in name for name in some)
    groups = Source(PLAIN, None, [], [PLAIN], {(0, 0, 0): episode(won=True)})  # the arm grpo
    assert not any(
        "source" in name or "skill" in name for name in rollout_figures(experience(groups))
    )


# -- facts -----------------------------------------------------------------------------------------

SEES = "The cabinet 3 is open. In it, you see a mug 1."
TOLD = (  # source episode, the skills written after it, their facts stated over the facts it saw
    (web_episode(2), ["press search left, press save top"], [1.0]),  # saw one of two, stated it
    (web_episode(1, 1, 2), ["press search left", "press save bottom"], [0.5, 0.0]),  # saw both
    (episode(HOME, seen=SEES), ["the mug is in cabinet 3", "the mug is in drawer 1"], [1.0, 0.0]),
    (episode(HOME), ["the mug is in cabinet 3"], []),  # a guess
    (episode(HOME, seen=SEES, status="timeout"), [], []),
    (episode(), ["look around"], []),
)


def test_facts_have_one_definition():
    """A share of each skill, whatever its task has of facts; in a rollout as in a panel."""
    found = [SourceFigures.of([e], [skill(t) for t in texts]) for e, texts, _ in TOLD]
    expected = np.concatenate([shares for _, _, shares in TOLD])
    total = sum(found[1:], found[0]).figures()
    assert total["fact_stated_when_seen"] == pytest.approx(expected.mean()) == 0.5
    assert (total["fact_skills"], total["fact_episodes"]) == (5, 4)
    assert total["fact_seen"] == pytest.approx(np.mean([0.5, 1, 1, 0]))
    assert (total["sources"], total["source_failures"], total["extractions"]) == (5, 1, 7)
    played = [source(e, [skill(t) for t in texts]) for e, texts, _ in TOLD]
    in_rollout = rollout_figures(experience(*played))
    assert {f"rollout/{name}": value for name, value in total.items()}.items() <= in_rollout.items()
    assert pooled([f.figures() for f in found]) == pytest.approx(total)
    assert pooled([found[0].figures()] * 3)["fact_seen"] == 0.5


def test_an_invalid_skill_states_nothing():
    found = SourceFigures.of(
        [episode(HOME, seen=SEES)], [skill("the mug is in cabinet 3", valid=False)]
    )
    assert found.figures()["fact_stated_when_seen"] == 0


def test_groups_written_before_every_mean_had_its_count():
    old = {"sources": 4, "source_failures": 0, "source_success": 0.5, "skill_valid": 1.0}
    other = old | {"sources": 12, "skill_valid": 0.5}
    assert pooled([old, other])["skill_valid"] == pytest.approx((4 * 1.0 + 12 * 0.5) / 16)
    assert set(SOURCE_MEANS) >= {"source_success", "skill_valid"}


# -- the update ------------------------------------------------------------------------------------


def step(**changes):
    usual = {"loss": 1.0, "grad_norm": 2.0, "entropy_extractor": 0.5, "logprob_gap_mean": 0.1}
    usual |= {
        "sequences_extractor": 4.0,
        "tokens": 9.0,
        "trained_tokens": 5.0,
        "skipped_updates": 0.0,
    }
    return {name: np.float32(value) for name, value in (usual | changes).items()}


def test_counts_of_the_run_are_not_averaged():
    assert update_figures([step(), step(skipped_updates=1.0)])["train/skipped_updates"] == 1.0
    three = [step(skipped_updates=n) for n in (3.0, 4.0, 5.0)]
    assert update_figures(three)["train/skipped_updates"] == 5.0


def test_a_step_without_extractions_says_nothing_of_the_extractor():
    without = step(sequences_extractor=0.0, entropy_extractor=0.0, loss=3.0)
    figures = update_figures([step(), without])
    assert figures["train/entropy_extractor"] == 0.5 and figures["train/loss"] == 2.0
    assert figures["train/sequences_extractor"] == 2.0
    assert "train/entropy_extractor" not in update_figures([without, without])
    assert figures["train/logprob_gap_mean"] == np.float32(0.1)
    empty = step(tokens=0.0, trained_tokens=0.0, loss=0.0, logprob_gap_mean=0.0)
    figures = update_figures([empty, step(logprob_gap_mean=0.2)])
    assert figures["train/loss"] == 1.0 and figures["train/logprob_gap_mean"] == np.float32(0.2)


# -- training on nothing ---------------------------------------------------------------------------

LOST = source(episode(won=True), [skill()] * 2, [episode(status="timeout")] * 2)
BROKEN = source(episode(status="env_error"))
GIVEN_UP = source(None)
PLAYED = source(episode(), [skill()] * 2, [episode(status="timeout"), episode()])
INVALID = source(episode(), [skill(valid=False)] * 2)


@pytest.mark.parametrize("empty", [(LOST, LOST), (BROKEN, BROKEN), (GIVEN_UP,), (LOST, INVALID)])
def test_a_run_ends_after_iterations_without_a_scored_episode(empty):
    limit = UnscoredLimit(3, 100)
    for sources in (empty, empty, (PLAYED, *empty), empty, (INVALID, BROKEN), empty, empty):
        limit.check(experience(*sources))
    with pytest.raises(ConfigError, match="3 iterations in a row.*config.train.max_unscored") as e:
        limit.check(experience(*empty))
    assert "it broke" in str(e.value) or "config.rollout.deadline_s" in str(e.value)


def test_a_run_shorter_than_the_limit_ends_too():
    limit = UnscoredLimit(3, 2)
    limit.check(experience(BROKEN))
    with pytest.raises(ConfigError, match="2 iterations in a row"):
        limit.check(experience(BROKEN))
