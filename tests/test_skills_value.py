"""What a stored skill is worth and which is chosen, by plain arithmetic."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from doubles import make_task

from evolving_rl_jax.config import ConfigError, default_config, validate
from evolving_rl_jax.rollout.beside import Beside, bank_uses, beside_extras, beside_figures
from evolving_rl_jax.rollout.evolve import Experience, Source
from evolving_rl_jax.skills.records import SkillRecord
from evolving_rl_jax.skills.retrieval import SkillRetriever
from evolving_rl_jax.skills.value import Counts, RankedBank, Use
from evolving_rl_jax.types import Episode

SKILL = {
    "name": "n", "description": "the mug is in drawer 1", "when_to_use": ["a"], "workflow": ["b"],
    "decision_rules": ["c"], "error_handling": ["d"],
}  # fmt: skip


def record(name, text="heat the mug", uses=0, wins=0.0, **changes):
    return SkillRecord(
        id=name, iteration=0, source_task_id=f"task-{name}", source_task_hash=f"hash-{name}",
        source_text=text, skill=SKILL, uses=uses, wins=wins, **changes,
    )  # fmt: skip


def bank_of(*records, **changes):
    config = default_config().guidance
    config.update(changes)
    bank = RankedBank(config, SkillRetriever)
    bank.admit(records)
    bank.freeze()
    return bank


def use(name, rewards, free=(), text="heat the mug"):
    return Use(name, make_task("t", text=text), 0.5, tuple(rewards), tuple(free))


def test_values():
    counts = Counts(uses=4, wins=3, base_uses=5, base_wins=1, q=0.25)
    assert counts.value("laplace") == pytest.approx(4 / 6)
    assert counts.value("gain") == pytest.approx(3 / 4 - 1 / 5)
    assert counts.value("ema") == 0.25
    assert Counts().value("laplace") == 0.5 and Counts(1, 1).value("gain") == 0


def test_a_moving_average_of_plus_and_minus_one():
    bank = bank_of(record("a"), value="ema", rate=0.3)
    bank.learn([use("a", [1.0, 0.0])])
    assert bank.value("a") == pytest.approx((0.3 * 1) + 0.3 * (-1 - 0.3 * 1))
    bank.learn([use("unknown", [1.0])])  # removed since it was chosen


def test_a_gain_compares_plays_of_the_same_tasks():
    """The tasks that evaluated a skill have no free plays: how easy they were says nothing of it."""
    bank = bank_of(record("a", uses=8, wins=8.0))
    assert bank._counts["a"].value("gain") == 0
    bank.learn([use("a", [0.0] * 4, free=[0.0] * 4)])  # of a task that nobody wins
    assert bank._counts["a"].value("gain") == 0
    assert bank.value("a") == pytest.approx((8 + 1) / (12 + 2))


@pytest.mark.parametrize(("value", "left"), [("laplace", 0), ("ema", 1), ("gain", 1)])
def test_a_skill_that_was_never_used_from_the_bank_is_not_removed_by_what_counts_that(value, left):
    bank = bank_of(record("a", uses=9, wins=0.0), value=value, min_uses=4, min_value=0.2)
    bank.learn([])
    assert len(bank) == left


def test_evaluation_and_later_plays_count_together():
    bank = bank_of(record("a", uses=4, wins=1.0))
    bank.learn([use("a", [1.0, 1.0], free=[0.0, 1.0, 0.0, 0.0])])
    assert bank.value("a") == pytest.approx((1 + 2 + 1) / (4 + 2 + 2))
    assert bank._counts["a"].value("gain") == pytest.approx(2 / 2 - 1 / 4)


@pytest.mark.parametrize(
    ("weight", "diversity", "best"), [(0.0, 0.0, "near"), (1.0, 0.0, "good"), (0.0, 9.0, "far")]
)
def test_two_phases(weight, diversity, best):
    """Similarity leaves the candidates; value, similarity and use decide between them."""
    records = [
        record("near", "heat the red mug", uses=8, wins=1.0),
        record("good", "heat the mug", uses=8, wins=8.0),
        record("far", "heat the water", uses=1, wins=0.5),
        record("other", "open a window", uses=9, wins=9.0),
    ]
    bank = bank_of(*records, weight=weight, diversity=diversity, candidates=3)
    task = make_task("t", text="heat the red mug")
    ((chosen, cosine),) = bank.choose(task)
    assert chosen.id == best
    found = bank._frozen.retrieve(task, 3)
    assert [r.id for r, _ in found] == ["near", "good", "far"]
    cosines = np.array([c for _, c in found])
    values = np.array([2 / 10, 9 / 10, 1.5 / 3])
    z = [(x - x.mean()) / x.std() for x in (cosines, values)]
    score = (1 - weight) * z[0] + weight * z[1] - diversity * np.log1p([8, 8, 1])
    assert chosen.id == found[int(np.argmax(score))][0].id and cosine in cosines
    assert bank.choose(make_task("u", text="zebra")) == []


def test_the_head_learns_who_wins():
    bank = bank_of(
        record("a", uses=9, wins=9.0), record("b", uses=9, wins=0.0), value="head", candidates=2
    )
    for _ in range(50):
        bank.learn([use("a", [1.0]), use("b", [0.0])])
    ((chosen, _),) = bank.choose(make_task("t", text="heat the mug"))
    assert chosen.id == "a"
    task = make_task("t", text="heat the mug")
    features = bank._features(task, bank._records["a"], 0.7)
    want = 1 / (1 + math.exp(-float(bank._head @ features)))
    assert bank._predicted(task, bank._records["a"], 0.7) == pytest.approx(want) and want > 0.6


def test_a_full_bank_keeps_its_best():
    bank = bank_of(record("a", uses=4, wins=3.0), record("b", uses=4, wins=1.0), capacity=2)
    bank.admit([record("c", uses=4, wins=0.0)])
    assert sorted(bank._records) == ["a", "b"]
    bank.admit([record("d", uses=4, wins=4.0), record("e", retired="bad")])
    assert sorted(bank._records) == ["a", "d"]


def test_what_proves_worthless_is_removed():
    bank = bank_of(record("a"), record("b"), min_uses=3, min_value=0.3)
    bank.learn([use("a", [0.0, 0.0]), use("b", [0.0, 1.0, 1.0])])
    assert len(bank) == 2  # too few plays to say
    bank.learn([use("a", [0.0])])
    assert sorted(bank._records) == ["b"] and bank.choose(make_task("t", text="heat the mug"))


def test_a_bank_is_frozen_until_it_is_asked_to_change():
    bank = bank_of(record("a"))
    bank.admit([record("b", "heat the red mug")])
    task = make_task("t", text="heat the red mug")
    assert bank.choose(task)[0][0].id == "a"
    bank.freeze()
    assert bank.choose(task)[0][0].id == "b"


def test_a_run_goes_on_with_its_bank():
    records = [record(n, uses=2, wins=1.0) for n in "abc"]
    bank = bank_of(*records, value="head")
    bank.learn([use("b", [1.0, 0.0], [0.5])])
    other = bank_of(value="head")
    other.restore(json.loads(json.dumps(bank.state())), records)
    assert other.state() == bank.state() and other.figures() == bank.figures()
    with pytest.raises(ValueError, match="must hold the skills that the checkpoint counts"):
        other.restore(bank.state(), records[:1])
    other.restore(None, [])
    assert len(other) == 0


# -- the plays -------------------------------------------------------------------------------------


class Driver:
    def __init__(self):
        self.played = {}

    def play(self, key, task, skill, done):
        assert key not in self.played
        self.played[key] = task.id, skill, done


def played(won, samples=1, status="ok"):
    return Episode(None, [None], won, status, [f"s{i}" for i in range(samples)], float(won))


def test_each_task_gets_its_free_and_guided_plays():
    bank = SimpleNamespace(free_repeats=4, repeats=2)

    def choose(task):
        return ([(record("a"), 0.8)], "advice") if task.id == "r0" else ([], "")

    beside, driver = Beside(bank, 2, choose), Driver()
    sources = [
        Source(make_task(f"s{g}"), retrieved=[make_task("r0"), make_task("r1")]) for g in (0, 1)
    ]
    for g, source in enumerate(sources):
        beside.start(driver, g, source)
    assert len(driver.played) == 2 * (4 + 2 + 4)
    for _, _, done in driver.played.values():
        done(played(True), None)
    for source in sources:
        assert source.guided_by == {0: [("a", 0.8)]}
        kinds = [key[:2] for key in source.beside]
        assert kinds.count(("free", 0)) == kinds.count(("free", 1)) == 4
        assert kinds.count(("bank", 0)) == 2 and ("bank", 1) not in kinds
    skills = [(task, skill) for task, skill, _ in driver.played.values()]
    assert skills.count(("r0", "advice")) == 4 and skills.count(("r1", "")) == 8


def table(free, bank):
    """One source whose only retrieved task was played so; None = the infrastructure failed."""
    source = Source(make_task("s"), retrieved=[make_task("r")], guided_by={0: [("a", 0.8)]})
    for kind, results in (("free", free), ("bank", bank)):
        for i, won in enumerate(results):
            episode = played(bool(won), status="env_error" if won is None else "ok")
            source.beside[kind, 0, i] = episode
    return Experience([source], *(np.zeros((1, 1, 1, 1)) for _ in range(2)), np.zeros((1, 1)))


def test_guided_and_free_plays_are_normalised_apart():
    algorithm = SimpleNamespace(solver_reward=10.0, advantage="std")
    experience = table([0, 0, 0, 1], [1, 1, 0, 1, None])
    (extras,) = beside_extras(experience, algorithm, 0.5, None)
    third = 1 / math.sqrt(3)
    want = [third, third, -3 * third, third, -third, -third, -third, 3 * third]  # bank, then free
    assert [e.advantage for e in extras] == pytest.approx([0.5 * a for a in want], rel=1e-4)
    assert not any(e.detached for e in extras)
    # The one at the mean of its group is of a group with spread, which an exact 0 denies.
    parts = table([], [1, 1, 1])
    for i, episode in enumerate(parts.sources[0].beside.values()):
        episode.reward = i / 2
    (middle,) = beside_extras(parts, algorithm, 0.5, None)
    assert [e.advantage for e in middle] == pytest.approx([-0.612, 0.0, 0.612], abs=1e-3)
    assert 0 < middle[1].advantage < 1e-20
    (alike,) = beside_extras(table([1] * 4, [0] * 2), algorithm, 0.5, None)
    assert {e.advantage for e in alike} == {0.0}


def test_uses_and_figures():
    experience = table([0, 0, None, 1], [1, 0])
    (found,) = bank_uses(experience, None)
    assert (found.id, found.rewards, found.free) == ("a", (1.0, 0.0), (0.0, 0.0, 1.0))
    figures = beside_figures(experience)
    assert figures["rollout/free_plays"] == 3 and figures["rollout/bank_plays"] == 2
    assert figures["rollout/free_win_rate"] == pytest.approx(1 / 3)
    assert figures["rollout/bank_win_rate"] == 0.5


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("guidance.free_repeats", {"guidance.repeats": 2}),
        ("guidance.free_repeats", {"guidance.free_repeats": 1}),
        ("guidance.repeats", {"guidance.repeats": 1}),
        ("guidance.free_repeats", {"guidance.free_repeats": 4, "algorithm.arm": "grpo"}),
    ],
)
def test_combinations_that_cannot_run(key, changes):
    config = default_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=f"config.{key} must be"):
        validate(config)
