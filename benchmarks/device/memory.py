"""Does a policy update of a model's shape fit: measured peak memory beside what the compiler said.

Random weights, one full batch of one micro-batch, the real train step with its reference policy.
The last line is JSON.

Example::

    python benchmarks/device/memory.py --shape=configs/models/Qwen3-1.7B.json --rows=4 --row-length=8192
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # a checkout, not installed

from evolving_rl_jax import models, parallel
from evolving_rl_jax.config import default_config
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.types import ROLE_SOLVER, TokenBatch
from evolving_rl_jax.update import state as state_lib
from evolving_rl_jax.update.optimizer import make_optimizer
from evolving_rl_jax.update.step import make_train_step


def full_batch(rows: int, length: int, vocab_size: int) -> TokenBatch:
    """One solver sequence a row, half of it sampled; every second one was won."""
    rng = np.random.default_rng(0)
    whole = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    mask = (whole >= length // 2).astype(np.float32)
    wins = (np.arange(rows) % 2).astype(np.float32).reshape(1, 1, rows, 1)
    return TokenBatch(
        tokens=rng.integers(0, vocab_size, (rows, length), dtype=np.int32),
        positions=whole,
        segment_ids=np.ones_like(whole),
        sequence_ids=np.broadcast_to(np.arange(rows, dtype=np.int32)[:, None], (rows, length)),
        loss_mask=mask,
        rollout_logprobs=-5.0 * mask,
        wins=wins,
        episode_mask=np.ones_like(wins),
        skill_valid=np.ones((1, rows), np.float32),
        role=np.full(rows, ROLE_SOLVER, np.int32),
        index=np.arange(rows, dtype=np.int32),
        step=np.zeros(rows, np.int32),
        num_rows=np.int32(rows),
    )


def main() -> None:
    """Compiles, runs two updates, prints."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--shape", required=True, help="config.json of the model")
    p.add_argument("--rows", type=int, default=4, help="rows of the micro-batch (default: 4)")
    p.add_argument("--row-length", type=int, default=8192, help="tokens a row (default: 8192)")
    p.add_argument("--lora-rank", type=int, default=0, help="0 = all weights are trained")
    p.add_argument("--remat", choices=("full", "dots", "none"), default="full")
    args = p.parse_args()
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    cfg = dataclasses.replace(models.config_from_hf(args.shape), dtype=dtype)
    config = default_config()
    config.model.dtype = dtype
    config.model.lora.rank = args.lora_rank
    config.train.update(micro_batch_rows=args.rows, row_length=args.row_length, remat=args.remat)
    mesh = parallel.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    optimizer, lora = make_optimizer(config), lora_lib.from_config(config.model.lora)
    step = make_train_step(config, cfg, optimizer, mesh, lora=lora)
    batch = full_batch(args.rows, args.row_length, cfg.vocab_size)
    print("compiling", flush=True)
    began = time.perf_counter()
    compiled = step.lower(
        state_lib.abstract_state(cfg, optimizer, mesh, lora=lora), batch
    ).compile()
    m = compiled.memory_analysis()
    kept = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    result = {
        "benchmark": "memory", "shape": pathlib.Path(args.shape).stem, "dtype": dtype,
        "rows": args.rows, "row_length": args.row_length, "lora_rank": args.lora_rank,
        "device": mesh.devices.flat[0].device_kind, "predicted_bytes": kept + m.temp_size_in_bytes,
        "predicted_temporary_bytes": m.temp_size_in_bytes,
        "compile_seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    print(json.dumps(result), flush=True)  # stays in the log when the updates run out of memory
    state = state_lib.init_state(cfg, optimizer, mesh, jax.random.key(0), lora=lora)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        state, metrics = compiled(state, batch)
        float(metrics["loss"])  # waits
        seconds.append(time.perf_counter() - began)
    stats = mesh.devices.flat[0].memory_stats() or {}
    result |= {"seconds": seconds[-1], "measured_peak_bytes": stats.get("peak_bytes_in_use")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
