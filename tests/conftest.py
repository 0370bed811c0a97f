"""Shared by the tests: generated games, and one small run of the whole program."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

# Tests compile far more than they compute.  LLVM's optimisations are left out in their processes; the
# passes of XLA stay, and what `program` starts runs as shipped.  With XLA_FLAGS= everything does.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Nothing is kept in the cache folder of whoever runs the tests.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

ROOT = pathlib.Path(__file__).parents[1]
collect_ignore_glob = ["golden/*.py"]  # the script that makes golden files needs torch

# Smaller than configs/debug.py, but its policy writes skills that pass: every stage has work.
TINY_CONFIG = """
import importlib.util


def get_config():
    spec = importlib.util.spec_from_file_location("debug", {debug!r})
    debug = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(debug)
    config = debug.get_config()
    config.data.households.update(warmstart_games=96)
    config.model.update(hidden_size=32, num_layers=2, num_heads=2)
    config.rollout.update(
        max_length=256, column_buckets=(256,), prefill_buckets=(32,), temperature=0.5
    )
    config.algorithm.entropy_coef.update(solver=0.01, extractor=0.01)  # a gradient without any win
    config.model.qk_norm = False  # these 250 steps teach valid skills without it
    config.train.update(row_length=256, num_iterations=4)
    config.warmstart.update(steps=250, learning_rate=1e-2, episodes=192)
    config.eval.update(temperatures=(0.5,), num_games=4)
    return config
"""


@pytest.fixture(scope="session")
def household_games(tmp_path_factory):
    """A dozen generated games, two of each task type."""
    pytest.importorskip("alfworld")
    from evolving_rl_jax.data.tasks import load_tasks
    from evolving_rl_jax.envs.alfworld.households.write import generate_even

    folder = tmp_path_factory.mktemp("household_games")
    generate_even(folder, num=12, seed=11)
    return load_tasks(folder)


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
    """Path of a configuration that runs in seconds."""
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    debug = str(ROOT / "configs" / "debug.py")
    path.write_text(TINY_CONFIG.format(debug=debug), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """Starts ``python -m evolving_rl_jax ARGUMENTS`` as its own process and waits for it.

    Compiled programs are shared between the processes of a session, which saves most of their time.
    """
    compiled = tmp_path_factory.mktemp("compiled")
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    variables.pop("XLA_FLAGS", None)

    def start(*arguments, code=None, wait=True):
        command = ["-c", code] if code else ["-m", "evolving_rl_jax"]
        process = subprocess.Popen(
            [sys.executable, *command, *map(str, arguments)],
            env=variables,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if not wait:
            return process
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return start


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
