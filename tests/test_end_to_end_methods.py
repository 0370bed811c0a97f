"""All switches of the kindred methods at once: they run together, go on after a stop, and on two processes."""

import shutil

import numpy as np
import pytest
from conftest import ROOT
from test_end_to_end import assert_same_policy, policy, unclocked
from test_train_hosts import assert_same_run, command, finish, launch

from evolving_rl_jax.record.metrics import read_metrics

pytest.importorskip("alfworld")

CONFIG = """
import importlib.util


def get_config():
    spec = importlib.util.spec_from_file_location("tiny", {tiny!r})
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    config = tiny.get_config()
    config.train.num_iterations = 2
    config.eval.update(num_games=2, conditions=("none", "own"))
    config.optimizer.update(schedule="constant", warmup_steps=0)
    config.hosts.heartbeat_timeout_s = 10.0
    config.replay.update(sequences=8, kl_coef=0.01)
    config.replay.wins.update(weight=1.0, min_advantage=0.1)
    config.replay.guided.weight = 0.5
    config.replay.skills.weight = 0.5
    config.replay.extractions.update(weight=0.5, cooldown=0)
    config.curriculum.kind = "bandit"
    config.guidance.update(free_repeats=4, repeats=2, diversity=0.1, min_uses=3, min_value=0.1)
    config.rollout.refill_rounds = 1
    config.train.minibatches = 2
    config.algorithm.update(
        empty_groups="drop", kl_without_spread=False, ratio="cispo", advantage="leave_one_out",
        solver_reward=1.0, aggregate="token", extractor_clip={{"low": 0.2, "high": 0.2}},
    )
    config.algorithm.covariance.update(kind="kl", share=0.01)
    return config
"""
SHARED = ("games", "cache", "tokenizer", "warmstart")


@pytest.fixture(scope="module")
def all_on(tmp_path_factory, tiny_config):
    path = tmp_path_factory.mktemp("configs") / "methods.py"
    path.write_text(CONFIG.format(tiny=tiny_config), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def undisturbed(program, all_on, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("methods") / "run"
    result = program("train", f"--config={all_on}", f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr[-3000:]
    return workdir


def started_like(run, workdir):
    """A folder with the games and the policy that another run started from."""
    for name in SHARED:
        if (run / name).exists():
            shutil.copytree(run / name, workdir / name)
    shutil.copy(run / "config.json", workdir)
    return workdir


def test_all_switches_run_together_and_have_work(undisturbed):
    records = read_metrics(undisturbed)
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for record in records:
        assert all(f"`{name}`" in text for name in record)
        assert np.isfinite(record["train/loss"]) and record["train/sequences_given"] > 0
        assert record["rollout/free_plays"] > 0 and record["curriculum/entropy"] > 0
    worked = ("train/update_norm", "train/sequences_detached", "replay/extractions", "bank/skills")
    for name in worked:
        assert sum(record[name] for record in records) > 0, name
    assert sum(record.get("rollout/bank_plays", 0) for record in records) > 0
    kept = sorted(int(p.name) for p in (undisturbed / "checkpoints").iterdir() if p.name.isdigit())
    assert sorted(int(p.stem) for p in (undisturbed / "replay").iterdir())[-len(kept) :] == kept


def test_a_run_that_was_stopped_goes_on_bit_for_bit(undisturbed, program, all_on, tmp_path):
    """With buffers, bank and curriculum of the checkpoint."""
    workdir = started_like(undisturbed, tmp_path)
    arguments = ("train", f"--config={all_on}", f"--workdir={workdir}")
    for more in (["--config.train.num_iterations=1"], []):
        result = program(*arguments, *more)
        assert result.returncode == 0, result.stderr[-3000:]
    assert "going on from the checkpoint after iteration 1" in result.stderr
    assert unclocked(workdir) == unclocked(undisturbed)
    assert_same_policy(policy(workdir)[0], policy(undisturbed)[0])


@pytest.mark.slow
def test_two_processes_do_what_one_does(all_on, tmp_path_factory, tmp_path):
    compiled = tmp_path_factory.mktemp("compiled")
    single, double = tmp_path / "single", tmp_path / "double"
    more = "--config.rollout.num_sources=4"  # two a minibatch: one for each process
    ((_, err), code) = finish(launch(command(all_on, single, more), 1, compiled=compiled))[0]
    assert code == 0, err[-3000:]
    double.mkdir()
    started_like(single, double)
    for (_, err), code in finish(launch(command(all_on, double, more), 2, compiled=compiled)):
        assert code == 0, err[-3000:]
    assert_same_run(single, double)
