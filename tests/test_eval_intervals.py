"""How often intervals leave out zero where there is nothing, and the one bootstrap against plain loops."""

import pathlib

import numpy as np
import pytest
from doubles import make_task

from evolving_rl_jax.eval import statistics, tables
from evolving_rl_jax.eval.growth import with_and_without
from evolving_rl_jax.eval.stream import Side, StreamPlay
from evolving_rl_jax.report import results
from evolving_rl_jax.skills import SkillRecord

GAMES, SOURCES, RUNS = 480, 48, 3
COLUMN = ("s", "own")


def panel_of(wins):
    """A panel file of games won or not, ten of them with the skill of one source."""
    games = [
        {
            "id": f"g{i:03d}",
            "split": "s",
            "seed": 1,
            "conditions": {"own": {"won": bool(won), "status": "ok"}},
            "retrieved": {"id": f"source {i % SOURCES}"},
        }
        for i, won in enumerate(wins)
    ]
    return {"games": games}


def null_arm(rng, chances, between):
    """Wins [runs, games] whose rates differ by chance alone, runs with standard deviation ``between``."""
    shifts = rng.normal(0, between, (RUNS, 1))
    return rng.random((RUNS, GAMES)) < np.clip(chances + shifts, 0, 1)


def leaves_out_zero(interval):
    return bool(interval) and (interval["low"] > 0 or interval["high"] < 0)


@pytest.mark.parametrize("between", [0.0, 0.04, 0.08])
def test_null_arms_differ_in_about_five_percent_of_cases(between):
    """Games alone, which the tables drew before, are far too sure where runs differ."""
    rng = np.random.default_rng(5)
    over_runs, games_alone = [], []
    for i in range(1200):
        chances = rng.beta(4, 6, GAMES)
        a, b = null_arm(rng, chances, between), null_arm(rng, chances, between)
        over_runs.append(leaves_out_zero(statistics.over_runs(b.mean(1) - a.mean(1))))
        if i < 60:
            change = (b.mean(0) - a.mean(0)).reshape(-1, SOURCES).sum(0)
            _, low, high = statistics.bootstrap(change, range(SOURCES))
            games_alone.append(leaves_out_zero({"low": low, "high": high}))
    assert 0.03 < np.mean(over_runs) < 0.07
    assert {0.0: -1, 0.04: 0.15, 0.08: 0.4}[between] < np.mean(games_alone)


@pytest.mark.parametrize("between", [0.0, 0.08])
def test_the_tables_give_both_intervals_of_null_arms(between):
    rng, found = np.random.default_rng(6), []
    for _ in range(40):
        chances = rng.beta(4, 6, GAMES)
        arms = (null_arm(rng, chances, between) for _ in range(2))
        panels = [[panel_of(wins) for wins in arm] for arm in arms]
        found.append(results.difference(*panels, COLUMN))
    assert np.mean([leaves_out_zero(d["over_runs"]) for d in found]) <= 0.15
    assert np.mean([leaves_out_zero(d) for d in found]) <= (0.05 if not between else 0.35)
    assert all(d["n"] == GAMES and d["over_runs"]["runs"] == RUNS for d in found)


def test_three_seeds_give_the_t_interval_of_their_three_differences():
    """Seeds -33.5, -22.1 and -21.4 points apart, on 1,000 games: [-42.5, -8.8]."""
    first, base = [], [735, 690, 606]
    for won, less in zip(base, (335, 221, 214), strict=True):
        first.append(panel_of([i < won - less for i in range(1000)]))
    joint = [panel_of([i < won for i in range(1000)]) for won in base]
    found = results.difference(joint, first, COLUMN)
    assert found["value"] == pytest.approx((-0.335 - 0.221 - 0.214) / 3)
    assert tables.difference(found).endswith("t [-42.5, -8.8]")
    assert found["over_runs"]["low"] < found["low"] < found["high"] < found["over_runs"]["high"]
    extractor = [-0.185, -0.142, -0.177]
    assert statistics.t_interval(extractor) == pytest.approx((-0.225, -0.111), abs=5e-4)


def test_runs_are_paired_by_their_seed_and_many_need_no_t():
    rng = np.random.default_rng(7)
    runs = [panel_of(rng.random(GAMES) < p) for p in (0.2, 0.4, 0.6, 0.3, 0.5, 0.7)]
    assert results.difference(runs, runs, COLUMN)["value"] == 0
    found = results.difference(runs[:2], runs[1:3], COLUMN)
    assert found["value"] == pytest.approx(0.2, abs=0.06) and found["over_runs"]["runs"] == 2
    assert results.success(runs, COLUMN)["over_runs"] is None
    assert results.success(runs[:5], COLUMN)["over_runs"]["runs"] == 5
    assert results.success(runs[:1], COLUMN)["over_runs"] is None


def test_two_crossed_causes_against_a_plain_loop():
    rng = np.random.default_rng(8)
    table = (rng.normal(size=(30, 1)) + rng.normal(size=(1, 8)) + rng.normal(size=(30, 8))) > 0
    rows, columns = (np.ravel(x) for x in np.indices(table.shape))
    value, low, high = statistics.bootstrap(table.ravel(), rows, crossed=columns)
    draws = [
        table[np.ix_(rng.integers(30, size=30), rng.integers(8, size=8))].mean()
        for _ in range(4000)
    ]
    assert value == pytest.approx(table.mean())
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.015)


def test_weights_make_a_ratio_of_sums():
    totals, sizes = [3.0, 1.0, 5.0, 0.0], [4, 2, 8, 3]
    value, low, high = statistics.bootstrap(totals, range(4), weights=sizes)
    assert value == pytest.approx(9 / 17) and low < value < high


# -- streams ---------------------------------------------------------------------------------------


def null_stream(rng, seed, tasks, num_skills):
    """A stream whose skills are worth something or do harm, and on average nothing."""
    worth = rng.normal(0, 0.25, num_skills)
    records = [SkillRecord(f"s{seed}-{i}", 0, f"source {i}", "h") for i in range(num_skills)]
    plays = []
    for position, task in enumerate(tasks):
        skill = int(rng.integers(num_skills))
        sides = [
            Side(bool(rng.random() < chance), "ok", 3, "", "")
            for chance in (0.5 + worth[skill], 0.5)
        ]
        plays.append(StreamPlay(task, seed, position, 0, [(records[skill], 0.5)], *sides))
    return plays


@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_skills_that_are_worth_nothing_show_nothing_in_a_stream(seeds):
    rng = np.random.default_rng(9)
    tasks = [make_task(f"t{i:03d}") for i in range(120 // len(seeds))]
    grouped, single = [], []
    for _ in range(50):
        plays = [p for seed in seeds for p in null_stream(rng, seed, tasks, 15)]
        grouped.append(leaves_out_zero(with_and_without(plays)["difference"]))
        alone = {(p.task.id, p.seed): p.with_bank.won for p in plays}
        without = {(p.task.id, p.seed): p.without.won for p in plays}
        single.append(leaves_out_zero(statistics.paired(without, alone, {})))
    assert np.mean(grouped) <= 0.1 < np.mean(single)


@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_tasks_of_one_site_are_drawn_together_in_a_stream(seeds):
    """Six sites, of which three are always won and three never: n is six, with and without the bank."""
    plays = []
    for seed in seeds:
        for i in range(120):
            task = make_task(f"t{i:03d}", env="mind2web", group=f"site{i % 6}")
            side = Side(i % 6 < 3, "ok", 3, "", "")
            record = SkillRecord(f"s{seed}-{i}", 0, f"source {i}", "h")
            plays.append(StreamPlay(task, seed, i, 0, [(record, 0.5)], side, side))
    found = with_and_without(plays)
    for side in ("with", "without"):
        assert found[side]["high"] - found[side]["low"] > 0.5, found[side]


def test_two_sides_with_skills_of_their_own_are_drawn_by_both():
    """Three skills of the one side decide nearly everything; the other side has one a game."""
    games = range(60)
    won = {0: 0.95, 1: 0.5, 2: 0.05}
    rng = np.random.default_rng(3)
    before = {(g, 0): float(rng.random() < won[g % 3]) for g in games}
    after = {(g, 0): float(rng.random() < 0.5) for g in games}
    groups = {
        "other": {g: ("skills", g % 3) for g in games},
        "ours": {g: ("skills", f"s{g}") for g in games},
    }
    tables = {("x", "other"): before, ("x", "ours"): after}
    (row,) = statistics.paired_rows(tables, groups, [("other", "ours")])
    alone = statistics.paired(before, after, groups["ours"])
    assert row["high"] - row["low"] > 1.5 * (alone["high"] - alone["low"])


# -- the published tables --------------------------------------------------------------------------


def reproduce_rows(start):
    """The cells of the rows of docs/reproduce.md that begin with ``start``."""
    page = pathlib.Path(__file__).parents[1] / "docs" / "reproduce.md"
    lines = [x for x in page.read_text(encoding="utf-8").splitlines() if x.startswith(f"| {start}")]
    return [[cell.replace("*", "").strip() for cell in x.strip("| ").split(" | ")] for x in lines]


@pytest.mark.parametrize("temperature", ["1", "0.3"])
def test_published_differences_are_those_of_the_published_seeds(temperature):
    seeds = np.array(
        [
            [[float(x) for x in cell.split("/")] for cell in row[1:]]
            for seed in range(3)
            for row in reproduce_rows(f"{seed}, {temperature} ")
        ]
    )  # [seeds, policies, splits]
    policies = ["warm start", "joint", "solver_only", "extractor_only", "grpo"]
    assert seeds.shape == (3, 5, 2)
    which = 0 if temperature == "1" else 1
    for p, name in enumerate(policies[2:], 2):
        row = [r for r in reproduce_rows(f"{name} |") if len(r) == 5 and "[" not in r[1]][which]
        for split in range(2):
            change = seeds[:, p, split] - seeds[:, 1, split]
            assert [float(x) for x in row[1 + 2 * split].split(",")] == pytest.approx(change)
            low, high = statistics.t_interval(change)
            expected = tables.difference(
                {"value": change.mean() / 100, "low": low / 100, "high": high / 100}
            )
            assert row[2 + 2 * split] == expected
