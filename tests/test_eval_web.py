"""Web metrics in a panel: both protocols, pairing, the tables, and what is never written down."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from doubles import make_task

from evolving_rl_jax.config import ConfigError, default_config
from evolving_rl_jax.envs.mind2web.benchmark import BENCHMARK
from evolving_rl_jax.envs.mind2web.metrics import SHOWN
from evolving_rl_jax.eval import play
from evolving_rl_jax.eval import web as web_results
from evolving_rl_jax.eval.evaluation import stream_tasks
from evolving_rl_jax.eval.games import PanelGame, gather_panel
from evolving_rl_jax.eval.panel import Panel
from evolving_rl_jax.eval.results import success_table, write_result
from evolving_rl_jax.record.figures import SourceFigures
from evolving_rl_jax.report.page import before_after_table, write_report
from evolving_rl_jax.run import environments
from evolving_rl_jax.skills.retrieval import Retriever
from evolving_rl_jax.types import OK, TIMEOUT, Episode, Turn

PROTOCOLS = ("stop_at_error", "teacher_forced")
CONDITIONS = ("none", "own")


def web_task(name, **changes):
    fields = {"env": "mind2web", "split": "test_task", "group": name[0], "step_limit": 2}
    return make_task(name, **(fields | changes))


def info(correct, element=None, f1=None):
    element = correct if element is None else element
    f1 = float(correct) if f1 is None else f1
    success = element and f1 == 1.0
    return {
        "correct": correct, "element": element, "f1": f1, "success": success, "missing": False,
        "num_steps": 2,
    }  # fmt: skip


def played(task, infos, status=OK, skill=""):
    won = len(infos) == 2 and all(i["correct"] for i in infos)
    turns = [Turn("o", "x", "x", True) for _ in infos]
    return Episode(task, turns, won, status, [], infos=list(infos), skill_text=skill)


RIGHT, WRONG = info(True), info(False)
HALF = info(False, element=True, f1=0.5)


def games_of(stop, forced):
    """``stop`` and ``forced``: task -> condition -> infos."""
    games = []
    for name in sorted(stop):
        task, source = web_task(name), make_task(f"source-{name[0]}")
        game = PanelGame(task, source, seed=1, similarity=0.5)
        game.source_episode = played(source, [RIGHT, RIGHT])
        game.episodes = {c: played(task, i, skill="press a b") for c, i in stop[name].items()}
        game.others = {"teacher_forced": {c: played(task, i) for c, i in forced[name].items()}}
        games.append(game)
    return games


BEFORE = games_of(
    {
        "a1": {"none": [WRONG], "own": [RIGHT, WRONG]},
        "b1": {"none": [RIGHT, WRONG], "own": [RIGHT, RIGHT]},
    },
    {
        "a1": {"none": [WRONG, RIGHT], "own": [RIGHT, HALF]},
        "b1": {"none": [RIGHT, WRONG], "own": [RIGHT, RIGHT]},
    },
)


def write(folder, name, games, tasks=None):
    tasks = tasks or [g.task for g in games]
    panel = Panel(tasks, Retriever([make_task("p")]), None, 100, protocols=PROTOCOLS)
    return write_result(
        folder / "eval" / f"{name}-t1.json", panel, games, name=name, iteration=0, temperature=1.0,
        seed=1, conditions=CONDITIONS, figures={},
    )  # fmt: skip


def test_figures_by_hand(tmp_path):
    result = write(tmp_path, "warmstart", BEFORE)
    web = result["web"]
    stop, forced = (web[p]["test_task"] for p in PROTOCOLS)
    accuracy = {c: stop[c]["action_accuracy"] for c in CONDITIONS}
    # none: 0 of 1 and 1 of 2; own: 1 of 2 and 2 of 2.
    assert accuracy["none"]["macro"]["value"] == pytest.approx((0 + 1 / 2) / 2)
    assert accuracy["none"]["micro"]["value"] == pytest.approx(1 / 3)
    assert accuracy["own"]["macro"]["value"] == pytest.approx((1 / 2 + 1) / 2)
    assert accuracy["own"]["micro"]["value"] == pytest.approx(3 / 4)
    assert forced["own"]["element_accuracy"]["macro"]["value"] == 1.0
    assert forced["own"]["operation_f1"]["macro"]["value"] == pytest.approx((0.75 + 1) / 2)
    assert forced["own"]["step_success"]["macro"]["value"] == pytest.approx(3 / 4)
    assert forced["own"]["task_success"]["macro"]["value"] == pytest.approx(1 / 2)
    for metric in (stop["own"]["action_accuracy"], forced["own"]["step_success"]):
        for part in metric.values():
            assert 0 <= part["low"] <= part["value"] <= part["high"] <= 1
    assert stop["own"]["against_none"]["action_accuracy"]["value"] == pytest.approx(0.5)
    assert stop["none"]["against_none"] == {}
    assert result["summary"]["test_task"]["own"]["success"] == pytest.approx(1 / 2)
    first = result["games"][0]["conditions"]["own"]
    assert first["web"]["stop_at_error"]["action_accuracy"] == pytest.approx(1 / 2)
    assert first["web"]["teacher_forced"]["operation_f1"] == pytest.approx(0.75)
    text = success_table(result)
    assert "action accuracy" in text and "step success" in text and "75.0 [" in text


def test_an_answer_that_was_cut_off_is_a_failed_step():
    task = web_task("a1")
    episode = played(task, [RIGHT])
    episode.turns.append(Turn("o", "", "", False))
    score = web_results.task_score(PanelGame(task, seed=0), "none", "stop_at_error", episode)
    assert [s["correct"] for s in score.steps] == [True, False]
    nothing = played(task, [])
    assert len(web_results.task_score(PanelGame(task), "none", "stop_at_error", nothing).steps) == 1


def test_plays_that_the_infrastructure_failed_do_not_count(tmp_path):
    games = [dataclasses.replace(g, episodes=dict(g.episodes)) for g in BEFORE]
    games[0].episodes["none"] = dataclasses.replace(games[0].episodes["none"], status=TIMEOUT)
    games[1].source_episode = dataclasses.replace(games[1].source_episode, status=TIMEOUT)
    result = write(tmp_path, "warmstart", games)
    stop = result["web"]["stop_at_error"]["test_task"]
    assert stop["none"]["num_tasks"] == 1 and stop["own"]["num_tasks"] == 1
    assert stop["own"]["action_accuracy"]["macro"]["value"] == pytest.approx(1 / 2)
    assert stop["own"]["against_none"] == {}  # no task has both
    assert "web" in result["games"][1]["conditions"]["own"]


def test_before_and_after_in_console_and_report(tmp_path):
    write(tmp_path, "warmstart", BEFORE)
    after = games_of(
        {n: {c: [RIGHT, RIGHT] for c in CONDITIONS} for n in ("a1", "b1")},
        {n: {c: [RIGHT, RIGHT] for c in CONDITIONS} for n in ("a1", "b1")},
    )
    write(tmp_path, "final", after)
    text = before_after_table(tmp_path)
    blocks = {b.splitlines()[0].split(" in %")[0]: b for b in text.split("\n\n")}
    assert list(blocks) == ["success", *(h for _, _, h in SHOWN)]
    accuracy = [line for line in blocks["action accuracy"].splitlines() if "no skill" in line]
    assert "25.0 [" in accuracy[0] and "100.0 [" in accuracy[0] and "+75.0 [" in accuracy[0]
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for word in ("Web metrics", "action accuracy", "operation F1", "own skill"):
        assert word in page


def test_text_of_the_protected_archive_is_not_written(tmp_path):
    sealed = {"sealed": True}
    games = [dataclasses.replace(g, task=dataclasses.replace(g.task, meta=sealed)) for g in BEFORE]
    result = write(tmp_path, "final", games)
    text = json.dumps(result)
    assert "press a b" not in text and games[0].task.text not in text
    open_result = write(tmp_path, "final", BEFORE)
    assert open_result["games"][0]["conditions"]["own"]["skill"] == "press a b"


def test_a_stream_does_not_play_the_protected_archive():
    tasks = [web_task("a1", meta={"sealed": True})]
    parts = SimpleNamespace(
        config=default_config(),
        tasks=tasks,
        split=lambda name: [t for t in tasks if t.split == name],
    )
    with pytest.raises(ConfigError, match="password-protected archive .* got a1"):
        stream_tasks(parts, ("test_task",))


def test_training_on_the_protected_archive_is_refused(tmp_path, monkeypatch):
    tasks = [
        web_task(f"a{i}", split="train", task_type="Travel", meta={"sealed": True}) for i in "12"
    ]
    tasks.append(web_task("b1", meta={"sealed": True}))
    monkeypatch.setattr(BENCHMARK, "load", lambda _folder: tasks)
    config = default_config()
    config.env.name, config.data.train_types, config.data.games = "mind2web", ("Travel",), "x"
    config.eval.update(splits=("test_task",), conditions=("none",))
    config.rollout.num_retrieved = 1
    folder = SimpleNamespace(path=tmp_path, begin=lambda: pytest.fail("nothing may be written"))
    with pytest.raises(ConfigError, match="config.data.train_split must be a split without"):
        environments.prepare_games(config, folder)


def test_protocols_of_a_panel():
    config = default_config()
    assert play.protocols(config) == ()
    config.env.update(name="mind2web", protocol="teacher_forced")
    assert play.protocols(config) == ("teacher_forced", "stop_at_error")


def test_hosts_complete_each_others_games():
    full = [dataclasses.replace(g) for g in BEFORE]
    mine = [full[0], PanelGame(full[1].task, full[1].source, seed=1)]
    other = [PanelGame(full[0].task, full[0].source, seed=1), full[1]]

    class Two:
        count = 2

        def gather(self, value):
            return [value, (other, SourceFigures(failed=1))]

    assert gather_panel(Two(), mine, SourceFigures(failed=1)).failed == 2
    assert mine[1].others["teacher_forced"].keys() == set(CONDITIONS)
    assert mine[0].under("teacher_forced")["own"].infos == [RIGHT, HALF]
