"""The warm start: behaviour cloning of scripted solvers and extractors, for policies made from scratch.

Kept in ``WORKDIR/warmstart`` as a Hugging Face folder, so it can also be evaluated or transferred alone.
"""

from __future__ import annotations

import time

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from evolving_rl_jax import models, parallel
from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.files import write_atomic
from evolving_rl_jax.rollout.batch import fill_rows, pack_rows
from evolving_rl_jax.rollout.demonstrations import Demonstrator
from evolving_rl_jax.run.skills import fit_to_prompt
from evolving_rl_jax.types import Sample
from evolving_rl_jax.update.state import init_state
from evolving_rl_jax.update.step import make_cloning_step

DONE = "done"
FIELDS = ("tokens", "positions", "segment_ids", "loss_mask")  # of a batch to clone


def initial_params(parts, mesh: Mesh, *, dtype="float32"):
    """The policy that training starts from: imported, cloned (cached in the run folder), or random.

    Args:
      parts: of the run.
      mesh: that it is trained on; the parameters come in its shards.
      dtype: in which an imported or cloned one is read.
    """
    config = parts.config
    if config.model.hf_path:
        return _load(parts, mesh, dtype, config.model.hf_path)
    if not config.warmstart.enabled:
        return models.init(parts.model_cfg, jax.random.key(config.seed))
    folder = parts.folder.path / "warmstart"
    if not parts.hosts.from_first((folder / DONE).is_file()):
        params = _whole(clone(parts, mesh), parts, mesh)
        if parts.hosts.first:
            models.save_hf(
                params, parts.model_cfg, folder, tokenizer_dir=parts.folder.path / "tokenizer"
            )
            write_atomic(folder / DONE, "")
        parts.hosts.meet("warm start")
    return _load(parts, mesh, dtype, folder)


def _load(parts, mesh, dtype, path):
    """A model folder, read straight into the shards of the mesh and in the dtype it will be kept in."""
    shapes = jax.eval_shape(lambda: models.init(parts.model_cfg, jax.random.key(0)))
    shardings = parallel.shardings(shapes, mesh)
    return models.load_hf(path, dtype=dtype, shardings=shardings)[0]


def _whole(params, parts, mesh):
    """Parameters of which every process has everything, so that one can write them down."""
    if parts.hosts.count == 1:
        return params
    return jax.device_get(jax.device_put(params, NamedSharding(mesh, PartitionSpec())))


def clone(parts, mesh: Mesh):
    """Plays the demonstrations, then trains on them; returns the parameters.

    Every host plays all of them: they are the same everywhere, so nothing has to be exchanged.
    """
    samples = demonstrations(parts)
    w = parts.config.warmstart
    schedule = optax.warmup_cosine_decay_schedule(
        w.learning_rate / 20, w.learning_rate, max(1, w.steps // 20), w.steps, w.learning_rate / 20
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01)
    )
    key = jax.random.key(parts.config.seed)
    state = init_state(parts.model_cfg, optimizer, mesh, key, reference=False)
    attention = parts.config.model.attention
    step = make_cloning_step(parts.config, parts.model_cfg, optimizer, mesh, attention=attention)
    batches = row_batches(samples, parts.config, seed=parts.config.seed)
    rows = NamedSharding(mesh, PartitionSpec(parallel.ROWS))
    losses = []
    with parts.progress("warm start: cloning", w.steps) as bar:
        for i in range(w.steps):
            batch = next(batches)
            if parts.hosts.count > 1:
                batch = parallel.whole_to_global(batch, rows)
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
            # Reading a value waits for the device, so only now and then.
            if i % 20 == 19:
                losses[-1].block_until_ready()
                bar(i + 1)
    first, last = (float(np.mean(jax.device_get(x))) for x in (losses[:20], losses[-20:]))
    parts.say(f"warm start: loss {first:.3f} -> {last:.3f} on {len(samples)} sequences")
    return state.params


def demonstrations(parts) -> list[Sample]:
    """The sequences to clone: every scripted episode, and the extraction after those without a skill."""
    config = parts.config
    demonstrator = Demonstrator(
        parts.pool,
        parts.prompts,
        config.rollout,
        config.warmstart,
        config.seed,
        fit_to_prompt(config, parts.tokenizer),
    )
    tasks = [task for name in config.warmstart.splits for task in parts.split(name)]
    n = config.warmstart.episodes
    # Where there are more tasks than episodes, those at equal distances: ids are sorted by type.
    apart = max(1.0, len(tasks) / n)
    chosen = [tasks[int(i * apart) % len(tasks)] for i in range(n)]
    start = time.perf_counter()
    with parts.progress("warm start: demonstrations", n) as bar:
        played = demonstrator.play(chosen, progress=bar)
    won = sum(d.won for d in played)
    parts.say(
        f"warm start: {len(played)} demonstrations ({won / max(len(played), 1):.0%} won) in "
        f"{time.perf_counter() - start:.0f} s"
    )
    samples = [s for d in played for s in d.samples]
    fitting = [s for s in samples if len(s.tokens) <= config.train.row_length]
    if not fitting:
        longest = max((len(s.tokens) for s in samples), default=0)
        raise ConfigError(
            f"config.train.row_length must be >= the length of demonstrations, got "
            f"{config.train.row_length} and {len(samples)} sequences of at most {longest} tokens"
        )
    if len(fitting) < len(samples):
        parts.say(f"warm start: {len(samples) - len(fitting)} sequences are too long and left out")
    return fitting


def row_batches(samples: list[Sample], config, *, seed: int):
    """Endless batches of packed rows, every sequence once an epoch in a new order."""
    rng = np.random.default_rng(seed)
    rows, length = config.warmstart.batch_rows, config.train.row_length
    # Short sequences first fill up rows well when a batch draws from the whole set.
    per_batch = max(1, int(rows * length / np.mean([len(s.tokens) for s in samples])))
    queue: list[int] = []
    while True:
        while len(queue) < per_batch:
            queue += rng.permutation(len(samples)).tolist()
        drawn = [samples[i] for i in queue[:per_batch]]
        chosen, left = pack_rows([len(s.tokens) for s in drawn], length, rows)
        filled = fill_rows(drawn, chosen, rows, length)
        yield {name: filled[name] for name in FIELDS}
        queue = [queue[m] for m in left] + queue[per_batch:]
