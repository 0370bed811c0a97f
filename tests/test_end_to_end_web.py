"""The whole program on web tasks, shrunk: the same loop, folder, arms and commands as on households."""

import gzip
import json

import numpy as np
import pytest
from conftest import ROOT
from programs import ARMS, COUNTING

from evolving_rl_jax.config import load_config
from evolving_rl_jax.record.metrics import read_metrics

pytest.importorskip("tensorflow_datasets")

CONFIG = """
import importlib.util


def get_config():
    spec = importlib.util.spec_from_file_location("quickstart", {quickstart!r})
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    config = quickstart.get_config()
    config.data.sites.update(
        num_train=4, tasks_per_site=4, test_tasks=4, num_test=2, warmstart_sites=16,
        tasks_per_warmstart_site=8,
    )
    config.model.update(hidden_size=48, intermediate_size=96, num_heads=2, num_kv_heads=2)
    config.rollout.update(
        num_sources=2, num_retrieved=2, num_skills=2, num_slots=16, column_buckets=(192,),
        max_length=192, prefill_buckets=(64,), temperature=0.5,
    )
    config.algorithm.entropy_coef.update(solver=0.01, extractor=0.01)  # a gradient without any win
    config.train.update(num_iterations=3, minibatches=1, micro_batch_rows=4, row_length=192)
    config.warmstart.update(steps=1000, learning_rate=1e-2, episodes=512, batch_rows=8)
    config.eval.update(temperatures=(0.5,), num_games=3)
    return config
"""
SPLITS = ("test_task", "test_website", "test_domain")


@pytest.fixture(scope="module")
def web_config(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "web.py"
    quickstart = str(ROOT / "configs" / "mind2web_quickstart.py")
    path.write_text(CONFIG.format(quickstart=quickstart), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def finished(program, web_config, tmp_path_factory):
    """(folder of a run, its process, compilations)."""
    folder = tmp_path_factory.mktemp("runs")
    workdir, counts = folder / "run", folder / "compilations.json"
    result = program(counts, workdir, "train", f"--config={web_config}", code=COUNTING)
    assert result.returncode == 0, result.stderr[-3000:]
    return workdir, result, json.loads(counts.read_text())


def panel_of(workdir, name):
    return json.loads((workdir / "eval" / f"{name}-t0.5.json").read_text(encoding="utf-8"))


def test_a_run_prints_the_metrics_before_and_after_with_intervals(finished):
    workdir, result, _ = finished
    blocks = result.stderr.split("success in % [95 % interval: ")[-1].split("\n\n")
    headings = [b.splitlines()[0] for b in blocks[1:]]
    for metric in ("action accuracy", "element accuracy", "operation F1", "step success"):
        (block,) = [b for b in blocks if b.startswith(f"{metric} in %")]
        for split in SPLITS:
            rows = [line for line in block.splitlines() if line.startswith(split)]
            assert len(rows) == 4 and all(line.count("[") == 3 for line in rows), headings
    assert "Traceback" not in result.stderr and "Warning" not in result.stderr
    assert "Web metrics" in (workdir / "report.html").read_text(encoding="utf-8")


def test_nothing_compiles_after_the_first_iteration(finished):
    counts = finished[2]
    assert len(counts) > 5 and [c for c in counts if c > 0] == []


def test_metrics_and_bank_hold_scores_of_steps(finished, web_config):
    workdir, r = finished[0], load_config(web_config).rollout
    records = read_metrics(workdir)
    assert len(records) == 3
    for record in records:
        assert 0 <= record["rollout/action_accuracy"] <= 1
        assert 0 <= record["rollout/correct_steps"] <= 4
        assert record["train/logprob_gap_max"] < 1e-3 and record["train/update_norm"] > 0
    assert sum(r["rollout/skill_valid"] for r in records) > 0
    assert sum(r["rollout/correct_steps"] for r in records) > 0
    bank = [json.loads(line) for line in (workdir / "skills" / "bank.jsonl").open(encoding="utf-8")]
    assert len(bank) == 3 * r.num_sources * r.num_skills
    path = workdir / "episodes" / "iteration_00000.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        sources = [json.loads(line) for line in file]
    by_id = {record["id"]: record for record in bank}
    for g, source in enumerate(sources):
        for n, skill in enumerate(source["skills"]):
            record = by_id[f"it00000-g{g:03d}-n{n}"]
            if skill["valid"]:
                assert record["reward"] == pytest.approx(skill["reward"])
            for episode in skill["episodes"]:
                steps = [s["turn"] for s in episode["sequences"]]
                assert steps == list(range(len(episode["turns"])))  # a sequence for every step
                assert all(np.isfinite(s["advantage"]) for s in episode["sequences"])


def test_panels_hold_both_protocols_with_and_without_skills(finished):
    before, after = (panel_of(finished[0], name) for name in ("warmstart", "final"))
    assert before["game_list_hash"] == after["game_list_hash"]
    assert before["leaks"]["violations"] == []
    for panel in (before, after):
        for protocol, metric in (
            ("stop_at_error", "action_accuracy"),
            ("teacher_forced", "step_success"),
        ):
            for split in SPLITS:
                for condition in ("none", "own", "oracle", "misleading"):
                    figures = panel["web"][protocol][split][condition]
                    value = figures[metric]["macro"]
                    assert value["low"] <= value["value"] <= value["high"]
                    assert figures["num_tasks"] == 3 and figures["gold_missing"] == 0
        steps = panel["web"]["teacher_forced"]["test_task"]["none"]["num_steps"]
        assert 3 * 3 <= steps <= 3 * 4  # all of them, whatever was done
    for game in before["games"]:
        wanted = game["split"] if game["split"] != "test_task" else "train"
        assert game["retrieved"]["split"] in (wanted, f"{wanted}_sources")


@pytest.mark.slow
def test_the_other_arms_and_eval_run(finished, program, web_config, tmp_path):
    workdir = finished[0]
    result = program(
        tmp_path, "train", f"--config={web_config}", f"--config.data.games={workdir / 'games'}",
        "--config.warmstart.enabled=false", f"--config.model.hf_path={workdir / 'warmstart'}",
        "--config.train.num_iterations=1", "--config.eval.num_games=1",
        "--config.eval.conditions=none", code=ARMS,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    for arm in ("solver_only", "extractor_only", "grpo"):
        record = read_metrics(tmp_path / arm)[0]
        assert record["train/update_norm"] > 0 and np.isfinite(record["train/loss"]), arm
    assert not (tmp_path / "grpo" / "skills").exists()
    result = program("eval", f"--workdir={workdir}", "--temperature=0.5")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "action accuracy" in result.stdout and "(micro)" in result.stdout
    played, final = panel_of(workdir, "checkpoint_00003"), panel_of(workdir, "final")
    assert played["web"] == final["web"] and played["games"] == final["games"]
