"""Packed rows prepared for a next-token loss, and the log-probabilities of their trained tokens."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from evolving_rl_jax import losses, models, parallel
from evolving_rl_jax.types import ROLE_NONE, TokenBatch


class Rows(NamedTuple):
    """Inputs in their own order; what the loss reads in the order of ``columns``.  All [B, T].

    ``columns`` sorts the columns of a row so that those that predict a trained token come first.
    A rollout row is mostly prompt, so the unembedding, as wide as the vocabulary, runs over the
    first few chunks of that order only.
    """

    tokens: Any
    positions: Any
    segment_ids: Any
    columns: Any  # the hidden state at this column predicts the target
    targets: Any
    mask: Any  # weight of the target: 1 = trained on; between 0 and 1 in cloning only
    sequence_ids: Any
    rollout_logprobs: Any  # as the engine recorded them
    old_logprobs: Any = None  # as in TokenBatch
    floor_logprobs: Any = None  # likewise
    step_credit: Any = None  # likewise


def gather(values: jax.Array, index: jax.Array) -> jax.Array:
    """``values`` flattened, at ``index``; what lies outside takes the nearest."""
    return values.reshape(-1)[jnp.clip(index, 0, values.size - 1)]


def in_use(batch: TokenBatch) -> jax.Array:
    """Which tokens belong to a sequence that is in use, bool [B, T]."""
    ids = batch.sequence_ids
    return (ids >= 0) & (gather(batch.role, ids) != ROLE_NONE)


def make_rows(
    tokens,
    positions,
    segment_ids,
    loss_mask,
    sequence_ids=None,
    rollout_logprobs=None,
    old_logprobs=None,
    floor_logprobs=None,
    step_credit=None,
) -> Rows:
    """Moves what belongs to a token to the column that predicts it, the one before, and sorts.

    Args:
      tokens, positions, segment_ids: [B, T] as in TokenBatch.
      loss_mask: [B, T], the weight of this token in the loss, 0 = it is not trained on.
      sequence_ids, rollout_logprobs, old_logprobs, floor_logprobs, step_credit: [B, T], carried
        along; None where the loss has no use for them.
    """

    def after(x):
        return jnp.roll(x, -1, axis=1)

    # The first token of a sequence has no predictor: its column before belongs to another one.
    same = (after(segment_ids) == segment_ids) & (segment_ids > 0)
    same = same.at[:, -1].set(False)
    mask = jnp.where(same, after(loss_mask), 0.0)
    columns = jnp.argsort(mask, axis=1, stable=True, descending=True)

    def ordered(x, move=lambda x: x):
        return None if x is None else jnp.take_along_axis(move(x), columns, axis=1)

    return Rows(
        tokens,
        positions,
        segment_ids,
        columns,
        ordered(after(tokens)),
        ordered(mask),
        ordered(sequence_ids),
        ordered(rollout_logprobs, after),
        ordered(old_logprobs, after),
        ordered(floor_logprobs, after),
        ordered(step_credit, after),
    )


def row_logprobs(
    params: Any,
    model_cfg: models.ModelConfig,
    rows: Rows,
    *,
    chunk: int,
    remat: str,
    mesh: Mesh,
    temperature: float = 1.0,
    attention: str = "auto",
) -> losses.KeptLogprobs:
    """Log-probabilities of the targets and entropies of their distributions, both [B, T].

    Args:
      params: the policy's or the reference's.
      model_cfg: the model.
      rows: the rows, a micro-batch of them.
      chunk: columns of a row whose logits exist at a time.
      remat: what the backward pass recomputes, see `models.apply`.
      mesh: the device mesh.
      temperature: of the distributions, that of sampling.
      attention: its implementation, see `models.apply`.

    Returns:
      ``(logprobs, entropy, log_kept)``, float32 in the order of ``rows.columns``; 0 in chunks in
      which no row has a trained token.  ``log_kept`` is None without ``rows.floor_logprobs``.
    """
    hidden, _ = models.apply(
        params,
        model_cfg,
        rows.tokens,
        positions=rows.positions,
        segment_ids=rows.segment_ids,
        remat=remat,
        implementation=attention,
        mesh=mesh,
    )
    matrix = models.unembedding(params, model_cfg).astype(hidden.dtype)
    compute = functools.partial(_sorted_logprobs, chunk=chunk, temperature=temperature)
    if mesh.shape["data"] * mesh.shape["fsdp"] > 1:
        # The matrix is gathered once over the data axes, then each device goes through the chunks
        # of its own rows: the compiler, left to share out the loop, would gather the matrix and sum
        # its gradient in every chunk.  A vocabulary sharded over `tensor` stays sharded.
        by_row = PartitionSpec(parallel.ROWS)
        compute = jax.shard_map(
            compute,
            mesh=mesh,
            axis_names=set(parallel.ROWS),
            in_specs=(by_row, PartitionSpec(), by_row, by_row, by_row, by_row),
            out_specs=by_row,
            check_vma=False,
        )
    return compute(hidden, matrix, rows.columns, rows.targets, rows.mask, rows.floor_logprobs)


def _sorted_logprobs(hidden, matrix, columns, targets, mask, floors, *, chunk, temperature):
    """`losses.token_logprobs` with the hidden states in the order of ``columns``."""
    states = jnp.take_along_axis(hidden, columns[:, :, None], axis=1)
    sizes = {"temperature": temperature, "chunk_size": chunk, "mask": mask}
    if floors is None:
        return losses.KeptLogprobs(*losses.token_logprobs(states, matrix, targets, **sizes), None)
    return losses.kept_token_logprobs(states, matrix, targets, floors, **sizes)


def in_token_order(values: jax.Array, rows: Rows) -> jax.Array:
    """Values [B, T] in the order of ``rows.columns`` -> at the tokens that they are of, 0 elsewhere."""
    row = jnp.arange(values.shape[0])[:, None]
    # The last column predicts nothing; what wraps around to the first token is never trained.
    placed = jnp.zeros_like(values).at[row, rows.columns].set(jnp.where(rows.mask > 0, values, 0.0))
    return jnp.roll(placed, 1, axis=1)
