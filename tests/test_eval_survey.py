"""What a folder of tasks gives a run: each figure counted anew, on games in the form of real ones."""

import dataclasses
import json
from collections import Counter

import pytest

pytest.importorskip("alfworld")

import real_form

from evolving_rl_jax import envs
from evolving_rl_jax.cli.main import main
from evolving_rl_jax.config import default_config
from evolving_rl_jax.data.tasks import TaskOrder, load_tasks, panel_sample
from evolving_rl_jax.eval.stream import arrival_order
from evolving_rl_jax.skills import Retriever

K, PANEL = 3, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("real_form")
    real_form.write_games(root, {"train": 48, "valid_seen": 24, "valid_unseen": 6}, rooms=2)
    return root


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("survey") / "figures.json"
    words = ["data", "survey", f"--source={folder}", f"--out={out}"]
    assert main([*words, f"--panel={PANEL}", f"--retrieved={K}"]) == 0
    return json.loads(out.read_text())


def test_the_first_games_by_id_are_of_one_kind_and_a_panel_is_not(found, folder):
    games = sorted(load_tasks(folder, "valid_seen"), key=lambda task: task.id)
    rows = found["panels"]["valid_seen"]
    kinds = sorted({task.task_type for task in games})
    assert rows["all"] == {kind: 4 for kind in kinds} and len(kinds) == 4
    assert rows["first"] == {kind: sum(g.task_type == kind for g in games[:6]) for kind in kinds}
    assert sorted(rows["first"].values()) == [0, 0, 2, 4]  # ids begin with the type
    assert sorted(rows["sample"].values()) == [1, 1, 2, 2]
    chosen = Counter(t.task_type for t in panel_sample(games, PANEL))
    assert rows["sample"] == chosen


@pytest.mark.parametrize("prefer", ["text", "group", "other"])
def test_what_training_retrieves_in_an_epoch(found, folder, prefer):
    train = [t for t in load_tasks(folder) if t.split == "train"]
    assert found["training"] == len(train) == 32
    by_id = Retriever(train, prefer=prefer)
    row, sources = found["retrieval"][prefer], TaskOrder(train, seed=0).take(0, len(train))
    pairs = [(s, t) for s in sources for t in by_id.retrieve(s, K)]
    same = {"same_type": 0, "same_subject": 0, "same_group": 0}
    for source, task in pairs:
        same["same_type"] += source.task_type == task.task_type
        same["same_subject"] += source.meta["object"] == task.meta["object"]
        same["same_group"] += source.meta["scene"] == task.meta["scene"]
    if prefer == "text":  # counted with the first ids of a tie, which need no lots
        plays = Counter(task.id for _, task in pairs)
        expected = {name: n / len(pairs) for name, n in same.items()}
        expected |= {"played": len(plays) / len(train), "most": max(plays.values())}
        assert found["retrieval"]["text, ties by id"] == pytest.approx(expected)
        assert row["played"] >= expected["played"] and row["most"] <= expected["most"]
    elif prefer == "other":
        assert row["same_group"] == 0 == same["same_group"]
    else:
        rooms = Counter(t.meta["scene"] for t in train)  # a small room gives all that it has
        best = sum(min(K, rooms[t.meta["scene"]] - 1) for t in train) / (K * len(train))
        assert row["same_group"] == pytest.approx(best)
        assert best > 1.5 * found["retrieval"]["text"]["same_group"]


def test_streams_meet_their_rooms_again(found, folder):
    tasks = arrival_order(load_tasks(folder, "valid_seen"), default_config().eval.seed)
    rooms = [task.meta["scene"] for task in tasks]
    before = [rooms[:i].count(room) for i, room in enumerate(rooms)]
    assert found["streams"]["valid_seen"] == {
        "tasks": 16, "known": 16, "groups": len(set(rooms)),
        "one": sum(n >= 1 for n in before), "many": sum(n >= 4 for n in before),
    }  # fmt: skip
    assert found["streams"]["valid_seen"]["one"] == 16 - len(set(rooms)) > 0


def test_short_prompts_show_places_where_rooms_differ(found, folder, household_games, capsys):
    for row in found["prompts"].values():
        assert row["nothing"] == row["failed"] == 0 and 4 < row["words"] < row["there"] / 2
    assert sum(row["tasks"] for row in found["prompts"].values()) == 78
    root = household_games[0].path.split("/train/")[0]
    assert main(["data", "survey", f"--source={root}"]) == 0
    out = capsys.readouterr().out
    assert "train  12     0       12            0.0" in out  # the compact room is always the same
    assert envs.benchmark("alfworld").subject(household_games[0])


def test_what_cannot_be_retrieved_is_said(tmp_path, capsys):
    real_form.write_games(tmp_path, {"train": 6}, rooms=1)
    assert main(["data", "survey", f"--source={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "K must be at most 3, the tasks that a pool of 4 allows for 'pick_and_place" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["survey"], "--source must be one folder of tasks with survey, got 0"),
        (["survey", "--source=nowhere"], "nowhere: must be a folder of games, found no such"),
        (["survey", "--source=.", "--panel=0"], "--panel must be >= 1, got 0"),
        (["alfworld", "--source=x"], "--out must be given with alfworld, got none"),
    ],
)
def test_a_mistake_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *words]) == 2
    assert message in capsys.readouterr().err


def test_games_that_cannot_be_opened_are_counted(folder, tmp_path):
    from evolving_rl_jax.config import default_config
    from evolving_rl_jax.eval.survey import openings

    tasks = load_tasks(folder, "valid_seen")[:3]
    broken = dataclasses.replace(tasks[0], path=str(tmp_path / "nowhere"))
    seen = []
    (row,) = openings(default_config(), [broken, *tasks[1:]], seen.append).values()
    assert (row["failed"], row["tasks"]) == (1, 2) and seen == [1, 2, 3]
