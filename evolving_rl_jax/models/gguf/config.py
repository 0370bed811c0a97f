"""What the ``config.json`` of a model folder would say, from the metadata of a GGUF file."""

from __future__ import annotations

from typing import Any

import numpy as np

from evolving_rl_jax.models.gguf.file import GGUFFile
from evolving_rl_jax.models.gguf.weights import ROPE_FACTORS, dequantized

# Metadata of an architecture that is read here, or that changes nothing.  Any other may change the
# forward pass, and is refused by its name.
_KNOWN = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned"),
}
# Metadata with the only value that is computed here.
_FIXED = {
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "rope.scale_linear": 1.0,
    "attention.causal": True,
    "expert_count": 0,
    "use_parallel_residual": False,
}
# The scaling of Llama 3.1 and later, whose files hold its factors and not the numbers behind them.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def hf_config(file: GGUFFile) -> dict[str, Any]:
    """The keys of ``config.json``, weights de-quantised to float32.

    Raises:
      ValueError: a size is missing, or an option is not supported; the message names it.
    """
    start = f"{file.architecture}."
    _check_keys(file, start)
    hidden = file.get(f"{start}embedding_length", int)
    heads = file.get(f"{start}attention.head_count", int)
    head_dim = file.get(f"{start}attention.key_length", int, hidden // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        found = file.get(f"{start}{key}", int, head_dim)
        if found != head_dim:
            raise file.error(
                f"{start}{key} must be the size of a head, {head_dim} (nothing else is supported), "
                f"got {found}"
            )
    theta = _decimal(file.get(f"{start}rope.freq_base", float, 10_000.0))
    return {
        "model_type": file.architecture,
        "vocab_size": _rows(file, "token_embd.weight"),
        "hidden_size": hidden,
        "intermediate_size": file.get(f"{start}feed_forward_length", int),
        "num_hidden_layers": file.get(f"{start}block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": file.get(f"{start}attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "max_position_embeddings": file.get(f"{start}context_length", int),
        "rms_norm_eps": _decimal(file.get(f"{start}attention.layer_norm_rms_epsilon", float)),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(file, theta, head_dim),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": "float32",
    }


def _check_keys(file, start):
    for key in file.keys(start):
        if key in _KNOWN:
            continue
        if key not in _FIXED:
            raise file.error(
                f"{start}{key} is not supported: it may change what the model computes"
            )
        wanted = _FIXED[key]
        found = file.get(f"{start}{key}", type(wanted))
        if found != wanted:
            raise file.error(
                f"{start}{key} must be {wanted!r} (nothing else is supported), got {found!r}"
            )


def _rows(file, name):
    if name not in file.tensors:
        raise file.error(f"must hold the tensor {name}, found no such tensor")
    return int(file.tensors[name].shape[-1])  # the file counts its dimensions from the innermost


def _decimal(value: float) -> float:
    """The decimal number that a float32 of the metadata was written from: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(file: GGUFFile, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Llama 3's scaling, where the file's factors are those that it gives."""
    if ROPE_FACTORS not in file.tensors:
        return None
    found = dequantized(file.tensors[ROPE_FACTORS]).ravel()
    scaling = {"rope_type": "llama3", "factor": _decimal(found.max(initial=1.0)), **_LLAMA3}
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = (scaling["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    smooth = np.clip(smooth, 0.0, 1.0)  # 0: stretched by the factor, 1: kept
    wanted = 1 / (smooth + (1 - smooth) / scaling["factor"])
    if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=1e-4):
        raise file.error(
            f"{ROPE_FACTORS} must be the rope scaling of Llama 3 ({_LLAMA3}; nothing else is "
            f"supported), got {found.size} factors up to {found.max(initial=0.0):g} that it does not give"
        )
    return scaling
