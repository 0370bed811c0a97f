"""Causal grouped-query attention over packed rows, and attention over a KV cache.

Layout: queries ``[B, H, T, d]``, keys and values ``[B, Hkv, T, d]``; query head ``h`` reads key
head ``h // (H // Hkv)``.  Scores and softmax are float32, results have the dtype of the queries.

Four implementations give the same values and gradients:

* ``plain``: the textbook formula; holds ``[B, H, T, T]`` scores.  Best for short rows.
* ``blockwise``: tiles of scores that fit a CPU's cache (larger ones on a GPU), recomputed in the backward pass from the
  saved log-normaliser (the idea of FlashAttention, arXiv 2205.14135), so memory is linear in T.
  A block of queries reads the keys from the first token of its segments to its own end, in one of six
  widths: what lies after it and, in packed rows, most of what belongs to others costs nothing.
* ``splash``: the Pallas kernel for TPUs, see `splash`; ``splash_interpreted`` runs it on a CPU for
  tests.
* ``pallas_gpu``: the Pallas kernel for GPUs, see `pallas_gpu`; likewise ``pallas_gpu_interpreted``.
  ``auto`` does not choose it: nobody has measured yet whether it is faster than ``blockwise``.

On a mesh all but ``plain`` run inside ``shard_map``, each device on its own rows and heads: a compiler
cannot split a kernel, and would gather the rows of a loop over row groups.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from evolving_rl_jax import parallel
from evolving_rl_jax.models.pallas_gpu import pallas_gpu_attention
from evolving_rl_jax.models.splash import splash_attention

# Large and finite: a row with nothing to attend to must give a number, not NaN.
_MASKED = -1e30
_QUERIES = 48  # of a block on a CPU, about; 16 to 64 were measured equal
_TILE_BYTES = (
    1 << 19
)  # float32 scores held at a time on a CPU, where several rows are short enough for it
# A GPU wants few large products: at this many bytes, blocks of hundreds of queries.  A guess until it is measured.
_GPU_TILE_BYTES = 128 << 20
_WIDTHS = (1, 3 / 4, 1 / 2, 1 / 4, 1 / 8, 1 / 16)  # of a row, that a block of queries may read
_PLAIN_UP_TO = 64  # tokens a row
_CACHED_SCORE_BYTES = 1 << 30  # scores of a prefill chunk held at a time, over all devices


class _Plan(NamedTuple):
    """How blockwise attention cuts a batch."""

    rows: int  # at a time
    block: int  # queries
    widths: tuple[int, ...]  # keys that a block may read, ascending; the last is the row


def _grouped(q: jax.Array, kv_heads: int) -> jax.Array:
    """Query heads that share a key head side by side: [B, H, T, d] -> [B, Hkv, H/Hkv * T, d]."""
    batch, heads, length, dim = q.shape
    return q.reshape(batch, kv_heads, heads // kv_heads * length, dim)


def _scores(q, k, allowed):
    """Scaled float32 scores [B, H, Tq, Tk] of q [B, H, Tq, d] and k [B, Hkv, Tk, d], masked by [B,
    Tq, Tk]."""
    scores = jnp.einsum(
        "bhqd,bhkd->bhqk", _grouped(q, k.shape[1]), k, preferred_element_type=jnp.float32
    )
    scores = scores.reshape(*q.shape[:3], k.shape[2]) * q.shape[3] ** -0.5
    return jnp.where(allowed[:, None], scores, _MASKED)


def _weighted_sum(weights, v):
    """weights [B, H, Tq, Tk] @ v [B, Hkv, Tk, d] -> float32 [B, H, Tq, d]."""
    out = jnp.einsum(
        "bhqk,bhkd->bhqd",
        _grouped(weights, v.shape[1]).astype(v.dtype),
        v,
        preferred_element_type=jnp.float32,
    )
    return out.reshape(*weights.shape[:3], v.shape[3])


def _allowed(q_segments, k_segments, first):
    """[B, Tq, Tk] mask: key not after the query (whose first index is ``first``) and in the same
    segment."""
    causal = first + jnp.arange(q_segments.shape[1])[:, None] >= jnp.arange(k_segments.shape[1])
    return causal & (q_segments[:, :, None] == k_segments[:, None, :])


def _plain(q, k, v, segment_ids):
    weights = jax.nn.softmax(_scores(q, k, _allowed(segment_ids, segment_ids, 0)), axis=-1)
    return _weighted_sum(weights, v).astype(q.dtype)


def _tile_forward(q, q_segments, first, k, v, k_segments):
    """One block of queries against a prefix of keys: (out [B, H, Tq, d], log-normaliser [B, H,
    Tq])."""
    scores = _scores(q, k, _allowed(q_segments, k_segments, first))
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = _weighted_sum(weights, v) / total
    return out.astype(q.dtype), (top + jnp.log(total))[..., 0]


def _tile_backward(q, q_segments, first, out, normaliser, grad, k, v, k_segments):
    """Gradients of one tile: (dq [B, H, Tq, d], dk and dv [B, Hkv, Tk, d]), all float32."""
    kv_heads, scale = k.shape[1], q.shape[3] ** -0.5
    weights = jnp.exp(
        _scores(q, k, _allowed(q_segments, k_segments, first)) - normaliser[..., None]
    )
    d_weights = jnp.einsum(
        "bhqd,bhkd->bhqk", _grouped(grad, kv_heads), v, preferred_element_type=jnp.float32
    )
    inner = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    d_scores = weights * (d_weights.reshape(weights.shape) - inner) * scale
    into_keys = functools.partial(jnp.einsum, "bhqk,bhqd->bhkd", preferred_element_type=jnp.float32)
    dv = into_keys(_grouped(weights, kv_heads).astype(grad.dtype), _grouped(grad, kv_heads))
    dk = into_keys(_grouped(d_scores, kv_heads).astype(q.dtype), _grouped(q, kv_heads))
    return _weighted_sum(d_scores, k), dk, dv


def _plan(batch: int, heads: int, length: int, tile: int, queries: int) -> _Plan:
    """About ``queries`` to a block, as few tokens of padding as may be, and as many rows as ``tile`` bytes hold."""
    queries = min(queries, -(-length // 2))
    sizes = range(max(1, queries // 12), max(1, queries // 6) + 1)  # of eight queries
    block = min((8 * n for n in sizes), key=lambda n: (-length % n, abs(n - queries)))
    blocks = -(-length // block)
    wanted = max(1, tile // (4 * heads * length * block))
    rows = max(n for n in range(1, min(batch, wanted) + 1) if batch % n == 0)
    widths = sorted({math.ceil(blocks * part) * block for part in _WIDTHS})
    return _Plan(rows, block, tuple(widths))


def _over_rows(function, rows, args):
    """``function`` over groups of ``rows`` batch rows, one group after the other."""
    batch = args[0].shape[0]
    if rows == batch:
        return function(*args)
    groups = jax.tree.map(lambda a: a.reshape(batch // rows, rows, *a.shape[1:]), tuple(args))
    out = jax.lax.map(lambda group: function(*group), groups)
    return jax.tree.map(lambda a: a.reshape(batch, *a.shape[2:]), out)


def _blocks(x, block, axis):
    """``x`` cut along ``axis``, the blocks as a leading axis."""
    x = x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _unblocks(x, axis):
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _queries(plan, q, segments, *more):
    """Blocks of queries as a leading axis: theirs, their segments, their first index, and ``more`` of each query."""
    cut = functools.partial(_blocks, block=plan.block)
    firsts = jnp.arange(0, q.shape[2], plan.block)
    return cut(q, axis=2), cut(segments, axis=1), firsts, *(cut(x, axis=2) for x in more)


def _window(k, v, segments, start, width):
    """``width`` keys, their values and segments from index ``start`` on."""
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=width)
    return cut(k, axis=2), cut(v, axis=2), cut(segments, axis=1)


def _by_width(plan, segments, q_segments, first, function, *args):
    """``function(width, start, *args)`` with the least of the plan's widths that reaches from the first token of the
    segments of a block of queries, which begins at index ``first``, to its end."""
    same = jnp.any(q_segments[:, :, None] == segments[:, None, :], axis=(0, 1))
    stop = first + plan.block
    index = jnp.sum(jnp.asarray(plan.widths) < stop - jnp.argmax(same))
    branches = [functools.partial(function, w, jnp.maximum(stop - w, 0)) for w in plan.widths]
    return jax.lax.switch(index, branches, *args)


def _group_forward(plan, q, k, v, segments):
    """Forward pass of one group of rows whose length is a multiple of a block."""

    def read(width, start, q_block, q_segments, first):
        window = _window(k, v, segments, start, width)
        return _tile_forward(q_block, q_segments, first - start, *window)

    def attend(queries):
        return _by_width(plan, segments, queries[1], queries[2], read, *queries)

    out, normaliser = jax.lax.map(attend, _queries(plan, q, segments))
    return _unblocks(out, 2), _unblocks(normaliser, 2)


def _group_backward(plan, q, k, v, segments, out, normaliser, grad):
    """Backward pass of one group of rows: float32 (dq, dk, dv)."""

    def read(width, start, sums, q_block, q_segments, first, *of_block):
        window = _window(k, v, segments, start, width)
        dq, *parts = _tile_backward(q_block, q_segments, first - start, *of_block, *window)

        def add(total, part):
            old = jax.lax.dynamic_slice_in_dim(total, start, width, axis=2)
            return jax.lax.dynamic_update_slice_in_dim(total, old + part, start, axis=2)

        return tuple(map(add, sums, parts)), dq

    def attend(sums, queries):
        return _by_width(plan, segments, queries[1], queries[2], read, sums, *queries)

    queries = _queries(plan, q, segments, out, normaliser, grad)
    zeros = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    (dk, dv), dq = jax.lax.scan(attend, zeros, queries)
    return _unblocks(dq, 2), dk, dv


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _tiled(q, k, v, segments, plan):
    return _tiled_forward(q, k, v, segments, plan)[0]


def _tiled_forward(q, k, v, segments, plan):
    # One with the queries: what follows from segments alone jax would compute once for all layers under remat, and
    # keep, the masks of all blocks and widths.
    q, k, v, segments = jax.lax.optimization_barrier((q, k, v, segments))
    forward = functools.partial(_group_forward, plan)
    out, normaliser = _over_rows(forward, plan.rows, (q, k, v, segments))
    # Named, so that a remat policy can keep these two and not run the forward pass twice.
    out, normaliser = checkpoint_name(out, "attention"), checkpoint_name(normaliser, "attention")
    return out, (q, k, v, segments, out, normaliser)


def _tiled_backward(plan, saved, grad):
    backward = functools.partial(_group_backward, plan)
    gradients = _over_rows(backward, plan.rows, (*saved, grad))
    return *(g.astype(x.dtype) for g, x in zip(gradients, saved[:3], strict=True)), None


_tiled.defvjp(_tiled_forward, _tiled_backward)


def _blockwise(q, k, v, segment_ids, *, tile=None):
    """On a CPU, or with tiles of ``tile`` bytes."""
    batch, heads, length, _ = q.shape
    queries = _QUERIES if tile is None else max(16, tile // (4 * heads * length))
    plan = _plan(batch, heads, length, tile or _TILE_BYTES, queries)
    extra = -length % plan.block
    if extra:  # after the last token, hence invisible to every real query
        q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, extra), (0, 0))) for x in (q, k, v))
        segment_ids = jnp.pad(segment_ids, ((0, 0), (0, extra)), constant_values=-1)
    return _tiled(q, k, v, segment_ids, plan)[:, :, :length]


_IMPLEMENTATIONS = {
    "plain": _plain,
    "blockwise": _blockwise,
    "splash": splash_attention,
    "splash_interpreted": functools.partial(splash_attention, interpret=True, block=128),
    "pallas_gpu": pallas_gpu_attention,
    "pallas_gpu_interpreted": functools.partial(pallas_gpu_attention, interpret=True),
}
# The kernels that are compiled for one kind of device only.
_PLATFORMS = {"splash": "tpu", "pallas_gpu": "gpu"}


def check_platform(implementation: str, mesh: Mesh) -> None:
    """Raises ValueError when a kernel cannot be compiled for the devices of ``mesh``."""
    platform = mesh.devices.flat[0].platform
    if _PLATFORMS.get(implementation, platform) != platform:
        raise ValueError(
            f"config.model.attention must be auto, plain, blockwise or a kernel for {platform} "
            f"devices, got {implementation!r}, which is for {_PLATFORMS[implementation]}"
        )


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    implementation: str = "auto",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Causal self-attention of rows in which several sequences may be packed one after the other.

    A token attends to the tokens of its own segment that do not come after it in the row.  Padding
    (segment 0) is a segment like any other, so it neither reaches real tokens nor gives NaN.

    Args:
      q: [B, H, T, d] rotated queries.
      k: [B, Hkv, T, d] rotated keys; Hkv divides H.
      v: [B, Hkv, T, d] values.
      segment_ids: [B, T] int; None means that every row is one segment.
      implementation: ``plain``, ``blockwise``, ``splash``, ``pallas_gpu``, one of the latter two
        with ``_interpreted``, or ``auto``: plain for short rows, else splash on a mesh of TPUs and
        blockwise elsewhere.
      mesh: where the arrays are, with the axes of `parallel.make_mesh`; None for one device.

    Returns:
      [B, H, T, d] in the dtype of ``q``.

    Raises:
      ValueError: on shapes that do not match or an unknown implementation.
    """
    batch, heads, length, dim = q.shape
    if k.shape != v.shape or k.shape != (batch, k.shape[1], length, dim) or heads % k.shape[1]:
        raise ValueError(
            f"k and v must be [B, Hkv, T, d] for q {q.shape} with Hkv dividing H, "
            f"got {k.shape} and {v.shape}"
        )
    if segment_ids is None:
        segment_ids = jnp.ones((batch, length), jnp.int32)
    if segment_ids.shape != (batch, length):
        raise ValueError(f"segment_ids must be [B, T] = {(batch, length)}, got {segment_ids.shape}")
    if implementation == "auto":
        implementation = _choose(length, mesh)
    if implementation not in _IMPLEMENTATIONS:
        accepted = ", ".join(("auto", *_IMPLEMENTATIONS))
        raise ValueError(f"implementation must be one of {accepted}, got {implementation!r}")
    function = _IMPLEMENTATIONS[implementation]
    if implementation == "blockwise" and _platform(mesh) == "gpu":
        function = functools.partial(_blockwise, tile=_GPU_TILE_BYTES)
    if mesh is None or mesh.size == 1 or implementation == "plain":
        return function(q, k, v, segment_ids)
    return _on_mesh(function, mesh, q, k, v, segment_ids)


def _choose(length: int, mesh: Mesh | None) -> str:
    """By the devices of the mesh, which need not be those of this process: a program may be
    compiled for a slice from elsewhere."""
    if length <= _PLAIN_UP_TO:
        return "plain"
    return "splash" if _platform(mesh) == "tpu" else "blockwise"


def _platform(mesh: Mesh | None) -> str | None:
    return None if mesh is None else mesh.devices.flat[0].platform


def _on_mesh(function, mesh, q, k, v, segment_ids):
    """``function`` on every device's rows and heads; an axis that does not divide is repeated."""
    rows = parallel.fitting(parallel.ROWS, q.shape[0], mesh)
    heads = parallel.fitting("tensor", q.shape[1], mesh)
    # Key heads are repeated where there are fewer than devices, as long as each device's query
    # heads still read whole groups of them.
    devices = mesh.shape["tensor"]
    copies = 1 if heads is None else devices // math.gcd(k.shape[1], devices)
    if q.shape[1] % (k.shape[1] * copies):
        heads, copies = None, 1
    if copies > 1:
        k, v = (jnp.repeat(x, copies, axis=1) for x in (k, v))
    by_head = PartitionSpec(rows, heads)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(by_head, by_head, by_head, PartitionSpec(rows)),
        out_specs=by_head,
        check_vma=False,  # a Pallas call does not say over which axes its result varies
    )(q, k, v, segment_ids)


def cached_attention(q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array) -> jax.Array:
    """Attention of q [B, H, T, d] at ``positions`` [B, T] over the cache columns ``j <= position``.

    A batched matmul was measured fastest on CPU for single tokens too (64-256 rows, 128-384
    columns): multiply and reduce is equal at two query heads a key head, and 50 times slower at
    one.  Queries of a long chunk take turns, so that the scores of all of them never exist.
    """

    def attend(q, positions):
        allowed = jnp.arange(k.shape[2]) <= positions[:, :, None]
        return _weighted_sum(jax.nn.softmax(_scores(q, k, allowed), axis=-1), v).astype(q.dtype)

    batch, heads, length, dim = q.shape
    most = max(1, _CACHED_SCORE_BYTES // (4 * batch * heads * k.shape[2]))
    size = max(n for n in range(1, min(length, most) + 1) if length % n == 0)
    if size == length:
        return attend(q, positions)
    queries = jnp.moveaxis(q.reshape(batch, heads, -1, size, dim), 2, 0)
    columns = jnp.moveaxis(positions.reshape(batch, -1, size), 1, 0)
    out = jax.lax.map(lambda x: attend(*x), (queries, columns))
    return jnp.moveaxis(out, 0, 2).reshape(q.shape)


def write_cache(cache: jax.Array, values: jax.Array, positions: jax.Array) -> jax.Array:
    """Writes values [B, Hkv, T, d] into cache [B, Hkv, C, d] at columns ``positions`` [B, T]; -1
    writes nothing.

    A scatter, which XLA does in place in a loop over a donated cache: its time does not depend on
      C.
    """
    columns = jnp.where(positions < 0, cache.shape[2], positions)  # out of bounds, so dropped
    rows = jnp.arange(cache.shape[0])[:, None]
    values = values.astype(cache.dtype).transpose(0, 2, 1, 3)
    return cache.at[rows, :, columns].set(values, mode="drop")
