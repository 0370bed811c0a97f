"""The loss of an update: one micro-batch of packed rows, and the numbers that it reports."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from evolving_rl_jax import losses
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.types import ROLE_EXTRACTOR
from evolving_rl_jax.update import agreement, given, microbatch
from evolving_rl_jax.update import rows as rows_lib
from evolving_rl_jax.update.advantages import spread_of_sequences
from evolving_rl_jax.update.variants import Variant

# Metrics that the loss returns as sums over sequences of token means.
_PER_SEQUENCE = ("loss", "policy_loss", "kl", "clip_fraction", "ratio_deviation")


def policy_logprobs(params, model_cfg, config, rows, mesh, attention, *, at_temperature):
    """`rows.row_logprobs` with the sizes of ``config.train``.

    Args:
      params, model_cfg, rows, mesh, attention: as there.
      config: of the run.
      at_temperature: under the distributions of sampling, ``config.rollout.temperature``; else 1.
    """
    return rows_lib.row_logprobs(
        params,
        model_cfg,
        rows,
        chunk=config.train.logprob_chunk,
        remat=config.train.remat,
        mesh=mesh,
        temperature=config.rollout.temperature if at_temperature else 1.0,
        attention=attention,
    )


def uses_reference(config, *, detached: bool) -> bool:
    """Whether any sequence has a KL term, with or without ``detached`` ones, which have a weight of their
    own.  Without one the forward pass of the reference is left out, and the KL metrics are 0."""
    kl = config.algorithm.kl_coef
    return bool(kl.solver or kl.extractor or (detached and config.replay.kl_coef))


def make_loss(config, model_cfg, lora, ref_params, batch, advantages, mesh, attention):
    """The loss of one micro-batch as a function of (params, rows) -> (sum over sequences, MicroResult).

    Args:
      config: with the groups ``algorithm``, ``rollout`` and ``train``.
      model_cfg: the policy.
      lora: the adapters that are trained, or None.
      ref_params: the reference policy; with adapters the frozen base under them.
      batch: the whole batch; its rows come in micro-batches.
      advantages: [M].
      mesh: the device mesh.
      attention: its implementation, ``config.model.attention``.
    """
    algorithm = config.algorithm
    extractor = batch.role == ROLE_EXTRACTOR
    kl_coef = jnp.where(extractor, algorithm.kl_coef.extractor, algorithm.kl_coef.solver)
    entropy_coef = jnp.where(
        extractor, algorithm.entropy_coef.extractor, algorithm.entropy_coef.solver
    )

    if not algorithm.kl_without_spread:
        kl_coef = jnp.where(spread_of_sequences(algorithm, batch), kl_coef, 0.0)
    kl_coef, entropy_coef = given.coefficients(config, batch, kl_coef, entropy_coef)
    variant = Variant(algorithm, batch, advantages)
    measured = uses_reference(config, detached=batch.detached is not None)
    centre = agreement.centre_of(batch)

    def logprobs_of(params, rows):
        return policy_logprobs(
            params, model_cfg, config, rows, mesh, attention, at_temperature=True
        )

    def loss_fn(params, rows):
        policy = lora_lib.attach(ref_params, params, lora) if lora else params
        found = logprobs_of(policy, rows)
        logprobs, entropy, sampled = found.logprobs, found.entropy, found.of_kept
        ref_logprobs = jax.lax.stop_gradient(logprobs)
        if measured:
            ref_logprobs = logprobs_of(ref_params, rows._replace(floor_logprobs=None)).logprobs
        old_logprobs, weights = agreement.importance(algorithm, sampled, rows)
        free = given.detached_tokens(batch, rows.sequence_ids)
        old_logprobs, weights = given.detach(free, sampled, old_logprobs, weights)
        kept = given.kept_rows(algorithm, batch, rows)
        loss, parts = losses.evolving_rl_loss(
            sampled,
            old_logprobs,
            ref_logprobs,
            entropy,
            kept.mask,
            sequence_ids=rows.sequence_ids,
            num_sequences=batch.role.shape[0],
            advantages=advantages,
            token_advantages=rows.step_credit,
            entropy_coef=entropy_coef,
            kl_coef=kl_coef,
            kl_kind=algorithm.kl_kind,
            **variant.options(kept, weights),
            kl_logprobs=None if found.log_kept is None else logprobs,
        )
        sums = {n: parts[n] for n in _PER_SEQUENCE}
        kl = losses.kl_estimate(logprobs, ref_logprobs, kind=algorithm.kl_kind)
        is_extractor = rows_lib.gather(extractor, rows.sequence_ids)
        sums |= given.sums(free, rows, sampled)
        rows = given.own_rows(free, rows)
        sums |= agreement.sums(algorithm, rows, sampled, weights, centre, variant.clip(rows))
        return loss, _token_sums(rows, sampled, entropy, kl, is_extractor, sums)

    return loss_fn


def _token_sums(rows, logprobs, entropy, kl, is_extractor, sums):
    """Token-level numbers of one micro-batch, as sums and maxima."""
    trained = rows.mask > 0
    gap = jnp.where(trained, jnp.abs(logprobs - rows.rollout_logprobs), 0.0)
    sums = sums | {"tokens": jnp.sum(rows.segment_ids > 0).astype(jnp.float32)}
    for role, of_role in (("solver", ~is_extractor), ("extractor", is_extractor)):
        chosen = trained & of_role
        sums[f"trained_{role}"] = jnp.sum(chosen).astype(jnp.float32)
        sums[f"entropy_{role}"] = jnp.sum(jnp.where(chosen, entropy, 0.0))
        sums[f"kl_{role}"] = jnp.sum(jnp.where(chosen, kl, 0.0))
    result = microbatch.MicroResult(sums, {"logprob_gap": jnp.max(gap)})
    return jax.lax.stop_gradient(result)


def step_metrics(total, count):
    """Means from the sums over all micro-batches; ``count`` is the number of sequences in use."""
    sums, per_sequence = total.sums, jnp.maximum(count, 1.0)
    trained = sums["trained_solver"] + sums["trained_extractor"]
    metrics = {name: sums[name] / per_sequence for name in _PER_SEQUENCE}
    for role in ("solver", "extractor"):
        tokens = jnp.maximum(sums[f"trained_{role}"], 1.0)
        metrics |= {f"{name}_{role}": sums[f"{name}_{role}"] / tokens for name in ("entropy", "kl")}
    return metrics | {
        "tokens": sums["tokens"],
        "trained_tokens": trained,
        "logprob_gap_max": jnp.maximum(total.maxima["logprob_gap"], 0.0),
        **agreement.metrics(sums, jnp.maximum(trained, 1.0)),
    }
