"""Writes tests/golden/models: tiny random models and their logits, computed by ``transformers``.

Command:  python tests/golden/make_model_logits.py        (needs torch, transformers, safetensors)

One folder a family: ``model.safetensors`` as ``save_pretrained`` writes it, ``config.json`` with
``rope_parameters``, ``config_older.json`` with ``rope_theta`` and ``rope_scaling``, and
``logits.npz`` (tokens [B, T], logits [B, T, V], float32 on CPU, eager attention).  Both configs are
run and must give the same logits.
"""

import json
import pathlib
import shutil
import tempfile

import numpy as np
import torch
import transformers

OUT = pathlib.Path(__file__).parent / "models"
SIZES = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    hidden_act="silu",
    max_position_embeddings=128,
)
# With heads of 8 and theta 500 the wavelengths are 6, 30, 140, 664: kept, blended, stretched twice.
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
# Family -> (config without rope, theta, scaling).
FAMILIES = {
    "qwen2_tied": (
        dict(model_type="qwen2", tie_word_embeddings=True, rms_norm_eps=1e-6),
        1e6,
        None,
    ),
    "qwen2_untied": (
        dict(
            model_type="qwen2",
            tie_word_embeddings=False,
            rms_norm_eps=1e-5,
            num_key_value_heads=1,
            use_sliding_window=False,
            sliding_window=16,
            max_window_layers=2,
        ),
        1e4,
        None,
    ),
    "qwen3": (
        dict(model_type="qwen3", tie_word_embeddings=True, rms_norm_eps=1e-6, head_dim=16),
        1e6,
        None,
    ),
    "llama3": (
        dict(model_type="llama", tie_word_embeddings=False, rms_norm_eps=1e-5, head_dim=8),
        500.0,
        LLAMA3,
    ),
    "llama_tied": (
        dict(
            model_type="llama", tie_word_embeddings=True, rms_norm_eps=1e-5, num_key_value_heads=4
        ),
        1e4,
        None,
    ),
}


def spellings(family: str) -> dict[str, dict]:
    """File name -> config of the family, in both spellings of rope."""
    raw, theta, scaling = FAMILIES[family]
    raw = SIZES | raw | {"torch_dtype": "float32"}
    newer = {"rope_theta": theta, **(scaling or {"rope_type": "default"})}
    return {
        "config.json": raw | {"rope_parameters": newer},
        "config_older.json": raw | {"rope_theta": theta, "rope_scaling": scaling},
    }


def random_model(raw: dict, folder: pathlib.Path):
    """A model whose biases and norms are random too, or a mistake in them would not show."""
    write(folder / "config.json", raw)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape) * spread + float("norm" in name))
    model.float().save_pretrained(folder)


def logits(folder: pathlib.Path, tokens: np.ndarray) -> np.ndarray:
    """float32 logits [B, T, V] of the model in ``folder``."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens)).logits.numpy()


def write(path: pathlib.Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokens = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 48))
    for family in FAMILIES:
        out = OUT / family
        out.mkdir(parents=True, exist_ok=True)
        results = []
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            for i, (file, raw) in enumerate(spellings(family).items()):
                if i == 0:
                    random_model(raw, folder)
                    shutil.copyfile(folder / "model.safetensors", out / "model.safetensors")
                write(folder / "config.json", raw)
                write(out / file, raw)
                results.append(logits(folder, tokens))
        np.testing.assert_array_equal(*results)
        np.savez_compressed(out / "logits.npz", tokens=tokens.astype(np.int32), logits=results[0])
        print(family, f"largest logit {np.abs(results[0]).max():.2f}")


if __name__ == "__main__":
    main()
