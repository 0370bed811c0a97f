"""The updates, each one pure, compiled function of (state, batch): Evolving-RL, and cloning.

What the paper (arXiv 2605.10663) leaves open and this file decides:

1. The denominator is the number of sequences in use, failed or advantage-free ones included: a
   sequence with advantage 0 still has its KL and entropy terms.
2. The weight of an arm acts on the advantages only, so `solver_only` still holds extraction
   sequences (if the batch has any) to the reference, and `extractor_only` those of the solver.
3. The ratio of the clipped loss is to the policy before the first update of the iteration, as the
   trainer computes it: engine and trainer round differently, and a clip that sees their difference
   acts before any update.  With one update an iteration that is the policy before this update, and
   the ratio is 1; with several, `make_scoring` computes it.  What separates that policy from the one
   that sampled is the weight of the token (``algorithm.importance.kind`` truncated) and the metrics
   ``logprob_*``.  ``algorithm.old_logprobs`` rollout takes the engine's record instead.
4. An update whose gradient is not finite, or whose batch is empty, is left out and counted.
5. With ``algorithm.sampling_mask`` replay the ratio (with its clip and importance weight) is between
   distributions renormalised over the tokens that top-p and top-k kept; KL and entropy stay those of
   the full softmax, so that the reference, which kept other tokens, can be compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from evolving_rl_jax import models, parallel
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.models.attention import check_platform
from evolving_rl_jax.types import ROLE_EXTRACTOR, ROLE_SOLVER, ROW_FIELDS, TokenBatch
from evolving_rl_jax.update import given, microbatch
from evolving_rl_jax.update import rows as rows_lib
from evolving_rl_jax.update import state as state_lib
from evolving_rl_jax.update.advantages import (
    ARM_WEIGHTS,
    arm_weights,
    of_sequences,
    source_advantages,
    unweighted_advantages,
    with_sources,
)
from evolving_rl_jax.update.loss import make_loss, policy_logprobs, step_metrics

# The metrics of an update, all float32 scalars.  Nats where a unit is needed.
STEP_METRICS: dict[str, str] = {
    "loss": "what the update minimises, per sequence in use",
    "policy_loss": "the clipped surrogate part of the loss, per sequence in use",
    "kl": "KL estimate to the reference (initial) policy, per sequence in use",
    "kl_solver": "KL estimate to the reference, mean over trained solver tokens",
    "kl_extractor": "KL estimate to the reference, mean over trained extractor tokens",
    "entropy_solver": "entropy of the policy, mean over trained solver tokens",
    "entropy_extractor": "entropy of the policy, mean over trained extractor tokens",
    "clip_fraction": "share of tokens whose gradient was clipped away, mean over sequences",
    "ratio_deviation": "|probability ratio to the rollout - 1|, mean over sequences",
    "grad_norm": "global norm of the gradient before clipping",
    "update_norm": "global norm of the change of the parameters",
    "param_norm": "global norm of the parameters after the update",
    "zero_variance_solver": "share of solver groups (one task; on web tasks one step of it) without "
    "spread, so without signal",
    "zero_variance_extractor": "share of extractor groups (one source) without spread",
    "extractor_reward": "mean reward of a skill: the win rate with it, on web tasks the mean score "
    "of its episodes; 0 for an invalid one",
    "reward": "mean of what the scored episodes are worth: 1 won, 0 lost, or what the environment gives",
    "sequences_solver": "solver sequences in use, of evaluations (those of trained source episodes apart)",
    "sequences_extractor": "extractor sequences in use",
    "tokens": "tokens of sequences in the batch, prompts included",
    "trained_tokens": "tokens that the policy sampled and that the loss reads",
    "logprob_gap_mean": "|log-probability in training - in the rollout|, mean over trained tokens",
    "logprob_gap_max": "the same, largest",
    "logprob_outside_clip": "share of trained tokens whose probability ratio of training to rollout is "
    "outside the clip range before any update",
    "logprob_correlation": "correlation of the two log-probabilities over trained tokens",
    "importance_mean": "mean importance weight of trained tokens",
    "importance_capped": "share of trained tokens whose importance weight was cut to the cap",
    "skipped_updates": "updates left out so far because the gradient was not finite",
}

# Metric -> the one that says of how many it is a mean: where that is 0 it says nothing.
STEP_COUNTS: dict[str, str] = {
    **dict.fromkeys(("loss", "policy_loss", "kl", "clip_fraction", "ratio_deviation"), "tokens"),
    **dict.fromkeys(("kl_solver", "entropy_solver"), "sequences_solver"),
    **dict.fromkeys(("zero_variance_solver", "reward"), "sequences_solver"),
    **dict.fromkeys(("kl_extractor", "entropy_extractor"), "sequences_extractor"),
    **dict.fromkeys(("zero_variance_extractor", "extractor_reward"), "sequences_extractor"),
    **dict.fromkeys(("logprob_gap_mean", "logprob_gap_max"), "trained_tokens"),
    **dict.fromkeys(("logprob_correlation", "importance_mean"), "trained_tokens"),
    "importance_capped": "trained_tokens",
    "detached_nll": "sequences_detached",
}
CUMULATIVE = ("skipped_updates",)  # counted since the start of the run

# The metrics of a cloning update, likewise.
CLONING_METRICS: dict[str, str] = {
    "loss": "cross-entropy of the demonstrated tokens, nats a token",
    "token_probability": "mean probability of the demonstrated tokens",
    "grad_norm": STEP_METRICS["grad_norm"],
    "update_norm": STEP_METRICS["update_norm"],
    "param_norm": STEP_METRICS["param_norm"],
    "trained_tokens": "demonstrated tokens in the batch",
    "skipped_updates": STEP_METRICS["skipped_updates"],
}

# Those that are sums over the demonstrated tokens of a batch.
CLONING_SUMS = ("loss", "token_probability", "trained_tokens")


def batch_shardings(mesh: Mesh) -> TokenBatch:
    """NamedShardings of a TokenBatch: rows over the data axes, all else on every device."""
    rows = NamedSharding(mesh, PartitionSpec(parallel.ROWS))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return TokenBatch(*(rows if name in ROW_FIELDS else everywhere for name in TokenBatch._fields))


def make_train_step(
    config: Any,
    model_cfg: models.ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    lora: lora_lib.LoraConfig | None = None,
    attention: str = "auto",
) -> Callable[[state_lib.TrainState, TokenBatch], tuple[state_lib.TrainState, dict[str, Any]]]:
    """Compiles ``train_step(state, batch) -> (state, metrics)``; the given state is donated.

    Args:
      config: with the groups ``algorithm`` and ``train``.
      model_cfg: the policy.
      optimizer: as `optimizer.make_optimizer` returns it.
      mesh: the device mesh.
      lora: the adapters that are trained instead of the policy's own parameters, or None.
      attention: its implementation, ``config.model.attention``.

    Returns:
      A jitted function.  ``state`` as `state.init_state` makes it, with reference parameters;
      ``batch`` a TokenBatch placed as `batch_shardings` says, or of numpy arrays.  ``metrics`` has
      the keys of `STEP_METRICS`, float32 scalars on the devices.

    Raises:
      ValueError: an unknown arm, or a kernel for other devices; when first called, micro-batches
        that do not fit the mesh.
    """
    arm = config.algorithm.arm
    if arm not in ARM_WEIGHTS:
        accepted = ", ".join(ARM_WEIGHTS)
        raise ValueError(f"config.algorithm.arm must be one of {accepted}, got {arm!r}")
    check_platform(attention, mesh)

    def train_step(state, batch):
        advantages, stats = sequence_advantages(config, batch)
        loss_fn = make_loss(
            config, model_cfg, lora, state.ref_params, batch, advantages, mesh, attention
        )
        rows, num_micro = _micro_batches(batch, config, mesh)
        params = cast_once(state.params, model_cfg, lora)
        grads, total = microbatch.accumulate_gradients(loss_fn, params, rows, num_micro, mesh)
        count = jnp.sum(given.counted(config.algorithm, batch)).astype(jnp.float32)
        over = jnp.sum(given.averaged(config.algorithm, batch)).astype(jnp.float32)
        grads = jax.tree.map(lambda g: g / jnp.maximum(over, 1.0), grads)
        usable = given.usable(batch, count)
        state, norms = state_lib.apply_gradients(state, grads, optimizer, usable=usable)
        more = given.metrics(total.sums, batch)
        metrics = stats | norms | step_metrics(total, count) | more
        return state, {n: metrics[n].astype(jnp.float32) for n in (*STEP_METRICS, *more)}

    abstract = state_lib.abstract_state(model_cfg, optimizer, mesh, lora=lora)
    return _compiled(train_step, abstract, batch_shardings(mesh), mesh)


def make_scoring(
    config: Any,
    model_cfg: models.ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    lora: lora_lib.LoraConfig | None = None,
    attention: str = "auto",
) -> Callable[[state_lib.TrainState, TokenBatch], jax.Array]:
    """Compiles ``score(state, batch) -> old_logprobs [B, T]``, for `TokenBatch.old_logprobs`.

    The log-probability of each trained token under the policy of ``state``, at the temperature of
    sampling (and renormalised over what was kept, where the batch says what that was), 0 elsewhere;
    one forward pass.  For the batches of an iteration that the policy has
    left behind when their update comes.

    Args:
      config, model_cfg, optimizer, mesh, lora, attention: as for `make_train_step`.
    """

    def score(state, batch):
        params = cast_once(state.params, model_cfg, lora)
        policy = lora_lib.attach(state.ref_params, params, lora) if lora else params
        rows, num_micro = _micro_batches(batch, config, mesh)

        def micro(rows):
            found = policy_logprobs(
                policy, model_cfg, config, rows, mesh, attention, at_temperature=True
            )
            return rows_lib.in_token_order(found.of_kept, rows)

        found = microbatch.map_micro(micro, rows, num_micro)
        return microbatch.join_rows(found, batch.tokens.shape[0], mesh)

    abstract = state_lib.abstract_state(model_cfg, optimizer, mesh, lora=lora)
    by_row = NamedSharding(mesh, PartitionSpec(parallel.ROWS))
    shardings = state_lib.state_shardings(abstract), batch_shardings(mesh)
    return jax.jit(score, in_shardings=shardings, out_shardings=by_row)


def make_cloning_step(
    config: Any,
    model_cfg: models.ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    lora: lora_lib.LoraConfig | None = None,
    attention: str = "auto",
) -> Callable[[state_lib.TrainState, dict[str, Any]], tuple[state_lib.TrainState, dict[str, Any]]]:
    """Compiles ``cloning_step(state, batch) -> (state, metrics)``; the given state is donated.

    The loss is the mean of ``-log p(token | tokens before)`` over the tokens of the batch, weighted by
    ``loss_mask``: 1 for what was demonstrated, less for what was only read (``observation_weight``).

    Args:
      config: with the group ``train``.
      model_cfg: the policy.
      optimizer: any optax transformation.
      mesh: the device mesh.
      lora: the adapters that are trained instead of the policy's own parameters, or None.
      attention: its implementation, ``config.model.attention``.

    Returns:
      A jitted function.  ``state`` as `state.init_state` makes it with ``reference=False``;
      ``batch`` the packed rows ``tokens, positions, segment_ids, loss_mask``, all [B, T] and as in
      TokenBatch.  ``metrics`` has the keys of `CLONING_METRICS`, float32 scalars on the devices.
    """
    check_platform(attention, mesh)

    def cloning_step(state, batch):
        def loss_fn(params, rows):
            policy = lora_lib.attach(state.ref_params, params, lora) if lora else params
            sums = _cloning_sums(policy, model_cfg, config, rows, mesh, attention)
            return sums["weighted"], jax.lax.stop_gradient(microbatch.MicroResult(sums, {}))

        rows = rows_lib.make_rows(**batch)
        rows, _ = microbatch.split_rows(rows, config.train.micro_batch_rows, mesh)
        num_micro = rows.tokens.shape[0]
        params = cast_once(state.params, model_cfg, lora)
        grads, total = microbatch.accumulate_gradients(loss_fn, params, rows, num_micro, mesh)
        count = total.sums["trained_tokens"]
        weight = total.sums["weight"]
        grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1.0), grads)
        state, metrics = state_lib.apply_gradients(state, grads, optimizer, usable=count > 0)
        for name in ("loss", "token_probability"):
            metrics[name] = total.sums[name] / jnp.maximum(count, 1.0)
        return state, metrics | {"trained_tokens": count}

    abstract = state_lib.abstract_state(model_cfg, optimizer, mesh, reference=False, lora=lora)
    by_row = NamedSharding(mesh, PartitionSpec(parallel.ROWS))
    return _compiled(cloning_step, abstract, by_row, mesh)


def make_cloning_score(
    config: Any,
    model_cfg: models.ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    lora: lora_lib.LoraConfig | None = None,
    attention: str = "auto",
) -> Callable[[state_lib.TrainState, dict[str, Any]], dict[str, Any]]:
    """Compiles ``score(state, batch) -> sums`` of demonstrations that are not trained on.

    Args:
      config, model_cfg, optimizer, mesh, lora, attention: as for `make_cloning_step`.

    Returns:
      A jitted function of what `make_cloning_step` takes: ``loss``, ``token_probability`` and
      ``trained_tokens`` of the batch, each a sum over its masked tokens.
    """

    def score(state, batch):
        params = cast_once(state.params, model_cfg, lora)
        policy = lora_lib.attach(state.ref_params, params, lora) if lora else params
        rows = rows_lib.make_rows(**batch)
        rows, _ = microbatch.split_rows(rows, config.train.micro_batch_rows, mesh)

        def micro(rows):
            sums = _cloning_sums(policy, model_cfg, config, rows, mesh, attention)
            return jnp.stack([sums[name] for name in CLONING_SUMS])

        found = microbatch.map_micro(micro, rows, rows.tokens.shape[0]).sum(0)
        return dict(zip(CLONING_SUMS, found, strict=True))

    abstract = state_lib.abstract_state(model_cfg, optimizer, mesh, reference=False, lora=lora)
    by_row = NamedSharding(mesh, PartitionSpec(parallel.ROWS))
    everywhere = NamedSharding(mesh, PartitionSpec())
    shardings = state_lib.state_shardings(abstract), by_row
    return jax.jit(score, in_shardings=shardings, out_shardings=everywhere)


def _cloning_sums(policy, model_cfg, config, rows, mesh, attention):
    """Sums over the demonstrated tokens of one micro-batch; and the loss and weight of all of them."""
    logprobs = policy_logprobs(
        policy, model_cfg, config, rows, mesh, attention, at_temperature=False
    ).logprobs
    taught = rows.mask == 1
    return {
        "loss": -jnp.sum(jnp.where(taught, logprobs, 0.0)),
        "token_probability": jnp.sum(jnp.where(taught, jnp.exp(logprobs), 0.0)),
        "trained_tokens": jnp.sum(jnp.where(taught, 1.0, 0.0)),
        "weighted": -jnp.sum(jnp.where(rows.mask > 0, rows.mask * logprobs, 0.0)),
        "weight": jnp.sum(rows.mask),
    }


def cast_once(params: Any, model_cfg: models.ModelConfig, lora: lora_lib.LoraConfig | None) -> Any:
    """The parameters in the dtype that they are multiplied in, for all micro-batches of an update.

    Otherwise every layer of every micro-batch casts its own, and again in the backward pass.  The
    embedding stays as it is: what is looked up in it has its gradient summed in its own dtype.  So do
    adapters, which are small and scaled before their cast.  The reference is kept cast.
    """
    if lora:
        return params
    rest = {name: x for name, x in params.items() if name != "embedding"}
    return params | parallel.cast(rest, model_cfg.dtype)


def _compiled(step, abstract, batch_sharding, mesh):
    """The jitted step: state sharded as ``abstract`` says and donated, metrics on every device."""
    shardings = state_lib.state_shardings(abstract)
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )


def sequence_advantages(config: Any, batch: TokenBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Advantage of every sequence [M] under the configured arm, and statistics of the outcomes."""
    result = unweighted_advantages(config.algorithm, batch)
    solver_weight, extractor_weight = arm_weights(config.algorithm)
    solver = of_sequences(result.solver, batch.index, batch.step, 4) * solver_weight
    extractor = of_sequences(result.extractor, batch.index, batch.step, 2) * extractor_weight
    is_solver, is_extractor = batch.role == ROLE_SOLVER, batch.role == ROLE_EXTRACTOR
    advantages = jnp.where(is_solver, solver, jnp.where(is_extractor, extractor, 0.0))
    sources = source_advantages(config.algorithm, batch)
    if sources is not None:
        sources = sources * solver_weight
    advantages = with_sources(advantages, sources, batch.role, batch.index, batch.step)
    advantages = given.advantages(advantages, batch)
    return advantages, _outcome_metrics(batch, result)


def _outcome_metrics(batch, result):
    """Statistics of wins and groups; groups that were never played do not count."""
    played = batch.episode_mask > 0
    is_extractor = given.computed(batch.role == ROLE_EXTRACTOR, batch)
    num_sources, num_skills = batch.skill_valid.shape
    source = jnp.where(is_extractor, batch.index // num_skills, num_sources)
    extracted = jnp.zeros(num_sources + 1, bool).at[source].set(True)[:num_sources]
    used_source = extracted | played.any((1, 2, 3))
    members = played
    if batch.step_mask is not None:  # the groups are those of single steps
        members = played[..., None] & (batch.step_mask > 0)
    used_group = members.any((2, 3))
    reward = jnp.where(used_source[:, None], result.extractor_reward, 0.0)

    def share(part, whole):
        return part.sum() / jnp.maximum(whole.sum(), 1)

    return {
        "zero_variance_solver": share(used_group & (result.solver == 0).all((2, 3)), used_group),
        "zero_variance_extractor": share(used_source & (result.extractor == 0).all(1), used_source),
        "extractor_reward": reward.sum() / jnp.maximum(used_source.sum() * num_skills, 1),
        "reward": share(jnp.where(played, batch.wins, 0.0), played),
        "sequences_solver": given.computed(batch.role == ROLE_SOLVER, batch).sum(),
        "sequences_extractor": is_extractor.sum(),
    }


def _micro_batches(batch: TokenBatch, config, mesh: Mesh):
    """(rows as `microbatch.split_rows` gives them, how many micro-batches hold any in use)."""
    rows, _ = microbatch.split_rows(_rows(batch), config.train.micro_batch_rows, mesh)
    return rows, microbatch.count_used(jnp.any(rows.segment_ids > 0, axis=2))


def _rows(batch: TokenBatch) -> rows_lib.Rows:
    """The rows of the batch; tokens of unused sequences are not trained on."""
    mask = jnp.where(rows_lib.in_use(batch), batch.loss_mask, 0.0)
    return rows_lib.make_rows(
        batch.tokens, batch.positions, batch.segment_ids, mask, batch.sequence_ids,
        batch.rollout_logprobs, batch.old_logprobs, batch.floor_logprobs, batch.step_credit,
    )  # fmt: skip
