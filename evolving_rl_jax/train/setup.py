"""What a training loop works with, made from the parts of its run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from evolving_rl_jax.eval.play import Panels
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.parallel import in_order
from evolving_rl_jax.record.run import RunRecord
from evolving_rl_jax.rollout.batch import Batcher, BatchShape
from evolving_rl_jax.run.engine import make_engine
from evolving_rl_jax.run.parts import Parts, training_mesh
from evolving_rl_jax.train.collapse import CollapseLog
from evolving_rl_jax.train.collect import Collector, make_collector
from evolving_rl_jax.train.global_batch import host_shape, source_numbers
from evolving_rl_jax.train.limits import Limits
from evolving_rl_jax.train.memory import Memory
from evolving_rl_jax.train.saves import Saves
from evolving_rl_jax.types import TokenBatch
from evolving_rl_jax.update.agreement import scores_first
from evolving_rl_jax.update.optimizer import make_optimizer
from evolving_rl_jax.update.state import TrainState
from evolving_rl_jax.update.step import make_scoring, make_train_step


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from iteration to iteration.

    Attributes:
      mesh: the devices of an update.
      train_step: the compiled update, (state, batch) -> (state, metrics).
      with_old_logprobs: (state, batches of an iteration) -> the batches, those after the first with
        the log-probabilities of ``state``, see `TokenBatch.old_logprobs`.
      shape: of this host's part of a batch.
      batches: shares of an iteration's experience -> this host's part of the batch of each.
      memory: what the run remembers beside its weights.
      sources: numbers of the source tasks, out of the iteration's G, that this host plays.
      weights: state -> the whole policy; with LoRA valid until the next call, see `lora.Merger`.
      collector: plays iterations.
      panels: plays evaluations.
      record: what is written down of an iteration.
      collapses: what is written down of a collapse.
      saves: checkpoints.
      limits: end a run that learns nothing.
    """

    mesh: Mesh
    train_step: Callable[..., tuple[TrainState, dict[str, Any]]]
    with_old_logprobs: Callable[[TrainState, list[TokenBatch]], list[TokenBatch]]
    shape: BatchShape
    batches: Batcher
    memory: Memory
    sources: Sequence[int]
    weights: Callable[[TrainState], Any]
    collector: Collector
    panels: Panels
    record: RunRecord
    collapses: CollapseLog
    saves: Saves
    limits: Limits


def set_up(parts: Parts) -> tuple[Run, TrainState, int]:
    """Makes everything, and reads the newest checkpoint or makes the policy that training starts from.

    Returns:
      What the loop works with, the state, and the number of iterations that it was trained for.

    Raises:
      ConfigError: the configuration does not fit the devices, or the folder its checkpoints.
      CollapsedError: the collapse rule has ended this run.
    """
    config, hosts = parts.config, parts.hosts
    mesh, lora = training_mesh(config, hosts), lora_lib.from_config(config.model.lora)
    optimizer = make_optimizer(config, config.train.num_iterations * config.train.minibatches)
    sources = source_numbers(config.rollout.num_sources, config.train.minibatches, hosts)
    memory = Memory(parts, sources)
    saves = Saves(parts, optimizer, mesh, lora, memory)
    state, done = saves.begin()
    saves.rule.raise_if_stopped()
    train_step = make_train_step(
        config, parts.model_cfg, optimizer, mesh, lora=lora, attention=config.model.attention
    )
    weights = _weights(lora)
    engine = make_engine(parts, weights(state))
    collector = make_collector(parts, engine, sources, weights, memory)
    shape = host_shape(BatchShape.from_config(config), hosts, mesh)
    run = Run(
        mesh=mesh,
        train_step=in_order(train_step),
        with_old_logprobs=_scorer(parts, optimizer, mesh, lora),
        shape=shape,
        batches=Batcher(shape, lambda rows: max(hosts.gather(rows))),
        memory=memory,
        sources=sources,
        weights=weights,
        collector=collector,
        panels=Panels(parts, engine, collector.wait),
        record=RunRecord(parts, done),
        collapses=CollapseLog(parts.folder.path, resume_from=done, write=hosts.first),
        saves=saves,
        limits=Limits(config),
    )
    return run, state, done


def _scorer(parts: Parts, optimizer, mesh: Mesh, lora):
    """`Run.with_old_logprobs`; it has nothing to do where an iteration makes one update."""
    config = parts.config
    if not scores_first(config):
        return lambda _state, batches: batches
    score = make_scoring(
        config, parts.model_cfg, optimizer, mesh, lora=lora, attention=config.model.attention
    )
    score = in_order(score)

    def with_old_logprobs(state, batches):
        first, *later = batches
        scored = [score(state, batch) for batch in later]
        # The same program for all of them; nan stands for the policy before the update itself.
        unscored = jnp.full_like(scored[0], jnp.nan)
        later = [b._replace(old_logprobs=s) for b, s in zip(later, scored, strict=True)]
        return [first._replace(old_logprobs=unscored), *later]

    return with_old_logprobs


def _weights(lora: lora_lib.LoraConfig | None) -> Callable[[TrainState], Any]:
    if lora is None:
        return lambda state: state.params
    merge = lora_lib.Merger(lora)
    return lambda state: merge(state.ref_params, state.params)
