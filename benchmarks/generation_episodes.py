"""The part of `generation.py` that plays real ALFWorld episodes with a policy cloned for it."""

from __future__ import annotations

import pathlib
import tempfile
import time

import jax
import numpy as np

from evolving_rl_jax import config as config_lib
from evolving_rl_jax.parallel import host_local_to_global
from evolving_rl_jax.rollout.batch import BatchShape, make_batch
from evolving_rl_jax.rollout.evolve import Evolver
from evolving_rl_jax.run.engine import make_driver, make_engine
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.run.parts import open_parts, training_mesh
from evolving_rl_jax.skills.retrieval import Retriever, TfidfEmbedder
from evolving_rl_jax.train.cloning import initial_params
from evolving_rl_jax.update.optimizer import make_optimizer
from evolving_rl_jax.update.state import state_from_params
from evolving_rl_jax.update.step import make_train_step

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "configs" / "alfworld_quickstart.py"


def quickstart_config(args):
    """The quickstart with the paper's 16 x 4 x 8 x 1 episodes, a smaller policy and less to clone."""
    config = config_lib.load_config(str(CONFIG))
    config = config.copy_and_resolve_references()
    config.unlock()
    config.seed = args.seed
    config.rollout.update(num_sources=16, num_retrieved=4, num_skills=8, num_repeats=1)
    config.train.update(num_iterations=2, minibatches=1)
    config.model.update(hidden_size=32, intermediate_size=96, num_heads=2, num_kv_heads=2)
    config.warmstart.update(steps=args.clone_steps, learning_rate=1e-2, episodes=192)
    config.data.households.update(num_train=4, num_unseen=4, heldout_games=12, warmstart_games=96)
    config_lib.validate(config)
    return config


def measure(args) -> dict:
    """Plays one iteration twice (the first compiles), prints the figures and returns them."""
    config = quickstart_config(args)
    with tempfile.TemporaryDirectory() as name, open_parts(config, RunFolder(name)) as parts:
        mesh = training_mesh(config)
        params = initial_params(parts, mesh)
        engine = make_engine(parts, params)
        engine.warmup()
        for iteration in range(2):
            engine.set_params(params, iteration)
            engine.reset_stats()
            began = time.perf_counter()
            driver, experience = _play(parts, engine, iteration)
            seconds = time.perf_counter() - began
        figures = _savings(engine.stats, driver, experience)
        figures["time"] = _shares(engine.stats, driver, seconds)
        figures["agreement"] = _agreement(config, parts, mesh, params, experience)
    for group, values in figures.items():
        print(f"{group}: " + ", ".join(f"{k} {v:,.4g}" for k, v in values.items()))
    return figures


def _play(parts, engine, iteration):
    config = parts.config
    driver = make_driver(parts, engine, iteration, config.rollout.temperature)
    retriever = Retriever(parts.train_tasks, TfidfEmbedder())
    evolver = Evolver(driver, retriever, parts.prompts, config.rollout)
    return driver, evolver.collect(parts.order.take(iteration, config.rollout.num_sources))


def _savings(stats, driver, experience) -> dict:
    """Tokens that prefill computed, and would have computed without one or both kinds of reuse."""
    done = stats.prefilled_tokens
    no_prefix, nothing = done + stats.prefix_reused_tokens, done + stats.reused_tokens
    episodes = [e for s in experience.sources for e in s.episodes.values()]
    episodes += [s.episode for s in experience.sources]
    return {
        "prefill": {
            "tokens": done,
            "without_prefixes": no_prefix,
            "without_turns_and_prefixes": nothing,
            "ratio": nothing / done,
        },
        "reused": {f"{kind}_{stage}": n for (kind, stage), n in sorted(driver.reused.items())},
        "episodes": {
            "number": len(episodes),
            "turns": float(np.mean([len(e.turns) for e in episodes])),
            "tokens": float(np.mean([len(e.samples[0].tokens) for e in episodes])),
            "evictions": stats.evictions,
            "cache_used": stats.columns_used / stats.columns_held,
        },
    }


def _shares(stats, driver, seconds: float) -> dict:
    device, host = stats.seconds_device, stats.seconds_host
    waiting = driver.environment_seconds
    return {
        "seconds": seconds,
        "device": device / seconds,
        "host_scheduling": host / seconds,
        "environment": waiting / seconds,
        "other": (seconds - device - host - waiting) / seconds,
        "decoded_tokens_per_second": stats.decoded_tokens / seconds,
    }


def _agreement(config, parts, mesh, params, experience) -> dict:
    """Trainer's and engine's log-probabilities of the same tokens, as the train step reports them."""
    optimizer = make_optimizer(config, 1 + config.optimizer.warmup_steps)
    state = state_from_params(params, parts.model_cfg, optimizer, mesh)
    step = make_train_step(config, parts.model_cfg, optimizer, mesh)
    batch = make_batch(experience, BatchShape.from_config(config))
    _, metrics = step(state, host_local_to_global(batch, mesh))
    names = ("logprob_gap_mean", "logprob_gap_max", "logprob_correlation", "trained_tokens")
    return {name: float(x) for name, x in jax.device_get({n: metrics[n] for n in names}).items()}
