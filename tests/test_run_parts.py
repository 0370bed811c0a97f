"""What a run is made of: the training mesh on more devices than this machine has."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

MESH = """
import sys
from evolving_rl_jax.config import ConfigError, load_config
from evolving_rl_jax.run.parts import training_mesh
chips, *more = sys.argv[1:]
own = {"mesh.fsdp": chips, "train.micro_batch_rows": chips, "rollout.num_sources": chips}
config = load_config("configs/alfworld_qwen2_5_7b.py", own | dict(m.split("=") for m in more))
try:
    print(dict(training_mesh(config).shape))
except ConfigError as error:
    print(error)
"""


def mesh_of(chips, *overrides):
    """What becomes of the 7B configuration as docs/hardware.md gives it for so many chips."""
    flags = f"--xla_force_host_platform_device_count={chips}"
    done = subprocess.run(
        [sys.executable, "-c", MESH, str(chips), *overrides],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize("chips", [64, 256])
def test_a_warm_start_that_is_off_has_no_say_in_the_mesh(chips):
    assert mesh_of(chips) == f"{{'data': 1, 'fsdp': {chips}, 'tensor': 1}}"


def test_rows_that_the_mesh_cannot_share_out_are_named():
    message = "config.{} must be a multiple of mesh data x fsdp = 64, got 32"
    assert mesh_of(64, "train.micro_batch_rows=32") == message.format("train.micro_batch_rows")
    warm = ("warmstart.enabled=true", "model.hf_path=", "rollout.style=compact")
    assert mesh_of(64, *warm) == message.format("warmstart.batch_rows")
