"""How far a task was done, where steps are scored one by one: kept and compared wherever success is."""

import dataclasses

import pytest
from doubles import make_task

from evolving_rl_jax.eval.growth import stream_result
from evolving_rl_jax.eval.journal import Journal
from evolving_rl_jax.eval.stream import Side, StreamPlay
from evolving_rl_jax.eval.transfer.play import (
    BankInPlay,
    measured_skills,
    play_transfer,
    transfer_result,
    transfer_table,
)
from evolving_rl_jax.skills.curate import best_first
from evolving_rl_jax.skills.records import Outcome, SkillRecord
from evolving_rl_jax.types import OK, Episode, Turn

SKILL = {"name": "a", "description": "b"}


def episode(task, right, total=4):
    """The first ``right`` of ``total`` steps were right; the next one was not."""
    infos = [{"correct": i < right, "num_steps": total} for i in range(min(right + 1, total))]
    turns = [Turn("o", "x", "x", True) for _ in infos]
    return Episode(task, turns, right == total, OK, [], infos=infos)


def test_a_score_is_the_share_of_right_steps_or_a_win():
    task = make_task("t", step_limit=4)
    assert [episode(task, n).score for n in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [Episode(task, [], won, OK, []).score for won in (True, False)] == [1.0, 0.0]
    assert Episode(task, [], True, OK, [], infos=[None, {"x": 1}]).score == 1.0


class ScriptedDriver:
    """Ends each play at once: two right steps without a skill, three with one."""

    def __init__(self):
        self.plays = []

    def play(self, _key, task, text, done):
        self.plays.append((task, text, done))

    def run(self, _progress=None):
        for task, text, done in self.plays:
            done(dataclasses.replace(episode(task, 3 if text else 2), skill_text=text), None)


class AnySkill:
    def __init__(self, record):
        self.record = record

    def retrieve(self, _task, _top):
        return [(self.record, 0.5)]


def test_transfer_keeps_and_compares_the_steps_that_were_right(tmp_path):
    panel = [make_task(f"p{i}", step_limit=4) for i in range(6)]
    record = SkillRecord("s", 0, "elsewhere", "hash-elsewhere", skill=SKILL)
    bank = BankInPlay(AnySkill(record), {"s": record}, [])
    journal = Journal(tmp_path / "plays.jsonl", {})
    play_transfer(
        lambda _seed: ScriptedDriver(), panel, {"ours": bank}, journal, seeds=[0], render=lambda r: "text"
    )  # fmt: skip
    result = transfer_result(
        journal, panel, {"ours": bank}, seeds=[0], facts={"policy": "x", "played": {}}
    )
    rows = {row["condition"]: row for row in result["summary"]}
    assert (rows["none"]["success"], rows["ours"]["success"]) == (0.0, 0.0)
    assert rows["none"]["score"]["success"] == pytest.approx(0.5)
    assert rows["ours"]["score"]["success"] == pytest.approx(0.75)
    assert result["paired"][0]["value"] == 0.0
    assert result["paired_scores"][0]["value"] == pytest.approx(0.25)
    text = transfer_table(result)
    assert "share of steps right in %" in text and "75.0" in text
    (measured,) = measured_skills(journal, bank)
    assert measured.utility == 0.0 and measured.mean_score_gained == pytest.approx(0.25)


def test_streams_keep_and_compare_the_steps_that_were_right():
    plays = []
    for i in range(6):
        task = make_task(f"t{i}", step_limit=4)
        play = StreamPlay(task, 0, i, 0)
        play.with_bank, play.without = Side.of(episode(task, 3)), Side.of(episode(task, 1))
        plays.append(play)
    summary = stream_result(plays)["summary"]["all"]
    assert summary["with"]["success"] == 0.0
    assert summary["score"]["with"]["success"] == pytest.approx(0.75)
    assert summary["score"]["difference"]["value"] == pytest.approx(0.5)
    kept = dataclasses.asdict(plays[0].with_bank)
    assert Side.from_kept(kept).value == 0.75
    del kept["score"]  # a journal of before
    assert Side.from_kept(kept).value == 0.0


def test_of_skills_that_win_as_often_the_one_that_gains_more_steps_is_worth_more():
    blank = SkillRecord("a", 0, "t", "h", skill=SKILL)
    helps = dataclasses.replace(blank, id="b").measured([Outcome(False, False, 4, 4, 0.25)])
    harms = dataclasses.replace(blank, id="c").measured([Outcome(False, False, 4, 4, -0.25)])
    assert [r.id for r in best_first([harms, blank, helps])] == ["b", "a", "c"]
    won = blank.measured([Outcome(True, False, 3, 4)])
    assert won.mean_score_gained == won.utility == 1.0
