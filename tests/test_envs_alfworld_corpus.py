"""The text that a tokenizer is made from: what games say, and never what is said of a broken one."""

import dataclasses
import re

import numpy as np
import pytest

pytest.importorskip("alfworld")
pytest.importorskip("tokenizers")

import real_form

from evolving_rl_jax import envs
from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.data.tasks import load_tasks
from evolving_rl_jax.envs.alfworld.corpus import collect_texts
from evolving_rl_jax.envs.alfworld.experts import SearchingExpert
from evolving_rl_jax.envs.alfworld.texts import TEXTS
from evolving_rl_jax.envs.pool.pool import EnvPool
from evolving_rl_jax.models.tokenizer import NUMBERED_PIECES, train_tokenizer
from evolving_rl_jax.rollout.prompts import COMPACT_SPECIAL_TOKENS, make_prompts

TURN = 16  # config.rollout.max_turn_tokens of the small policies


@pytest.fixture(scope="module")
def pool():
    with EnvPool("alfworld", {}, num_workers=0) as pool:
        yield pool


def broken(task, folder):
    return dataclasses.replace(task, path=str(folder), content_hash=f"none of {task.id}")


def test_a_game_that_fails_says_nothing(pool, household_games, tmp_path):
    tasks = household_games[:3]
    texts = collect_texts(pool, [tasks[0], broken(tasks[1], tmp_path / "gone"), tasks[2]])
    assert not any("gone" in text or str(tmp_path) in text for text in texts)
    assert tasks[1].text in {text.strip() for text in texts}  # its sentence is good
    said = collect_texts(pool, [tasks[0], tasks[2]])
    assert set(said) <= set(texts) and sum("you see" in t for t in said) > 3


def test_games_of_which_none_can_be_played_are_one_line(pool, household_games, tmp_path):
    tasks = [broken(task, tmp_path / "gone") for task in household_games[:3]]
    with pytest.raises(
        ConfigError, match="that can be played, got 3 that cannot; the first, .*gone"
    ):
        collect_texts(pool, tasks)


# -- games in the real form: no walkthrough, larger rooms ------------------------------------------


@pytest.fixture(scope="module")
def real_games(tmp_path_factory):
    root = tmp_path_factory.mktemp("real_form")
    real_form.write_games(root, {"train": 36, "valid_seen": 6, "valid_unseen": 6})
    tasks = load_tasks(root)
    assert not any(task.meta["walkthrough"] or "habits" in task.meta for task in tasks)
    return tasks


@pytest.fixture(scope="module")
def style(pool, real_games, tmp_path_factory):
    shown = [task for task in real_games if task.split == "train"]
    tokenizer = train_tokenizer(
        collect_texts(pool, shown),
        vocab_size=2048,
        out_dir=tmp_path_factory.mktemp("tokenizer"),
        special_tokens=COMPACT_SPECIAL_TOKENS,
        pieces=NUMBERED_PIECES,
    )
    return make_prompts("compact", tokenizer, TEXTS)


def test_a_turn_is_short_in_games_without_a_walkthrough(style, real_games):
    env, lengths = envs.make("alfworld"), []
    for i, task in enumerate(t for t in real_games if t.split.startswith("valid")):
        player, seen = SearchingExpert(task, np.random.default_rng(i)), env.reset(task)
        for _ in range(task.step_limit):
            action = player.act(seen.text, seen.actions)
            lengths.append(len(style.action_ids(player.target, action)))
            seen = env.step(action)
            if seen.done:
                break
    assert len(lengths) > 60 and max(lengths) < TURN


def test_the_same_games_give_the_same_texts(pool, real_games):
    assert collect_texts(pool, real_games[:4]) == collect_texts(pool, real_games[:4])


def test_a_sentence_in_other_words_does_not_stop_the_exploring_player(pool, real_games):
    task = dataclasses.replace(real_games[0], text="Could you tidy up, please?")
    texts = collect_texts(pool, [task])
    assert " Could you tidy up, please?" in texts and any("> go to" in t for t in texts)


def test_the_short_prompt_names_every_kind_of_place_with_its_number(style, real_games):
    env, lengths = envs.make("alfworld"), []
    for task in real_games:
        seen = env.reset(task).text
        room = re.search(r"you see (.*?)\.", seen)[1]
        names = [part.split()[-2] for part in room.replace(" and ", " ").split(",")]
        expected = ", ".join(f"{names.count(kind)} {kind}" for kind in sorted(set(names)))
        prompt = style.solver_prompt(task, "", seen)
        assert style.tokenizer.decode(prompt) == f"<task> {task.text}<obs> {expected}<act>"
        lengths.append((len(style.texts.opening(seen)), len(style._text(seen))))
    assert all(parts == 1 and whole > 30 for parts, whole in lengths)


def test_the_compact_room_which_is_always_the_same_is_not_described(household_games):
    env = envs.make("alfworld")
    for task in household_games:
        seen = env.reset(task).text
        assert "cabinet 3" in seen and TEXTS.compact.opening(seen) == []
    assert TEXTS.compact.opening("You arrive at the desk 1. On it, you see nothing.") == [
        "You arrive at the desk 1. On it, you see nothing."
    ]
    assert TEXTS.compact.opening("You are in the middle of a room.") == []
    fewer = "You are in the middle of a room. Looking around, you see a fridge 1, and a fridge 2."
    assert TEXTS.compact.opening(fewer) == ["2 fridge"]
