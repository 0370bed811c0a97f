"""What the warm start teaches is what is played: a demonstration against an episode of the same words."""

from types import SimpleNamespace

import numpy as np
import pytest
from chat_models import make_tokenizer_folder
from doubles import ByteTokenizer, FakeEngine
from web_data import SMALL

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

import tokenizers

from evolving_rl_jax import envs
from evolving_rl_jax.envs.pool.pool import EnvPool
from evolving_rl_jax.models.tokenizer import load_tokenizer
from evolving_rl_jax.rollout.attempts import attempt_key, play_attempts
from evolving_rl_jax.rollout.demonstrations import Demonstrator
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.rollout.evolve import make_candidate
from evolving_rl_jax.rollout.prompts import make_prompts

LONG = 100_000
QUALITY = SimpleNamespace(follow_skill=0.8, action_noise=0.1, good_extraction=0.4)
SEED = 3


@pytest.fixture(scope="module")
def tasks(household_games, tmp_path_factory):
    pytest.importorskip("tensorflow_datasets")
    from evolving_rl_jax.envs.mind2web.index import build_index
    from evolving_rl_jax.envs.mind2web.sites import generate_sites
    from evolving_rl_jax.envs.mind2web.store import load_web_tasks

    folder = tmp_path_factory.mktemp("sites")
    generate_sites(folder / "raw", seed=5, spec=SMALL)
    build_index([folder / "raw"], folder / "out", budgets=())
    return {"alfworld": household_games[:8], "mind2web": load_web_tasks(folder / "out")[:8]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(make_tokenizer_folder(tmp_path_factory.mktemp("chat")))


def lines_of(attempts):
    """Of pages that an extraction shows: all of a single episode's."""
    return 2 if attempts > 1 else 0


def rollout(context, recent_turns=2, attempts=1):
    return SimpleNamespace(
        context=context,
        recent_turns=recent_turns,
        max_steps=12,
        max_length=LONG,
        max_skill_tokens=400,
        num_source_episodes=attempts,
        extraction_lines=lines_of(attempts),
    )


def taught(sample) -> list[list[int]]:
    """The ids of every taught part of a sequence."""
    changes = np.flatnonzero(np.diff(sample.loss_mask)) + 1
    return [part.tolist() for part in np.split(sample.tokens, changes)[1::2]]


def same(sample, other) -> bool:
    fields = ("tokens", "loss_mask")
    return all(getattr(sample, f).tolist() == getattr(other, f).tolist() for f in fields)


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("context", ["full", "recent"])
@pytest.mark.parametrize(
    ("env", "style"),
    [
        *(("alfworld", s) for s in ("compact", "chat", "chat changed", "chat_short changed")),
        *(("mind2web", s) for s in ("compact", "chat")),
    ],
)
def test_a_demonstration_is_an_episode_that_says_the_same(
    tasks, tokenizer, env, style, context, attempts
):
    benchmark, chosen = envs.benchmark(env), tasks[env]
    style, _, shown = style.partition(" ")
    prompts = make_prompts(
        style, ByteTokenizer() if style == "compact" else tokenizer, benchmark.texts, shown or "all"
    )
    with EnvPool(env, num_workers=0) as pool:
        demonstrator = Demonstrator(
            pool, prompts, rollout(context, attempts=attempts), QUALITY, SEED
        )
        demonstrations = demonstrator.play(chosen)
    assert len(demonstrations) == len(chosen)
    assert {d.extraction is None for d in demonstrations} == {True, False}

    words, skills = spoken(demonstrations, chosen, benchmark, prompts, attempts)
    played, written = {}, {}
    with EnvPool(env, num_workers=0) as pool:
        settings = PlaySettings(
            400,
            400,
            12,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            context=context,
            recent_turns=2,
            extraction_lines=lines_of(attempts),
        )
        engine = FakeEngine(
            prompts.tokenizer,
            lambda key, turn: skills[key] if key in skills else words[key][turn],
            max_length=LONG,
        )
        driver = Driver(engine, pool, prompts, settings, iteration=0)

        def done(i):
            def ended(found):
                played[i] = found.episodes[0]
                keep = lambda _n, _text, sample: written.update({i: sample})  # noqa: E731
                found.extract([100 + i], keep)
                found.release()

            return ended

        def given_skill(i):
            return lambda episode, _handle: played.update({i: episode})

        for i, task in enumerate(chosen):
            given = benchmark.teacher(task, np.random.default_rng([SEED, i]), QUALITY).given
            skill = make_candidate(given, None, prompts, LONG).text if given else ""
            assert bool(skill) == (demonstrations[i].extraction is None)
            if skill:
                driver.play(i, task, skill, given_skill(i))
            else:
                play_attempts(driver, task, i, attempts, done(i))
        driver.run()

    for i, demonstration in enumerate(demonstrations):
        assert played[i].won == demonstration.won
        assert len(played[i].samples) == len(demonstration.episode)
        assert all(map(same, demonstration.episode, played[i].samples))
        assert (demonstration.extraction is None) == (i not in written)
        assert i not in written or same(demonstration.extraction, written[i])


def spoken(demonstrations, chosen, benchmark, prompts, attempts):
    """(episode -> what it says, turn by turn; extraction -> its skill), by their keys.

    Attempts after the first of a task say what the same teacher would, played by hand.
    """
    words, skills = {}, {}
    for i, demonstration in enumerate(demonstrations):
        turns = [ids for sample in demonstration.episode for ids in taught(sample)]
        words[i] = [prompts.tokenizer.decode(ids[:-1]) for ids in turns]
        if demonstration.extraction is not None:
            skills[100 + i] = prompts.tokenizer.decode(taught(demonstration.extraction)[0][:-1])
            for s in range(1, attempts):
                teacher = further_teacher(benchmark, chosen[i], i, s)
                said = by_hand(envs.make(chosen[i].env), chosen[i], teacher, prompts)
                words[attempt_key(i, s)] = said
    return words, skills


def further_teacher(benchmark, task, number, attempt):
    """The first teacher without a skill among the draws of an attempt after the first."""
    for draw in range(1000):
        rng = np.random.default_rng([SEED, number, draw + attempt * 1_000_000])
        teacher = benchmark.teacher(task, rng, QUALITY)
        if not teacher.given:
            return teacher
    raise AssertionError("no teacher without a skill")


def by_hand(environment, task, teacher, prompts):
    """What a teacher says, turn by turn."""
    seen, said, done = environment.reset(task), [], False
    while not done and len(said) < min(12, task.step_limit):
        action = teacher.act(seen.text, seen.actions)
        ids = prompts.action_ids(teacher.target, action, seen.text)
        said.append(prompts.tokenizer.decode(ids[:-1]))
        seen = environment.step(action)
        done = seen.done
    return said


@pytest.mark.parametrize("env", ["alfworld", "mind2web"])
def test_a_taught_chat_is_what_the_template_renders(tasks, tokenizer, env):
    """Against the template's own rendering of the conversation, in which a turn ends once."""
    benchmark, chosen = envs.benchmark(env), tasks[env]
    prompts, texts = make_prompts("chat", tokenizer, benchmark.texts), benchmark.texts.chat
    with EnvPool(env, num_workers=0) as pool:
        played = Demonstrator(pool, prompts, rollout("full"), QUALITY, SEED).play(chosen)
    plain = tokenizers.Tokenizer.from_file(str(tokenizer.path / "tokenizer.json"))
    environment = envs.make(env)
    for i, demonstration in enumerate(played):
        (sample,) = demonstration.episode
        answers = [tokenizer.decode(ids[:-1]) for ids in taught(sample)]
        given = benchmark.teacher(chosen[i], np.random.default_rng([SEED, i]), QUALITY).given
        skill = make_candidate(given, None, prompts, LONG).text if given else ""
        seen = environment.reset(chosen[i])
        messages = [texts.system(skill), texts.opening(chosen[i], seen.text, seen.actions)]
        for answer in answers[:-1]:
            seen = environment.step(prompts.parse_action(answer)[0])
            messages += [answer, texts.following(seen.text, seen.actions)]
        text = prompts.chat.render(messages) + answers[-1]
        ids = plain.encode(text, add_special_tokens=False).ids
        assert sample.tokens.tolist() == [*ids, prompts.chat.end_id]
