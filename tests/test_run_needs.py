"""What a configuration asks of its tasks, and how a run with other tasks is started."""

import pathlib
import re

import pytest
from official_games import official, prepare

from evolving_rl_jax.config import ConfigError, default_config, load_config, set_key
from evolving_rl_jax.data.needs import check_games
from evolving_rl_jax.data.tasks import load_tasks
from evolving_rl_jax.types import Task

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    """Tasks of real games: no household facts, no demonstrations."""
    pytest.importorskip("alfworld")
    folder = tmp_path_factory.mktemp("games")
    prepare(official(folder / "source", games_per_type=6), folder / "index")
    return load_tasks(folder / "index")


def task(name, split="train", task_type="pick_and_place_simple", **meta):
    return Task(name, "alfworld", split, task_type, name, "", content_hash=name, meta=meta)


def refused(config, tasks):
    """The message, and the overrides in it."""
    with pytest.raises(ConfigError) as error:
        check_games(config, tasks)
    text = str(error.value)
    assert "\n" not in text
    return text, re.findall(r"--config\.(\S+?)=(\S+)", text)


def test_what_downloaded_games_cannot_give_is_said_at_once_with_what_to_paste(downloaded):
    config = load_config(str(CONFIGS / "alfworld_quickstart.py"))
    text, overrides = refused(config, downloaded)
    assert "config.warmstart.enabled must be False without games in the split 'warmstart'" in text
    assert "config.eval.conditions must not need household facts" in text
    assert "got 4 such tasks in 'valid_unseen', 2 such tasks in 'heldout_types'" in text
    assert overrides == [("eval.conditions", "none,own"), ("warmstart.enabled", "False")]
    config = config.copy_and_resolve_references()
    config.unlock()
    for key, value in overrides:
        set_key(config, key, value)
    check_games(config, downloaded)


@pytest.mark.parametrize(
    "name", ["alfworld_qwen2_5_7b", "alfworld_qwen2_5_7b_lora", "alfworld_qwen3_1_7b"]
)
def test_configs_for_real_games_need_nothing_but_the_folder(downloaded, name):
    config = load_config(str(CONFIGS / f"{name}.py"), {"data.games": "anywhere"})
    check_games(config, downloaded)


def test_all_gaps_are_found_in_one_pass_and_the_overrides_close_them():
    """Wrong split, wrong types, too few for retrieval, no panel, no sources of unseen games."""
    config = default_config()
    config.data.train_split, config.rollout.num_retrieved = "practice", 9
    config.warmstart.enabled = True
    tasks = [task(f"t{i}", task_type="fly") for i in range(4)]
    tasks += [task(f"w{i}", "warmstart") for i in range(2)]
    text, overrides = refused(config, tasks)
    assert [key for key, _ in overrides] == [
        "data.train_split",
        "data.train_types",
        "rollout.num_retrieved",
        "eval.splits",
        "eval.conditions",
        "warmstart.enabled",
    ]
    for part in ("'practice'", "(4), got 9", "'valid_unseen', 'heldout_types'", "state no facts"):
        assert part in text
    for key, value in overrides:
        set_key(config, key, value)
    check_games(config, tasks)
    assert config.eval.conditions == ("none",) and config.rollout.num_retrieved == 3


def test_no_way_is_offered_where_there_is_none():
    text, overrides = refused(default_config(), [task("a", "valid_unseen")])
    assert "train_split and train_types must select games" in text and not overrides
