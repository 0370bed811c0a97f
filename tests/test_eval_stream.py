"""Test-time evolution: order, what is retrieved when, growth, and the bank that is left."""

import random

import pytest
from doubles import FakeEngine, FakePool, compact_prompts, make_task, skill_text

from evolving_rl_jax.eval.growth import stream_result, stream_table
from evolving_rl_jax.eval.journal import Journal
from evolving_rl_jax.eval.stream import StreamSettings, arrival_order, play_streams
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.skills import SkillRetriever
from evolving_rl_jax.skills.bank import new_bank
from evolving_rl_jax.skills.records import encode
from evolving_rl_jax.types import ENV_ERROR

PROMPTS = compact_prompts()
SETTINGS = PlaySettings(
    max_turn_tokens=12, max_skill_tokens=80, max_steps=6, temperature=1.0, top_p=1.0, top_k=0
)
KEYS, EXTRACT, OFF = 20_000_000, 5_000_000, 10_000_000
# Five houses, four tasks each.
TASKS = [
    make_task(f"t{i:02d}", text=f"find mug at house{i % 5}", group=f"house{i % 5}")
    for i in range(20)
]


class House(FakeEngine):
    """Wins when its prompt holds a skill of the task's own house; its skills name their house."""

    def __init__(self, broken=()):
        super().__init__(PROMPTS.tokenizer, None)
        self.broken = broken

    def _generate(self, session, limit, room):
        text = self.tokenizer.decode(session.tokens)
        house = text[text.index("house") : text.index("house") + 6]
        if EXTRACT <= session.episode % KEYS < OFF:
            said = skill_text(description=f"I know {house}")
            self.speak = lambda e, t: "rubbish" if e % KEYS - EXTRACT in self.broken else said
        else:
            self.speak = lambda e, t: "mug> win" if f"I know {house}" in text else "mug> lose"
        return super()._generate(session, limit, room)


def play(
    tmp_path, seeds=(1,), tasks=TASKS, fail=None, broken=(), pool_seed=0, progress=None, **changes
):
    banks = {s: new_bank(tmp_path / f"{pool_seed}-{len(tasks)}-{s}.jsonl") for s in seeds}
    engine = changes.pop("engine", None) or House(broken)
    driver = Driver(engine, FakePool(fail, pool_seed), PROMPTS, SETTINGS, iteration=1)
    settings = StreamSettings(PROMPTS, 500, SkillRetriever, name="x", policy_step=3, **changes)
    journal = Journal(tmp_path / f"{pool_seed}-{len(tasks)}.plays.jsonl", {})
    plays = play_streams(driver, tasks, banks, settings, journal, progress)
    assert not engine.open_now
    return plays, banks


def test_a_task_is_won_once_its_house_is_known(tmp_path):
    plays, banks = play(tmp_path)
    order = arrival_order(TASKS, 1)
    assert [p.task.id for p in plays] == [t.id for t in order]
    assert [t.id for t in order] != sorted(t.id for t in order)
    for play_ in plays:
        assert play_.with_bank.won == (play_.related > 0)
        assert not play_.without.won and play_.without.skill_text == ""
    assert len(banks[1]) == 20
    record = banks[1].records[0]
    assert record.source_task_id == order[0].id and record.policy_step == 3
    assert record.uses == record.baseline_uses >= record.gained > 0 == record.lost
    assert sum(r.gained for r in banks[1].records) == sum(p.with_bank.won for p in plays)
    assert sum(r.uses for r in banks[1].records) == sum(bool(p.skills) for p in plays)


def test_only_earlier_tasks_teach(tmp_path):
    plays, _ = play(tmp_path, seeds=(1, 2))
    result = stream_result(plays)
    assert result["leaks"]["violations"] == []
    position = {(p.seed, p.task.id): p.position for p in plays}
    for p in plays:
        for record, _ in p.skills:
            assert position[p.seed, record.source_task_id] < p.position
    assert plays[0].skills == [] and any(p.skills for p in plays)


def test_the_curve_counts_every_play_once(tmp_path):
    plays, _ = play(tmp_path, seeds=(1, 2, 3))
    result = stream_result(plays)
    assert sum(row["with"]["n"] for row in result["curve"]) == 60 == len(result["plays"])
    assert [r["past_from"] for r in result["curve"]] == list(range(0, 20, 2))
    assert result["curve"][0]["with"]["success"] < result["curve"][-1]["with"]["success"]
    related = {r["related"]: r["with"]["success"] for r in result["by_related"]}
    assert related == {0: 0.0, 1: 1.0, 2: 1.0, 3: 1.0}
    everything = result["summary"]["all"]
    assert everything["with"]["success"] == pytest.approx(0.75)
    assert everything["difference"]["value"] == pytest.approx(0.75)
    assert everything["difference"]["n"] == 60 and everything["without"]["success"] == 0
    table = stream_table({**result, "name": "x", "temperature": 1.0})
    assert "after 18-19 tasks" in table and "later half" in table


@pytest.mark.parametrize("seed", range(3))
def test_neither_file_order_nor_scheduling_changes_a_stream(tmp_path, seed):
    shuffled = random.Random(seed).sample(TASKS, len(TASKS))
    expected = stream_result(play(tmp_path / "a")[0])
    assert stream_result(play(tmp_path / "b", tasks=shuffled, pool_seed=seed + 1)[0]) == expected
    # and another seed beside it is another stream of its own
    both = stream_result(play(tmp_path / "c", seeds=(1, 2), pool_seed=seed)[0])
    assert [p for p in both["plays"] if p["seed"] == 1] == expected["plays"]


def test_failures_are_listed_and_the_stream_goes_on(tmp_path):
    plays, banks = play(tmp_path, fail={KEYS + 3: 0, KEYS + OFF + 5: 0}, broken={0})
    result = stream_result(plays)
    assert [(f["condition"], f["status"]) for f in result["failures"]] == [
        ("with", ENV_ERROR),
        ("without", ENV_ERROR),
    ]
    assert len(banks[1]) == 19 and not banks[1]["x-s1-00000"].usable
    assert "no JSON object" in banks[1]["x-s1-00000"].reason
    assert result["summary"]["all"]["with"]["n"] == 19
    assert result["summary"]["all"]["difference"]["n"] == 18


def test_a_stream_can_be_cut_and_use_several_skills(tmp_path):
    plays, _ = play(tmp_path, num_tasks=7, top=2, fit=lambda text: text[:30])
    assert len(plays) == 7 and max(len(p.skills) for p in plays) == 2
    assert max(len(p.with_bank.skill_text) for p in plays) <= 30


@pytest.mark.parametrize("stop_at", [1, 9, 17, 40, 55, 79])
def test_a_stopped_stream_goes_on_as_if_it_had_not_been(tmp_path, stop_at):
    """Failures and rubbish included; what was played is not played again."""
    faults = {"fail": {KEYS + 3: 0, KEYS + OFF + 5: 0}, "broken": {0, 4}, "seeds": (1, 2)}
    expected, banks = play(tmp_path / "whole", **faults)

    def stop(done):
        if done >= stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "cut", **faults, progress=stop)
    journal = tmp_path / "cut" / "0-20.plays.jsonl"
    with open(journal, "ab") as file:
        file.write(b'{"id": "t0')  # as a kill in the middle of a write leaves it
    kept = len(journal.read_bytes().splitlines()) - 2
    counts = []
    with pytest.warns(UserWarning, match="torn last line"):
        plays, again = play(tmp_path / "cut", **faults, progress=counts.append)
    assert counts[0] >= kept and counts[-1] == 80
    assert stream_result(plays) == stream_result(expected)
    for seed in (1, 2):
        assert list(map(encode, again[seed].records)) == list(map(encode, banks[seed].records))


def test_what_a_stream_samples_does_not_depend_on_the_seeds_beside_it(tmp_path):
    """Its draws are named by its own seed, not by its place in the list."""
    drawn = {}
    for seeds in ((2,), (1, 2), (2, 5)):
        engine = House()
        play(tmp_path / str(seeds), seeds=seeds, engine=engine)
        opened = {entry for entry in engine.log if entry[0] == "open"}
        drawn[seeds] = {e for e in opened if e[2] // KEYS == 2}
        assert len(opened) == len(seeds) * 60  # 20 with the bank, 20 without, 20 extractions
    assert drawn[2,] == drawn[1, 2] == drawn[2, 5] and len(drawn[2,]) == 60


def test_of_equal_skills_the_newest_is_in_the_prompt(tmp_path):
    """All four tasks of a house have one sentence: the last one's skill knows the most."""
    plays, _ = play(tmp_path)
    for p in plays:
        if p.related:
            newest = [q for q in plays[: p.position] if q.task.group == p.task.group][-1]
            assert p.skills[0][0].source_task_id == newest.task.id
