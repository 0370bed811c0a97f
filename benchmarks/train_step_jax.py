"""The JAX side of `train_step.py`: started by it with a folder that holds options and batch."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # a checkout, not installed

from evolving_rl_jax import models, parallel
from evolving_rl_jax.config import default_config
from evolving_rl_jax.update import state as state_lib
from evolving_rl_jax.update.optimizer import make_optimizer
from evolving_rl_jax.update.step import make_cloning_step

WARMUP = 2


def matmul_ceiling(dtype) -> float:
    """FLOP/s of the fastest square product in ``dtype`` on one device."""
    sizes = (512, 1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192, 16384)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=a.dtype))
    best = 0.0
    for n in sizes:
        a = jax.random.normal(jax.random.key(0), (n, n)).astype(dtype)
        multiply(a, a).block_until_ready()
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(3):
                out = multiply(a, a)
            out.block_until_ready()
            best = max(best, 3 * 2.0 * n**3 / (time.perf_counter() - start))
    return best


def peak_memory(compiled) -> tuple[int, str]:
    """Bytes of the busiest device, and where the figure is from."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if all("peak_bytes_in_use" in s for s in stats):
        return max(s["peak_bytes_in_use"] for s in stats), "device"
    m = compiled.memory_analysis()
    kept = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return kept + m.temp_size_in_bytes, "compiler"


def main(folder: pathlib.Path) -> None:
    """Writes the starting weights where PyTorch will need them, times the step, prints one line."""
    options = json.loads((folder / "options.json").read_text())
    batch = dict(np.load(folder / "batch.npz"))
    cfg = dataclasses.replace(models.config_from_hf(options["shape"]), dtype=options["dtype"])
    config = default_config()
    config.train.update(
        micro_batch_rows=options["micro_batch_rows"],
        logprob_chunk=options["logprob_chunk"],
        remat=options["remat"],
    )
    mesh = parallel.make_mesh(1, -1, 1)
    optimizer = make_optimizer(config)
    ceiling = matmul_ceiling(cfg.dtype)
    key = jax.random.key(options["seed"])
    state = state_lib.init_state(cfg, optimizer, mesh, key, reference=False)
    if options["compare_torch"]:
        models.save_hf(state.params, cfg, folder / "weights")
    rows = parallel.host_local_to_global(batch, mesh)
    step = make_cloning_step(config, cfg, optimizer, mesh, attention=options["attention"])
    step = step.lower(state, rows).compile()
    losses, seconds = [], []
    for _ in range(WARMUP + options["steps"]):
        start = time.perf_counter()
        state, metrics = step(state, rows)
        losses.append(float(metrics["loss"]))  # waits for the step
        seconds.append(time.perf_counter() - start)
    peak, source = peak_memory(step)
    result = {
        "device": jax.devices()[0].device_kind, "devices": mesh.size, "jax": jax.__version__,
        "seconds": statistics.median(seconds[WARMUP:]), "losses": losses,
        "peak_bytes": peak, "peak_from": source, "ceiling": ceiling,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
