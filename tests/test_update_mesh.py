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
import pytest
from small_updates import (
    MODEL,
    make_batch,
    make_sequences,
    mesh_of,
    new_state,
    run,
    small_config,
)

from evolving_rl_jax import parallel
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.types import ROW_FIELDS
from evolving_rl_jax.update import step as step_lib

MESHES = (
    {"data": 8, "fsdp": 1, "tensor": 1},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"data": 1, "fsdp": 4, "tensor": 2},
    {"data": 1, "fsdp": 1, "tensor": 2},
)
# Every way to share eight devices out; the last two are those of two and of four GPUs.
ALL_MESHES = [
    {"data": d, "fsdp": f, "tensor": 8 // d // f}
    for d in (1, 2, 4, 8)
    for f in (1, 2, 4, 8)
    if 8 % (d * f) == 0
] + [{"data": 1, "fsdp": 1, "tensor": t} for t in (2, 4)]
UNTIED = dataclasses.replace(MODEL, tie_word_embeddings=False, qkv_bias=True, model_type="qwen2")
LORA = lora_lib.LoraConfig(rank=2, alpha=4.0)
# name -> (mesh, model, adapters)
CASES = {
    "tied, data": (MESHES[0], MODEL, None),
    "tied, all axes": (MESHES[1], MODEL, None),
    "untied": (MESHES[2], UNTIED, None),
    "adapters": (MESHES[1], MODEL, LORA),
    "tensor alone": (MESHES[3], MODEL, None),
}


def on_eight_devices(out):
    """What `_write_meshes` or, for the name "all", `_compile_meshes` does on eight CPU devices."""
    env = os.environ | {
        # Eight partitions are compiled for each mesh: without expensive passes, to save a minute.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
    }
    done = subprocess.run([sys.executable, __file__, out], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_step_compiles_and_agrees_on_every_mesh_of_eight_devices():
    lines = on_eight_devices("all").splitlines()
    assert len(lines) == 2 * len(ALL_MESHES)
    for model in ("full", "adapters"):
        losses = [float(line.split()[-1]) for line in lines if line.startswith(model)]
        np.testing.assert_allclose(losses, losses[0], rtol=2e-4)


def test_eight_devices_equal_one(tmp_path):
    out = tmp_path / "results.npz"
    on_eight_devices(out)
    results = np.load(out)
    assert str(results["message"]).endswith("mesh's data x fsdp = 8, got 3 (and 16)")
    for case, (_, model, lora) in CASES.items():
        batch = _batch()
        mine = _flatten(*run(small_config(), batch, model=model, lora=lora))
        for name, value in mine.items():
            # Adam divides by the size of the gradient, so parameters are compared on the scale of
            # the learning rate and the moments carry the precise comparison.
            atol = 2e-5 if name.startswith("params") else 2e-6
            np.testing.assert_allclose(
                results[f"{case}:{name}"], value, rtol=2e-4, atol=atol, err_msg=f"{case}: {name}"
            )


def test_no_row_of_a_batch_moves_to_another_device():
    """What a device keeps beside its own rows does not grow with the rows of the batch."""
    few, many = (int(line) for line in on_eight_devices("memory").split())
    own = (4096 - 64) * 24 * 4 // 8  # bytes of one array [B, T], of a device, in the larger batch
    assert many - few < 16 * own  # about ten arrays; whole ones would be 80 times


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _flatten(state, metrics):
    leaves = jax.tree_util.tree_leaves_with_path(state._asdict() | {"metrics": metrics})
    return {_name(p): np.asarray(x) for p, x in leaves}


def _batch():
    """With credit of single steps, which has rows of its own."""
    batch = make_batch(make_sequences(), num_rows=16)
    credit = np.random.default_rng(1).normal(0, 0.1, batch.tokens.shape)
    return batch._replace(step_credit=credit.astype(np.float32))


def _write_meshes(out):
    """Runs in a process of its own, whose CPU shows as eight devices."""
    batch, results = _batch(), {}
    for case, (sizes, model, lora) in CASES.items():
        mesh = mesh_of(json.dumps(sizes))
        placed = parallel.host_local_to_global(batch, mesh)
        for name in ROW_FIELDS:
            if (rows := getattr(placed, name)) is not None:
                assert rows.sharding == getattr(step_lib.batch_shardings(mesh), name), name
        flat = _flatten(*run(small_config(), placed, sizes=sizes, model=model, lora=lora))
        results |= {f"{case}:{n}": x for n, x in flat.items()}
    config = small_config()
    config.train.micro_batch_rows = 3
    try:
        run(config, batch, sizes=MESHES[0])
    except ValueError as e:
        results["message"] = str(e)
    np.savez(out, **results)


def _compile_meshes():
    """A line for each mesh and kind of training: what, where, its loss."""
    batch = make_batch(make_sequences(), num_rows=16)
    for sizes in ALL_MESHES:
        placed = parallel.host_local_to_global(batch, mesh_of(json.dumps(sizes)))
        for name, lora in (("full", None), ("adapters", LORA)):
            _, metrics = run(small_config(), placed, sizes=sizes, model=MODEL, lora=lora)
            print(name, json.dumps(sizes), float(metrics["loss"]), flush=True)


def _print_memory():
    """Bytes of temporaries of a device, for a batch of few rows and one of many."""
    sizes = {"data": 2, "fsdp": 4, "tensor": 1}
    for rows in (64, 4096):
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype),
            make_batch(make_sequences(), num_rows=rows),
        )
        train_step, state = new_state(small_config(), sizes)
        analysis = train_step.lower(state, batch).compile().memory_analysis()
        print(analysis.temp_size_in_bytes, flush=True)


if __name__ == "__main__":
    commands = {"all": _compile_meshes, "memory": _print_memory}
    commands.get(sys.argv[1], lambda: _write_meshes(sys.argv[1]))()
