"""Web metrics against values computed by hand."""

import pytest

from evolving_rl_jax.envs.mind2web.metrics import TaskScore
from evolving_rl_jax.eval.web import paired_web_difference, summarise_web


def step(element, f1, num_steps, *, correct=None, missing=False):
    success = bool(element) and f1 == 1.0
    return {
        "element": bool(element),
        "f1": f1,
        "success": success,
        "correct": success if correct is None else correct,
        "missing": missing,
        "num_steps": num_steps,
    }


def task(name, *steps, split="test_task", group=""):
    return TaskScore(name, split, steps, group)


FORCED = [
    task("a", step(1, 1.0, 2), step(1, 0.5, 2)),
    task("b", step(1, 1.0, 1)),
    task("c", *(step(0, 1.0, 4, missing=i == 0) for i in range(3)), step(1, 1.0, 4)),
]


def test_official_metrics_macro_and_micro():
    figures = summarise_web(FORCED, "teacher_forced")["test_task"]
    values = {
        (name, kind): figures[name][kind]["value"]
        for name in ("element_accuracy", "operation_f1", "step_success")
        for kind in ("macro", "micro")
    }
    assert values == pytest.approx(
        {
            ("element_accuracy", "macro"): (1 + 1 + 0.25) / 3,
            ("element_accuracy", "micro"): 4 / 7,
            ("operation_f1", "macro"): (0.75 + 1 + 1) / 3,
            ("operation_f1", "micro"): 6.5 / 7,
            ("step_success", "macro"): (0.5 + 1 + 0.25) / 3,
            ("step_success", "micro"): 3 / 7,
        }
    )
    assert figures["task_success"]["macro"]["value"] == pytest.approx(1 / 3)
    assert (figures["num_tasks"], figures["num_steps"], figures["gold_missing"]) == (3, 7, 1)


def test_action_accuracy_is_correct_over_attempted():
    scores = [
        task("a", step(1, 1.0, 3), step(0, 0.0, 3)),
        task("b", step(0, 0.0, 2)),
        task("c", step(1, 1.0, 2), step(1, 1.0, 2)),
    ]
    figures = summarise_web(scores, "stop_at_error")["test_task"]
    assert figures["action_accuracy"]["macro"]["value"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert figures["action_accuracy"]["micro"]["value"] == pytest.approx(3 / 5)
    assert figures["task_success"]["macro"]["value"] == pytest.approx(1 / 3)
    assert figures["correct_steps"] == pytest.approx(1.0)


def test_splits_are_apart_and_an_unfinished_task_is_not_won():
    scores = [task("a", step(1, 1.0, 1)), task("b", step(1, 1.0, 2), split="test_website")]
    figures = summarise_web(scores, "teacher_forced")
    assert figures["test_task"]["task_success"]["macro"]["value"] == 1.0
    assert figures["test_website"]["task_success"]["macro"]["value"] == 0.0


def test_words_in_another_order_are_a_success_but_not_a_correct_action():
    scores = [task("a", step(1, 1.0, 1, correct=False))]
    forced = summarise_web(scores, "teacher_forced")["test_task"]
    stopping = summarise_web(scores, "stop_at_error")["test_task"]
    assert forced["task_success"]["macro"]["value"] == 1.0
    assert stopping["task_success"]["macro"]["value"] == 0.0


def test_intervals_hold_the_value_and_widen_with_groups():
    alone = [task(str(i), step(i % 2, float(i % 2), 1)) for i in range(60)]
    grouped = [
        TaskScore(s.task_id, s.split, s.steps, "even" if i % 2 else "odd")
        for i, s in enumerate(alone)
    ]
    narrow, wide = (
        summarise_web(s, "teacher_forced")["test_task"]["task_success"]["macro"]
        for s in (alone, grouped)
    )
    assert narrow["low"] < narrow["value"] == 0.5 < narrow["high"]
    assert (wide["low"], wide["high"]) == (0.0, 1.0)
    # binomial: 1.96 sqrt(0.25 / 60)
    assert narrow["high"] - narrow["low"] == pytest.approx(2 * 0.1265, abs=0.03)


def test_pairing_by_task():
    before = [task("a", step(0, 0.0, 1)), task("b", step(1, 1.0, 1)), task("c", step(0, 0.0, 1))]
    after = [task("b", step(1, 1.0, 1)), task("a", step(1, 1.0, 1)), task("d", step(0, 0.0, 1))]
    result = paired_web_difference(before, after, "step_success", "teacher_forced")
    assert (result["n"], result["value"]) == (2, 0.5)
    for metric in ("task_success", "correct_steps"):
        assert paired_web_difference(before, after, metric, "stop_at_error")["value"] == 0.5


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="must hold at least one score"):
        task("a")
    with pytest.raises(ValueError, match="protocol must be one of teacher_forced, stop_at_error"):
        summarise_web(FORCED, "other")
    with pytest.raises(ValueError, match="metric of stop_at_error must be one of action_accuracy"):
        paired_web_difference(FORCED, FORCED, "step_success", "stop_at_error")
    with pytest.raises(ValueError, match="common tasks"):
        paired_web_difference(FORCED, [], "step_success", "teacher_forced")
