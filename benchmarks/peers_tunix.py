"""Tunix's side of `peers.py`: needs google-tunix only, not this package."""

from __future__ import annotations

import json
import pathlib
import sys
import time

import jax
import numpy as np
import optax
from flax import nnx
from tunix.generate import sampler as sampler_lib
from tunix.models.qwen3 import model as qwen3
from tunix.sft import peft_trainer, utils


class Numbers:
    """A tokenizer of texts that are numbers; nothing is prepended, 0 is padding."""

    def encode(self, text: str, **_) -> list[int]:
        """The numbers."""
        return [int(word) for word in text.split()]

    def decode(self, ids, **_) -> str:
        """Nothing: no text is needed."""
        return ""

    def bos_id(self) -> int:
        """None."""
        return 0

    def eos_id(self) -> int:
        """Padding."""
        return 0

    def pad_id(self) -> int:
        """Padding."""
        return 0


def make_model(o: dict) -> qwen3.Qwen3:
    """The Qwen3 model of the options with random weights."""
    shape = o["shape"]
    config = qwen3.ModelConfig(
        num_layers=shape["layers"],
        vocab_size=shape["vocab"],
        embed_dim=shape["hidden"],
        hidden_dim=shape["mlp"],
        num_heads=shape["heads"],
        head_dim=shape["head_dim"],
        num_kv_heads=shape["kv_heads"],
        rope_theta=10_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
    )
    return qwen3.Qwen3(config, rngs=nnx.Rngs(params=o["seed"]))


class Sampling:
    """The sampler; `measure` gives tokens a second, from the prompts to the last token.

    With a log-probability for every token, as the engine gives and an update needs.
    """

    def __init__(self, model: qwen3.Qwen3, o: dict):
        self._o, self._rng = o, np.random.default_rng(o["seed"])
        self._turn = 0
        c = model.config
        cache = sampler_lib.CacheConfig(
            cache_size=o["prompt"] + o["new"],
            num_layers=c.num_layers,
            num_kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
        )
        self._sampler = sampler_lib.Sampler(model, Numbers(), cache)

    def measure(self) -> float:
        """One batch."""
        o = self._o
        prompts = self._rng.integers(1, o["shape"]["vocab"], (o["batch"], o["prompt"]))
        self._turn += 1
        texts = [" ".join(map(str, prompt)) for prompt in prompts]
        began = time.perf_counter()
        out = self._sampler(
            texts,
            max_generation_steps=o["new"],
            max_prompt_length=o["prompt"],
            temperature=1.0,
            top_p=1.0,
            eos_tokens=[o["shape"]["vocab"]],  # never sampled, so every row goes to its end
            return_logprobs=True,
            seed=self._turn,
        )
        seconds = time.perf_counter() - began
        tokens = sum(len(row) for row in out.tokens)
        if tokens != o["batch"] * o["new"]:
            raise SystemExit(f"must sample {o['batch']} x {o['new']} tokens, sampled {tokens}")
        return tokens / seconds


class Training:
    """The compiled step; `measure` gives the seconds of one: cross-entropy of all tokens, AdamW."""

    def __init__(self, model: qwen3.Qwen3, o: dict):
        adamw = optax.adamw(1e-4, b1=0.9, b2=0.98, weight_decay=0.1)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), adamw)
        config = peft_trainer.TrainingConfig(eval_every_n_steps=1 << 30)
        trainer = peft_trainer.PeftTrainer(model, optimizer, config)
        self._trainer = trainer.with_gen_model_input_fn(_model_input)
        self._step, _ = self._trainer.jit_train_and_eval_step()
        size = o["batch"], o["prompt"] + o["new"]
        tokens = np.random.default_rng(o["seed"]).integers(0, o["shape"]["vocab"], size)
        self._batch = {"tokens": tokens.astype(np.int32), "mask": np.ones(size, bool)}

    def measure(self) -> float:
        """One step."""
        began = time.perf_counter()
        done = self._step(self._batch)
        jax.block_until_ready((done, nnx.state(self._trainer.model)))
        return time.perf_counter() - began


def _model_input(batch: dict) -> dict:
    return {
        "input_tokens": batch["tokens"],
        "input_mask": batch["mask"],
        "positions": utils.build_positions_from_mask(batch["mask"]),
        "attention_mask": utils.make_causal_attn_mask(batch["mask"]),
    }


def main(folder: pathlib.Path) -> None:
    """Says what it is, then measures at every line that it is sent."""
    o = json.loads((folder / "options.json").read_text())
    model = make_model(o)
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    sampling, training = Sampling(model, o), Training(make_model(o), o)
    sampling.measure(), training.measure(), training.measure()
    print(json.dumps({"versions": f"jax {jax.__version__}", "parameters": count}), flush=True)
    for _ in sys.stdin:
        found = {
            "sampling": [sampling.measure() for _ in range(o["repeats"])],
            "training": [training.measure() for _ in range(o["steps"])],
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
