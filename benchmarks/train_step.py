"""Speed of the training step: tokens a second, share of the device's matmul rate, peak memory.

The step is the package's own (``make_cloning_step``: cross-entropy of every token, float32 master
weights, AdamW with clipping, one optimizer update over micro-batches) on packed rows and random
weights of a model's shape.  What a policy update adds to it, the forward pass of the reference and
the clipped ratio, is left out, so that the same step can be written in PyTorch; ``--compare-torch``
runs that one next, on the same weights and tokens, and prints both losses.

Model FLOPs are those of one forward and one backward pass, attention within segments, without what
rematerialisation repeats.  The ceiling is the fastest large matrix product of the same run.

Examples::

    python benchmarks/train_step.py --preset=tiny
    python benchmarks/train_step.py --preset=tiny --compare-torch --torch-python=OTHER/bin/python
    python benchmarks/train_step.py --preset=qwen2.5-0.5b --dtype=bfloat16 --compare-torch
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
SHAPES = HERE.parent / "configs" / "models"
# name -> (config.json of the shape, rows, tokens a row)
PRESETS = {
    "tiny": (HERE / "tiny_model.json", 8, 512),
    "qwen2.5-0.5b": (SHAPES / "Qwen2.5-0.5B-Instruct.json", 8, 8192),
    "qwen2.5-1.5b": (SHAPES / "Qwen2.5-1.5B-Instruct.json", 8, 8192),
}
ATTENTION = ("auto", "plain", "blockwise", "splash", "pallas_gpu")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, with the preset's sizes where none were given."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--preset", choices=PRESETS, default="tiny", help="shape of the model")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the computation; default: "
                   "float32 for tiny, else bfloat16")  # fmt: skip
    p.add_argument("--rows", type=int, help="rows of a step; default by preset (8)")
    p.add_argument("--row-length", type=int, help="tokens a row; default by preset")
    p.add_argument("--micro-batch-rows", type=int, default=1, help="rows at a time (default: 1)")
    p.add_argument("--attention", choices=ATTENTION, default="auto", help="of the JAX step")
    p.add_argument("--remat", choices=("full", "dots", "none"), default="full",
                   help="what the backward pass computes again; anything but none turns on "
                   "PyTorch's gradient checkpointing")  # fmt: skip
    p.add_argument("--logprob-chunk", type=int, default=1024, help="tokens with logits at a time")
    p.add_argument("--steps", type=int, default=5, help="timed steps after two warm-up ones")
    p.add_argument("--seed", type=int, default=0, help="of weights, tokens and packing")
    p.add_argument("--compare-torch", action="store_true", help="the same step in PyTorch too")
    p.add_argument("--torch-python", default=sys.executable, metavar="PYTHON",
                   help="interpreter with torch and transformers (default: this one)")  # fmt: skip
    args = p.parse_args(argv)
    shape, rows, length = PRESETS[args.preset]
    args.shape = str(shape)
    args.rows = rows if args.rows is None else args.rows
    args.row_length = length if args.row_length is None else args.row_length
    args.dtype = args.dtype or ("float32" if args.preset == "tiny" else "bfloat16")
    for name in ("rows", "row_length", "micro_batch_rows", "logprob_chunk", "steps"):
        if getattr(args, name) < 1:
            p.error(f"--{name.replace('_', '-')} must be >= 1, got {getattr(args, name)}")
    if args.rows % args.micro_batch_rows:
        p.error(f"--micro-batch-rows must divide --rows = {args.rows}, got {args.micro_batch_rows}")
    if args.row_length < 8:
        p.error(f"--row-length must be >= 8, got {args.row_length}")
    return args


def packed_rows(rows: int, length: int, vocab_size: int, seed: int) -> dict[str, np.ndarray]:
    """Full rows of random sequences, each an eighth to a half of a row long; all [B, T]."""
    rng = np.random.default_rng(seed)
    segments = np.zeros((rows, length), np.int32)
    positions = np.zeros((rows, length), np.int32)
    for row in range(rows):
        start, number = 0, 1
        while start < length:
            stop = min(length, start + int(rng.integers(length // 8, length // 2 + 1)))
            segments[row, start:stop] = number
            positions[row, start:stop] = np.arange(stop - start)
            start, number = stop, number + 1
    tokens = rng.integers(0, vocab_size, (rows, length), dtype=np.int32)
    mask = (positions > 0).astype(np.float32)  # the first token of a sequence has no predictor
    return {
        "tokens": tokens, "positions": positions, "segment_ids": segments, "loss_mask": mask
    }  # fmt: skip


def model_flops(shape: dict, batch: dict[str, np.ndarray]) -> float:
    """FLOPs of forward and backward of a step (three times the forward pass).

    2 a weight and token, and 4 a query, visible key, head and head dimension.
    """
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    head = shape.get("head_dim") or hidden // heads
    width = (2 * heads + 2 * shape["num_key_value_heads"]) * head
    layer = hidden * (width + 3 * shape["intermediate_size"])
    weights = shape["num_hidden_layers"] * layer + shape["vocab_size"] * hidden
    pairs = float(batch["positions"].sum() + batch["positions"].size)  # of a query and its keys
    attention = 4.0 * pairs * heads * head * shape["num_hidden_layers"]
    return 3.0 * (2.0 * weights * batch["tokens"].size + attention)


def run(args: argparse.Namespace) -> dict:
    """Runs each side in a process of its own, one after the other, so each has the device alone."""
    shape = json.loads(pathlib.Path(args.shape).read_text())
    batch = packed_rows(args.rows, args.row_length, shape["vocab_size"], args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        np.savez(folder / "batch.npz", **batch)
        (folder / "options.json").write_text(json.dumps(vars(args)))
        ours = _worker([sys.executable, str(HERE / "train_step_jax.py"), name])
        ceiling, flops = ours.pop("ceiling"), model_flops(shape, batch)
        result = {
            "benchmark": "train_step", "preset": args.preset, "dtype": args.dtype,
            "rows": args.rows, "row_length": args.row_length, "remat": args.remat,
            "attention": args.attention, "micro_batch_rows": args.micro_batch_rows,
            "model_tflops_per_step": flops / 1e12, "ceiling_tflops": ceiling / 1e12,
            "jax": _figures(ours, batch, flops, ceiling),
        }  # fmt: skip
        if args.compare_torch:
            print(json.dumps(result), flush=True)  # it counts, whatever becomes of torch
            theirs = _worker([args.torch_python, str(HERE / "train_step_torch.py"), name])
            result["torch"] = _figures(theirs, batch, flops, ceiling)
            result["ratio"] = theirs["seconds"] / ours["seconds"]
            result["losses_agree"] = agree(ours["losses"], theirs["losses"], args.dtype)
    return result


def _worker(command: list[str]) -> dict:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{command[1]} failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def _figures(found: dict, batch, flops: float, ceiling: float) -> dict:
    per_device = flops / found["seconds"] / found["devices"]
    return found | {
        "tokens_per_second": batch["tokens"].size / found["seconds"],
        "mfu": per_device / ceiling,
    }


def agree(ours: list[float], theirs: list[float], dtype: str) -> bool:
    """Whether the first and the last loss of both sides are the same, as far as ``dtype`` goes."""
    tolerance = 1e-4 if dtype == "float32" else 1e-2  # 0.4 % is one step of bfloat16
    return all(math.isclose(ours[i], theirs[i], rel_tol=tolerance) for i in (0, -1))


def table(result: dict) -> str:
    """The figures for people."""
    sides = [name for name in ("jax", "torch") if name in result]
    rows = [
        ("device", lambda r: r["device"]),
        ("seconds a step (median)", lambda r: f"{r['seconds']:.4g}"),
        ("tokens/s", lambda r: f"{r['tokens_per_second']:,.0f}"),
        ("share of the matmul ceiling", lambda r: f"{r['mfu']:.3f}"),
        ("peak memory GB", lambda r: f"{r['peak_bytes'] / 1e9:.3g} ({r['peak_from']})"),
        ("first loss, nats a token", lambda r: f"{r['losses'][0]:.5f}"),
        ("loss after the same steps", lambda r: f"{r['losses'][-1]:.5f}"),
    ]
    lines = [
        f"{result['preset']}, {result['dtype']}, {result['rows']} x {result['row_length']} packed "
        f"tokens, remat {result['remat']}, attention {result['attention']}",
        f"matmul ceiling {result['ceiling_tflops']:.4g} TFLOP/s a device, model "
        f"{result['model_tflops_per_step']:.4g} TFLOP a step",
        f"{'':<30}" + "".join(f"{name:>34}" for name in sides),
    ]
    lines += [f"{label:<30}" + "".join(f"{f(result[s]):>34}" for s in sides) for label, f in rows]
    if "ratio" in result:
        lines.append(f"jax / torch in tokens/s: {result['ratio']:.2f}")
        if not result["losses_agree"]:
            lines.append("the losses differ: these are not the same steps, the ratio says nothing")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Prints the table and, last, one line of JSON."""
    result = run(parse_arguments(argv))
    print(table(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
