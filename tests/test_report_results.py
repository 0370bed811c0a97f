"""Which runs and panels the report takes together."""

import json

import numpy as np
from report_runs import make_run, panel, write_json

from evolving_rl_jax.report import charts
from evolving_rl_jax.report import results as report_results
from evolving_rl_jax.report.readers import Group, groups, read_run


def test_runs_with_other_games_are_taken_over_their_own(tmp_path):
    """Households are drawn from the seed: seven names that two runs have in common are other games."""
    runs = []
    for seed in (0, 1):
        folder = make_run(tmp_path / f"r{seed}", seed=seed)
        for late, name in enumerate(("warmstart", "final")):
            result = panel(name, 1.0, late, games=40, hash_=f"list {seed}", seed=seed)
            for i, game in enumerate(result["games"]):
                game["hash"] += f" of {seed}"
                game["id"] = game["id"] if i % 40 < 7 else f"{game['id']} of {seed}"
            write_json(folder, f"eval/{name}-t1.json", result)
        runs.append(read_run(folder))
    notices = []
    table = report_results.arms_tables(groups(runs), notices)[0]
    after = table["rows"][1]["cells"][table["columns"].index(("valid_unseen", "own"))]
    won = [
        g["conditions"]["own"]["won"]
        for run in runs
        for g in run.panel("final", 1.0)["games"]
        if g["split"] == "valid_unseen"
    ]
    assert after["n"] == 40 and after["success"] == np.mean(won)
    assert any("success is that of each run on its own games" in n for n in notices)
    single = [Group(str(i), [run]) for i, run in enumerate(runs)]
    assert report_results.arms_tables(single, [])[0]["differences"][0]["cells"] == [None] * 4


def test_a_longer_run_and_another_collapse_rule_are_other_groups(tmp_path):
    folders = [make_run(tmp_path / f"r{i}", seed=0) for i in range(4)]
    for folder, key, value in (
        (folders[1], ("train", "num_iterations"), 77),
        (folders[2], ("collapse", "action"), "stop"),
        (folders[3], ("env", "num_workers"), 9),
    ):
        config = json.loads((folder / "config.json").read_text())
        config[key[0]][key[1]] = value
        (folder / "config.json").write_text(json.dumps(config))
    notices = []
    found = groups([read_run(folder) for folder in folders])
    assert [len(group.runs) for group in found] == [2, 1, 1]
    report_results.arms_tables(found, notices)
    assert any("runs of one seed count as different ones (r0, r3)" in n for n in notices)


def test_panels_of_other_lists_are_other_curves(tmp_path):
    folder = make_run(tmp_path / "r", seed=0)
    for name, iteration, games in (("iteration_00028", 28, 10), ("checkpoint_00056", 56, 60)):
        result = panel(name, 1.0, 1, games=games, hash_="abc" if games == 60 else "few")
        write_json(folder, f"eval/{name}-t1.json", {**result, "iteration": iteration})
    figures = []
    charts.panels(read_run(folder), figures, ends=("warmstart", "final"), names={})
    own = [s for s in figures[0]["series"] if s["label"].startswith("valid_unseen, own")]
    assert {s["label"]: s["x"] for s in own} == {
        "valid_unseen, own, 60 plays": [0, 56],
        "valid_unseen, own, 10 plays": [28],
    }
