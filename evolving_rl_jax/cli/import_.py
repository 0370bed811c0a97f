"""``evolving-rl import``."""

from __future__ import annotations

import pathlib


def add(commands) -> None:
    """The options."""
    p = commands.add_parser(
        "import",
        help="write a GGUF file as a Hugging Face folder",
        description="De-quantises a model of llama.cpp (architectures qwen2, qwen3, llama) and writes it once as "
        "config.json, safetensors and tokenizer files, chat template included: a folder for "
        "--config.model.hf_path, which takes the file itself too, at the price of de-quantising it at every "
        "start.  Needs the extra [gguf].",
    )
    p.add_argument("--gguf", required=True, metavar="FILE", help="the model")
    p.add_argument("--out", required=True, metavar="DIR", help="folder to write, new or empty")
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the weights in the folder (default: float32, which keeps what the file says exactly)",
    )


def run(args, overrides: dict[str, str]) -> None:
    """Writes the folder, and says what it holds."""
    from evolving_rl_jax import models
    from evolving_rl_jax.run.console import user_errors
    from evolving_rl_jax.run.folder import check_unused

    out = pathlib.Path(args.out)
    check_unused(out)
    with user_errors((ValueError, FileNotFoundError), "--gguf"):
        cfg = models.import_gguf(args.gguf, out, dtype=args.dtype)
    print(
        f"{cfg.model_type} model in {args.out}: {cfg.num_layers} layers, width {cfg.hidden_size}, "
        f"vocabulary {cfg.vocab_size}, {args.dtype}"
    )
