"""The official ALFWorld folders: checked and indexed, and read by training."""

import collections
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from official_games import TRAINED, TYPES, official, prepare, write_game

from evolving_rl_jax.cli import main as cli
from evolving_rl_jax.data.tasks import (
    TaskError,
    TaskOrder,
    alfworld_task,
    copies_of,
    load_tasks,
    select,
    source_split,
)
from evolving_rl_jax.envs.alfworld.index import OFFICIAL_COUNTS, OFFICIAL_TYPES, index_games

pytest.importorskip("alfworld")


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


@pytest.mark.parametrize("relative", ["source", "out", "both"])
def test_relative_paths_as_the_readme_has_them(source, tmp_path, monkeypatch, relative):
    monkeypatch.chdir(tmp_path)
    given = {"source": source, "out": tmp_path / "out"}
    for name in given if relative == "both" else [relative]:
        given[name] = given[name].relative_to(tmp_path)
    arguments = [f"--{name}={value}" for name, value in given.items()]
    assert cli.main(["data", "alfworld", *arguments, "--allow-counts"]) == 0
    assert {pathlib.Path(t.path).is_absolute() for t in load_tasks(tmp_path / "out")} == {True}
    assert load_tasks(given["source"]) == load_tasks(source)


def test_a_folder_of_downloads_that_is_not_ours_stays(source, tmp_path):
    mine = tmp_path / "out" / "downloads" / "mine.zip"
    mine.parent.mkdir(parents=True)
    mine.write_text("x")
    prepare(source, tmp_path / "out")
    assert mine.read_text() == "x"


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
    tasks, _ = index_games(source / "json_2.1.1")
    assert {t.path for t in tasks if t.path.startswith(f"{train}/")} == theirs


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


class Opened:
    """Names of the files that this process opens while ``count`` is on."""

    def __init__(self):
        self.names, self.on = [], False
        sys.addaudithook(self._hook)  # of the interpreter itself; cannot be removed again

    def _hook(self, event, args):
        if self.on and event == "open":
            self.names.append(str(args[0]))

    @contextlib.contextmanager
    def count(self):
        self.names, self.on = [], True
        try:
            yield self.names
        finally:
            self.on = False


OPENED = Opened()


def game_files(names):
    return collections.Counter(n for n in names if n.endswith(("traj_data.json", "game.tw-pddl")))


def test_an_index_and_the_folder_that_it_is_of_are_the_same_tasks(source, index):
    """One split name, one meaning: also of the folder with ``json_2.1.1`` in it, and of that one."""
    train = source / "json_2.1.1" / "train"
    for number, solvable in enumerate((False, None)):
        write_game(train / f"no-{number}" / "t", TYPES[0], 950 + number, solvable=solvable)
    write_game(source / "json_2.1.1" / "valid_train" / "copied" / "t", TYPES[0], 960)
    tasks = load_tasks(index)
    assert tasks == load_tasks(source) == load_tasks(source / "json_2.1.1")
    assert [t.id for t in tasks] == sorted(t.id for t in tasks) and len(tasks) == 24
    for split in ("train", "valid_seen", "valid_unseen"):
        assert {t.task_type for t in load_tasks(source, split)} == set(TRAINED)
    assert {t.group for t in tasks} == {"FloorPlan7"}
    for task in tasks:
        assert alfworld_task(task.path) == task


def test_no_game_folder_is_read_more_than_needed(source, index):
    """Not at all where there is an index, each file once where there is none."""

    def training_reads(folder):
        with OPENED.count() as names:
            tasks = load_tasks(folder)
            pool = select(tasks, split="train", types=TRAINED)
            copies_of(select(tasks, split="valid_unseen"), pool)
            order = TaskOrder(pool, seed=0)
            taken = [t for i in range(4) for t in order.take(i, 2)]
        assert sorted(t.id for t in taken) == [t.id for t in pool]
        return game_files(names)

    assert not training_reads(index)
    for folder in (source, source / "json_2.1.1"):
        reads = training_reads(folder)
        assert len(reads) == 2 * 24 and set(reads.values()) == {1}


def test_an_index_of_the_old_command_is_read(source, index, tmp_path):
    """It named the games, and kept what they say in a data set that is not needed."""
    old = json.loads((index / "games.json").read_text())
    keys = ("id", "split", "task_type", "path", "content_hash", "size")
    old["games"] = [{key: row[key] for key in keys} for row in old["games"]]
    old |= {"format": 1, "dataset": "tfds/alfworld_games/1.0.0"}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "games.json").write_text(json.dumps(old))
    assert load_tasks(tmp_path / "old") == load_tasks(index)


def test_selecting(index):
    tasks = load_tasks(index)
    pool = select(tasks, split="train", types=TRAINED[:2])
    order = TaskOrder(pool, seed=3)
    assert len(pool) == 4
    taken = [t for i in range(2) for t in order.take(i, 2)]
    assert sorted(t.id for t in taken) == [t.id for t in pool]
    assert taken == [t for i in range(2) for t in TaskOrder(list(pool), seed=3).take(i, 2)]
    assert len(load_tasks(index, "valid_seen")) == 4 and len(pool[1:]) == 3
    with pytest.raises(TaskError, match="split must be one of heldout_types, .*got 'test'"):
        load_tasks(index, "test")


def test_missing_and_changed_games_are_named_together(index):
    tasks = load_tasks(index)
    files = [pathlib.Path(t.path, "game.tw-pddl") for t in tasks[:2]]
    files[0].write_text(files[0].read_text() + " ")
    with pytest.raises(TaskError, match=r"game.tw-pddl: must have \d+ bytes as when indexed, got"):
        load_tasks(index)
    files[1].unlink()
    with pytest.raises(TaskError) as error:
        load_tasks(index)
    assert "game.tw-pddl: must exist, it is in " in str(error.value)
    assert all(str(file) in str(error.value) for file in files) and "\n" not in str(error.value)


def test_a_damaged_index_ends_in_one_line_before_a_worker_starts(
    index, tmp_path, capsys, monkeypatch
):
    from evolving_rl_jax.envs.pool import pool

    pathlib.Path(load_tasks(index)[5].path, "game.tw-pddl").unlink()
    monkeypatch.setattr(pool.EnvPool, "__init__", lambda *a, **k: pytest.fail("a pool was made"))
    run = tmp_path / "run"
    config = pathlib.Path(__file__).parents[1] / "configs" / "alfworld_quickstart.py"
    arguments = [f"--config={config}", f"--workdir={run}", f"--config.data.games={index}"]
    assert cli.main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert "config.data.games: " in error and "game.tw-pddl: must exist, it is in" in error
    assert error.count("\n") == 1 and not run.exists()


def test_a_moved_or_damaged_index_is_named(source, index):
    source.rename(source.with_name("elsewhere"))
    with pytest.raises(TaskError, match="games.json: the games must be in .*source.*found no such"):
        load_tasks(index)
    source.with_name("elsewhere").rename(source)
    content = json.loads((index / "games.json").read_text())
    content["games"][3] = {"id": "x"}
    (index / "games.json").write_text(json.dumps(content))
    with pytest.raises(TaskError, match="every game must have id, split, path and content_hash"):
        load_tasks(index)


def test_panels_draw_from_the_training_split(index):
    known = {t.split for t in load_tasks(index)}
    assert {source_split(s, known) for s in ("valid_seen", "valid_unseen", "heldout_types")} == {
        "train"
    }
    generated = {"train", "valid_unseen", "valid_unseen_sources"}
    assert source_split("valid_unseen", generated) == "valid_unseen_sources"
    assert source_split("valid_seen", generated) == "train"
    assert source_split("train", known) not in known


# -- games that are won already --------------------------------------------------------------------


def test_games_that_are_won_before_the_first_action_are_left_out_named_and_counted(
    source, tmp_path
):
    train = source / "json_2.1.1" / "train"
    for name in ("b", "a"):
        write_game(train / f"won-{name}" / "t", TYPES[0], f"9{'ab'.index(name)}", won=True)
    report = prepare(source, tmp_path / "out")
    assert report.won == ["won-a/t", "won-b/t"]
    assert "left out, won before the first action: 2 (won-a/t, won-b/t)" in report.lines()
    assert report.counts["train"] == 14 and report.num_games == 24  # the release counts them
    assert len(load_tasks(tmp_path / "out")) == len(load_tasks(source)) == 24


def test_games_whose_pddl_cannot_be_read_are_refused_by_name(source, tmp_path):
    folder = write_game(source / "json_2.1.1" / "train" / "cut" / "t", TYPES[0], 9)
    game = json.loads((folder / "game.tw-pddl").read_text())
    game["pddl_problem"] = game["pddl_problem"][:-9]
    (folder / "game.tw-pddl").write_text(json.dumps(game))
    with pytest.raises(TaskError, match="cut/t/game.tw-pddl: must hold PDDL that can be read"):
        prepare(source, tmp_path / "out")


def test_the_recipe_of_the_docs_makes_a_tfds_data_set_without_tensorflow(index, tmp_path):
    docs = pathlib.Path(__file__).parents[1] / "docs" / "data.md"
    (recipe,) = (b for b in re.findall(r"```py\n(.*?)```", docs.read_text(), re.S) if "tfds" in b)
    recipe = recipe.replace('"alfworld/games.json"', repr(str(index / "games.json")))
    recipe = recipe.replace('"tfds"', repr(str(tmp_path / "tfds")))
    code = recipe + (
        "import sys\n"
        "assert not {'tensorflow', 'jax', 'evolving_rl_jax'} & set(sys.modules)\n"
        "print(len(train), sorted(r['id'].decode() for r in train)[0])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1].split()[0] == "8"
