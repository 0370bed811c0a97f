"""This package's side of `peers.py`: started by it with a folder that holds the options."""

from __future__ import annotations

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
from evolving_rl_jax.generate import Engine
from evolving_rl_jax.update import loss as loss_lib
from evolving_rl_jax.update import rows as rows_lib
from evolving_rl_jax.update import state as state_lib
from evolving_rl_jax.update.optimizer import make_optimizer
from evolving_rl_jax.update.step import make_cloning_step


def model_config(shape: dict) -> models.ModelConfig:
    """The Qwen3 model of the options."""
    return models.ModelConfig(
        vocab_size=shape["vocab"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["mlp"],
        num_layers=shape["layers"],
        num_heads=shape["heads"],
        num_kv_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        qk_norm=True,
        model_type="qwen3",
    )


class Sampling:
    """The engine, warmed up; `measure` gives tokens a second, from the prompts to the last token."""

    def __init__(self, cfg, params, o: dict):
        self._o, self._vocab, self._iteration = o, cfg.vocab_size, 0
        self._rng = np.random.default_rng(o["seed"])
        self._engine = Engine(
            cfg, params, num_slots=o["batch"], max_length=o["prompt"] + o["new"],
            prefill_chunk=(o["prompt"],), decode_window=min(16, o["new"]), seed=o["seed"],
            row_buckets=(o["batch"],),
        )  # fmt: skip
        self._engine.warmup()

    def measure(self) -> float:
        """One batch."""
        o, engine = self._o, self._engine
        prompts = self._rng.integers(0, self._vocab, (o["batch"], o["prompt"]))
        began = time.perf_counter()
        sessions = [engine.open(self._iteration, i, prompt) for i, prompt in enumerate(prompts)]
        for session in sessions:
            engine.submit(session, (), max_new_tokens=o["new"])
        tokens = 0
        while engine.busy:
            tokens += sum(len(g.tokens) for g in engine.step())
        seconds = time.perf_counter() - began
        for session in sessions:
            engine.close(session)
        self._iteration += 1
        if tokens != o["batch"] * o["new"]:
            raise SystemExit(f"must sample {o['batch']} x {o['new']} tokens, sampled {tokens}")
        return tokens / seconds


def _mesh():
    return parallel.make_mesh(1, 1, 1, devices=jax.devices()[:1])


def _settings(o: dict):
    config = default_config()
    config.train.update(micro_batch_rows=o["batch"], remat="none")
    config.optimizer.update(learning_rate=1e-4)
    return config


def _batch(cfg, o: dict) -> dict[str, np.ndarray]:
    shape = o["batch"], o["prompt"] + o["new"]
    return {
        "tokens": np.random.default_rng(o["seed"]).integers(0, cfg.vocab_size, shape, np.int32),
        "positions": np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape).copy(),
        "segment_ids": np.ones(shape, np.int32),
        "loss_mask": np.ones(shape, np.float32),
    }


class Training:
    """The compiled step; `measure` gives the seconds of one: cross-entropy of all tokens, AdamW."""

    def __init__(self, cfg, o: dict):
        mesh, config = _mesh(), _settings(o)
        optimizer = make_optimizer(config)
        key = jax.random.key(o["seed"])
        self._state = state_lib.init_state(cfg, optimizer, mesh, key, reference=False)
        self._rows = parallel.host_local_to_global(_batch(cfg, o), mesh)
        self._step = make_cloning_step(config, cfg, optimizer, mesh)

    def measure(self) -> float:
        """One step."""
        began = time.perf_counter()
        self._state, metrics = self._step(self._state, self._rows)
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - began


def _seconds(function, *args, repeats: int) -> float:
    jax.block_until_ready(function(*args))
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*args))
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def parts(cfg, params, o: dict) -> dict[str, float]:
    """Seconds of what a training step consists of, each compiled alone.

    ``layers`` and ``logits`` are their forward passes, ``gradient`` is forward and backward of both,
    ``optimizer`` the update.
    """
    mesh, config = _mesh(), _settings(o)
    optimizer = make_optimizer(config)
    rows = rows_lib.make_rows(**{name: jnp.asarray(x) for name, x in _batch(cfg, o).items()})

    def loss(params):
        found = loss_lib.policy_logprobs(
            params, cfg, config, rows, mesh, "auto", at_temperature=False
        )
        return -jnp.sum(found.logprobs * rows.mask)

    def layers(params):
        return models.apply(params, cfg, rows.tokens, segment_ids=rows.segment_ids, remat="none")[0]

    def update(params, grads):
        state = state_lib.TrainState(
            jnp.int32(0), params, optimizer.init(params), None, jnp.int32(0)
        )
        return state_lib.apply_gradients(state, grads, optimizer)[0].params

    repeats, gradient = o["steps"], jax.jit(jax.grad(loss))
    forward = _seconds(jax.jit(layers), params, repeats=repeats)
    whole = _seconds(jax.jit(loss), params, repeats=repeats)
    grads = gradient(params)
    return {
        "layers": forward,
        "logits": max(0.0, whole - forward),
        "gradient": _seconds(gradient, params, repeats=repeats),
        "optimizer": _seconds(jax.jit(update), params, grads, repeats=repeats),
    }


def main(folder: pathlib.Path) -> None:
    """Says what it is, then measures at every line that it is sent."""
    o = json.loads((folder / "options.json").read_text())
    cfg = model_config(o["shape"])
    params = jax.jit(lambda key: models.init(cfg, key))(jax.random.key(o["seed"]))
    sampling, training = Sampling(cfg, params, o), Training(cfg, o)
    sampling.measure(), training.measure(), training.measure()
    said = {"versions": f"jax {jax.__version__}"}
    print(
        json.dumps(said | {"parameters": sum(x.size for x in jax.tree.leaves(params))}), flush=True
    )
    for line in sys.stdin:
        if line.strip() == "parts":
            found = parts(cfg, params, o)
        else:
            found = {
                "sampling": [sampling.measure() for _ in range(o["repeats"])],
                "training": [training.measure() for _ in range(o["steps"])],
            }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
