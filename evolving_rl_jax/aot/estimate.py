"""Arithmetic of a model, counted from its sizes.

Compilers count the body of a loop once and a Pallas kernel not at all, so products are counted here
from the formulas: 2 FLOPs a weight and token, and 4 FLOPs a query, key, head and head dimension.
"""

from __future__ import annotations

from evolving_rl_jax.models import ModelConfig


def layer_weights(cfg: ModelConfig) -> int:
    """Weights of all matrices in the layers, the ones that every token is multiplied with."""
    heads = 2 * cfg.num_heads + 2 * cfg.num_kv_heads  # q and o, k and v
    per_layer = cfg.hidden_size * (heads * cfg.head_dim + 3 * cfg.intermediate_size)
    return cfg.num_layers * per_layer


def unembedding_weights(cfg: ModelConfig) -> int:
    """Weights of the matrix that gives the logits."""
    return cfg.vocab_size * cfg.hidden_size


def attention_flops(cfg: ModelConfig, keys: float) -> float:
    """FLOPs of one token that attends to ``keys`` others, in all layers."""
    return 4.0 * keys * cfg.num_heads * cfg.head_dim * cfg.num_layers


def train_flops(
    cfg: ModelConfig, tokens: int, length: int, *, remat: str, reference: bool, lora: bool
) -> float:
    """FLOPs that a micro-batch executes when every token is trained on (fewer are in practice).

    Passes over the layers: forward, backward for activations, backward for weights (not with
    adapters), forward again where remat asks for it, and the reference's forward.  The unembedding
    runs forward, again in the backward pass, and for its two gradients.

    Args:
      cfg: the model.
      tokens: of a micro-batch.
      length: of a row; half of it is what a causal token sees on average, packing aside.
      remat: ``full``, ``dots`` or ``none``.
      reference: whether the reference policy runs too.
      lora: whether only adapters are trained.
    """
    backward = 1 if lora else 2
    layers = 1 + backward + (remat == "full") + reference
    logits = 1 + 1 + backward + reference
    # The backward kernels of attention compute five products where the forward computes two.
    attention = 1 + 2.5 + (remat == "full") + reference
    per_token = 2.0 * (layers * layer_weights(cfg) + logits * unembedding_weights(cfg))
    return tokens * (per_token + attention * attention_flops(cfg, length / 2))


def prefill_flops(cfg: ModelConfig, tokens: int, columns: int) -> float:
    """FLOPs of a prefill chunk: no logits, and attention over all columns, masked or not."""
    return tokens * (2.0 * layer_weights(cfg) + attention_flops(cfg, columns))


def decode_flops(cfg: ModelConfig, tokens: int, columns: int) -> float:
    """FLOPs of ``tokens`` sampled tokens, all rows and steps together."""
    weights = layer_weights(cfg) + unembedding_weights(cfg)
    return tokens * (2.0 * weights + attention_flops(cfg, columns))
