"""The training state: how it is created straight into its shards, and how one update changes it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from evolving_rl_jax import models, parallel
from evolving_rl_jax.models import lora as lora_lib


class TrainState(NamedTuple):
    """Everything that an update reads or writes on the devices.

    Without LoRA, ``params`` is the whole policy and ``ref_params`` the fixed policy that the KL term
    compares with; None where nothing does (warm start), which saves its memory.

    With LoRA, ``params`` is the adapters, and ``ref_params`` the frozen base under them: the policy
    without its adapters is the reference, so there is one copy of the weights.
    """

    step: Any  # [] int32: updates tried
    params: Any  # nested dict, float32: what is trained
    opt_state: Any  # optax state of params
    ref_params: Any  # nested dict of a whole model, see `parallel.cast`, or None
    skipped: Any  # [] int32: updates left out because the gradient was not finite


def _new_state(params, model_cfg, optimizer, reference, lora, key, adapters=None):
    # Copies, not aliases: the state is donated and a buffer can be given away only once.
    def copied(tree):
        return jax.tree.map(jnp.copy, tree)

    # What is not trained is kept as it is computed with: that changes no result.
    frozen = copied(parallel.cast(params, model_cfg.dtype)) if reference or lora else None
    if lora and adapters is None:
        trained = lora_lib.init(model_cfg, lora, key)
    else:
        given = adapters if lora else params
        trained = copied(jax.tree.map(lambda p: p.astype(jnp.float32), given))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, trained, optimizer.init(trained), frozen, zero + 0)


def abstract_state(
    model_cfg: models.ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    reference: bool = True,
    lora: lora_lib.LoraConfig | None = None,
) -> TrainState:
    """The state as ShapeDtypeStructs that carry their shardings; allocates nothing.

    Moments of the optimizer follow the rule of the parameter they belong to, because their path
    ends in the parameter's path.
    """

    def create():
        key = jax.random.key(0)
        params = models.init(model_cfg, key)
        return _new_state(params, model_cfg, optimizer, reference, lora, key)

    shapes = jax.eval_shape(create)
    shardings = parallel.shardings(shapes, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def state_shardings(abstract: TrainState) -> TrainState:
    """The NamedShardings of an abstract state."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def init_state(
    model_cfg: models.ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    key: jax.Array,
    *,
    reference: bool = True,
    lora: lora_lib.LoraConfig | None = None,
) -> TrainState:
    """A state with random parameters; every device creates only its own shards."""
    abstract = abstract_state(model_cfg, optimizer, mesh, reference=reference, lora=lora)

    def create(key):
        params = models.init(model_cfg, key)
        return _new_state(params, model_cfg, optimizer, reference, lora, key)

    return jax.jit(create, out_shardings=state_shardings(abstract))(key)


def state_from_params(
    params: Any,
    model_cfg: models.ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    reference: bool = True,
    lora: lora_lib.LoraConfig | None = None,
    key: jax.Array | None = None,
    adapters: Any = None,
) -> TrainState:
    """A fresh state around existing parameters (after a warm start or an import).

    The state holds copies, so the caller's arrays stay usable after the state is donated.

    Args:
      params: a whole model, of any dtype.
      model_cfg: that model.
      optimizer: what the state is for.
      mesh: the device mesh.
      reference: whether to keep a fixed copy to compare with; with LoRA always.
      lora: the adapters to train instead of ``params``, or None.
      key: of new adapters; needed with LoRA only.
      adapters: to go on from instead of new ones, as `lora.load_adapter` returns them.
    """
    abstract = abstract_state(model_cfg, optimizer, mesh, reference=reference, lora=lora)
    params = jax.device_put(params, parallel.shardings(params, mesh))

    def create(params, adapters):
        return _new_state(params, model_cfg, optimizer, reference, lora, key, adapters)

    return jax.jit(create, out_shardings=state_shardings(abstract))(params, adapters)


def kept(state: TrainState, lora: lora_lib.LoraConfig | None) -> TrainState:
    """What a checkpoint holds of a state: with LoRA all but the frozen base, else everything."""
    return state._replace(ref_params=None) if lora else state


def apply_gradients(
    state: TrainState,
    grads: Any,
    optimizer: optax.GradientTransformation,
    *,
    usable: jax.Array | bool = True,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer update; left out, and counted, when the gradient is not finite.

    Args:
      state: the state before.
      grads: like ``state.params``, float32, already divided by the global denominator.
      optimizer: what made ``state.opt_state``.
      usable: [] bool; False leaves the update out too (nothing to learn from).

    Returns:
      The state after, and ``grad_norm`` (before clipping), ``update_norm``, ``param_norm`` (after).
    """
    grad_norm = optax.global_norm(grads)
    applied = jnp.isfinite(grad_norm) & usable
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: jnp.where(applied, u, 0.0), updates)
    # The moments saw the bad gradient too, so they are rolled back together with the update.
    opt_state = jax.tree.map(lambda n, o: jnp.where(applied, n, o), opt_state, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ref_params=state.ref_params,
        skipped=state.skipped + jnp.where(applied, 0, 1),
    )
    norms = {
        "grad_norm": grad_norm,
        "update_norm": optax.global_norm(updates),
        "param_norm": optax.global_norm(params),
        "skipped_updates": new_state.skipped.astype(jnp.float32),
    }
    return new_state, norms
