"""The PyTorch side of `train_step.py`: needs torch and transformers only, not this package.

The transformers model with SDPA under torch.compile; float32 master weights with autocast, AdamW
with decay on matrices only, global-norm clipping, micro-batches: what the JAX step does.  Packed
sequences are kept apart by a block-diagonal causal mask, which is how SDPA expresses them.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import resource
import statistics
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

WARMUP = 2
LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY, CLIP_NORM = 1e-6, (0.9, 0.98), 1e-8, 0.1, 1.0


def make_optimizer(model, on_gpu: bool):
    """AdamW as ``evolving_rl_jax.config`` has it by default."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS, fused=on_gpu)


def micro_batches(batch, size: int, device):
    """Inputs of the model and what the loss reads, ``size`` rows at a time."""
    length = batch["tokens"].shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    for start in range(0, len(batch["tokens"]), size):
        rows = {k: torch.from_numpy(v[start : start + size]).to(device) for k, v in batch.items()}
        segments = rows["segment_ids"]
        mask = (segments[:, None, :, None] == segments[:, None, None, :]) & causal
        # The logits at t predict the token at t + 1.
        targets = rows["tokens"].roll(-1, dims=1).long()
        wanted = rows["loss_mask"].roll(-1, dims=1)
        wanted[:, -1] = 0
        inputs = {
            "input_ids": rows["tokens"].long(),
            "position_ids": rows["positions"].long(),
            "attention_mask": mask,
        }
        yield inputs, targets, wanted


def main(folder: pathlib.Path) -> None:
    """Times the step and prints one line."""
    options = json.loads((folder / "options.json").read_text())
    batch = dict(np.load(folder / "batch.npz"))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.set_float32_matmul_precision("high")
    model = AutoModelForCausalLM.from_pretrained(
        folder / "weights", dtype=torch.float32, attn_implementation="sdpa"
    ).to(device)
    model.config.use_cache = False
    model.train()
    if options["remat"] != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = make_optimizer(model, on_gpu)
    low = options["dtype"] == "bfloat16"
    if low:  # autocast leaves embeddings, and with them the residual stream, in float32; ours is in bfloat16
        model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.bfloat16())
    forward = torch.compile(model)
    autocast = torch.autocast(device.type, torch.bfloat16) if low else contextlib.nullcontext()
    count = float(batch["loss_mask"][:, 1:].sum())

    def step():
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for inputs, targets, wanted in micro_batches(batch, options["micro_batch_rows"], device):
            with autocast:
                logits = forward(**inputs).logits
            each = F.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten(), reduction="none"
            )
            loss = (each * wanted.flatten()).sum() / count
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return total.item()  # waits for the step

    losses, seconds = [], []
    for _ in range(WARMUP + options["steps"]):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    if on_gpu:
        peak, source = torch.cuda.max_memory_allocated(), "device"
    else:
        peak, source = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "whole process"
    result = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu", "devices": 1,
        "torch": torch.__version__, "seconds": statistics.median(seconds[WARMUP:]),
        "losses": losses, "peak_bytes": peak, "peak_from": source,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
