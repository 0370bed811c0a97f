"""What a model is: a frozen, hashable `ModelConfig`, read from and written to ``config.json``.

Families: Qwen2 / Qwen2.5 (``qwen2``), Qwen3 (``qwen3``) and Llama 3.x (``llama``).  Their HF
``config.json`` spells the rotary embedding in two ways, ``rope_theta`` + ``rope_scaling`` and the
newer ``rope_parameters``; both are read.  An option that would change the forward pass and that
this package does not compute is an error that names it, never ignored.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from evolving_rl_jax.models.gguf.config import hf_config
from evolving_rl_jax.models.gguf.file import is_gguf, open_gguf
from evolving_rl_jax.models.hub import CONFIG_FILES, local_folder, read_object

_ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}
_DTYPES = ("float32", "bfloat16", "float16")
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_ROPE_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
# Options of these families that change the forward pass, with the only value computed here.
_FIXED = {
    "hidden_act": "silu",
    "is_causal": True,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "use_mrope": False,
    "partial_rotary_factor": 1.0,
    "attention_dropout": 0.0,
    "quantization_config": None,
    "num_experts": None,
    "num_local_experts": None,
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3 frequency scaling: long wavelengths are stretched by ``factor``, short ones kept.

    Wavelengths shorter than ``original_max_position_embeddings / high_freq_factor`` stay, those
    longer than ``original_max_position_embeddings / low_freq_factor`` are multiplied by ``factor``,
    those between are blended.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a decoder-only transformer; hashable, so a static jit argument.

    Attributes:
      vocab_size: rows of the embedding.
      hidden_size: width of the residual stream.
      intermediate_size: width of the SwiGLU hidden layer.
      num_layers: decoder layers.
      num_heads: query heads.
      num_kv_heads: key/value heads; divides ``num_heads``.
      head_dim: width of a head, even; need not be ``hidden_size / num_heads``.
      rope_theta: base of the rotary embedding.
      rope_scaling: Llama 3 scaling, or None.
      rms_norm_eps: added to the mean square.
      tie_word_embeddings: whether the unembedding is the embedding.
      qkv_bias: bias on the query, key and value projections (Qwen2).
      qk_norm: RMSNorm over each head's query and key before the rotation (Qwen3).
      max_position_embeddings: the longest context that the model was made for.
      dtype: dtype of the computation (norms, softmax and logits are always float32).
      model_type: ``qwen2``, ``qwen3`` or ``llama``; decides how the model is exported.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    max_position_embeddings: int = 32_768
    dtype: str = "float32"
    model_type: str = "llama"

    def __post_init__(self):
        sizes = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_position_embeddings",
        )
        for name in sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads = {self.num_heads}, got {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even (rotary embedding), got {self.head_dim}")
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype!r}")
        if self.model_type not in _ARCHITECTURES:
            raise ValueError(
                f"model_type must be one of {', '.join(_ARCHITECTURES)}, got {self.model_type!r}"
            )


def config_from_hf(path: str | Path) -> ModelConfig:
    """Reads the ``config.json`` of a Hugging Face model folder, or what a GGUF file says in its place.

    ``dtype`` (the dtype of the computation) is the one that the file names, float32 where it names
    none.

    Args:
      path: the folder, the file itself, a GGUF file, or a hub id.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, a size is missing, or a model type or option is not supported;
        the message names it.
    """
    if is_gguf(path):
        return _read(path, hf_config(open_gguf(path)))
    path = local_folder(path, CONFIG_FILES)
    file = path if path.suffix == ".json" else path / "config.json"
    raw = read_object(file, "be a Hugging Face config.json")
    return _read(file, raw)


def _read(file, raw: dict[str, Any]) -> ModelConfig:
    try:
        return _from_dict(raw)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    # Null or a text where a number or an object is due.
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{file} holds a value of a type that it must not have: {error}") from None


def _from_dict(raw: dict[str, Any]) -> ModelConfig:
    model_type = raw.get("model_type")
    if model_type not in _ARCHITECTURES:
        raise ValueError(
            f"model_type must be one of {', '.join(_ARCHITECTURES)}, got {model_type!r}"
        )
    _check_options(raw)
    theta, scaling = _rope(raw)
    heads = _size(raw, "num_attention_heads")
    # Where the key is absent the family's own default holds: Qwen3 has heads of 128, the others
    # hidden/heads.
    default_head_dim = 128 if model_type == "qwen3" else _size(raw, "hidden_size") // heads
    return ModelConfig(
        vocab_size=_size(raw, "vocab_size"),
        hidden_size=_size(raw, "hidden_size"),
        intermediate_size=_size(raw, "intermediate_size"),
        num_layers=_size(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or default_head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=model_type == "qwen2",
        qk_norm=model_type == "qwen3",
        max_position_embeddings=raw.get(
            "max_position_embeddings", 2048 if model_type == "llama" else 32_768
        ),
        dtype=raw.get("dtype") or raw.get("torch_dtype") or "float32",
        model_type=model_type,
    )


def _size(raw, name):
    if name not in raw:
        raise ValueError(f"{name} must be given, found no such key")
    if not isinstance(raw[name], int) or raw[name] < 1:
        raise ValueError(f"{name} must be a positive integer, got {raw[name]!r}")
    return raw[name]


def _check_options(raw):
    for name, accepted in _FIXED.items():
        if raw.get(name, accepted) not in (accepted, None):
            raise ValueError(
                f"{name} must be {accepted!r} (nothing else is supported), got {raw[name]!r}"
            )
    kinds = sorted(set(raw.get("layer_types") or ()) - {"full_attention"})
    if kinds:
        raise ValueError(
            f"layer_types must all be 'full_attention' (nothing else is supported), got {kinds}"
        )


def _rope(raw) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) from either spelling; where both are there they must say the same.

    Readers disagree on which of two goes before: transformers 5 takes ``rope_scaling`` and drops
    the theta of ``rope_parameters``.
    """
    given = {name: raw[name] for name in ("rope_parameters", "rope_scaling") if raw.get(name)}
    meant = [_spelled_out(rope, raw) for rope in given.values()]
    if len(meant) == 2 and meant[0] != meant[1]:
        raise ValueError(
            f"rope_parameters and rope_scaling must say the same, got {given['rope_parameters']} and "
            f"{given['rope_scaling']} with rope_theta {raw.get('rope_theta')}: keep one of them"
        )
    return _rope_of(next(iter(given.values()), {}), raw)


def _spelled_out(rope, raw) -> dict[str, Any]:
    """What a rope dict says, its theta and the older name of its type included."""
    rope = {"rope_theta": raw.get("rope_theta", 10_000.0), "rope_type": "default", **rope}
    rope["rope_type"] = rope.pop("type", rope["rope_type"])
    return rope


def _rope_of(rope, raw) -> tuple[float, RopeScaling | None]:
    unknown = sorted(set(rope) - {*_LLAMA3_KEYS, *_ROPE_KEYS})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", "llama3") and unknown:
        raise ValueError(
            f"rope parameters must be of {', '.join((*_ROPE_KEYS, *_LLAMA3_KEYS))} (nothing else "
            f"is supported), got {unknown[0]!r}"
        )
    theta = float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0)))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"partial_rotary_factor must be 1.0, got {rope['partial_rotary_factor']!r}"
        )
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ValueError(
            f"rope_type must be 'default' or 'llama3' (nothing else is supported), got {kind!r}"
        )
    missing = [key for key in _LLAMA3_KEYS if key not in rope]
    if missing:
        raise ValueError(
            f"rope scaling 'llama3' must give {', '.join(_LLAMA3_KEYS)}, found no {missing[0]}"
        )
    return theta, RopeScaling(
        **{key: type(getattr(RopeScaling, key))(rope[key]) for key in _LLAMA3_KEYS}
    )


def config_to_hf(cfg: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """The ``config.json`` of ``cfg`` with weights stored as ``dtype``, in the spelling that every
    transformers reads.

    Raises:
      ValueError: the options of ``cfg`` are not those of its family, so no HF class computes this
        model.
    """
    wanted = {"qkv_bias": cfg.model_type == "qwen2", "qk_norm": cfg.model_type == "qwen3"}
    for name, value in wanted.items():
        got = getattr(cfg, name)
        if got != value:
            raise ValueError(
                f"{name} must be {value} to export a {cfg.model_type} model, got {got}"
            )
    scaling = None
    if cfg.rope_scaling is not None:
        scaling = {"rope_type": "llama3", **dataclasses.asdict(cfg.rope_scaling)}
    raw = {
        "architectures": [_ARCHITECTURES[cfg.model_type]],
        "model_type": cfg.model_type,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.intermediate_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": cfg.max_position_embeddings,
        "rms_norm_eps": cfg.rms_norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    if cfg.model_type == "qwen2" and cfg.head_dim * cfg.num_heads != cfg.hidden_size:
        raise ValueError(
            f"head_dim must be hidden_size / num_heads to export a qwen2 model, got {cfg.head_dim}"
        )
    return raw
