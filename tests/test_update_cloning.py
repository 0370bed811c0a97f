"""The compiled cloning update against cross-entropy computed from all logits at once."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_updates import MODEL, ONE_DEVICE, make_batch, make_sequences, mesh_of, small_config

from evolving_rl_jax import models
from evolving_rl_jax.update import microbatch
from evolving_rl_jax.update import state as state_lib
from evolving_rl_jax.update import step as step_lib


@pytest.fixture(scope="module")
def batch():
    return make_batch(make_sequences(), num_rows=16)


def test_cloning_minimises_cross_entropy(batch):
    config, mesh = small_config(), mesh_of(json.dumps(ONE_DEVICE))
    config.train.micro_batch_rows = 5
    optimizer = optax.adam(1e-2)
    state = state_lib.init_state(MODEL, optimizer, mesh, jax.random.key(3), reference=False)
    names = ("tokens", "positions", "segment_ids", "loss_mask")
    rows = {n: getattr(batch, n) for n in names}
    places = {n: rows[n] for n in ("positions", "segment_ids")}
    hidden, _ = models.apply(state.params, MODEL, rows["tokens"], **places)
    logp = jax.nn.log_softmax(models.logits(state.params, MODEL, hidden)[:, :-1])
    chosen = np.take_along_axis(np.asarray(logp), rows["tokens"][:, 1:, None], -1)[..., 0]
    mask = rows["loss_mask"][:, 1:] > 0
    step = step_lib.make_cloning_step(config, MODEL, optimizer, mesh)
    state, metrics = step(state, rows)
    assert set(metrics) == set(step_lib.CLONING_METRICS)
    np.testing.assert_allclose(metrics["loss"], -chosen[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["token_probability"], np.exp(chosen[mask]).mean(), rtol=1e-5)
    for _ in range(20):
        state, later = step(state, rows)
    assert later["loss"] < 0.6 * metrics["loss"] and step._cache_size() == 1


def test_what_is_only_read_counts_by_its_weight_and_no_metric_is_of_it(batch):
    """One step of plain SGD is the gradient of the weighted mean, taken from all logits at once."""
    config, mesh = small_config(), mesh_of(json.dumps(ONE_DEVICE))
    optimizer = optax.sgd(1.0)
    names = ("tokens", "positions", "segment_ids", "loss_mask")
    rows = {n: getattr(batch, n) for n in names}
    read = (rows["segment_ids"] > 0) & (rows["loss_mask"] == 0)
    weighted = rows | {"loss_mask": np.where(read, np.float32(0.3), rows["loss_mask"])}
    first = np.diff(rows["segment_ids"], axis=1) != 0  # has no predictor
    weights = np.where(first, 0, weighted["loss_mask"][:, 1:])

    def mean(params):
        places = {n: rows[n] for n in ("positions", "segment_ids")}
        hidden, _ = models.apply(params, MODEL, rows["tokens"], **places)
        logp = jax.nn.log_softmax(models.logits(params, MODEL, hidden)[:, :-1])
        chosen = jnp.take_along_axis(logp, rows["tokens"][:, 1:, None], -1)[..., 0]
        return -(weights * chosen).sum() / weights.sum()

    state = state_lib.init_state(MODEL, optimizer, mesh, jax.random.key(3), reference=False)
    before = jax.device_get(state.params)
    expected = jax.tree.map(lambda p, g: p - g, before, jax.device_get(jax.grad(mean)(before)))
    step = step_lib.make_cloning_step(config, MODEL, optimizer, mesh)
    trained, metrics = step(state, weighted)
    for a, b in zip(jax.tree.leaves(trained.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
    state = state_lib.init_state(MODEL, optimizer, mesh, jax.random.key(3), reference=False)
    _, without = step(state, rows)
    for name in step_lib.CLONING_SUMS:
        np.testing.assert_allclose(metrics[name], without[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("num_rows", "wanted", "count", "size"),
    [(20, 8, 3, 7), (10, 8, 2, 5), (16, 8, 2, 8), (5, 8, 1, 5), (7, 3, 3, 3)],
)
def test_micro_batches_are_as_small_as_their_number_allows(num_rows, wanted, count, size):
    mesh = mesh_of(json.dumps(ONE_DEVICE))
    rows = np.arange(num_rows * 3).reshape(num_rows, 3)
    split, told = microbatch.split_rows(rows, wanted, mesh)
    assert told == size and split.shape == (count, size, 3)
    assert np.count_nonzero(np.any(split, axis=-1)) == num_rows
    np.testing.assert_array_equal(microbatch.join_rows(split, num_rows, mesh), rows)
