"""Memory that an update and an engine take, before and after: rows of a batch, cache, and plan.

    python benchmarks/memory.py

Eight CPU devices stand for eight of any kind.  "Before" is what this project did earlier, written
out here: a batch always of the worst case, sorted on the devices; a cache made on the first device
and then shared out; a plan from a formula alone.  Bytes are the compiler's or those of arrays that
exist; seconds are the best of three.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from evolving_rl_jax import models, parallel
from evolving_rl_jax.config import load_config
from evolving_rl_jax.generate import Engine
from evolving_rl_jax.generate.memory import own_weights
from evolving_rl_jax.rollout.batch import Batcher, BatchShape
from evolving_rl_jax.rollout.evolve import Experience, Source
from evolving_rl_jax.update import microbatch

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
FIELDS, USED, LENGTH, SIZE = 7, 8, 512, 8  # arrays, rows in use, tokens of a row, rows at a time


def say(what: str, before: str, after: str) -> None:
    print(f"{what:<58} before {before:>12}   after {after:>12}", flush=True)


def best(function, *arguments) -> float:
    """Seconds, without those of the compilation."""
    found = []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        found.append(time.perf_counter() - began)
    return min(found[1:])


def sorted_on_devices(mesh):
    """Used rows first by a gather on the sharded axis, then micro-batches of consecutive rows."""
    spread = NamedSharding(mesh, PartitionSpec(None, parallel.ROWS))

    def prepare(rows):
        order = jnp.argsort(jnp.all(rows[0] == 0, axis=1), stable=True)
        split = [x[order].reshape(-1, SIZE, LENGTH) for x in rows]
        return [jax.lax.with_sharding_constraint(x, spread)[0] for x in split]

    return prepare


def in_place(mesh):
    """Micro-batches of each device's own rows."""
    return lambda rows: [x[0] for x in microbatch.split_rows(rows, SIZE, mesh)[0]]


def rows_of_a_batch(mesh) -> None:
    shape = BatchShape.from_config(load_config(str(CONFIGS / "mind2web_qwen2_5_7b.py")))
    nothing = np.zeros((shape.g, shape.k, shape.n, shape.r), np.float32)
    empty = Experience(
        [Source(None) for _ in range(shape.g)], nothing, nothing, nothing[:, 0, :, 0]
    )
    began = time.perf_counter()
    (batch,) = Batcher(shape)([empty])
    seconds = time.perf_counter() - began
    made = sum(x.nbytes for x in batch if getattr(x, "shape", ())[:1] == batch.tokens.shape[:1])
    whole = made // len(batch.tokens) * shape.num_rows
    say(
        "host arrays of an update, mind2web_qwen2_5_7b",
        f"{whole / 1e9:.2f} GB",
        f"{made / 1e9:.3f} GB",
    )
    print(f"{'':<58} (B {shape.num_rows} and {len(batch.tokens)}; made in {seconds:.3f} s)")
    for count in (256, 8192):
        rows = np.zeros((count, LENGTH), np.int32)
        rows[np.arange(USED) * (count // USED)] = 1
        rows = [jax.device_put(rows, NamedSharding(mesh, PartitionSpec(parallel.ROWS)))] * FIELDS
        results = []
        for make in (sorted_on_devices, in_place):
            function = jax.jit(make(mesh))
            analysis = function.lower(rows).compile().memory_analysis()
            results.append((analysis.temp_size_in_bytes / 2**20, best(function, rows)))
        say(
            f"temporaries of a device, B = {count}, {USED} rows used",
            *(f"{m:.2f} MiB" for m, _ in results),
        )
        say(
            f"seconds to lay out, B = {count}, {USED} rows used",
            *(f"{s:.4f} s" for _, s in results),
        )


def cache_and_plan() -> None:
    cfg = models.ModelConfig(512, 256, 512, 4, 8, 8, 32, dtype="bfloat16")
    mesh = parallel.generation_mesh(cfg.num_kv_heads, jax.devices())
    first = jax.devices()[0]

    def on_first(cache) -> str:
        shards = [s for x in jax.tree.leaves(cache) for s in x.addressable_shards]
        return f"{sum(s.data.nbytes for s in shards if s.device == first) / 1e6:.1f} MB"

    before = models.init_cache(cfg, 16, 2048)
    after = models.init_cache(cfg, 16, 2048, device=parallel.cache_sharding(mesh))
    say("cache on the first device while it is made", on_first(before), on_first(after))
    training = parallel.make_mesh(1, 8, 1)
    params = parallel.cast(models.init(cfg, jax.random.key(0)), cfg.dtype)
    params = jax.device_put(params, parallel.shardings(params, training))
    ignored, counted = (own_weights(params, cfg.dtype, place=place) for place in (None, mesh))
    say(
        "weights of another layout in the plan",
        f"{ignored / 1e6:.1f} MB",
        f"{counted / 1e6:.1f} MB",
    )
    engine = Engine(
        cfg, params, num_slots=16, max_length=1024, prefill_chunk=(64,), decode_window=8,
        row_buckets=(16,), column_buckets=(1024,), device=first,
    )  # fmt: skip
    planned = engine.memory.working
    engine.warmup()
    says = engine.memory.working
    say(
        "working memory in the plan, after the warm-up",
        f"{planned / 1e6:.1f} MB",
        f"{says / 1e6:.1f} MB",
    )


if __name__ == "__main__":
    rows_of_a_batch(parallel.make_mesh(8, 1, 1))
    cache_and_plan()
