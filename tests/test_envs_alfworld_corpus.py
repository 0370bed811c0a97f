"""The text that a tokenizer is made from: what games say, and never what is said of a broken one."""

import dataclasses

import pytest

pytest.importorskip("alfworld")

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.envs.alfworld.corpus import collect_texts
from evolving_rl_jax.envs.pool.pool import EnvPool


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
