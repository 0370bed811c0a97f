"""Speed of the generation engine: decoding, what reuse saves, where time goes, agreement with training.

One run prints, and on the last line gives as JSON:

* decoded tokens a second with S = 1, 8 and 32 sessions (1 and 32 with a preset for accelerators), and the ratio to S = 1;
* with ``--compare-torch``: the ratio to transformers' batched ``generate`` (torch, key-value cache,
  sampling) on the same weights and prompts, both at batch 8;
* the four stages on real ALFWorld episodes (generated households, a cloned policy, this project's
  driver): tokens prefilled with and without the reuse of turns and prefixes, the share of wall time in
  device work, host scheduling and waiting for environments, how full the cache is, and the difference
  between the engine's log-probabilities and the trainer's;
* with a preset for accelerators: the share of the device's memory bandwidth that decoding reaches.
  The bandwidth is measured in the same run.

Examples::

    python benchmarks/generation.py
    python benchmarks/generation.py --compare-torch --torch-python=OTHER/bin/python
    python benchmarks/generation.py --preset=qwen2.5-1.5b --dtype=bfloat16 --slots=128 --compare-torch
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from evolving_rl_jax import models
from evolving_rl_jax.generate import Engine

HERE = pathlib.Path(__file__).resolve().parent
SHAPES = HERE.parent / "configs" / "models"
# name -> (config.json of the shape, context of the roofline)
PRESETS = {
    "tiny": (HERE / "tiny_model.json", 512),
    "qwen2.5-0.5b": (SHAPES / "Qwen2.5-0.5B-Instruct.json", 4096),
    "qwen2.5-1.5b": (SHAPES / "Qwen2.5-1.5B-Instruct.json", 4096),
}
SESSIONS = (1, 8, 32)
FEW_SESSIONS = (1, 32)  # of presets for accelerators: each number is four large programs
BATCH = 8  # of the comparison with transformers
PROMPT, NEW = 64, 128  # tokens


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--preset", choices=PRESETS, default="tiny", help="shape of the model")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), help="of weights and cache; default: "
                   "float32 for tiny, else bfloat16")  # fmt: skip
    p.add_argument("--slots", type=int, default=128, help="sessions of the roofline (default: 128)")
    p.add_argument("--context", type=int, help="tokens of each of them; default by preset")
    p.add_argument("--steps", type=int, default=3, help="repeats of each measurement (default: 3)")
    p.add_argument("--seed", type=int, default=0, help="of weights, prompts and sampling")
    p.add_argument("--skip-episodes", action="store_true", help="no ALFWorld episodes")
    p.add_argument("--clone-steps", type=int, default=250, help="updates that make the policy of the "
                   "episodes (default: 250)")  # fmt: skip
    p.add_argument("--compare-torch", action="store_true", help="transformers' generate as well")
    p.add_argument("--torch-python", default=sys.executable, metavar="PYTHON",
                   help="interpreter with torch and transformers (default: this one)")  # fmt: skip
    args = p.parse_args(argv)
    shape, context = PRESETS[args.preset]
    args.shape, args.context = str(shape), context if args.context is None else args.context
    args.dtype = args.dtype or ("float32" if args.preset == "tiny" else "bfloat16")
    for name in ("slots", "context", "steps", "clone_steps"):
        if getattr(args, name) < 1:
            p.error(f"--{name.replace('_', '-')} must be >= 1, got {getattr(args, name)}")
    return args


def random_policy(args):
    """(config, random weights) of the preset's shape."""
    cfg = models.config_from_hf(args.shape)
    cfg = dataclasses.replace(cfg, dtype=args.dtype)
    create = jax.jit(lambda key: jax.tree.map(lambda x: x.astype(cfg.dtype), models.init(cfg, key)))
    return cfg, create(jax.random.key(args.seed))


def decode_speed(cfg, params, sessions: int, repeats: int, seed: int) -> float:
    """Decoded tokens a second of ``sessions`` that sample ``NEW`` tokens each; the best repeat."""
    engine = Engine(
        cfg, params, num_slots=sessions, max_length=PROMPT + NEW, prefill_chunk=(PROMPT,),
        decode_window=16, seed=seed, row_buckets=(min(sessions, 16),) if _on_cpu() else (sessions,),
        column_buckets=None if _on_cpu() else (PROMPT + NEW,),  # there each program takes long to compile
    )  # fmt: skip
    engine.warmup()
    prompts = np.random.default_rng(seed).integers(0, cfg.vocab_size, (sessions, PROMPT))
    best = 0.0
    for repeat in range(repeats):
        opened = [engine.open(repeat, i, prompts[i]) for i in range(sessions)]
        for session in opened:
            engine.submit(session, (), max_new_tokens=NEW)
        engine.reset_stats()
        while engine.busy:
            engine.step()
        stats = engine.stats
        best = max(best, stats.decoded_tokens / (stats.seconds_decode + stats.seconds_host))
        for session in opened:
            engine.close(session)
    return best


def generate_speed(cfg, params, repeats: int, seed: int) -> float:
    """New tokens a second of ``BATCH`` prompts from submission to the last token, prefill included."""
    engine = Engine(
        cfg, params, num_slots=BATCH, max_length=PROMPT + NEW, prefill_chunk=(PROMPT,),
        decode_window=32, seed=seed, row_buckets=(BATCH,), column_buckets=(PROMPT + NEW,),
    )  # fmt: skip
    engine.warmup()
    best = 0.0
    for repeat in range(repeats):
        prompts = np.random.default_rng(seed + repeat).integers(0, cfg.vocab_size, (BATCH, PROMPT))
        began = time.perf_counter()
        sessions = [engine.open(repeat, i, prompts[i]) for i in range(BATCH)]
        for session in sessions:
            engine.submit(session, (), max_new_tokens=NEW)
        while engine.busy:
            engine.step()
        best = max(best, BATCH * NEW / (time.perf_counter() - began))
        for session in sessions:
            engine.close(session)
    return best


def torch_speed(args, cfg, params) -> dict:
    """What `generation_torch.py` measures with the same weights."""
    with tempfile.TemporaryDirectory() as name:
        models.save_hf(params, cfg, pathlib.Path(name) / "model")
        options = {
            "batch": BATCH, "prompt": PROMPT, "new": NEW, "repeats": args.steps, "seed": args.seed,
            "dtype": args.dtype, "vocab_size": cfg.vocab_size,
        }  # fmt: skip
        (pathlib.Path(name) / "options.json").write_text(json.dumps(options))
        command = [args.torch_python, str(HERE / "generation_torch.py"), name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{command[1]} failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def bandwidth(num_bytes: int) -> float:
    """Bytes a second that the device moves when it copies ``num_bytes``, read and written."""
    x = jnp.zeros(num_bytes // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jax.block_until_ready(copy(x))
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(5):
            x = copy(x)
        jax.block_until_ready(x)
        best = max(best, 5 * 2 * num_bytes / (time.perf_counter() - began))
    return best


def roofline(args, cfg, params) -> dict:
    """Decoding with every slot near the end of its context, against the bytes that it must read.

    A step reads all weights of the layers and the unembedding once, and the keys and values of every
    session.
    """
    window, repeats = 16, args.steps
    length = args.context
    engine = Engine(
        cfg, params, num_slots=args.slots, max_length=length, decode_window=window, seed=args.seed,
        prefill_chunk=(min(512, length // 2),), row_buckets=(args.slots,), column_buckets=(length,),
    )  # fmt: skip
    engine.warmup()
    start = length - window * (repeats + 1) - 1
    prompts = np.random.default_rng(args.seed).integers(0, cfg.vocab_size, (args.slots, start))
    for i in range(args.slots):
        session = engine.open(0, i, prompts[i])
        engine.submit(session, (), max_new_tokens=window * (repeats + 1))
    engine.step()  # all prompts and a first window
    engine.reset_stats()
    for _ in range(repeats):
        engine.step()
    seconds = engine.stats.seconds_decode / engine.stats.decode_steps
    tokens = start + window * (1 + repeats / 2)
    size = jnp.dtype(cfg.dtype).itemsize
    weights = sum(x.size for x in jax.tree.leaves(params)) * size
    keys = 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim * size * tokens * args.slots
    measured = bandwidth(1 << (24 if _on_cpu() else 31))
    return {
        "slots": args.slots, "context": int(tokens), "step_ms": seconds * 1e3,
        "tokens_per_second": args.slots / seconds, "gigabytes_per_step": (weights + keys) / 1e9,
        "bandwidth_gigabytes_per_second": measured / 1e9,
        "share_of_bandwidth": (weights + keys) / seconds / measured,
    }  # fmt: skip


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def main() -> None:
    """Measures and prints."""
    args = parse_arguments()
    device = jax.local_devices()[0]
    print(f"{args.preset}, {args.dtype}, on {device.device_kind} ({device.platform})")
    cfg, params = random_policy(args)
    result = {"benchmark": "generation", "preset": args.preset, "dtype": args.dtype}
    if args.preset != "tiny":
        result["roofline"] = roofline(args, cfg, params)
        print("roofline: " + ", ".join(f"{k} {v:,.3g}" for k, v in result["roofline"].items()))
        print(json.dumps(result), flush=True)  # what is measured counts where time runs out
    speeds = result["decode_tokens_per_second"] = {}
    for s in SESSIONS if args.preset == "tiny" else FEW_SESSIONS:
        speeds[s] = decode_speed(cfg, params, s, args.steps, args.seed)
        print(
            f"decode, S = {s:>2}: {speeds[s]:10,.0f} tokens/s   {speeds[s] / speeds[1]:6.2f} x S = 1"
        )
        print(json.dumps(result), flush=True)
    if args.compare_torch:
        ours = generate_speed(cfg, params, args.steps, args.seed)
        theirs = torch_speed(args, cfg, params)
        result["generate"] = {"engine": ours, "torch": theirs}
        for mode, speed in theirs["tokens_per_second"].items():
            print(f"generate, batch {BATCH}: engine {ours:,.0f} tokens/s, transformers "
                  f"{theirs['versions']} {mode} {speed:,.0f}: ratio {ours / speed:.2f}")  # fmt: skip
    if args.preset == "tiny" and not args.skip_episodes:
        import generation_episodes

        result["episodes"] = generation_episodes.measure(args)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
