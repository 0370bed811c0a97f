"""The ablation: one warm start a seed, the same panel for all, whose skills help whom, and the table."""

import copy
import json
import os

import pytest
from report_runs import make_run, panel, write_json

from evolving_rl_jax.cli.ablation import parse_arms, parse_seeds
from evolving_rl_jax.config import ARMS, ConfigError
from evolving_rl_jax.report.readers import read_run
from evolving_rl_jax.train.ablation.summary import cross_file, cross_tables, write_summary


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (0, 1, 2)), ("1", (0,)), ("0,4", (0, 4)), ("4,", (4,)), ("2,2", (2,))]
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1,-2", "1.5"])
def test_wrong_seeds(text):
    with pytest.raises(ConfigError, match="--seeds must be"):
        parse_seeds(text)


def test_arms():
    assert parse_arms(",".join(ARMS)) == ARMS
    assert parse_arms(" grpo, joint,grpo") == ("grpo", "joint")
    for text in ("", "jiont", "joint,all"):
        with pytest.raises(ConfigError, match="--arms must be of joint, solver_only"):
            parse_arms(text)


# -- the table -------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path):
    """Two arms, two seeds, and the panels of their crossing."""
    folders = []
    for seed in (0, 1):
        for arm in ("joint", "grpo"):
            folder = make_run(tmp_path / "runs" / f"{arm}-{seed}", seed=seed, arm=arm)
            for late, name in enumerate(("warmstart", "final")):
                shift = 10 * (arm == "grpo") * late  # the arms share the warm start
                file = panel(name, 1.0, late, seed=seed + shift)
                write_json(folder, f"eval/{name}-t1.json", file)
            folders.append(folder)
        policies = ("warmstart", "joint", "grpo")
        for i, solver in enumerate(policies):
            for j, extractor in enumerate(policies):
                if solver != extractor:
                    path = cross_file(tmp_path, seed, 1.0, solver, extractor)
                    file = panel(f"{solver}+{extractor}", 1.0, min(i, 1), seed=100 + 9 * i + 3 * j + seed,
                                 conditions=("own",))  # fmt: skip
                    file["skills_from"] = {"name": extractor, "iteration": 56 * min(j, 1)}
                    write_json(tmp_path, str(path.relative_to(tmp_path)), file)
    return tmp_path, folders


def share(paths, split):
    """Wins with own skills, counted by hand."""
    won = [
        game["conditions"]["own"]["won"]
        for path in paths
        for game in json.loads(path.read_text())["games"]
        if game["split"] == split
    ]
    return sum(won) / len(won)


def test_crossed_success_is_pooled_over_seeds(finished):
    workdir, folders = finished
    tables = cross_tables(workdir, [read_run(f) for f in folders], [])
    assert {t["split"] for t in tables} == {"valid_unseen", "heldout_types"}
    for table in tables:
        assert table["policies"] == ["warmstart", "joint", "grpo"]
        for i, solver in enumerate(table["policies"]):
            for j, extractor in enumerate(table["policies"]):
                paths = [cross_file(workdir, s, 1.0, solver, extractor) for s in (0, 1)]
                if i == j:  # each policy with its own skills is in its run
                    arm, name = ("joint", solver) if solver == "warmstart" else (solver, "final")
                    paths = [workdir / f"runs/{arm}-{s}/eval/{name}-t1.json" for s in (0, 1)]
                cell = table["cells"][i][j]
                assert cell["success"] == pytest.approx(share(paths, table["split"]))
                assert cell["low"] < cell["success"] < cell["high"]


def test_seeds_that_were_not_asked_for_are_left_out(finished):
    workdir, folders = finished
    for table in cross_tables(workdir, [read_run(f) for f in folders if f.name.endswith("-1")], []):
        path = cross_file(workdir, 1, 1.0, "joint", "grpo")
        assert table["cells"][1][2]["success"] == pytest.approx(share([path], table["split"]))


def test_summary_has_every_part(finished):
    workdir, folders = finished
    text = write_summary(workdir, folders)
    assert text == (workdir / "ablation.md").read_text()
    for part in ("After training, temperature 1", "Minus joint", "Every seed: unseen households, own skill",
                 "Solver (row) with the skills of (column): unseen households"):  # fmt: skip
        assert part in text
    summary = json.loads((workdir / "ablation.json").read_text())
    rows = [r for r in summary["by_seed"] if (r["arm"], r["seed"]) == ("grpo", 1)]
    assert {r["policy"] for r in rows} == {"warmstart", "final"}
    path = workdir / "runs/grpo-1/eval/final-t1.json"
    (final,) = (r for r in rows if r["policy"] == "final" and r["temperature"] == 1.0)
    assert final["success"]["valid_unseen/own"] == share([path], "valid_unseen")


def test_every_seed_is_a_row_with_its_one_warm_start(finished):
    workdir, folders = finished
    (workdir / "runs/grpo-0/eval/final-t1.json").unlink()
    text = write_summary(workdir, folders)
    table = text.split("## Every seed: unseen households, own skill, temperature 1\n\n")[1]
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()[:4]]
    assert lines[0] == ["seed", "warm start", "joint", "grpo"]
    for seed, line in enumerate(lines[2:]):
        files = ("joint", "warmstart"), ("joint", "final"), ("grpo", "final")
        paths = [workdir / f"runs/{arm}-{seed}/eval/{name}-t1.json" for arm, name in files]
        wins = [f"{100 * share([p], 'valid_unseen'):.1f}" if p.exists() else "–" for p in paths]
        assert line == [str(seed), *wins]


def test_a_missing_pair_is_a_hole_in_the_table(finished):
    workdir, folders = finished
    for seed in (0, 1):
        cross_file(workdir, seed, 1.0, "joint", "grpo").unlink()
    for table in cross_tables(workdir, [read_run(f) for f in folders], []):
        assert table["cells"][1][2] is None and table["cells"][2][1] is not None


@pytest.mark.parametrize("who", ["iteration", "skills_from"])
def test_a_crossing_of_policies_that_were_trained_on_is_left_out_and_said(finished, who):
    workdir, folders = finished
    path = cross_file(workdir, 1, 1.0, "joint", "grpo")
    old = json.loads(path.read_text())
    old |= (
        {"iteration": 0}
        if who == "iteration"
        else {"skills_from": {"name": "final", "iteration": 0}}
    )
    path.write_text(json.dumps(old))
    other, notices = cross_file(workdir, 0, 1.0, "joint", "grpo"), []
    for table in cross_tables(workdir, [read_run(f) for f in folders], notices):
        assert table["cells"][1][2]["success"] == pytest.approx(share([other], table["split"]))
    assert len(notices) == 1 and notices[0].startswith("joint+grpo, seed 1: left out")


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ablation(tmp_path_factory, program, tiny_config):
    """A small ablation; another call of the command goes on in its folder."""
    workdir = tmp_path_factory.mktemp("ablation") / "all"

    def run(arms, *more):
        return program(
            "ablation", f"--config={tiny_config}", f"--workdir={workdir}", f"--arms={arms}",
            "--seeds=0,", "--config.train.num_iterations=1", *more,
        )  # fmt: skip

    done = run("joint,solver_only")
    assert done.returncode == 0, done.stderr
    return workdir, done, run


def test_arms_share_games_and_warm_start(ablation):
    workdir, done, _ = ablation
    runs = [workdir / "runs" / f"{arm}-0" for arm in ("joint", "solver_only")]
    for name in ("warmstart/model.safetensors", "tokenizer/tokenizer.json",
                 "eval/warmstart-t0.5.json"):  # fmt: skip
        assert runs[0].joinpath(name).read_bytes() == runs[1].joinpath(name).read_bytes()
    assert done.stderr.count("warm start: loss") == 1  # cloned once
    finals = [json.loads((run / "eval" / "final-t0.5.json").read_text()) for run in runs]
    assert finals[0]["game_list_hash"] == finals[1]["game_list_hash"]
    assert not (runs[0] / "games").exists() and (workdir / "games" / "games.json").is_file()
    assert "Solver (row) with the skills of (column)" in done.stdout


def test_every_pair_plays_the_skills_of_the_extractor(ablation):
    workdir, _, _ = ablation
    written = json.loads((workdir / "runs/solver_only-0/eval/final-t0.5.json").read_text())
    crossed = json.loads(cross_file(workdir, 0, 0.5, "warmstart", "solver_only").read_text())
    assert skills_of(crossed) == skills_of(written)
    assert crossed["iteration"] == 0 and not crossed["leaks"]["violations"]


def own(result):
    return {g["id"]: g["conditions"]["own"] for g in result["games"]}


def skills_of(result):
    return {name: outcome["skill"] for name, outcome in own(result).items()}


def test_a_crossed_panel_differs_from_a_panel_in_the_skills_alone(ablation):
    """A policy given its own skills repeats its panel; given others it has these in its prompts."""
    from evolving_rl_jax.eval.play import make_panel
    from evolving_rl_jax.run.engine import make_engine
    from evolving_rl_jax.run.folder import RunFolder
    from evolving_rl_jax.run.parts import open_parts
    from evolving_rl_jax.run.policy import load_policy
    from evolving_rl_jax.train.ablation.run import _play_pair

    workdir, _, _ = ablation
    folder = RunFolder(str(workdir / "runs" / "joint-0"))
    written = json.loads(folder.eval_file("final", 0.5).read_text())
    planted = copy.deepcopy(written)
    for i, game in enumerate(planted["games"]):
        game["conditions"]["own"]["skill"] = f"mug in cabinet {i % 4}"
    planted["games"][0]["conditions"]["own"]["status"] = "env_error"  # its source failed: no skill
    with open_parts(folder.load_config(), folder) as parts:
        params, _, iteration = load_policy(folder, "latest")
        engine, panel = make_engine(parts, params), make_panel(parts, parts.config.eval.num_games)
        _play_pair(parts, engine, panel, written, workdir / "again.json", iteration)
        _play_pair(parts, engine, panel, planted, workdir / "planted.json", iteration)
    assert own(json.loads((workdir / "again.json").read_text())) == own(written)
    expected = skills_of(planted)
    del expected[planted["games"][0]["id"]]
    assert skills_of(json.loads((workdir / "planted.json").read_text())) == expected


two_cores = pytest.mark.skipif(
    hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < 2, reason="needs two cores"
)


def test_a_crossing_comes_after_its_runs(ablation):
    _, _, run = ablation
    done = run("joint,extractor_only", "--only=cross-0")
    assert done.returncode == 2
    assert "--only=cross-0 must come after extractor_only-0, got it unfinished" in done.stderr
    done = run("joint", "--only=joint-1")
    assert done.returncode == 2
    assert "--only must be one of joint-0, cross-0, got 'joint-1'" in done.stderr


@two_cores
def test_another_arm_side_by_side(ablation):
    """What is finished stays; each piece that is left is a process with its output in a file."""
    workdir, _, run = ablation
    kept = {p: p.stat().st_mtime_ns for p in workdir.glob("runs/joint-0/eval/*.json")}
    kept |= {p: p.stat().st_mtime_ns for p in workdir.glob("cross/*/*.json")}
    done = run("joint,solver_only,grpo", "--jobs=2")
    assert done.returncode == 0, done.stderr
    assert "joint-0: done" in done.stderr and "joint-0: started" not in done.stderr
    assert done.stderr.index("grpo-0: done") < done.stderr.index("cross-0: started")
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert (workdir / "cross" / "0-t0.5" / "grpo+joint.json").is_file()
    assert sorted(p.name for p in (workdir / "logs").iterdir()) == ["cross-0.txt", "grpo-0.txt"]
    assert "grpo" in done.stdout and "warm start: loss" not in done.stderr
    for jobs in (1, 2):  # everything is there
        again = run("joint,solver_only,grpo", f"--jobs={jobs}")
        assert (again.returncode, again.stdout) == (0, done.stdout)
        said = "arm joint, seed 0 (1 of 3): done" if jobs == 1 else "joint-0: done"
        assert said in again.stderr and "started" not in again.stderr
    wrong = run("joint", "--jobs=0")
    assert wrong.returncode == 2 and "--jobs must be from 1 to" in wrong.stderr


@two_cores
def test_a_piece_that_fails_is_named(ablation):
    workdir, _, run = ablation
    broken = workdir / "runs" / "extractor_only-0"
    broken.mkdir(parents=True)
    (broken / "something").touch()
    done = run("joint,extractor_only", "--jobs=2")  # seen before any piece is started
    assert done.returncode == 2 and "--workdir must be new, empty or a run folder" in done.stderr
    config = json.loads((workdir / "runs" / "joint-0" / "config.json").read_text())
    config["algorithm"]["arm"] = "extractor_only"
    (broken / "config.json").write_text(json.dumps(config))
    (broken / "tokenizer").mkdir()
    (broken / "tokenizer" / "tokenizer.json").write_text("{")
    done = run("joint,extractor_only", "--jobs=2")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("evolving-rl: extractor_only-0 ended with exit code 2: evolving-rl: ")
    assert "tokenizer" in last


def test_an_arm_that_collapses_blocks_no_other(ablation):
    """The collapse is that arm's result; the same command does not train it again."""
    workdir, _, run = ablation
    more = ("--seeds=1,", "--config.collapse.action=stop", "--config.collapse.patience=1",
            "--config.collapse.max_logprob_gap=1e-12")  # fmt: skip
    done = run("solver_only,grpo", *more)
    assert done.returncode == 0, done.stderr
    for arm in ("solver_only", "grpo"):
        folder = workdir / "runs" / f"{arm}-1"
        assert (folder / "metrics.jsonl").read_bytes().count(b"\n") == 1
        assert "max_logprob_gap" in (folder / "collapses.jsonl").read_text()
        assert not list((folder / "eval").glob("final-*"))
    assert "collapse.max_logprob_gap" in done.stdout  # a note below the tables
    again = run("solver_only,grpo", *more)
    assert again.returncode == 0 and again.stdout == done.stdout[done.stdout.index("# Ablation") :]
    assert again.stderr.count("ended by config.collapse, iteration 1: ") == 2
    assert "going on" not in again.stderr
