"""The official ALFWorld folders: checked and indexed, and read by training."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest
from official_games import TRAINED, TYPES, official, prepare, write_game

from evolving_rl_jax.cli import main as cli
from evolving_rl_jax.data.task_source import TaskSource
from evolving_rl_jax.data.tasks import TaskError, TaskOrder, load_tasks, select, source_split
from evolving_rl_jax.envs.alfworld.index import OFFICIAL_COUNTS, OFFICIAL_TYPES, index_games

pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def source(tmp_path):
    return official(tmp_path / "source")


@pytest.fixture
def index(source, tmp_path):
    prepare(source, tmp_path / "index")
    return tmp_path / "index"


# -- the index -------------------------------------------------------------------------------------


def test_the_split_of_the_paper(index):
    games = json.loads((index / "games.json").read_text())["games"]
    assert len(games) == 6 * (2 + 1 + 1)
    by_split = {
        s: {g["task_type"] for g in games if g["split"] == s} for s in {g["split"] for g in games}
    }
    for split in ("train", "valid_seen", "valid_unseen"):
        assert by_split[split] == set(TRAINED)
    for split in ("heldout_types_train", "heldout_types_seen", "heldout_types"):
        assert by_split[split] == set(TYPES) - set(TRAINED)
    unseen = [g for g in games if g["split"] in ("valid_unseen", "heldout_types")]
    assert len(unseen) == 6 and all(g["path"].startswith("valid_unseen/") for g in unseen)


def test_the_released_numbers_are_those_of_the_literature():
    assert OFFICIAL_COUNTS == {"train": 3553, "valid_seen": 140, "valid_unseen": 134}
    assert sum(OFFICIAL_TYPES.values()) == OFFICIAL_COUNTS["valid_unseen"]


def test_wrong_counts_are_reported_and_write_no_index(source, tmp_path, capsys):
    arguments = ["data", "alfworld", f"--source={source}", f"--out={tmp_path / 'out'}"]
    assert cli.main(arguments) == 1
    shown = capsys.readouterr()
    assert "not as released: train must have 3553 games, found 12" in shown.out
    assert "not as released: valid_unseen must have 31 games of pick_clean" in shown.out
    assert "no index written" in shown.err and not (tmp_path / "out" / "games.json").exists()
    assert cli.main([*arguments, "--allow-counts"]) == 0
    assert "24 games indexed" in capsys.readouterr().out
    assert cli.main([*arguments, "--allow-counts"]) == 2
    assert "must not hold an index already" in capsys.readouterr().err


def test_released_counts_pass(source, tmp_path, monkeypatch):
    from evolving_rl_jax.envs.alfworld import index as alfworld_index

    counts = {"train": 12, "valid_seen": 6, "valid_unseen": 6}
    monkeypatch.setattr(alfworld_index, "OFFICIAL_COUNTS", counts)
    monkeypatch.setattr(alfworld_index, "OFFICIAL_TYPES", dict.fromkeys(TYPES, 1))
    assert prepare(source, tmp_path / "out", allow_counts=False).differences == []


def test_the_order_of_the_file_system_does_not_matter(source, tmp_path, monkeypatch):
    prepare(source, tmp_path / "a")
    found = pathlib.Path.rglob
    monkeypatch.setattr(pathlib.Path, "rglob", lambda *a: reversed(list(found(*a))))
    prepare(source, tmp_path / "b")
    assert (tmp_path / "a" / "games.json").read_text() == (
        tmp_path / "b" / "games.json"
    ).read_text()
    assert [t.id for t in load_tasks(tmp_path / "b")] == sorted(
        t.id for t in load_tasks(tmp_path / "a")
    )


def test_what_the_published_loader_leaves_out_is_left_out_and_counted(source, tmp_path):
    train = source / "json_2.1.1" / "train"
    kind = "pick_and_place_simple"
    write_game(train / "pick_and_place_with_movable_recep-Mug" / "trial_1", kind, 901)
    write_game(train / f"{kind}-AppleSliced-None-Shelf-2" / "trial_2", kind, 902)
    write_game(train / f"{kind}-unsolvable" / "trial_3", kind, 903, solvable=False)
    write_game(train / f"{kind}-unchecked" / "trial_4", kind, 904, solvable=None)
    (write_game(train / f"{kind}-none" / "trial_5", kind, 905) / "game.tw-pddl").unlink()
    report = prepare(source, tmp_path / "out")
    assert report.counts["train"] == 12
    assert report.left_out == {
        "movable receptacle or sliced object": 2,
        "not solvable": 1,
        "not checked to be solvable": 1,
        "no game.tw-pddl": 1,
    }


def test_the_published_loader_finds_the_same_games(source, capsys):
    pytest.importorskip("alfworld")
    from alfworld.agents.environment.alfred_tw_env import AlfredTWEnv

    train = source / "json_2.1.1" / "train"
    write_game(train / "pick_and_place_simple-unsolvable" / "t", TYPES[0], 903, solvable=False)
    config = {
        "env": {"goal_desc_human_anns_prob": 0, "task_types": [1, 2, 3, 4, 5, 6]},
        "dataset": {"data_path": str(train), "num_train_games": -1},
    }
    theirs = {os.path.dirname(path) for path in AlfredTWEnv(config).game_files}
    splits, _, _ = index_games(source / "json_2.1.1")
    ours = [t for tasks in splits.values() for t in tasks if t.path.startswith("train/")]
    assert {str(source / "json_2.1.1" / t.path) for t in ours} == theirs


def test_the_same_game_under_two_names_is_reported(source, tmp_path):
    train, unseen = (source / "json_2.1.1" / s for s in ("train", "valid_unseen"))
    write_game(train / "copied-1" / "trial_a", TYPES[0], 77)
    write_game(unseen / "copied-2" / "trial_b", TYPES[0], 77)
    report = prepare(source, tmp_path / "out")
    assert report.duplicates == [["copied-1/trial_a", "copied-2/trial_b"]]
    assert "the same game under 2 names: copied-1/trial_a, copied-2/trial_b" in report.lines()
    hashes = {t.id: t.content_hash for t in load_tasks(tmp_path / "out")}
    assert hashes["copied-1/trial_a"] == hashes["copied-2/trial_b"]


def test_one_name_for_two_folders_is_refused(source, tmp_path):
    for split in ("train", "valid_seen"):
        write_game(source / "json_2.1.1" / split / "twice" / "trial_a", TYPES[0], 77)
    with pytest.raises(TaskError, match="must have one folder, found two of twice/trial_a"):
        prepare(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["traj_data.json", "game.tw-pddl"])
def test_truncated_files_are_refused_by_name(source, tmp_path, name, capsys):
    paths = sorted((source / "json_2.1.1" / "valid_seen").rglob(name))[:2]
    for path in paths:
        path.write_text(path.read_text()[:-20])
    out = tmp_path / "out"
    assert (
        cli.main(["data", "alfworld", f"--source={source}", f"--out={out}", "--allow-counts"]) == 2
    )
    error = capsys.readouterr().err
    assert all(f"{path}: must be a JSON file" in error for path in paths) and error.count("\n") == 1
    assert not out.exists()


def test_games_of_older_releases_are_refused_by_name(source, tmp_path):
    folder = source / "json_2.1.1" / "train" / "old" / "trial_1"
    write_game(folder, TYPES[0], 9, wording="put {o} in/on {r}")
    message = (
        r"old/trial_1/game.tw-pddl: grammar must word PutObject as 'move .* found 'put \{o\} in/on"
    )
    with pytest.raises(TaskError, match=message):
        prepare(source, tmp_path / "out")


def test_a_wrong_source_says_what_was_looked_for(tmp_path, monkeypatch, capsys):
    (tmp_path / "json_2.0.0").mkdir()
    out = f"--out={tmp_path / 'out'}"

    def error(*arguments):
        assert cli.main(["data", "alfworld", *arguments, out]) == 2
        return capsys.readouterr().err

    wanted = "must hold json_2.1.1/ with the folders train, valid_seen, valid_unseen"
    assert f"--source {wanted}" in (shown := error(f"--source={tmp_path}"))
    assert f"looked in {tmp_path}, found json_2.0.0" in shown
    assert f"found no folder {tmp_path / 'nowhere'}" in error(f"--source={tmp_path / 'nowhere'}")
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    assert f"ALFWORLD_DATA {wanted}" in error()
    monkeypatch.delenv("ALFWORLD_DATA")
    assert "--source must be given, or ALFWORLD_DATA be set; found neither" in error()
    (tmp_path / "json_2.1.1" / "train" / "a" / "b").mkdir(parents=True)
    (tmp_path / "json_2.1.1" / "train" / "a" / "b" / "traj_data.json").write_text("{}")
    assert "found 1 folders with traj_data.json and no game to play" in error(
        f"--source={tmp_path}"
    )


def test_the_environment_variable_is_the_default_source(source, tmp_path, monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", str(source))
    assert sum(prepare([], tmp_path / "out").counts.values()) == 24


# -- what training reads ---------------------------------------------------------------------------


def test_tasks_are_those_of_the_folder_and_read_when_asked_for(source, index):
    tasks = load_tasks(index)
    assert isinstance(tasks, TaskSource) and tasks._records.cache_info().currsize == 0
    plain = {t.id: t for t in load_tasks(source)}
    assert [t.id for t in tasks] == sorted(plain)
    heldout = {"train": "heldout_types_train", "valid_seen": "heldout_types_seen"}
    for task in tasks:
        other = plain[task.id]
        split = (
            other.split if task.task_type in TRAINED else heldout.get(other.split, "heldout_types")
        )
        assert task == dataclasses.replace(other, split=split)


def test_selecting_reads_no_record(index):
    tasks = load_tasks(index)
    pool = select(tasks, split="train", types=TRAINED[:2])
    order = TaskOrder(pool, seed=3)
    assert len(pool) == 4 and tasks._records.cache_info().currsize == 0
    taken = [t for i in range(2) for t in order.take(i, 2)]
    assert sorted(t.id for t in taken) == [t.id for t in pool]
    assert taken == [t for i in range(2) for t in TaskOrder(list(pool), seed=3).take(i, 2)]
    assert len(load_tasks(index, "valid_seen")) == 4 and len(pool[1:]) == 3
    with pytest.raises(TaskError, match="split must be one of heldout_types, .*got 'test'"):
        load_tasks(index, "test")


def test_a_missing_or_changed_game_is_named(index):
    tasks = load_tasks(index)
    path = pathlib.Path(tasks[0].path, "game.tw-pddl")
    path.write_text(path.read_text() + " ")
    with pytest.raises(TaskError, match=r"game.tw-pddl: must have \d+ bytes as when indexed, got"):
        tasks[0]
    path.unlink()
    with pytest.raises(TaskError, match="game.tw-pddl: must exist, it is in .*games.json"):
        tasks[0]


def test_a_moved_or_damaged_index_is_named(source, index):
    source.rename(source.with_name("elsewhere"))
    with pytest.raises(TaskError, match="games.json: the games must be in .*source.*found no such"):
        load_tasks(index)
    source.with_name("elsewhere").rename(source)
    for record in index.rglob("*array_record*"):
        record.unlink()
    with pytest.raises(TaskError, match="must be a whole TFDS data set, found"):
        load_tasks(index)[0]


def test_panels_draw_from_the_training_split(index):
    known = load_tasks(index).splits
    assert {source_split(s, known) for s in ("valid_seen", "valid_unseen", "heldout_types")} == {
        "train"
    }
    generated = {"train", "valid_unseen", "valid_unseen_sources"}
    assert source_split("valid_unseen", generated) == "valid_unseen_sources"
    assert source_split("valid_seen", generated) == "train"
    assert source_split("train", known) not in known


def test_a_configuration_can_train_on_the_index(index):
    from evolving_rl_jax.config import ConfigError, default_config
    from evolving_rl_jax.run.environments import check_games

    config = default_config()
    config.data.games = str(index)
    config.eval.conditions = ("none", "own")
    check_games(config, load_tasks(index))
    config.eval.conditions = ("none", "oracle")
    with pytest.raises(ConfigError, match="config.eval.conditions must not need household facts"):
        check_games(config, load_tasks(index))


def test_the_data_set_is_read_without_tensorflow_and_without_this_package(index):
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        f"builder = tfds.builder_from_directory({str(next(index.glob('tfds/*/*')))!r})\n"
        "records = builder.as_data_source(split='train')\n"
        "print(len(records), sorted(r['id'].decode() for r in records)[0])\n"
        "assert not {'tensorflow', 'jax', 'evolving_rl_jax'} & set(sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split()[0] == "8"
