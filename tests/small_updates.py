"""A small policy, its batches and its compiled updates, for the tests of ``update`` and ``train``."""

from __future__ import annotations

import functools
import json
import math

import jax
import numpy as np
from ml_collections import ConfigDict

from evolving_rl_jax import models, parallel
from evolving_rl_jax.types import ROLE_EXTRACTOR, ROLE_NONE, ROLE_SOLVER, TokenBatch
from evolving_rl_jax.update import optimizer as optimizer_lib
from evolving_rl_jax.update import state as state_lib
from evolving_rl_jax.update import step as step_lib

G, K, N, R = 2, 2, 2, 2
MODEL = models.ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
)


def small_config(**algorithm) -> ConfigDict:
    config = ConfigDict(
        {
            "algorithm": {
                "arm": "joint",
                "extractor_weight": 0.4,
                "solver_weight": 1.0,
                "solver_reward": 10.0,
                "clip_low": 0.1,
                "clip_high": 0.15,
                "importance": {"kind": "none", "cap": 2.0},
                "old_logprobs": "rollout",
                "kl_kind": "low_var_kl",
                "kl_without_spread": True,
                "empty_groups": "keep",
                "advantage": "std",
                "ratio": "ppo",
                "dual_clip": 0.0,
                "aggregate": "sequence",
                "aggregate_length": 0.0,
                "extractor_clip": {"low": 0.0, "high": 0.0},
                "covariance": {"kind": "none", "share": 2e-4, "low": 1.0, "high": 5.0, "coef": 1.0},
                "kl_coef": {"solver": 0.02, "extractor": 0.05},
                "entropy_coef": {"solver": 0.01, "extractor": -0.03},
            },
            "rollout": {"temperature": 1.0},
            "train": {"micro_batch_rows": 8, "logprob_chunk": 7, "remat": "none"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-3,
                "b1": 0.9,
                "b2": 0.95,
                "eps": 1e-8,
                "weight_decay": 0.1,
                "clip_norm": 1.0,
                "schedule": "constant",
                "warmup_steps": 0,
                "decay_updates": 0,
            },
        }
    )
    config.algorithm.update(algorithm)
    return config


def make_sequences(seed=0):
    """[(tokens, loss_mask, rollout_logprobs, role, index)]: every extraction and every episode."""
    rng = np.random.default_rng(seed)
    roles = [(ROLE_EXTRACTOR, i) for i in range(G * N)]
    roles += [(ROLE_SOLVER, i) for i in range(G * K * N * R)]
    sequences = []
    for role, index in roles:
        length = rng.integers(5, 13)
        mask = (rng.random(length) < 0.5).astype(np.float32)
        mask[0] = 0
        logprobs = rng.normal(-3.7, 0.1, length).astype(np.float32) * mask
        sequences.append((rng.integers(0, 40, length), mask, logprobs, role, index))
    return sequences


def make_batch(sequences, num_rows, length=24, per_row=2, seed=0) -> TokenBatch:
    """``per_row`` sequences in each row, unused rows after them, two unused entries of [M]."""
    rng = np.random.default_rng(seed)
    num = len(sequences) + 2
    tokens, positions, segments = (np.zeros((num_rows, length), np.int32) for _ in range(3))
    ids = np.full((num_rows, length), -1, np.int32)
    mask, logprobs = (np.zeros((num_rows, length), np.float32) for _ in range(2))
    role, index = np.full(num, ROLE_NONE, np.int32), np.zeros(num, np.int32)
    for m, (token, trained, logprob, kind, flat) in enumerate(sequences):
        row, start = m // per_row, (m % per_row) * (length // per_row)
        at = slice(start, start + len(token))
        tokens[row, at], positions[row, at] = token, np.arange(len(token))
        segments[row, at], ids[row, at] = m % per_row + 1, m
        mask[row, at], logprobs[row, at] = trained, logprob
        role[m], index[m] = kind, flat
    wins = (rng.random((G, K, N, R)) < 0.5).astype(np.float32)
    played = np.ones((G, K, N, R), np.float32)
    played[1, 0, 1, 0] = 0
    valid = np.ones((G, N), np.float32)
    valid[0, 1] = 0
    used = np.int32(-(-len(sequences) // per_row))
    return TokenBatch(
        tokens,
        positions,
        segments,
        ids,
        mask,
        logprobs,
        wins,
        played,
        valid,
        role,
        index,
        np.zeros_like(index),
        used,
    )


ONE_DEVICE = {"data": 1, "fsdp": 1, "tensor": 1}


@functools.cache
def mesh_of(sizes: str):
    sizes = json.loads(sizes)
    return parallel.make_mesh(**sizes, devices=jax.devices()[: math.prod(sizes.values())])


@functools.cache
def built(config_json: str, sizes: str, model=MODEL, lora=None):
    """(compiled train step, fresh state on the host); made once for each configuration and mesh."""
    config, mesh = ConfigDict(json.loads(config_json)), mesh_of(sizes)
    optimizer = optimizer_lib.make_optimizer(config)
    train_step = step_lib.make_train_step(config, model, optimizer, mesh, lora=lora)
    state = state_lib.init_state(model, optimizer, mesh, jax.random.key(1), lora=lora)
    state = jax.device_get(state)

    # The reference differs from the policy, so that the KL term matters.
    def changed(p):
        waves = np.cos(np.arange(p.size, dtype=np.float32)).reshape(p.shape)
        return p + 0.1 * waves if lora else p * np.float32(1.1)

    return train_step, state._replace(params=jax.tree.map(changed, state.params))


def new_state(config, sizes=None, **options):
    """(compiled train step, a state to donate to it)."""
    sizes = json.dumps(sizes or ONE_DEVICE)
    train_step, state = built(config.to_json(), sizes, **options)
    return train_step, jax.device_put(state, parallel.shardings(state, mesh_of(sizes)))


def run(config, batch, *, steps=1, sizes=None, **options):
    train_step, state = new_state(config, sizes, **options)
    for _ in range(steps):
        state, metrics = train_step(state, batch)
    return jax.device_get(state), jax.device_get(metrics)


def assert_same(a, b, rtol=2e-4, atol=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)
