"""The table of benchmarks, and what each of them offers."""

import subprocess
import sys

import pytest

from evolving_rl_jax import envs


@pytest.mark.parametrize("name", ["alfworld", "mind2web"])
def test_every_name_is_that_of_its_benchmark(name):
    benchmark = envs.benchmark(name)
    assert benchmark.name == name and benchmark.splits[0] == "train"
    assert envs.benchmark(name) is benchmark


def test_an_unknown_name_is_refused():
    with pytest.raises(
        ValueError, match="one of .'alfworld', .*'mind2web'.*. or package.* got 'atari'"
    ):
        envs.benchmark("atari")


PRELOADED = """
import multiprocessing, sys
from evolving_rl_jax.envs.pool.pool import EnvPool

with EnvPool({name!r}, num_workers=1):
    # Another child of the server that the worker came from: what that imports, all have.
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    child = context.Process(target=exec, args=(
        "import sys; connection.send(sorted(sys.modules))", {{"connection": theirs}}))
    child.start()
    theirs.close()
    loaded = ours.recv()
    child.join()
assert "evolving_rl_jax.envs.pool.process" in loaded
print(*sorted({{m.split(".")[0] for m in loaded}} & {{"textworld", "alfworld", "tatsu", "jax"}}))
"""


def test_workers_load_nothing_of_other_benchmarks():
    code = PRELOADED.format(name="mind2web")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""
