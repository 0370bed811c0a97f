"""Runs that are ended by SIGTERM and SIGKILL: nothing is lost, nothing is repeated."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import metadata_server
import numpy as np
import pytest
from conftest import ROOT

from evolving_rl_jax.record.metrics import read_metrics
from evolving_rl_jax.run.preemption import EXIT_AGAIN

CONFIG = """
import importlib.util


def get_config():
    spec = importlib.util.spec_from_file_location("debug", {debug!r})
    debug = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(debug)
    config = debug.get_config()
    config.warmstart.enabled = False
    config.algorithm.entropy_coef.update(solver=0.01, extractor=0.01)  # a gradient without any win
    config.train.num_iterations = {iterations}
    config.checkpoint.update(every=3, keep_last=2)
    config.eval.update(num_games=1, conditions=("none",))
    return config
"""

# Imports once, then forks a process for every start: `GO ARGUMENTS` -> its pid, then its exit code.
FORKER = """
import os, sys
import alfworld.agents.environment.alfred_tw_env, orbax.checkpoint, sklearn.feature_extraction.text
from evolving_rl_jax.cli.main import main
from evolving_rl_jax.run import parts
from evolving_rl_jax.train import loop

for line in sys.stdin:
    out = os.dup(1)
    pid = os.fork()
    if not pid:
        log = os.open(os.environ["RUN_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2), os.close(0)
        code = main(line.split())
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Starter:
    """Starts ``evolving-rl`` again and again without importing again."""

    def __init__(self, log, compiled):
        self.log = log
        variables = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "RUN_LOG": str(log),
        }
        variables.pop("XLA_FLAGS", None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKER],
            env=variables,
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, *arguments) -> int:
        """Returns the pid of a new run."""
        self.process.stdin.write(" ".join(map(str, arguments)) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """The exit code of the run."""
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def starter(tmp_path, compiled):
    pytest.importorskip("alfworld")
    starter = Starter(tmp_path / "log", compiled)
    yield starter
    starter.close()


@pytest.fixture
def metadata(monkeypatch):
    with metadata_server.serve(monkeypatch) as server:
        yield server


def config_of(tmp_path, iterations):
    path = tmp_path / "config.py"
    debug = str(ROOT / "configs" / "debug.py")
    text = CONFIG.format(debug=debug, iterations=iterations)
    path.write_text(text, encoding="utf-8")
    return path


def assert_same_run(workdir, undisturbed, iterations):
    """Metrics but for times, bank, episodes and parameters are equal bit for bit."""

    def unclocked(folder):
        records = read_metrics(folder)
        return [{k: v for k, v in r.items() if k[:5] not in ("time/", "rate/")} for r in records]

    assert unclocked(workdir) == unclocked(undisturbed)
    bank = "skills/bank.jsonl"
    assert (workdir / bank).read_bytes() == (undisturbed / bank).read_bytes()
    paths = sorted(p.name for p in (undisturbed / "episodes").iterdir())
    assert paths == sorted(p.name for p in (workdir / "episodes").iterdir())
    played = []
    for name in paths:
        text = gzip.decompress((workdir / "episodes" / name).read_bytes())
        assert text == gzip.decompress((undisturbed / "episodes" / name).read_bytes())
        played += [json.loads(line)["source"]["task"] for line in text.splitlines()]
    assert len(paths) == iterations and len(played) == 2 * iterations
    (one, last), (other, _) = policy(workdir), policy(undisturbed)
    assert last == iterations and one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def policy(workdir):
    import jax

    from evolving_rl_jax.run.folder import RunFolder
    from evolving_rl_jax.run.policy import load_policy

    params, _, iteration = load_policy(RunFolder(str(workdir)), "latest")
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}, iteration


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def disturbed(starter, command, workdir, kills, iterations, rng):
    """Starts and ends the run ``kills`` times in turn by SIGTERM and SIGKILL; returns the codes."""
    codes = []
    for i in range(kills):
        pid = starter.start(*command)
        before = lines(workdir)
        if i % 3 == 2:  # anywhere, the start included
            time.sleep(rng.uniform(0, 6))
        else:  # while it trains
            target = min(before + rng.randint(1, 4), iterations - 2)
            end = time.monotonic() + 120
            while lines(workdir) < target and time.monotonic() < end:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.2))
        try:
            os.kill(pid, signal.SIGTERM if i % 2 == 0 else signal.SIGKILL)
        except ProcessLookupError:
            pass
        codes.append(starter.wait())
    return codes


@pytest.fixture
def compare(starter, tmp_path):
    """A function that ends a run ``kills`` times and compares it with one that nobody disturbed."""

    def run(kills, iterations, seed):
        config = config_of(tmp_path, iterations)
        calm, workdir = tmp_path / "calm", tmp_path / "disturbed"
        starter.start("train", f"--config={config}", f"--workdir={calm}")
        assert starter.wait() == 0, starter.log.read_text()[-3000:]
        for name in ("games", "tokenizer"):  # of the config alone
            shutil.copytree(calm / name, workdir / name)
        shutil.copy(calm / "config.json", workdir)
        command = ("train", f"--config={config}", f"--workdir={workdir}")
        codes = disturbed(starter, command, workdir, kills, iterations, random.Random(seed))
        starter.start(*command)
        assert starter.wait() == 0, starter.log.read_text()[-3000:]
        assert_same_run(workdir, calm, iterations)
        return codes

    return run


def test_a_run_ended_by_signals_is_the_run_that_was_not(compare, starter):
    codes = compare(kills=2, iterations=6, seed=1)
    assert codes == [EXIT_AGAIN, -signal.SIGKILL]
    log = starter.log.read_text()
    assert "SIGTERM: the same command goes on from here" in log
    assert "saved after iteration" in log and "going on from the checkpoint after" in log


def test_ctrl_c_saves_what_is_done(starter, tmp_path):
    config, workdir = config_of(tmp_path, 30), tmp_path / "run"
    pid = starter.start(
        "train", f"--config={config}", f"--workdir={workdir}", "--config.checkpoint.every=30"
    )
    end = time.monotonic() + 300
    while not lines(workdir):
        assert time.monotonic() < end, starter.log.read_text()[-3000:]
        time.sleep(0.002)
    os.kill(pid, signal.SIGINT)
    assert starter.wait() == 130, starter.log.read_text()[-3000:]
    done = lines(workdir)
    assert f"saved after iteration {done}" in starter.log.read_text() and 1 <= done < 30
    assert (workdir / "checkpoints" / str(done)).is_dir()


def test_a_standing_announcement_ends_no_run_and_a_lost_small_panel_is_played(
    metadata, compiled, tmp_path
):
    pytest.importorskip("alfworld")
    metadata.values["maintenance-event"] = [metadata_server.MAINTENANCE]
    starter = Starter(tmp_path / "log", compiled)
    config, workdir = config_of(tmp_path, 4), tmp_path / "run"
    command = ("train", f"--config={config}", f"--workdir={workdir}", "--config.eval.every=2")
    command += ("--config.checkpoint.every=4", "--config.eval.every_games=2")
    try:
        starter.start(*command)
        assert starter.wait() == 0, starter.log.read_text()[-3000:]
        log = starter.log.read_text()
        assert (
            lines(workdir) == 4
            and log.count(f"maintenance-event {metadata_server.MAINTENANCE}: saving") == 1
        )
        assert "saved after iteration 1\n" in log
        panels = sorted((workdir / "eval").glob("iteration_0000[24]-*.json"))
        assert len(panels) == 2
        played = panels[1].read_bytes()
        for path in [panels[1], *(workdir / "eval").glob("final-*")]:  # as a kill in it leaves it
            path.unlink()
        starter.start(*command)
        assert starter.wait() == 0, starter.log.read_text()[-3000:]
        assert panels[1].read_bytes() == played and lines(workdir) == 4
    finally:
        starter.close()


@pytest.mark.slow
def test_twenty_signals_at_random_moments(compare):
    codes = compare(kills=20, iterations=70, seed=2)
    assert codes.count(EXIT_AGAIN) >= 6 and codes.count(-signal.SIGKILL) >= 6
    # Before the program has taken the signal over it does what it does to any program.
    assert set(codes) <= {EXIT_AGAIN, -signal.SIGKILL, -signal.SIGTERM}
