"""Official web metrics against a from-scratch reading of their definitions, over random episodes.

The definitions are Mind2Web's: per annotated step, element accuracy is whether the chosen element is a
positive candidate; operation F1 is the F1 between the words of the predicted and the annotated
``OP value``, compared with case, and 0 without a positive candidate or a chosen element; step success is
both being 1; macro is the mean over the steps of a task, then over tasks.
"""

import dataclasses
import json
import random
import types

import pytest
from doubles import FakeEngine, compact_prompts
from web_data import action, official, write_split

from evolving_rl_jax import envs
from evolving_rl_jax.envs.mind2web.benchmark import BENCHMARK
from evolving_rl_jax.envs.mind2web.index import build_index
from evolving_rl_jax.envs.mind2web.store import load_web_tasks
from evolving_rl_jax.envs.pool.pool import EnvPool
from evolving_rl_jax.eval.games import PanelGame
from evolving_rl_jax.eval.web import summarise_web, task_score
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.rollout.prompts import make_prompts
from evolving_rl_jax.types import OK, TRUNCATED, Episode, Turn

pytest.importorskip("tensorflow_datasets")

VALUES = ["Boston, MA", "boston, ma", "New York", "York New", "2", "2 adults", ""]
HTML = "<html>" + "".join(f'<input aria-label="F{i}" backend_node_id="{i}"/>' for i in range(1, 7)) + "</html>"  # fmt: skip


def random_task(rng, name):
    steps = []
    for _ in range(rng.randrange(1, 9)):
        op = rng.choice(["CLICK", "TYPE", "SELECT", "HOVER", "ENTER"])
        value = rng.choice(VALUES) if op in ("TYPE", "SELECT") else ""
        nodes = [str(n) for n in rng.sample(range(1, 9), rng.choice([0, 1, 1, 1, 2]))]
        html = "" if rng.random() < 0.05 else HTML
        steps.append(action(html, op, value, nodes))
    return official(name, actions=steps, action_reprs=["x"] * len(steps))


def random_answer(rng, step):
    """(text, chosen node or None, op, value): often the right one, sometimes none at all."""
    kind = rng.random()
    if kind < 0.1:
        return "I do not know", None, "", ""
    if kind < 0.2:
        return '{"op": "CLICK", "ref": "e9999"}', None, "CLICK", ""
    gold = [c["backend_node_id"] for c in step["pos_candidates"]]
    node = rng.choice([*gold, "3"]) if kind < 0.8 else str(rng.randrange(1, 7))
    op = step["operation"]["op"] if rng.random() < 0.8 else rng.choice(["CLICK", "TYPE", "SELECT"])
    value = step["operation"]["value"] if rng.random() < 0.6 else rng.choice(VALUES)
    answer = {"op": op, "ref": f"e{node}"} | ({"value": value} if value else {})
    on_page = step["cleaned_html"] and 1 <= int(node) <= 6
    return json.dumps(answer), node if on_page else None, op, value


def f1(prediction, target):
    prediction, target = set(prediction.split()), set(target.split())
    common = len(prediction & target)
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(target)
    return 2 * precision * recall / (precision + recall)


def as_click(op):
    return "CLICK" if op in ("HOVER", "ENTER") else op


def by_definition(data, answers):
    """Macro figures of one task; ``answers`` may be fewer than its steps."""
    rows = []
    for i, step in enumerate(data["actions"]):
        positive = [c["backend_node_id"] for c in step["pos_candidates"]]
        if i >= len(answers) or not positive or answers[i][1] is None:
            rows.append((0.0, 0.0, 0.0))
            continue
        _, node, op, value = answers[i]
        target = as_click(step["operation"]["op"])
        if target != "CLICK":
            target += " " + step["operation"]["value"]
        element = float(node in positive)
        score = f1(f"{as_click(op)} {value}", target)
        rows.append((element, score, float(element == 1 and score == 1)))
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def test_official_metrics_of_500_random_episodes(tmp_path):
    rng = random.Random(28)
    raw = [random_task(rng, f"t{i:03d}") for i in range(500)]
    write_split(tmp_path / "source", "train", raw)
    report = build_index([tmp_path / "source"], tmp_path / "out", budgets=())
    assert report.counts == {"train": 500} and not report.problems
    tasks = {t.id: t for t in load_web_tasks(tmp_path / "out")}
    env = envs.make("mind2web", protocol="teacher_forced")
    scores, expected = [], []
    for data in raw:
        task = tasks[data["annotation_id"]]
        steps = data["actions"]
        played = rng.randrange(1, len(steps) + 1) if rng.random() < 0.3 else len(steps)
        answers = [random_answer(rng, step) for step in steps[:played]]
        env.reset(task)
        infos, turns = [], []
        for text, *_ in answers:
            infos.append(env.step(text).info)
            turns.append(Turn("", text, text, True))
        if rng.random() < 0.1:  # the context was full: a turn that nothing answered
            infos, answers = infos[:-1], answers[:-1]
        status = OK if len(infos) == len(steps) else TRUNCATED
        episode = Episode(task=task, turns=turns, won=False, status=status, samples=[], infos=infos)
        scores.append(task_score(PanelGame(task), "none", "teacher_forced", episode))
        expected.append(by_definition(data, answers))
    names = ("element_accuracy", "operation_f1", "step_success")
    differences = [
        (score.task_id, name)
        for score, row in zip(scores, expected, strict=True)
        for name, value in zip(names, row, strict=True)
        if score.value(name, "teacher_forced") != pytest.approx(value)
    ]
    assert not differences
    figures = summarise_web(scores, "teacher_forced")["train"]
    for name, column in zip(names, zip(*expected, strict=True), strict=True):
        assert figures[name]["macro"]["value"] == pytest.approx(sum(column) / 500)
    no_gold = sum(
        not step["pos_candidates"]
        for data, score in zip(raw, scores, strict=True)
        for step, seen in zip(data["actions"], score.steps, strict=True)
        if "reason" in seen
    )
    assert figures["no_gold"] == no_gold > 0 and figures["gold_missing"] > 0


def test_naming_an_element_that_is_not_there_scores_nothing():
    data = random_task(random.Random(1), "x")
    answers = [('{"op": "CLICK", "ref": "e9999"}', None, "CLICK", "")] * len(data["actions"])
    assert by_definition(data, answers) == [0.0, 0.0, 0.0]


def cut_off(protocol, infos, turns, total=10):
    task = types.SimpleNamespace(
        id="t", env="mind2web", split="test_task", group="", step_limit=total
    )
    episode = types.SimpleNamespace(infos=infos, turns=[None] * turns)
    return task_score(PanelGame(task, seed=0), "none", protocol, episode)


def right(total=10):
    return {"correct": True, "element": True, "f1": 1.0, "success": True, "missing": False, "num_steps": total}  # fmt: skip


def test_steps_that_were_not_played_have_failed():
    # four right steps of ten, cut off by max_steps
    forced = cut_off("teacher_forced", [right()] * 4, 4)
    assert forced.value("element_accuracy", "teacher_forced") == pytest.approx(0.4)
    # the context was full at the third of ten
    forced = cut_off("teacher_forced", [right()] * 2, 3)
    assert forced.value("step_success", "teacher_forced") == pytest.approx(0.2)
    assert len(forced.steps) == 10 and not forced.won("teacher_forced")
    # an episode that an error may end failed at the step that was not played
    stopping = cut_off("stop_at_error", [right()] * 4, 4)
    assert stopping.value("action_accuracy", "stop_at_error") == pytest.approx(4 / 5)
    whole = cut_off("stop_at_error", [right(4)] * 4, 4, total=4)
    assert whole.value("action_accuracy", "stop_at_error") == 1.0


@pytest.mark.parametrize("by_option", [True, False])
def test_teacher_forced_play_goes_on_after_a_page_that_does_not_fit(tmp_path, by_option):
    data = official("t1")
    many = "".join(f'<input backend_node_id="{i}" aria-label="Field {i}"/>' for i in range(10, 200))
    data["actions"][1]["cleaned_html"] = f'<html>{many}<button backend_node_id="3">Search</button></html>'  # fmt: skip
    write_split(tmp_path / "source", "test_task", [data])
    build_index([tmp_path / "source"], tmp_path / "out", budgets=())
    (task,) = load_web_tasks(tmp_path / "out")
    prompts = make_prompts("compact", compact_prompts().tokenizer, BENCHMARK.texts)
    answers = {0: "city 1> type Oslo", 1: "search 2> click", 2: "help 3> click"}
    settings = PlaySettings(40, 100, 5, 1.0, 1.0, 0, context="recent", recent_turns=0)
    found = []
    for protocol in ("teacher_forced", "stop_at_error"):
        engine = FakeEngine(prompts.tokenizer, lambda _key, turn: answers[turn], max_length=1500)
        # as the run has it, or as a panel asks for a task to be played besides
        options = {"protocol": protocol} if by_option else {}
        with EnvPool("mind2web", options, num_workers=1) as pool:
            driver = Driver(engine, pool, prompts, settings, iteration=0)
            meta = {} if by_option else {"protocol": protocol}
            played = dataclasses.replace(task, meta={**task.meta, **meta})
            driver.play(0, played, "", lambda episode, _: found.append(episode))
            driver.run()
    forced, stopping = found
    assert [i["element"] for i in forced.infos] == [True, False, True]
    assert [s.step for s in forced.samples] == [0, 2]  # nothing was read at the second
    score = task_score(PanelGame(task), "none", "teacher_forced", forced)
    assert score.value("element_accuracy", "teacher_forced") == pytest.approx(2 / 3)
    assert [i["correct"] for i in stopping.infos] == [True] and stopping.status == TRUNCATED
    score = task_score(PanelGame(task), "none", "stop_at_error", stopping)
    assert score.value("action_accuracy", "stop_at_error") == pytest.approx(1 / 2)


def test_a_blank_page_keeps_its_task_and_cannot_be_got_right(tmp_path):
    data = official("t1")
    data["actions"][1]["cleaned_html"] = " "
    data["actions"][2]["pos_candidates"] = []
    write_split(tmp_path / "source", "test_task", [data])
    report = build_index([tmp_path / "source"], tmp_path / "out", budgets=(500,))
    assert report.counts == {"test_task": 1} and report.num_steps == {"test_task": 3}
    assert report.unreachable["test_task"] == {"no_gold": 1, "blank_pages": 1, "value_missing": 0}
    assert report.recall["test_task"] == {0: 0.5, 500: 0.5}  # of the two steps with a right element
    assert "1 steps with a blank page" in report.text()
    env = envs.make("mind2web", protocol="teacher_forced")
    (task,) = load_web_tasks(tmp_path / "out")
    env.reset(task)
    answers = [
        env.step('{"op": "TYPE", "ref": "e1", "value": "Oslo"}'),
        env.step('{"op": "CLICK", "ref": "e1"}'),
        env.step('{"op": "CLICK", "ref": "e1"}'),
    ]
    assert [r.info["success"] for r in answers] == [True, False, False]
    assert [(r.info["missing"], r.info["no_gold"]) for r in answers] == [
        (False, False),
        (True, False),
        (False, True),
    ]


def test_both_releases_have_their_number_of_tasks(tmp_path):
    from evolving_rl_jax.envs.mind2web.index import Report

    def differences(**counts):
        return Report(counts, {}, [], [], {}).differences

    assert not differences(test_task=252, test_website=177, test_domain=912, train=1009)
    assert not differences(test_task=177, test_website=142, test_domain=694)
    assert differences(test_task=200) == ["test_task: 200 tasks, the published data has 252 or 177"]


def test_a_list_that_does_not_show_the_value_is_counted(tmp_path):
    options = "".join(f"<option>Office {i}</option>" for i in range(300))
    html = f'<html><select backend_node_id="2" aria-label="Branch">{options}</select></html>'
    named, unnamed = (
        official(f"t{i}", confirmed_task=text, actions=[action(html, "SELECT", "Office 250")], action_reprs=["x"])
        for i, text in enumerate(["Go to office 250", "Go to the office by the river"])
    )  # fmt: skip
    write_split(tmp_path / "source", "train", [named, unnamed])
    report = build_index([tmp_path / "source"], tmp_path / "out", budgets=(4000,))
    assert report.unreachable["train"]["value_missing"] == 1
    env = envs.make("mind2web")
    found = []
    for task in load_web_tasks(tmp_path / "out"):
        env.reset(dataclasses.replace(task))
        found.append(env.step('{"op": "SELECT", "ref": "e1", "value": "Office 250"}').info)
    assert [f["value_missing"] for f in found] == [False, True]
