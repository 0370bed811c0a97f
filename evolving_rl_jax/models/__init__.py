"""Decoder-only transformers (Qwen2/2.5, Qwen3, Llama 3.x), their tokenizers, HF import and export.

``transformer`` is the model as pure functions over a nested dict, ``attention`` and its kernels, ``lora``
adapters, ``config``, ``hf``, ``hub`` and ``safetensors`` folders in and out, ``gguf`` files in, ``embedding`` models that embed.

Import from here: the names below; the rest by module.  This room knows ``parallel`` and
``files``, and nothing of runs, environments or the configuration.
"""

from evolving_rl_jax.models.config import ModelConfig, RopeScaling, config_from_hf
from evolving_rl_jax.models.hf import import_gguf, load_gguf, load_hf, save_hf, save_tokenizer
from evolving_rl_jax.models.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from evolving_rl_jax.models.transformer import (
    apply,
    by_layer,
    init,
    init_cache,
    logits,
    unembedding,
)

__all__ = [
    "ModelConfig",
    "RopeScaling",
    "Tokenizer",
    "apply",
    "by_layer",
    "config_from_hf",
    "import_gguf",
    "init",
    "init_cache",
    "load_gguf",
    "load_hf",
    "load_tokenizer",
    "logits",
    "save_hf",
    "save_tokenizer",
    "train_tokenizer",
    "unembedding",
]
