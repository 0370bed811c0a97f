"""Several attempts at one source: who is played under which key, what the extractor reads."""

import dataclasses
import itertools

import numpy as np
import pytest
from attempt_runs import (
    EPISODE_KEYS,
    ORDER,
    PLANS,
    PROMPTS,
    SETTINGS,
    SKILL_KEYS,
    E,
    G,
    K,
    N,
    R,
    collect,
    prompt_of,
    speak,
)
from chat_models import make_tokenizer_folder
from doubles import FakeEngine, FakePool, make_task, skill_text
from ml_collections import ConfigDict

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

import tokenizers

from evolving_rl_jax import envs
from evolving_rl_jax.models.tokenizer import load_tokenizer
from evolving_rl_jax.record.figures import rollout_figures
from evolving_rl_jax.rollout.attempts import Attempts, attempt_key, reading_order
from evolving_rl_jax.rollout.episode import Driver
from evolving_rl_jax.rollout.evolve import Evolver
from evolving_rl_jax.rollout.prompts import make_prompts
from evolving_rl_jax.skills import AuditRules
from evolving_rl_jax.types import ENV_ERROR, OK, TIMEOUT, TRUNCATED, Episode, Turn


def ended(prompts, won, text):
    return prompts.extractor_prompt(won, text)[:-1]  # without the marker of a skill


def test_every_attempt_has_a_key_of_its_own_and_the_first_that_of_a_single_one():
    _, one, _ = collect(1)
    _, several, _ = collect(E)
    keys = {key for key in several.sessions if key < SKILL_KEYS}
    assert keys == {g + 50_000 * s for g in range(G) for s in range(E)}
    assert {key for key in one.sessions if key < SKILL_KEYS} == set(range(G))
    for g in range(G):
        np.testing.assert_array_equal(one.sessions[g].tokens, several.sessions[g].tokens)
    others = [{key for key in e.sessions if key >= SKILL_KEYS} for e in (one, several)]
    assert others[0] == others[1]
    assert attempt_key(8_000_000 + 49_999, 15) < 9_000_000 and attempt_key(49_999, 15) < SKILL_KEYS


@pytest.mark.parametrize("context", ["full", "recent"])
def test_an_extraction_reads_all_attempts_with_their_outcomes_the_furthest_last(context):
    settings = dataclasses.replace(SETTINGS, context=context, recent_turns=9)
    experience, engine, driver = collect(settings=settings)
    for g, source in enumerate(experience.sources):
        assert [e.won for e in source.attempts] == [PLANS[g, s][1] == "win" for s in range(E)]
        assert source.episode is source.attempts[ORDER[g][-1]]
        expected = []
        for s in ORDER[g]:
            episode = source.attempts[s]
            expected += episode.samples[-1].tokens.tolist()
            expected += ended(PROMPTS, episode.won, episode.last_observation)
        expected.append(PROMPTS.ids["<skill>"])
        for n in range(N):
            key = SKILL_KEYS + g * N + n
            assert prompt_of(engine, key) == expected
            sample = source.candidates[n].sample
            assert sample.tokens[: len(expected)].tolist() == expected
            assert not sample.loss_mask[: len(expected)].any()
            assert sample.loss_mask[len(expected) :].all() and len(sample.tokens) > len(expected)
    if context == "full":  # the session of the attempt shown first is continued
        submitted = [len(entry[2]) for entry in engine.log if entry[:2] == ("submit", SKILL_KEYS)]
        first = experience.sources[0].attempts[ORDER[0][0]].samples[0]
        whole = len(prompt_of(engine, SKILL_KEYS))
        assert submitted == [whole - len(first.tokens)]
    assert driver.extracted["attempts"] == G * E and driver.extracted["attempts_dropped"] == 0


@pytest.mark.parametrize("context", ["full", "recent"])
def test_where_all_do_not_fit_the_first_to_fail_and_the_furthest_are_shown(context):
    settings = dataclasses.replace(SETTINGS, context=context, recent_turns=9)
    whole, engine, _ = collect(settings=settings)
    lengths = {g: len(prompt_of(engine, SKILL_KEYS + g * N)) for g in range(G)}
    room = max(lengths.values()) - 1 + SETTINGS.max_skill_tokens
    experience, engine, driver = collect(settings=settings, max_length=room)
    (g,) = [g for g in range(G) if lengths[g] == max(lengths.values())]
    source, shown = experience.sources[g], (ORDER[g][0], ORDER[g][-1])
    expected = []
    for s in shown:
        episode = source.attempts[s]
        expected += episode.samples[-1].tokens.tolist()
        expected += ended(PROMPTS, episode.won, episode.last_observation)
    assert prompt_of(engine, SKILL_KEYS + g * N) == [*expected, PROMPTS.ids["<skill>"]]
    assert driver.extracted["attempts_dropped"] == 1
    assert experience.skill_valid.all()
    assert whole.sources[g].episode.samples[0].tokens.tolist() in [
        e.samples[0].tokens.tolist() for e in source.attempts
    ]


def test_where_two_do_not_fit_the_furthest_alone_is_shown_as_if_there_were_no_other():
    _, alone, _ = collect(1)
    least = max(len(s.tokens) for key, s in alone.sessions.items() if key < EPISODE_KEYS)
    experience, engine, driver = collect(max_length=least + 8)
    source = experience.sources[1]  # its first attempt is the furthest
    assert source.episode is source.attempts[0]
    assert prompt_of(engine, SKILL_KEYS + N) == prompt_of(alone, SKILL_KEYS + N)
    assert driver.extracted["attempts_dropped"] == G * (E - 1)


def test_one_that_failed_is_left_out_of_what_is_read():
    failed = attempt_key(0, 2)
    experience, engine, _ = collect(fail={failed: 1})
    source = experience.sources[0]
    assert [e.status for e in source.attempts] == [OK, OK, ENV_ERROR]
    assert source.episode is source.attempts[1] and experience.skill_valid.all()
    expected = []
    for s in (0, 1):
        episode = source.attempts[s]
        expected += episode.samples[-1].tokens.tolist()
        expected += ended(PROMPTS, episode.won, episode.last_observation)
    assert prompt_of(engine, SKILL_KEYS) == [*expected, PROMPTS.ids["<skill>"]]
    figures = rollout_figures(experience)
    assert figures["rollout/source_failures"] == 1 and figures["rollout/sources"] == G * E - 1


def test_a_source_whose_attempts_all_failed_leaves_zeros_behind():
    experience, _, _ = collect(fail={attempt_key(1, s): 0 for s in range(E)})
    source = experience.sources[1]
    assert not source.candidates and not source.episodes and not source.episode.scored
    for array in (experience.wins, experience.episode_mask, experience.skill_valid):
        assert not array[1].any() and array[0].any() or array is experience.wins
    assert experience.skill_valid[0].all()


def test_a_stop_that_cuts_one_attempt_leaves_the_source_without_skills():
    asked = itertools.count()
    experience, engine, _ = collect(stop=lambda: "late" if next(asked) >= 3 else "")
    assert not any(key >= SKILL_KEYS for key in engine.sessions)
    assert all(len(s.attempts) == E and not s.candidates for s in experience.sources)
    assert TIMEOUT in {e.status for s in experience.sources for e in s.attempts}


def test_the_audits_read_all_attempts():
    read = []

    class Rules(AuditRules):
        def apply(self, text, task, observations=()):
            read.append((task.id, list(observations)))
            return super().apply(text, task, observations)

    experience, _, _ = collect(rules=Rules())
    for g, source in enumerate(experience.sources):
        seen = [text for s in ORDER[g] for text in source.attempts[s].observations]
        assert read.count((source.task.id, seen)) == N
    assert len(read) == G * N


def test_reading_order():
    task = make_task("t")

    def attempt(won, correct=None, reward=0.0):
        infos = [{"correct": i < correct, "num_steps": 4} for i in range(4)] if correct else []
        return Episode(task, [], won, OK, [], reward, infos=infos)

    web = [attempt(False, 2), attempt(False, 3), attempt(False, 1), attempt(False, 3)]
    assert reading_order(web) == [2, 0, 3, 1]
    assert reading_order([attempt(True), attempt(False)]) == [1, 0]
    assert reading_order([attempt(False)] * 3) == [1, 2, 0]
    assert reading_order([attempt(False, reward=2.0), attempt(False, reward=1.0)]) == [1, 0]
    assert reading_order([attempt(False)]) == [0]


# -- chats -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(make_tokenizer_folder(tmp_path_factory.mktemp("chat")))


@pytest.mark.parametrize("show_actions", ["all", "none"])
@pytest.mark.parametrize("style", ["chat", "chat_short"])
def test_several_attempts_are_one_conversation_of_the_chat_template(tokenizer, style, show_actions):
    benchmark = envs.benchmark("alfworld")
    prompts = make_prompts(style, tokenizer, benchmark.texts, show_actions)
    texts = getattr(benchmark.texts, style)
    end = prompts.chat.end_id

    def say(key, turn):
        if SKILL_KEYS <= key < EPISODE_KEYS:
            return skill_text()
        action = speak(key, turn).partition("> ")[2]
        return texts.answer("mug", action)

    tokenizer.stop_ids = prompts.stop_ids
    engine, pool = FakeEngine(tokenizer, say), FakePool()
    engine.tokenizer = _Ending(tokenizer, end)
    settings = dataclasses.replace(SETTINGS, max_turn_tokens=400, max_skill_tokens=400)
    rollout = ConfigDict(
        {
            "num_retrieved": K, "num_skills": N, "num_repeats": R, "evaluate_invalid_skills": False,
            "max_skill_chars": 500, "num_source_episodes": 2, "train_sources": False,
        }
    )  # fmt: skip
    driver = Driver(engine, pool, prompts, settings, iteration=3)
    tasks = [make_task(f"t{i}") for i in range(1 + K)]
    experience = Evolver(driver, None, prompts, rollout).collect(tasks[:1], None, [tasks[1:]])
    (source,) = experience.sources
    shown = ("win", "look") if show_actions == "all" else ()
    lost, won = source.attempts
    assert not lost.won and won.won
    messages = [
        texts.system("", "", show_actions),
        texts.opening(source.task, "room of t0", shown),
        texts.answer("mug", "lose"),
        texts.another(False, "lose 1", source.task, "room of t0", shown),
        texts.answer("mug", "look"),
        texts.following("look 1", shown),
        texts.answer("mug", "win"),
        texts.extraction(True, "win 2", 2),
    ]
    assert "not completed" in messages[3] and "lose 1" in messages[3]
    assert "2 attempts" in messages[-1] and "2 attempts" not in texts.extraction(True, "win 2")
    plain = tokenizers.Tokenizer.from_file(str(tokenizer.path / "tokenizer.json"))
    whole = plain.encode(prompts.chat.render(messages), add_special_tokens=False).ids
    assert prompt_of(engine, SKILL_KEYS) == whole


class _Ending:
    """The tokenizer with the end of a chat turn as its end."""

    def __init__(self, tokenizer, end):
        self._tokenizer, self.eos_id = tokenizer, end

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


def test_no_skill_can_be_asked_for_where_no_attempt_was_ever_played():
    _, _, driver = collect()
    never = Episode(make_task("t"), [], False, TRUNCATED, [])
    played = dataclasses.replace(never, turns=[Turn("page", "a", "a", True)])
    context = object()
    assert not Attempts(driver, [(never, context)]).readable
    assert not Attempts(driver, [(never, context), (never, context)]).readable
    assert Attempts(driver, [(never, context), (played, context)]).readable
