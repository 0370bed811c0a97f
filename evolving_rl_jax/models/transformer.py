"""The decoder-only transformer as pure functions over a plain nested dict of arrays.

Parameters (kernels are ``[in, out]``; everything under ``layers`` has a leading layer axis L)::

    embedding [V, D]    final_norm [D]    unembedding [V, D]  (untied models only)
    layers/attention/norm [L, D]          layers/attention/{q,k,v,o}_proj/kernel
    layers/attention/{q,k,v}_proj/bias    (qkv_bias)
    layers/attention/{q,k}_norm [L, d]    (qk_norm)
    layers/mlp/norm [L, D]                layers/mlp/{gate,up,down}_proj/kernel

A projection may also have a low-rank branch ``lora_a, lora_b`` (see `lora.attach`).

Activations are kept two-dimensional, ``[B * T, D]``, around every projection: XLA on CPU runs the
gradient of such a matmul 2.7 times faster than that of the three-dimensional one, and no other
backend minds.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax.sharding import Mesh

from evolving_rl_jax import parallel
from evolving_rl_jax.models.attention import attention, cached_attention, write_cache
from evolving_rl_jax.models.cached import rows_attention, write_rows
from evolving_rl_jax.models.config import ModelConfig


def _all_but_gathered(primitive, *_, **__) -> bool:
    """A remat policy that keeps everything but weights that were gathered for their layer.

    Kept, every device would hold the whole model.  Of a constraint that gathers nothing the input
    is kept, which is as good.
    """
    return primitive.name != "sharding_constraint"


_REMAT = {
    "none": _all_but_gathered,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("attention"),
    ),
}


def init(cfg: ModelConfig, key: jax.Array) -> dict[str, Any]:
    """Random float32 parameters.

    Kernels are normal with variance 1 / fan-in, the two that write to the residual stream a further
    ``1 / (2 L)``; embeddings have standard deviation 0.02, so the first logits are near uniform.
    """
    L, D, F = cfg.num_layers, cfg.hidden_size, cfg.intermediate_size
    q_width, kv_width = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    keys = iter(jax.random.split(key, 9))

    def kernel(fan_in, fan_out, scale=1.0):
        return {
            "kernel": jax.random.normal(next(keys), (L, fan_in, fan_out)) * (scale * fan_in**-0.5)
        }

    residual = (2 * L) ** -0.5
    attention_params = {
        "norm": jnp.ones((L, D)),
        "q_proj": kernel(D, q_width),
        "k_proj": kernel(D, kv_width),
        "v_proj": kernel(D, kv_width),
        "o_proj": kernel(q_width, D, residual),
    }
    if cfg.qkv_bias:
        for name, width in (("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)):
            attention_params[name]["bias"] = jnp.zeros((L, width))
    if cfg.qk_norm:
        attention_params |= {
            "q_norm": jnp.ones((L, cfg.head_dim)),
            "k_norm": jnp.ones((L, cfg.head_dim)),
        }
    mlp = {
        "norm": jnp.ones((L, D)),
        "gate_proj": kernel(D, F),
        "up_proj": kernel(D, F),
        "down_proj": kernel(F, D, residual),
    }
    params = {
        "embedding": jax.random.normal(next(keys), (cfg.vocab_size, D)) * 0.02,
        "layers": {"attention": attention_params, "mlp": mlp},
        "final_norm": jnp.ones((D,)),
    }
    if not cfg.tie_word_embeddings:
        params["unembedding"] = jax.random.normal(next(keys), (cfg.vocab_size, D)) * 0.02
    return params


def by_layer(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters with ``layers`` as a tuple of L trees without the layer axis.

    For `apply` with a cache, which is not a scan: XLA copies a matrix out of a stack before it
    multiplies by it.  What is apart already stays as it is.
    """
    layers = params["layers"]
    if isinstance(layers, tuple):
        return params
    count = jax.tree.leaves(layers)[0].shape[0]
    apart = tuple(jax.tree.map(operator.itemgetter(i), layers) for i in range(count))
    return {**params, "layers": apart}


def init_cache(
    cfg: ModelConfig, batch: int, length: int, dtype=None, *, device=None
) -> dict[str, tuple[jax.Array, ...]]:
    """An empty KV cache: for ``k`` and ``v`` one ``[B, Hkv, C, d]`` array per layer, C =
    ``length``.  ``device``: where it is made, a device or a sharding."""
    shape = (batch, cfg.num_kv_heads, length, cfg.head_dim)
    dtype = dtype or cfg.dtype
    return {
        name: tuple(jnp.zeros(shape, dtype, device=device) for _ in range(cfg.num_layers))
        for name in ("k", "v")
    }


def _rms_norm(x, scale, eps):
    # A leaf module of Flax: statistics in float32 whatever the dtype of x.
    return linen.RMSNorm(epsilon=eps, dtype=x.dtype).apply({"params": {"scale": scale}}, x)


def rope_frequencies(cfg: ModelConfig) -> np.ndarray:
    """Angular frequencies of the rotary embedding, float32 [head_dim / 2], Llama 3 scaling
    included."""
    exponent = np.arange(0, cfg.head_dim, 2, dtype=np.float32) / np.float32(cfg.head_dim)
    frequencies = 1.0 / np.float32(cfg.rope_theta) ** exponent
    scaling = cfg.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_max_position_embeddings * frequencies / (2 * np.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return (frequencies * (keep + (1 - keep) / scaling.factor)).astype(np.float32)


def _rotate(x, cos, sin):
    """Rotary embedding of x [B, H, T, d]; cos, sin [B, 1, T, d/2] float32; halves as in HF
    checkpoints."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _linear(x, p):
    y = x @ p["kernel"].astype(x.dtype)
    if "lora_a" in p:
        y = y + (x @ p["lora_a"].astype(x.dtype)) @ p["lora_b"].astype(x.dtype)
    return y + p["bias"].astype(x.dtype) if "bias" in p else y


def _attention_block(x, p, cfg, rope, shape, attend):
    """x [B*T, D] -> [B*T, D]; ``attend(q, k, v) -> (out [B, H, T, d], extra)``."""
    h = _rms_norm(x, p["norm"], cfg.rms_norm_eps)

    def heads(name):
        return _linear(h, p[name]).reshape(*shape, -1, cfg.head_dim)

    q, k, v = heads("q_proj"), heads("k_proj"), heads("v_proj")
    if cfg.qk_norm:
        q = _rms_norm(q, p["q_norm"], cfg.rms_norm_eps)
        k = _rms_norm(k, p["k_norm"], cfg.rms_norm_eps)
    q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
    out, extra = attend(_rotate(q, *rope), _rotate(k, *rope), v)
    out = out.transpose(0, 2, 1, 3).reshape(x.shape[0], -1)
    return x + _linear(out, p["o_proj"]), extra


def _mlp_block(x, p, cfg):
    h = _rms_norm(x, p["norm"], cfg.rms_norm_eps)
    h = jax.nn.silu(_linear(h, p["gate_proj"])) * _linear(h, p["up_proj"])
    return x + _linear(h, p["down_proj"])


def _layer(x, p, cfg, rope, shape, attend):
    x, extra = _attention_block(x, p["attention"], cfg, rope, shape, attend)
    return _mlp_block(x, p["mlp"], cfg), extra


def apply(
    params,
    cfg: ModelConfig,
    tokens,
    *,
    positions=None,
    segment_ids=None,
    cache=None,
    slots=None,
    kv_limit=None,
    remat: str = "full",
    implementation: str = "auto",
    mesh: Mesh | None = None,
):
    """Final hidden states (after the last norm) of a batch of token rows.

    Without a cache, attention is causal within equal ``segment_ids``.  With one, keys and values of
    this call are written to the cache columns named by ``positions``, and a query at position p
    sees columns j <= p of its row.

    Args:
      params: as `init` returns them; with a cache better as `by_layer` does.
      cfg: the model.
      tokens: [B, T] int.
      positions: [B, T] int; default 0..T-1.  With a cache: the cache column of every token, -1 =
        padding (written nowhere, output meaningless).
      segment_ids: [B, T] int, 0 = padding; only without a cache.
      cache: from `init_cache` or an earlier call, or None.
      slots: [B] int, the row of the cache that each row of tokens has; out of range = padding.  Such
        a cache may have any number of rows and is used where it lies (`cached`), which saves copies
        on GPUs; default: row b has row b.
      kv_limit: static int; only cache columns below it are read, so it must exceed every position.
      remat: what the backward pass computes again: ``full`` (all but the input of each layer),
        ``dots`` (all but projections and attention) or ``none``; only without a cache.
      implementation: of the attention, see `attention.attention`; only without a cache.
      mesh: where the arrays are; None for one device.  Only without a cache.

    Returns:
      (hidden [B, T, D] in ``cfg.dtype``, the updated cache or None).
    """
    shape = tokens.shape
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    # Looked up in the stored dtype and cast after: the gradient is a sum over tokens, and one in
    # bfloat16 stops growing at 256 times its terms.
    x = params["embedding"][tokens.reshape(-1)].astype(cfg.dtype)
    angles = positions[:, None, :, None].astype(jnp.float32) * rope_frequencies(cfg)
    rope = jnp.cos(angles), jnp.sin(angles)
    if cache is None:
        attend = functools.partial(
            attention, segment_ids=segment_ids, implementation=implementation, mesh=mesh
        )
        x = _run_scanned(x, params["layers"], cfg, rope, shape, attend, remat, mesh)
    else:
        places = positions, slots, kv_limit
        x, cache = _run_cached(x, params["layers"], cfg, rope, shape, places, cache)
    return _rms_norm(x, params["final_norm"], cfg.rms_norm_eps).reshape(*shape, -1), cache


def _run_scanned(x, layers, cfg, rope, shape, attend, remat, mesh):
    sharded = mesh is not None and mesh.shape["fsdp"] > 1
    stacked = parallel.shardings(layers, mesh) if sharded else None

    def body(x, p):
        p = parallel.gather_weights(p, stacked, x.dtype) if sharded else p
        x, _ = _layer(x, p, cfg, rope, shape, lambda q, k, v: (attend(q, k, v), None))
        return parallel.constrain_rows(x, mesh), None

    if remat not in _REMAT:
        raise ValueError(f"remat must be one of {', '.join(_REMAT)}, got {remat!r}")
    if sharded or remat != "none":
        body = jax.checkpoint(body, policy=_REMAT[remat], prevent_cse=False)
    return jax.lax.scan(body, parallel.constrain_rows(x, mesh), layers)[0]


def _run_cached(x, layers, cfg, rope, shape, places, cache):
    keys, values = [], []
    layers = by_layer({"layers": layers})["layers"]
    for layer, *kv in zip(layers, cache["k"], cache["v"], strict=True):
        attend = functools.partial(_attend_cached, *kv, *places)
        x, (k_cache, v_cache) = _layer(x, layer, cfg, rope, shape, attend)
        keys.append(k_cache)
        values.append(v_cache)
    return x, {"k": tuple(keys), "v": tuple(values)}


def _attend_cached(k_cache, v_cache, positions, slots, kv_limit, q, k, v):
    if slots is not None:
        k_cache = write_rows(k_cache, k, slots, positions)
        v_cache = write_rows(v_cache, v, slots, positions)
        columns = kv_limit or k_cache.shape[2]
        out = rows_attention(q, k_cache, v_cache, slots, positions, columns=columns)
        return out, (k_cache, v_cache)
    k_cache = write_cache(k_cache, k, positions)
    v_cache = write_cache(v_cache, v, positions)
    out = cached_attention(q, k_cache[:, :, :kv_limit], v_cache[:, :, :kv_limit], positions)
    return out, (k_cache, v_cache)


def unembedding(params, cfg: ModelConfig) -> jax.Array:
    """The [V, D] matrix that turns hidden states into logits (the embedding itself in a tied
    model)."""
    return params["embedding"] if cfg.tie_word_embeddings else params["unembedding"]


def logits(params, cfg: ModelConfig, hidden: jax.Array) -> jax.Array:
    """float32 logits [..., V]; for tests and small models, the losses never build them."""
    matrix = unembedding(params, cfg).astype(hidden.dtype)
    # As the losses multiply: accelerators take float32 in fewer bits unless told otherwise.
    exact = jax.lax.Precision.HIGHEST if matrix.dtype == jnp.float32 else None
    return jnp.einsum(
        "...d,vd->...v", hidden, matrix, precision=exact, preferred_element_type=jnp.float32
    )
