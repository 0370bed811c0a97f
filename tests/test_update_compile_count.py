"""One compiled program for the whole run, whatever a batch holds."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from small_updates import MODEL, ONE_DEVICE, small_config
from test_rollout_batch import random_experience

from evolving_rl_jax import parallel
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.rollout.batch import BatchShape, make_batch
from evolving_rl_jax.types import Sample
from evolving_rl_jax.update import optimizer as optimizer_lib
from evolving_rl_jax.update import state as state_lib
from evolving_rl_jax.update import step as step_lib

SHAPE = BatchShape(g=3, k=2, n=2, r=2, row_length=24, micro_batch_rows=1)
LONGEST = (24, 2, 5, 9, 13, 24, 7, 18, 3, 11)  # of the sequences of each step


def cut(sample: Sample, longest: int) -> Sample:
    """The first tokens of a sequence, within the model's vocabulary."""
    arrays = (sample.tokens % MODEL.vocab_size, sample.loss_mask, sample.logprobs)
    return Sample(*(x[:longest] for x in (*arrays, sample.sampling_logprobs)))


def batches(mesh):
    """Ten batches of sequences of all lengths, from the episodes of some or all sources."""
    for seed, longest in enumerate(LONGEST):
        experience, _ = random_experience(seed, SHAPE)
        for g, source in enumerate(experience.sources):
            if g > seed % 3:
                source.candidates.clear()
                source.episodes.clear()
                experience.episode_mask[g] = 0
            for candidate in source.candidates:
                candidate.sample = cut(candidate.sample, longest)
            for episode in source.episodes.values():
                episode.samples = [cut(sample, longest) for sample in episode.samples]
        yield parallel.host_local_to_global(make_batch(experience, SHAPE), mesh)


@pytest.fixture
def compilations():
    """Names of everything that XLA compiles while the test runs."""
    seen = []

    def listen(event, _seconds, **_):
        if "backend_compile" in event:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("lora", [None, lora_lib.LoraConfig(rank=2)], ids=["full", "lora"])
def test_ten_steps_compile_once(compilations, lora):
    config = small_config()
    config.train.micro_batch_rows = SHAPE.micro_batch_rows
    mesh = parallel.make_mesh(**ONE_DEVICE, devices=jax.devices()[:1])
    optimizer = optimizer_lib.make_optimizer(config)
    train_step = step_lib.make_train_step(config, MODEL, optimizer, mesh, lora=lora)
    state = state_lib.init_state(MODEL, optimizer, mesh, jax.random.key(1), lora=lora)
    ready = list(batches(mesh))
    jax.block_until_ready((state, ready))
    before = len(compilations)
    micro_batches, tokens = [], []
    for batch in ready:
        micro_batches.append(-(-int(batch.num_rows) // SHAPE.micro_batch_rows))
        state, metrics = train_step(state, batch)
        tokens.append(float(metrics["tokens"]))
        assert np.isfinite(float(metrics["loss"]))
    assert len(compilations) == before + 1 and train_step._cache_size() == 1
    assert int(state.step) == 10 and int(state.skipped) == 0
    assert len(set(micro_batches)) >= 4 and len(set(tokens)) >= 9  # they did differ
