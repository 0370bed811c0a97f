"""Writes tests/golden/embedding: a tiny random Qwen3 and sentence embeddings by ``transformers``.

Command:  python tests/golden/make_sentence_embedding.py      (needs torch, transformers, tokenizers)

The folder is made like Qwen3-Embedding: weights without a head, a tokenizer whose post-processor
appends the end token, and a prompt for queries.  ``vectors.npz`` holds, for every text, the last
hidden state of its last token, scaled to unit length (float32, CPU, eager attention, one text at a
time, so without any padding), as it is and behind the prompt.  ``modules.json`` lets the library
sentence-transformers read the folder too.
"""

import json
import pathlib

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).parent / "embedding"
PROMPT = "Instruct: Given a household task, retrieve similar tasks\nQuery:"
TEXTS = [
    "find mug at cedar mill and put a clean mug in countertop",
    "find mug at cedar mill and put a hot mug in fridge",
    "find egg at birch farm and cool the egg",
    "look at pan under the desklamp",
    "x",
    "a much longer sentence, which goes on for a while, names 3 cabinets and 12 drawers, and then "
    "goes on again until it has more tokens than the shortest padding",
    "Ünïcode täxt — 你好",
]


MODULES = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}


def make_tokenizer() -> None:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    end = backend.token_to_id("<|endoftext|>")
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
            ),
        ]
    )
    backend.save(str(OUT / "tokenizer.json"))
    write("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "clean_up_tokenization_spaces": False,
    })  # fmt: skip


def make_model() -> None:
    config = transformers.Qwen3Config(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
        tie_word_embeddings=True, rope_theta=1e6,
    )  # fmt: skip
    model = transformers.Qwen3Model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape) * spread + float("norm" in name))
    model.float().save_pretrained(OUT)


def vectors(texts: list[str]) -> np.ndarray:
    """[n, D] float32."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(OUT)
    model = transformers.AutoModel.from_pretrained(
        OUT, attn_implementation="eager", dtype=torch.float32
    ).eval()
    rows = []
    with torch.no_grad():
        for text in texts:
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
            rows.append(torch.nn.functional.normalize(hidden, dim=0).numpy())
    return np.stack(rows)


def write(name: str, value: dict | list) -> None:
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    (OUT / name).write_text(text, encoding="utf-8")


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    OUT.mkdir(exist_ok=True)
    make_tokenizer()
    make_model()
    write("config_sentence_transformers.json", {"prompts": {"query": PROMPT, "document": ""}})
    write("modules.json", [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(MODULES.items())
    ])  # fmt: skip
    (OUT / "1_Pooling").mkdir(exist_ok=True)
    write("1_Pooling/config.json", {
        "word_embedding_dimension": 32, "pooling_mode_lasttoken": True,
        "pooling_mode_mean_tokens": False, "include_prompt": True,
    })  # fmt: skip
    np.savez_compressed(
        OUT / "vectors.npz",
        texts=np.array(TEXTS),
        documents=vectors(TEXTS),
        queries=vectors([PROMPT + text for text in TEXTS]),
    )
    (OUT / "model.safetensors").chmod(0o644)
    print(np.round(vectors(TEXTS) @ vectors(TEXTS).T, 2))


if __name__ == "__main__":
    main()
