"""The transformers side of `generation.py`: needs torch and transformers only, not this package.

Batched ``generate`` with sampling and its key-value cache on the exported weights: the default
(dynamic) cache, and on a GPU also the static cache, with which transformers compiles decoding.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

import torch
import transformers


def measure(model, options: dict, device: str, **settings) -> float:
    """New tokens a second, prefill included; the best repeat after a warm-up."""
    generator = torch.Generator().manual_seed(options["seed"])
    best = 0.0
    for repeat in range(options["repeats"] + 1):
        shape = (options["batch"], options["prompt"])
        prompts = torch.randint(0, options["vocab_size"], shape, generator=generator).to(device)
        _wait(device)
        began = time.perf_counter()
        out = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=1.0,
            top_k=0, top_p=1.0, min_new_tokens=options["new"], max_new_tokens=options["new"],
            pad_token_id=0, eos_token_id=None, **settings,
        )  # fmt: skip
        _wait(device)
        new = out.shape[0] * (out.shape[1] - options["prompt"])
        if repeat:
            best = max(best, new / (time.perf_counter() - began))
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Reads the folder named on the command line; prints one line of JSON."""
    folder = pathlib.Path(sys.argv[1])
    options = json.loads((folder / "options.json").read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, options["dtype"])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype)
    model = model.to(device).eval()
    speeds = {"dynamic cache": measure(model, options, device)}
    if device == "cuda":
        speeds["static cache, compiled"] = measure(
            model, options, device, cache_implementation="static"
        )
    versions = f"{transformers.__version__} (torch {torch.__version__}, {device})"
    print(json.dumps({"tokens_per_second": speeds, "versions": versions}))


if __name__ == "__main__":
    main()
