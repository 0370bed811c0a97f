"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on the projections of a frozen model.

A target projection computes ``x W + (alpha / rank) (x A) B`` with A [in, rank] random and B
[rank, out] zero at first, so that a new adapter changes nothing.  Adapters are a tree like the
parameters, of the target projections only and with a leading layer axis::

    layers/attention/{q,k,v,o}_proj/{lora_a, lora_b}    layers/mlp/{gate,up,down}_proj/{...}

`attach` gives parameters that `models.apply` runs with the adapters as a branch of their own, which
is what training differentiates; `merge` adds them to the kernels, which is what generation runs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from evolving_rl_jax.files import write_json
from evolving_rl_jax.models import safetensors
from evolving_rl_jax.models.config import ModelConfig
from evolving_rl_jax.models.hub import read_object
from evolving_rl_jax.models.transformer import by_layer
from evolving_rl_jax.models.transformer import init as init_model

# Projection -> (block of a layer here, the same in Hugging Face names).
_BLOCKS = {
    **{f"{p}_proj": ("attention", "self_attn") for p in "qkvo"},
    **{f"{p}_proj": ("mlp", "mlp") for p in ("gate", "up", "down")},
}
TARGETS = tuple(_BLOCKS)
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which projections have adapters, and how large.

    Attributes:
      rank: columns of A.
      alpha: the branch is multiplied by ``alpha / rank``.
      targets: names out of `TARGETS`.

    Raises:
      ValueError: a rank below 1 or an unknown target.
    """

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self):
        unknown = [t for t in self.targets if t not in _BLOCKS]
        if unknown or not self.targets:
            known = ", ".join(TARGETS)
            raise ValueError(f"LoRA targets must be some of {known}, got {self.targets!r}")
        if self.rank < 1:
            raise ValueError(f"LoRA rank must be >= 1, got {self.rank}")

    @property
    def scale(self) -> float:
        """What the product of A and B is multiplied by."""
        return self.alpha / self.rank


def from_config(group: Any) -> LoraConfig | None:
    """The LoraConfig of ``config.model.lora``; None with rank 0, which trains all parameters."""
    if not group.rank:
        return None
    return LoraConfig(group.rank, float(group.alpha), tuple(group.targets))


def init(cfg: ModelConfig, lora: LoraConfig, key: jax.Array) -> dict[str, Any]:
    """New float32 adapters: A uniform within ``1 / sqrt(fan-in)`` as PEFT draws it, B zero."""
    shapes = jax.eval_shape(lambda: init_model(cfg, jax.random.key(0)))["layers"]
    layers: dict[str, Any] = {}
    for name, subkey in zip(lora.targets, jax.random.split(key, len(lora.targets)), strict=True):
        block = _BLOCKS[name][0]
        num_layers, fan_in, fan_out = shapes[block][name]["kernel"].shape
        bound = fan_in**-0.5
        layers.setdefault(block, {})[name] = {
            "lora_a": jax.random.uniform(
                subkey, (num_layers, fan_in, lora.rank), minval=-bound, maxval=bound
            ),
            "lora_b": jnp.zeros((num_layers, lora.rank, fan_out)),
        }
    return {"layers": layers}


def attach(params: Any, adapters: Any, lora: LoraConfig) -> dict[str, Any]:
    """Parameters for `models.apply` whose target projections have the adapters as a branch.

    Args:
      params: the frozen model's; not copied.
      adapters: as `init` returns them.
      lora: their configuration; the scale goes into B.
    """
    layers = dict(params["layers"])
    for block, projections in adapters["layers"].items():
        layers[block] = dict(layers[block])
        for name, p in projections.items():
            branch = {"lora_a": p["lora_a"], "lora_b": p["lora_b"] * lora.scale}
            layers[block][name] = layers[block][name] | branch
    return params | {"layers": layers}


def _kernels(params: Any, lora: LoraConfig) -> dict[str, jax.Array]:
    return {name: params["layers"][_BLOCKS[name][0]][name]["kernel"] for name in lora.targets}


def _map_layers(function, params: Any, adapters: Any, lora: LoraConfig) -> dict[str, Any]:
    """Projection -> ``function(kernel, change)`` of each of its layers, stacked.

    The kernel is in its own dtype, the change in float32.
    """

    def one_layer(x):
        kernel, a, b = x
        return function(kernel, _change({"lora_a": a, "lora_b": b}, lora))

    found = {}
    for name, kernel in _kernels(params, lora).items():
        p = adapters["layers"][_BLOCKS[name][0]][name]
        # Layer by layer: the float32 change of all layers at once would be twice a bfloat16 kernel.
        found[name] = jax.lax.map(one_layer, (kernel, p["lora_a"], p["lora_b"]))
    return found


def _merged_kernels(
    params: Any, adapters: Any, lora: LoraConfig, dtype: Any = None
) -> dict[str, jax.Array]:
    merged = functools.partial(_merged, dtype=dtype)
    return _map_layers(merged, params, adapters, lora)


def _change(p: dict[str, jax.Array], lora: LoraConfig) -> jax.Array:
    """What one layer's adapters add to its kernel, float32."""
    return jnp.matmul(p["lora_a"], p["lora_b"], precision="highest") * lora.scale


def _merged(kernel: jax.Array, change: jax.Array, dtype: Any = None) -> jax.Array:
    return (kernel.astype(jnp.float32) + change).astype(dtype or kernel.dtype)


def _with_kernels(params: Any, kernels: dict[str, jax.Array]) -> dict[str, Any]:
    layers = dict(params["layers"])
    for name, kernel in kernels.items():
        block = _BLOCKS[name][0]
        layers[block] = layers[block] | {name: layers[block][name] | {"kernel": kernel}}
    return params | {"layers": layers}


def merge(params: Any, adapters: Any, lora: LoraConfig, *, dtype: Any = None) -> dict[str, Any]:
    """Plain parameters ``W + (alpha / rank) A B``, computed in float32 and rounded once.

    Arrays that no adapter changes are those of ``params``.

    Args:
      params: the frozen model's.
      adapters: as `init` returns them.
      lora: their configuration.
      dtype: of the result; None = that of each array of ``params``.
    """
    merged = _with_kernels(params, _merged_kernels(params, adapters, lora, dtype))
    if dtype is None:
        return merged
    return jax.tree.map(lambda x: x if x.dtype == jnp.dtype(dtype) else x.astype(dtype), merged)


class MergeLoss(NamedTuple):
    """How much of a change survives in merged weights; Frobenius norms over all target kernels.

    Attributes:
      change: ``|dW| / |W|``, of the change that the adapters make.
      lost: ``|lost| / |dW|``, of what rounding the merged kernels leaves of it; 0 without a change.
    """

    change: float
    lost: float


def merge_loss(params: Any, adapters: Any, lora: LoraConfig, dtype: Any) -> MergeLoss:
    """What `merge` loses with a dtype; arguments as there."""

    info = jnp.finfo(dtype)

    def squares(kernel, change):
        kernel = kernel.astype(jnp.float32)
        # Not there and back by astype, which the compiler may leave out.
        kept = jax.lax.reduce_precision(kernel + change, info.nexp, info.nmant) - kernel
        return jnp.stack([jnp.sum(x**2) for x in (kernel, change, kept - change)])

    found = _map_layers(squares, params, adapters, lora)
    whole, change, lost = (
        math.sqrt(sum(np.asarray(x, np.float64)[:, i].sum() for x in found.values()))
        for i in range(3)
    )
    return MergeLoss(change / whole if whole else 0.0, lost / change if change else 0.0)


class Merger:
    """`merge` for generation: layers apart (`models.by_layer`), always into the same buffers.

    Of the whole model there are then two copies of the layers, the frozen and the merged ones, and one
    of everything else.  A result is valid until the next call, which overwrites it.
    """

    def __init__(self, lora: LoraConfig):
        self._lora = lora
        self._layers: tuple[dict[str, Any], ...] = ()
        self._program = None

    def __call__(self, params: Any, adapters: Any) -> dict[str, Any]:
        """As `merge`, in its layout for generation."""
        if self._program is None:
            self._start(params)
        frozen, layers = _kernels(params, self._lora), []
        for i, layer in enumerate(self._layers):
            old = _kernels({"layers": layer}, self._lora)
            new = self._program(old, frozen, adapters, np.int32(i))
            layers.append(_with_kernels({"layers": layer}, new)["layers"])
        self._layers = tuple(layers)
        return params | {"layers": self._layers}

    def _start(self, params):
        layers = params["layers"]
        shardings = jax.tree.map(lambda x: _of_layer(x.sharding), layers)
        count = jax.tree.leaves(layers)[0].shape[0]
        apart = jax.jit(
            lambda x: by_layer({"layers": x})["layers"], out_shardings=(shardings,) * count
        )
        self._layers = apart(layers)

        def program(_, frozen, adapters, i):
            def one(x):
                return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)

            def at(name):
                return jax.tree.map(one, adapters["layers"][_BLOCKS[name][0]][name])

            return {
                name: _merged(one(kernel), _change(at(name), self._lora))
                for name, kernel in frozen.items()
            }

        # The old kernels are donated, so the new ones take their place.
        self._program = jax.jit(
            program,
            donate_argnums=0,
            keep_unused=True,
            out_shardings=_kernels({"layers": shardings}, self._lora),
        )


def _of_layer(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Of one layer of a stack that is laid out so."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


# -- PEFT's format ---------------------------------------------------------------------------------


def _names(name: str, layer: int) -> dict[str, str]:
    """Leaf -> name of its tensor in an adapter file of PEFT."""
    prefix = f"base_model.model.model.layers.{layer}.{_BLOCKS[name][1]}.{name}"
    return {"lora_a": f"{prefix}.lora_A.weight", "lora_b": f"{prefix}.lora_B.weight"}


def save_adapter(
    adapters: Any, lora: LoraConfig, path: str | Path, *, base_model: str | Path = ""
) -> None:
    """Writes ``adapter_config.json`` and ``adapter_model.safetensors``, which ``peft`` loads.

    Args:
      adapters: as `init` returns them; one array at a time is brought to the host.
      lora: their configuration.
      path: folder, created where needed; files of the same names are replaced.
      base_model: folder or hub id of the model that they belong to; ``peft`` looks it up there when
        it is not given one.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    entries = []
    for name in lora.targets:
        for leaf, array in adapters["layers"][_BLOCKS[name][0]][name].items():
            for i in range(array.shape[0]):

                def fetch(array=array, i=i):
                    return np.asarray(array[i]).T

                shape, dtype = array.shape[:0:-1], np.dtype(array.dtype)
                entries.append((_names(name, i)[leaf], shape, dtype, fetch))
    safetensors.write_tensors(path / _WEIGHTS, entries)
    raw = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base_model),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": list(lora.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
    # Last: a folder that has it is complete.
    write_json(path / _CONFIG, raw, indent=2)


def load_adapter(path: str | Path, cfg: ModelConfig) -> tuple[dict[str, Any], LoraConfig]:
    """Reads a folder that `save_adapter` or ``peft`` wrote.

    Args:
      path: the folder.
      cfg: the model that the adapters belong to.

    Returns:
      (adapters as numpy arrays in the dtype of the file, their configuration).

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: an option, tensor or shape that is not supported; the message names it.
    """
    path = Path(path)
    raw = read_object(path / _CONFIG, "be part of an adapter")
    if not (path / _WEIGHTS).is_file():
        raise FileNotFoundError(f"{path / _WEIGHTS} must be part of an adapter, found no such file")
    _check_options(path, raw)
    lora = LoraConfig(raw["r"], float(raw["lora_alpha"]), tuple(sorted(raw["target_modules"])))
    tensors = safetensors.open_tensors(path / _WEIGHTS)
    shapes = jax.eval_shape(lambda: init(cfg, lora, jax.random.key(0)))

    def read(key, wanted):
        name, leaf = key[-2].key, key[-1].key
        names = [_names(name, i)[leaf] for i in range(cfg.num_layers)]
        return _stack(path, tensors, names, wanted.shape)

    adapters = jax.tree_util.tree_map_with_path(read, shapes)
    if tensors:
        raise ValueError(f"{path} must hold the adapters of its targets only, got {min(tensors)}")
    return adapters, lora


_OPTIONS = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_dora": (False,),
    "use_rslora": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "modules_to_save": (None, []),
    "layers_to_transform": (None,),
    "layer_replication": (None, []),
    "lora_bias": (False,),
    "use_qalora": (False,),
    "alora_invocation_tokens": (None,),
    # Others, such as pissa or loftq, change the base too (PEFT's path_initial_model_for_weight_conversion
    # saves an adapter of the unchanged one).
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}


def _check_options(path, raw):
    for name, accepted in _OPTIONS.items():
        if name in raw and raw[name] not in accepted:
            raise ValueError(f"{path}: {name} must be {accepted[0]!r}, got {raw[name]!r}")
    if not isinstance(raw.get("target_modules"), list):
        found = raw.get("target_modules")
        raise ValueError(f"{path}: target_modules must be a list of names, got {found!r}")
    for name, kind in (("r", int), ("lora_alpha", int | float)):
        if not isinstance(raw.get(name), kind) or raw[name] <= 0:
            raise ValueError(f"{path}: {name} must be a number above 0, got {raw.get(name)!r}")


def _stack(path, tensors, names, shape) -> np.ndarray:
    parts = []
    for name in names:
        found = tensors.pop(name, None)
        if found is None or found.shape != shape[:0:-1]:
            got = "no such tensor" if found is None else f"shape {found.shape}"
            raise ValueError(f"{path}: {name} must have shape {shape[:0:-1]}, got {got}")
        parts.append(found.T)
    return np.stack(parts)
