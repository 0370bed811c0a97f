"""The update on eight devices, in several mesh shapes, equals the one on a single device.

For a tied model, one with biases and an unembedding of its own, and adapters alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
from test_train_step import MODEL, make_batch, make_sequences, mesh_of, run, small_config

from evolving_rl_jax import parallel
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.update import step as step_lib

MESHES = (
    {"data": 8, "fsdp": 1, "tensor": 1},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"data": 1, "fsdp": 4, "tensor": 2},
)
UNTIED = dataclasses.replace(MODEL, tie_word_embeddings=False, qkv_bias=True, model_type="qwen2")
LORA = lora_lib.LoraConfig(rank=2, alpha=4.0)
# name -> (mesh, model, adapters)
CASES = {
    "tied, data": (MESHES[0], MODEL, None),
    "tied, all axes": (MESHES[1], MODEL, None),
    "untied": (MESHES[2], UNTIED, None),
    "adapters": (MESHES[1], MODEL, LORA),
}


def test_eight_devices_equal_one(tmp_path):
    env = os.environ | {
        # Eight partitions are compiled for each mesh: without expensive passes, to save a minute.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
    }
    out = tmp_path / "results.npz"
    done = subprocess.run([sys.executable, __file__, out], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = np.load(out)
    assert str(results["message"]).endswith("mesh's data x fsdp = 8, got 3 (and 16)")
    for case, (_, model, lora) in CASES.items():
        batch = make_batch(make_sequences(), num_rows=16)
        mine = _flatten(*run(small_config(), batch, model=model, lora=lora))
        for name, value in mine.items():
            # Adam divides by the size of the gradient, so parameters are compared on the scale of
            # the learning rate and the moments carry the precise comparison.
            atol = 2e-5 if name.startswith("params") else 2e-6
            np.testing.assert_allclose(
                results[f"{case}:{name}"], value, rtol=2e-4, atol=atol, err_msg=f"{case}: {name}"
            )


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _flatten(state, metrics):
    leaves = jax.tree_util.tree_leaves_with_path(state._asdict() | {"metrics": metrics})
    return {_name(p): np.asarray(x) for p, x in leaves}


def _write_meshes(out):
    """Runs in a process of its own, whose CPU shows as eight devices."""
    batch, results = make_batch(make_sequences(), num_rows=16), {}
    for case, (sizes, model, lora) in CASES.items():
        mesh = mesh_of(json.dumps(sizes))
        placed = parallel.host_local_to_global(batch, mesh)
        assert placed.tokens.sharding == step_lib.batch_shardings(mesh).tokens
        flat = _flatten(*run(small_config(), placed, sizes=sizes, model=model, lora=lora))
        results |= {f"{case}:{n}": x for n, x in flat.items()}
    config = small_config()
    config.train.micro_batch_rows = 3
    try:
        run(config, batch, sizes=MESHES[0])
    except ValueError as e:
        results["message"] = str(e)
    np.savez(out, **results)


if __name__ == "__main__":
    _write_meshes(sys.argv[1])
