"""Scripted episodes of the warm start: what they teach, and that only the seed decides."""

import collections

import numpy as np
import pytest
from doubles import compact_prompts, digest
from ml_collections import ConfigDict

from evolving_rl_jax.envs.alfworld import facts
from evolving_rl_jax.envs.alfworld.teacher import SKILL_KINDS, make_extraction, make_skill
from evolving_rl_jax.envs.pool.pool import EnvPool
from evolving_rl_jax.rollout.demonstrations import Demonstrator
from evolving_rl_jax.skills.schema import parse_skill

PROMPTS = compact_prompts()
IDS = PROMPTS.ids


ROLLOUT = ConfigDict(
    {
        "context": "full",
        "recent_turns": 0,
        "max_steps": 50,
        "max_length": 10_000,
        "max_skill_tokens": 40,
        "num_source_episodes": 1,
        "extraction_lines": 0,
    }
)


def settings(**changes):
    values = {"action_noise": 0.05, "follow_skill": 0.8, "good_extraction": 0.4}
    return ConfigDict({**values, **changes})


@pytest.fixture(scope="module")
def pool():
    with EnvPool("alfworld", num_workers=0) as pool:
        yield pool


def play(pool, tasks, seed=5, concurrent=256, **changes):
    demonstrator = Demonstrator(pool, PROMPTS, ROLLOUT, settings(**changes), seed)
    return demonstrator.play(tasks, concurrent=concurrent)


def turns_of(sample):
    """(given ids, taught text) pairs of a sequence; every taught part ends with the stop token."""
    tokenizer, pairs = PROMPTS.tokenizer, []
    changes = np.flatnonzero(np.diff(sample.loss_mask)) + 1
    parts = np.split(sample.tokens, changes)
    assert sample.loss_mask[0] == 0 and len(parts) % 2 == 0
    for given, taught in zip(parts[::2], parts[1::2], strict=True):
        assert taught[-1] == tokenizer.eos_id and tokenizer.eos_id not in taught[:-1]
        pairs.append((given.tolist(), tokenizer.decode(taught[:-1])))
    return pairs


def skill_of(demonstration) -> str:
    """The skill in the prompt of a demonstration, as text."""
    tokens = demonstration.episode[0].tokens.tolist()
    if IDS["<skill>"] not in tokens:
        return ""
    start = tokens.index(IDS["<skill>"]) + 1
    return PROMPTS.tokenizer.decode(tokens[start : tokens.index(IDS["<act>"])]).strip()


@pytest.fixture(scope="module")
def demonstrations(pool, household_games):
    return play(pool, household_games * 5)


def test_what_is_taught_does_not_change(demonstrations):
    """Warm starts stay the same to the last digit; a new value here changes every run from scratch."""
    assert digest(demonstrations) == "3c463814fc5a9a28"


def test_episodes_are_what_the_solver_will_see_and_write(demonstrations, household_games):
    assert len(demonstrations) == 5 * len(household_games)
    for demonstration, task in zip(demonstrations, household_games * 5, strict=True):
        assert demonstration.task is task
        pairs = turns_of(demonstration.episode[0])
        assert 1 <= len(pairs) <= task.step_limit
        assert pairs[0][0] == PROMPTS.solver_prompt(task, skill_of(demonstration), "")
        for given, taught in pairs:
            action, valid = PROMPTS.parse_action(taught)
            assert given[-1] == IDS["<act>"] and valid and action
            assert taught.split(">")[0].strip() == task.meta["object"]
        assert not demonstration.episode[0].logprobs.any()


def test_only_episodes_without_a_skill_are_extracted_from(demonstrations):
    kinds = collections.Counter()
    for demonstration in demonstrations:
        kinds[bool(skill_of(demonstration)), demonstration.extraction is not None] += 1
    assert set(kinds) == {(True, False), (False, True)}


def test_an_extraction_continues_its_episode_and_teaches_the_skill_alone(demonstrations):
    for demonstration in demonstrations:
        sample = demonstration.extraction
        if sample is None:
            continue
        ((given, taught),) = turns_of(sample)
        source = demonstration.episode[0].tokens.tolist()
        assert given[: len(source)] == source
        end = PROMPTS.extractor_prompt(demonstration.won)
        assert given[-len(end) :] == end
        skill, reason = parse_skill(taught)
        assert skill is not None, reason
        kept, excluded = facts.claims(PROMPTS.render_skill(skill))
        assert len(kept) + len(excluded) == 1


def test_a_perfect_solver_wins_with_a_true_skill(pool, household_games):
    played = play(pool, household_games * 4, follow_skill=1.0, action_noise=0.0)
    outcomes = collections.defaultdict(list)
    for demonstration in played:
        skill = skill_of(demonstration)
        kind = facts.fact_stated(demonstration.task, skill) if skill else None
        outcomes[kind].append(demonstration.won)
    assert len(outcomes[True]) > 5 and all(outcomes[True])
    assert np.mean(outcomes[False]) < 0.7 and np.mean(outcomes[None]) < 0.9


def test_demonstrations_depend_on_the_seed_and_their_number_alone(
    pool, household_games, demonstrations
):
    def texts(played):
        return [d.episode[0].tokens.tolist() for d in played]

    tasks = household_games * 5
    assert texts(play(pool, tasks, concurrent=3)) == texts(demonstrations)
    assert texts(play(pool, tasks[:7])) == texts(demonstrations[:7])
    assert texts(play(pool, tasks, seed=6)) != texts(demonstrations)


def test_extractions_alone_come_from_episodes_without_a_skill(pool, household_games):
    demonstrator = Demonstrator(pool, PROMPTS, ROLLOUT, settings(), 5)
    tasks = household_games * 2
    played = demonstrator.play(tasks, first=40, extracted=True)
    assert len(played) == len(tasks) and all(d.extraction is not None for d in played)
    assert not any(map(skill_of, played))
    again = demonstrator.play(tasks[3:5], first=43, extracted=True)
    for one, other in zip(again, played[3:5], strict=True):
        assert one.extraction.tokens.tolist() == other.extraction.tokens.tolist()


def test_games_that_fail_are_left_out(pool, household_games, tmp_path):
    import dataclasses

    broken = dataclasses.replace(household_games[0], path=str(tmp_path), content_hash="none")
    played = play(pool, [household_games[1], broken, household_games[2]])
    assert [d.task.id for d in played] == [household_games[1].id, household_games[2].id]


def test_given_skills_are_of_all_kinds_and_make_their_reader_believe_what_they_say(household_games):
    rng, counts, n = np.random.default_rng(0), collections.Counter(), 3000
    for i in range(n):
        task = household_games[i % len(household_games)]
        obj, place, habits = (task.meta[k] for k in ("object", "place", "habits"))
        text, beliefs, excluded = make_skill(task, rng)
        assert facts.claims(text) == (beliefs, excluded)
        if not text:
            kind = "none"
        elif excluded:
            kind = "excluded"
            assert place not in excluded[obj] and excluded[obj] <= set(habits.values())
        elif obj not in beliefs:
            kind = "other"
            assert beliefs.items() <= habits.items()
        else:
            kind = "true" if beliefs[obj] == place else "wrong"
        counts[kind] += 1
    for kind, share in SKILL_KINDS.items():
        assert abs(counts[kind] / n - share) < 4 * np.sqrt(share * (1 - share) / n)


def extraction_claims(task, observations, good, n=400):
    rng = np.random.default_rng(1)
    texts = [make_extraction(task, observations, rng, good) for _ in range(n)]
    return [facts.claims(parse_skill(text)[0].description) for text in texts]


def test_good_extractions_state_what_the_episode_revealed(household_games):
    task = household_games[0]
    obj, place, habits = (task.meta[k] for k in ("object", "place", "habits"))
    other, elsewhere = next((o, p) for o, p in sorted(habits.items()) if o != obj)

    def opened(where, what):
        return f"You open the {where}. The {where} is open. In it, you see a {what} 1."

    found = [opened(elsewhere, other), opened(place, obj)]
    assert set(map(str, extraction_claims(task, found, 1.0))) == {str(({obj: place}, {}))}
    missed = found[:1]
    assert set(map(str, extraction_claims(task, missed, 1.0))) == {str(({}, {obj: {elsewhere}}))}
    claims = extraction_claims(task, found, 0.4)
    right = np.mean([kept.get(obj) == place for kept, _ in claims])
    assert 0.4 < right < 0.6  # the good ones, and some lucky guesses
    assert any(kept == {other: elsewhere} for kept, _ in claims)
    assert any(kept.get(obj, place) != place for kept, _ in claims)  # wrong guesses
