"""The optimizer: AdamW with global-norm clipping and a constant or cosine learning rate."""

from __future__ import annotations

from typing import Any

import jax
import optax

SCHEDULES = ("constant", "cosine")


def learning_rate_schedule(config: Any, num_steps: int | None = None) -> optax.Schedule:
    """Learning rate as a function of the number of applied updates.

    Linear warm-up over ``config.optimizer.warmup_steps``, then constant, or a cosine to zero at
    ``decay_updates``, or ``num_steps`` where that is 0.

    Args:
      config: with ``config.optimizer.{learning_rate, schedule, warmup_steps, decay_updates}``.
      num_steps: updates in the whole run; needed by the cosine only.

    Raises:
      ValueError: unknown schedule, or a cosine without a length beyond its warm-up.
    """
    opt = config.optimizer
    if opt.schedule not in SCHEDULES:
        raise ValueError(
            f"config.optimizer.schedule must be one of {', '.join(SCHEDULES)}, got {opt.schedule!r}"
        )
    peak, warmup = opt.learning_rate, opt.warmup_steps
    if opt.schedule == "cosine":
        num_steps = opt.decay_updates or num_steps
    if opt.schedule == "constant" or num_steps == 0:  # 0: nothing is trained
        main = optax.constant_schedule(peak)
    elif num_steps is None or num_steps <= warmup:
        raise ValueError(
            f"config.optimizer.warmup_steps must be below the number of updates of a cosine "
            f"schedule ({num_steps}), got {warmup}"
        )
    else:
        main = optax.cosine_decay_schedule(peak, num_steps - warmup)
    if warmup == 0:
        return main
    # From peak / warmup, not from 0: a first update of size zero would be a wasted iteration.
    ramp = optax.linear_schedule(peak / warmup, peak, warmup - 1) if warmup > 1 else main
    return optax.join_schedules([ramp, main], [warmup])


def decay_mask(params: Any) -> Any:
    """True for matrices, so not for norm scales and biases (the leading L axis does not count)."""

    def is_matrix(path, leaf):
        stacked = getattr(path[0], "key", None) == "layers"
        return leaf.ndim - stacked >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def make_optimizer(config: Any, num_steps: int | None = None) -> optax.GradientTransformation:
    """AdamW as ``config.optimizer`` describes it.

    Gradients are clipped to the global norm ``clip_norm`` (0 = no clipping), weight decay acts on
    matrices only and is multiplied by the learning rate (decoupled, Loshchilov & Hutter 2019).

    Raises:
      ValueError: unknown optimizer or schedule.
    """
    opt = config.optimizer
    if opt.name != "adamw":
        raise ValueError(f"config.optimizer.name must be adamw, got {opt.name!r}")
    adamw = optax.adamw(
        learning_rate_schedule(config, num_steps),
        b1=opt.b1,
        b2=opt.b2,
        eps=opt.eps,
        weight_decay=opt.weight_decay,
        mask=decay_mask,
    )
    if not opt.clip_norm:
        return adamw
    return optax.chain(optax.clip_by_global_norm(opt.clip_norm), adamw)
