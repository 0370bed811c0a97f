"""The generation engine of a run, and what plays episodes on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from evolving_rl_jax import parallel
from evolving_rl_jax.generate.engine import Engine
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.run.console import user_errors


def make_engine(parts, params: Any) -> Engine:
    """The generation engine with the sizes of ``config.rollout``.

    Args:
      parts: of the run; all its hosts must call this.
      params: of the policy, on the training mesh or anywhere else.

    Raises:
      ConfigError: the sizes do not fit the policy or the memory.
    """
    r = parts.config.rollout
    mesh = parallel.generation_mesh(parts.model_cfg.num_kv_heads, jax.local_devices())
    params = on_this_host(parts, params)
    with user_errors((ValueError,), "config.rollout"):
        return Engine(
            parts.model_cfg,
            params,
            num_slots=r.num_slots,
            max_length=r.max_length,
            prefill_chunk=r.prefill_buckets,
            decode_window=r.decode_window,
            row_buckets=r.row_buckets or None,
            column_buckets=r.column_buckets or None,
            pad_id=parts.tokenizer.pad_id,
            seed=parts.config.seed,
            mesh=mesh if mesh.size > 1 else None,
            dtype=r.weights_dtype or None,
            decode=parts.tokenizer.decode,
            copies_weights=bool(r.overlap),
            memory_limit=r.memory_limit_gb * 1e9,
            fixed_rows=parts.config.eval.independent_rows,
        )


def on_this_host(parts, params: Any) -> Any:
    """The whole policy on this host's devices, for its engine; all hosts must call it."""
    if parts.hosts.count == 1:
        return params
    local = parallel.generation_mesh(parts.model_cfg.num_kv_heads, jax.local_devices())
    return parallel.on_this_host(params, local, parts.model_cfg.dtype)


@contextlib.contextmanager
def evaluating(config, engine: Engine) -> Iterator[dict[str, Any]]:
    """Inside, ``engine`` plays as ``config.eval.independent_rows`` says.

    Yields:
      What a result says of it, see `eval.results.write_result`: ``dtype`` of generation and
      ``independent_rows``.
    """
    rows = config.eval.independent_rows
    engine.independent = rows > 0
    try:
        dtype = config.rollout.weights_dtype or config.model.dtype
        yield {"dtype": dtype, "independent_rows": rows}
    finally:
        engine.independent = False


def make_driver(
    parts, engine: Engine, iteration: int, temperature: float, **options: Any
) -> Driver:
    """Plays episodes on ``engine`` with the settings of ``config.rollout``.

    Args:
      parts: of the run.
      engine: that holds the policy.
      iteration: first part of every sampling key.
      temperature: of sampling.
      options: further keywords of `Driver`.
    """
    settings = PlaySettings.from_config(parts.config.rollout, temperature=temperature)
    return Driver(engine, parts.pool, parts.prompts, settings, iteration=iteration, **options)
