"""A whole run whose rollouts overlap the train step, undisturbed and killed."""

import signal
import time

import pytest

from evolving_rl_jax.record.metrics import read_metrics

pytest.importorskip("alfworld")
pytestmark = pytest.mark.slow

OPTIONS = (
    "--config.rollout.overlap=1",
    "--config.algorithm.importance.kind=truncated",
    "--config.checkpoint.every=3",
    "--config.train.num_iterations=5",
    "--config.eval.num_games=1",
    "--config.eval.every=4",
    "--config.eval.every_games=1",
)


def without_times(workdir):
    records = read_metrics(workdir)
    timed = ("time/", "rate/", "rollout/overlapped_seconds")
    return [{k: v for k, v in r.items() if not k.startswith(timed)} for r in records]


def test_an_overlapped_run_is_the_same_when_it_is_killed_and_resumed(
    program, tiny_config, tmp_path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = ("train", f"--config={tiny_config}", *OPTIONS)
    result = program(*command, f"--workdir={whole}")
    assert result.returncode == 0, result.stderr[-3000:]
    records = read_metrics(whole)
    lag = [r["rollout/policy_lag"] for r in records]
    # Iteration 0 is played by its own weights, and so is the one after the checkpoint.
    assert lag == [0, 2, 2, 0, 2]
    for r in records:
        stages = ("environment", "prefill", "decode", "train", "other")
        total = sum(r[f"time/{stage}"] for stage in stages)
        assert total == pytest.approx(r["time/total"] + r["rollout/overlapped_seconds"])
        assert (r["rollout/overlapped_seconds"] > 0) == (r["rollout/policy_lag"] > 0)
        assert r["train/clip_fraction"] == 0 and 0 < r["train/importance_mean"] <= 2
        assert r["train/logprob_gap_mean"] < 1e-4 or r["rollout/policy_lag"] > 0
    process = program(*command, f"--workdir={killed}", wait=False)
    end = time.monotonic() + 300
    metrics = killed / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 5:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    result = program(*command, f"--workdir={killed}")
    assert result.returncode == 0, result.stderr[-3000:]
    assert without_times(killed) == without_times(whole)
    bank = "skills/bank.jsonl"
    assert (killed / bank).read_bytes() == (whole / bank).read_bytes()


DEVICES = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
from evolving_rl_jax.cli.main import main

code = main(sys.argv[1:])
import jax
assert len(jax.devices()) == 8
sys.exit(code)
"""


def test_rollouts_overlap_updates_on_a_mesh_of_several_devices(program, tiny_config, tmp_path):
    """Both start programs with collectives, over all eight devices and over two of them."""
    result = program(
        "train", f"--config={tiny_config}", *OPTIONS, f"--workdir={tmp_path}", "--config.mesh.fsdp=4",
        "--config.train.micro_batch_rows=8", "--config.warmstart.batch_rows=8",
        "--config.warmstart.steps=20", code=DEVICES,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    records = read_metrics(tmp_path)
    assert [r["rollout/policy_lag"] for r in records] == [0, 2, 2, 0, 2]
    for r in records:
        assert r["train/update_norm"] > 0
        assert r["train/logprob_gap_mean"] < 1e-4 or r["rollout/policy_lag"] > 0


def test_a_failure_while_playing_ahead_ends_the_run(program, tiny_config, tmp_path):
    code = """
import sys
from evolving_rl_jax.cli.main import main
from evolving_rl_jax.rollout.evolve import Evolver

collect, calls = Evolver.collect, []


def failing(self, *args, **options):
    calls.append(1)
    if len(calls) == 2:
        raise OSError("no such luck")
    return collect(self, *args, **options)


Evolver.collect = failing
sys.exit(main(sys.argv[1:]))
"""
    result = program(
        "train", f"--config={tiny_config}", *OPTIONS, f"--workdir={tmp_path}", code=code
    )
    assert result.returncode not in (0, 2) and "no such luck" in result.stderr
    assert len(read_metrics(tmp_path)) == 1  # the iteration that it overlapped was finished
