"""The four stages, with pretend engine and environments: shapes, masks, who plays what."""

import dataclasses
import itertools

import numpy as np
import pytest
from doubles import FakeEngine, FakePool, compact_prompts, make_task, skill_text
from ml_collections import ConfigDict

from evolving_rl_jax.rollout import evolve
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.rollout.evolve import Evolver, make_candidate
from evolving_rl_jax.skills import AuditRules, audit
from evolving_rl_jax.types import ENV_ERROR, Sample

PROMPTS = compact_prompts()
G, K, N, R = 3, 2, 4, 2
SETTINGS = PlaySettings(
    max_turn_tokens=20, max_skill_tokens=99, max_steps=3, temperature=1.0, top_p=1.0, top_k=0
)
SKILL_KEYS, EPISODE_KEYS = 1_000_000, 2_000_000


def rollout_config(**changes):
    values = {
        "num_retrieved": K,
        "num_skills": N,
        "num_repeats": R,
        "evaluate_invalid_skills": False,
        "max_skill_chars": 500,
        "num_source_episodes": 1,
        "train_sources": False,
    }
    return ConfigDict({**values, **changes})


class FakeRetriever:
    """The first K tasks of a pool that are not the query."""

    def __init__(self, tasks):
        self.tasks = tasks

    def retrieve(self, task, k):
        return [t for t in self.tasks if t.id != task.id][:k]


def wins_of(g, k, n, r):
    """What the pretend policy achieves: no pattern, but fixed."""
    return (3 * g + 5 * k + 2 * n + r + g * k * n) % 3 == 0


def speak(skills=None):
    """speak(episode, turn): a solver turn or, for the keys of extractions, a skill."""

    def say(episode, turn):
        if episode < SKILL_KEYS:
            return "mug> win" if episode % 2 else "mug> lose"
        if episode < EPISODE_KEYS:
            return (skills or {}).get(episode - SKILL_KEYS, skill_text(f"skill {episode}"))
        place = np.unravel_index(episode - EPISODE_KEYS, (G, K, N, R))
        return "mug> win" if wins_of(*place) else "mug> lose"

    return say


def collect(
    skills=None, fail=None, seed=0, method="collect", pool=None, evolver_options=None, **changes
):
    pool = pool or [make_task(f"t{i}") for i in range(G + 3)]
    engine, envs = FakeEngine(PROMPTS.tokenizer, speak(skills)), FakePool(fail, seed)
    driver = Driver(engine, envs, PROMPTS, SETTINGS, iteration=3)
    evolver = Evolver(
        driver, FakeRetriever(pool), PROMPTS, rollout_config(**changes), **(evolver_options or {})
    )
    tasks = pool[:G] if method == "collect" else (pool * 2)[: G * K]
    experience = getattr(evolver, method)(tasks)
    assert not engine.open_now and not envs.running
    for array, shape in (
        (experience.wins, (G, K, N, R)),
        (experience.episode_mask, (G, K, N, R)),
        (experience.skill_valid, (G, N)),
    ):
        assert array.shape == shape and array.dtype == np.float32
    return experience, engine, envs


EXPECTED = np.array(
    [wins_of(*i) for i in itertools.product(*map(range, (G, K, N, R)))], np.float32
).reshape(G, K, N, R)


def test_every_skill_is_played_on_every_retrieved_task():
    experience, engine, envs = collect()
    np.testing.assert_array_equal(experience.wins, EXPECTED)
    assert experience.episode_mask.all() and experience.skill_valid.all()
    for g, source in enumerate(experience.sources):
        assert source.task.id == f"t{g}" and source.episode.won == (g % 2 == 1)
        assert source.task.id not in [t.id for t in source.retrieved]
        assert set(source.episodes) == set(itertools.product(range(K), range(N), range(R)))
        for (k, n, r), episode in source.episodes.items():
            assert episode.task is source.retrieved[k]
            assert episode.skill_text == source.candidates[n].text == "the mug is in cabinet 3"
            key = EPISODE_KEYS + np.ravel_multi_index((g, k, n, r), (G, K, N, R))
            np.testing.assert_array_equal(episode.samples[0].tokens, engine.sessions[key].tokens)
            assert PROMPTS.ids["<skill>"] in episode.samples[0].tokens
        assert PROMPTS.ids["<skill>"] not in source.episode.samples[0].tokens
    sources = [s.episode.won for s in experience.sources]
    asked = [PROMPTS.extractor_prompt(won) for won in sources for _ in range(N)]
    for i, prompt in enumerate(asked):  # each extraction was told how its source ended
        tokens = engine.sessions[SKILL_KEYS + i].tokens.tolist()
        assert bytes(prompt) in bytes(tokens)


def test_the_order_of_answers_changes_nothing():
    runs = [collect(seed=seed) for seed in range(4)]
    for experience, engine, _ in runs[1:]:
        np.testing.assert_array_equal(experience.wins, runs[0][0].wins)
        assert engine.log == runs[0][1].log


BROKEN = {1: "no skill here", 6: skill_text(description="杯子在橱柜里")}  # (0, 1) and (1, 2)


def test_an_invalid_skill_is_not_played():
    experience, _, envs = collect(BROKEN)
    valid = np.ones((G, N), np.float32)
    valid[0, 1] = valid[1, 2] = 0
    np.testing.assert_array_equal(experience.skill_valid, valid)
    played = np.broadcast_to(valid[:, None, :, None], (G, K, N, R))
    np.testing.assert_array_equal(experience.episode_mask, played)
    np.testing.assert_array_equal(experience.wins, EXPECTED * played)
    assert len(envs.tasks) == G + int(played.sum())
    first, second = experience.sources[0].candidates[1], experience.sources[1].candidates[2]
    assert first.skill is None and first.reason == "no JSON object found" and not first.text
    assert second.skill is not None and "non-English" in second.reason
    assert first.sample.loss_mask.sum() > 0  # it is trained on all the same, with reward 0


def test_a_skill_that_only_fails_the_audit_can_be_played():
    experience, _, _ = collect(BROKEN, evaluate_invalid_skills=True)
    assert experience.skill_valid[1, 2] == 0 and experience.episode_mask[1, :, 2].all()
    assert experience.skill_valid[0, 1] == 0 and not experience.episode_mask[0, :, 1].any()


def test_a_failed_source_leaves_zeros_behind():
    experience, engine, _ = collect(fail={1: 1})
    source = experience.sources[1]
    assert source.episode.status == ENV_ERROR and not source.candidates and not source.episodes
    for array in (experience.wins, experience.episode_mask, experience.skill_valid):
        assert not array[1].any()
    others = [0, 2]
    assert experience.episode_mask[others].all()
    np.testing.assert_array_equal(experience.wins[others], EXPECTED[others])
    assert all(not SKILL_KEYS + N <= key < SKILL_KEYS + 2 * N for key in engine.sessions)


def test_a_failed_evaluation_is_masked_and_nothing_else():
    where = (2, 1, 3, 0)
    key = EPISODE_KEYS + int(np.ravel_multi_index(where, (G, K, N, R)))
    experience, _, _ = collect(fail={key: 0})
    expected, mask = EXPECTED.copy(), np.ones((G, K, N, R))
    expected[where] = mask[where] = 0
    np.testing.assert_array_equal(experience.wins, expected)
    np.testing.assert_array_equal(experience.episode_mask, mask)
    assert experience.skill_valid.all()
    assert not experience.sources[2].episodes[1, 3, 0].scored


def test_groups_repeat_tasks_without_skills():
    experience, _, envs = collect(method="collect_groups")
    np.testing.assert_array_equal(experience.wins, EXPECTED)
    assert experience.episode_mask.all() and not experience.skill_valid.any()
    assert [t.id for s in experience.sources for t in s.retrieved] == [
        f"t{i % (G + 3)}" for i in range(G * K)
    ]
    for source in experience.sources:
        assert source.episode is None and not source.candidates
        for (k, _, _), episode in source.episodes.items():
            assert episode.task is source.retrieved[k] and not episode.skill_text


@pytest.mark.parametrize(
    ("raw", "valid", "reason"),
    [
        (skill_text(), True, ""),
        ("well: " + skill_text() + " done", True, ""),
        ("the mug is in cabinet 3", False, "no JSON object found"),
        (skill_text(description=""), False, "description must be a non-empty text, got"),
        (skill_text(description="go " * 9), False, "'go' 8 times in a row"),
        (skill_text(description="a " + "b c " * 300), False, "more than 500"),
        (skill_text(description="zero\u200bwidth"), False, "uncommon characters: U+200B"),
        ('{"name": "x", "description": "\\u676f"}', False, "non-English characters: U+676F"),
    ],
)
def test_candidates_say_why_they_are_invalid(raw, valid, reason):
    nothing = np.zeros(0)
    sample = Sample(nothing, nothing, nothing, nothing)
    candidate = make_candidate(raw, sample, PROMPTS, 500)
    assert candidate.valid == valid and reason in candidate.reason and candidate.raw == raw
    assert bool(candidate.text) == (candidate.skill is not None)


def test_further_audits_and_the_limit_of_a_prompt_apply_in_training():
    options = {"rules": AuditRules(leakage=True), "fit": lambda text: text[:7]}
    leaking = {1: skill_text(description="then go to cabinet 3 at once")}

    def solved(task):
        return dataclasses.replace(task, meta={"walkthrough": ["go to cabinet 3"]})

    pool = [solved(make_task(f"t{i}")) for i in range(G + 3)]
    experience, _, _ = collect(leaking, pool=pool, evolver_options=options)
    valid = np.ones((G, N), np.float32)
    valid[0, 1] = 0
    np.testing.assert_array_equal(experience.skill_valid, valid)
    refused = experience.sources[0].candidates[1]
    assert refused.reason == "contains the answer 'go to cabinet 3'"
    played = [e for s in experience.sources for e in s.episodes.values()]
    assert played and all(e.skill_text == "the mug" for e in played)


def test_given_tasks_are_played_instead_of_the_most_similar():
    pool = [make_task(f"t{i}") for i in range(G + K)]
    engine, envs = FakeEngine(PROMPTS.tokenizer, speak(None)), FakePool(None, 0)
    driver = Driver(engine, envs, PROMPTS, SETTINGS, iteration=3)
    evolver = Evolver(driver, None, PROMPTS, rollout_config())
    chosen = [[pool[G + (g + k) % K] for k in range(K)] for g in range(G)]
    experience = evolver.collect(pool[:G], [0, 1, 2], chosen)
    assert [source.retrieved for source in experience.sources] == chosen
    for source in experience.sources:
        assert all(e.task is source.retrieved[k] for (k, _, _), e in source.episodes.items())
    assert experience.episode_mask.all()


def test_a_candidate_is_audited_once(monkeypatch):
    calls = []
    monkeypatch.setattr(AuditRules, "apply", lambda *_: calls.append("rules") or audit("fine"))
    monkeypatch.setattr(evolve, "audit", lambda *_, **__: calls.append("audit") or audit("fine"))
    collect({}, evolver_options={"rules": AuditRules()})
    assert calls == ["rules"] * (G * N)
