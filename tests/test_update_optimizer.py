"""Which parameters decay, and the learning rate over the updates."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from small_updates import MODEL, small_config

from evolving_rl_jax import models
from evolving_rl_jax.update import optimizer as optimizer_lib


def test_decay_acts_on_matrices_only():
    params = jax.eval_shape(lambda: models.init(MODEL, jax.random.key(0)))
    names = jax.tree_util.tree_leaves_with_path(optimizer_lib.decay_mask(params))
    undecayed = {
        jax.tree_util.keystr(p, simple=True, separator="/") for p, decays in names if not decays
    }
    assert undecayed == {"final_norm", "layers/attention/norm", "layers/mlp/norm"}


def test_schedules():
    config = small_config()
    config.optimizer.update(learning_rate=1.0, warmup_steps=4)
    constant = optimizer_lib.learning_rate_schedule(config)
    np.testing.assert_allclose([constant(i) for i in range(6)], [0.25, 0.5, 0.75, 1, 1, 1])
    config.optimizer.schedule = "cosine"
    cosine = optimizer_lib.learning_rate_schedule(config, 8)
    expected = [0.25, 0.5, 0.75, 1, *(0.5 + 0.5 * np.cos(np.pi * np.arange(5) / 4))]
    np.testing.assert_allclose([cosine(i) for i in range(9)], expected, atol=1e-6)
    with pytest.raises(ValueError, match="warmup_steps must be below"):
        optimizer_lib.learning_rate_schedule(config, 4)
