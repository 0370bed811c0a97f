"""A Hugging Face tokenizer, rebuilt from what a GGUF file's metadata says of it.

Only byte-level BPE with merges is rebuilt.  The file names the way in which text is cut into pieces
before merging, and does not describe it: `PRE_TOKENIZERS` has those that are known, any other is refused.
"""

from __future__ import annotations

import json
from typing import Any

from evolving_rl_jax.models.gguf.file import GGUFFile

_G = "tokenizer.ggml."
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|\p{{N}}|{_REST}"

# Name in the file -> (regular expression of a piece, or None for that of GPT-2; whether digits stand
# alone before it; whether text is put into Unicode's form C first; whether a piece that is a token is
# taken whole, without merging).
PRE_TOKENIZERS: dict[str, tuple[str | None, bool, bool, bool]] = {
    "gpt-2": (None, False, False, False),
    "smollm": (None, True, False, False),
    "qwen2": (_QWEN2, False, True, False),
    "deepseek-r1-qwen": (_QWEN2, False, True, False),
    "llama3": (_LLAMA3, False, False, True),
    "llama-v3": (_LLAMA3, False, False, True),
    "llama-bpe": (_LLAMA3, False, False, True),
}
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_ENDS = ("eos_token_id", "eot_token_id")  # of a text, and of a turn where that is another


def tokenizer_files(file: GGUFFile) -> dict[str, str]:
    """The files of a Hugging Face tokenizer by their names, chat template included.

    Raises:
      ValueError: the file has no tokenizer or no chat template, or a tokenizer of another kind.
    """
    tokens = _tokens(file)
    named = {
        name: tokens[i] for name, key in _NAMED.items() if (i := _id(file, key, tokens)) is not None
    }
    if "eos_token" not in named:
        raise file.error(f"{_G}eos_token_id must be given, found no such key")
    template = file.get("tokenizer.chat_template", str, "")
    if not template.strip():
        raise file.error("must have a chat template, found no tokenizer.chat_template")
    bos = file.get(f"{_G}add_bos_token", bool, False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "add_bos_token": bos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.get(f"{file.architecture}.context_length", int),
        "chat_template": template,
    }
    if bos and "bos_token" not in named:
        raise file.error(
            f"{_G}bos_token_id must be given with {_G}add_bos_token, found no such key"
        )
    ends = dict.fromkeys(_id(file, key, tokens) for key in _ENDS)
    backend = _backend(file, tokens, named["bos_token"] if bos else "")
    return {
        "tokenizer.json": backend.to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False) + "\n",
        "generation_config.json": json.dumps(
            {"eos_token_id": [i for i in ends if i is not None]}, indent=2
        )
        + "\n",
    }


def _tokens(file: GGUFFile) -> list[str]:
    kind = file.get(f"{_G}model", str, "")
    if not kind:
        raise file.error(f"must have a tokenizer, found no {_G}model")
    if kind != "gpt2":
        raise file.error(
            f"{_G}model must be 'gpt2', byte-level BPE (nothing else is supported), got {kind!r}"
        )
    tokens = file.get(f"{_G}tokens", list)
    if len(set(tokens)) != len(tokens) or not all(isinstance(t, str) for t in tokens):
        raise file.error(
            f"{_G}tokens must be different texts, got {len(tokens)}, not all different"
        )
    rows = int(file.tensors["token_embd.weight"].shape[-1]) if file.tensors else 0
    if len(tokens) > rows:
        raise file.error(
            f"{_G}tokens must have a row each in token_embd.weight ({rows}), got {len(tokens)}"
        )
    return tokens


def _id(file: GGUFFile, key: str, tokens: list[str]) -> int | None:
    found = file.get(f"{_G}{key}", int, -1)
    if found >= len(tokens):
        raise file.error(
            f"{_G}{key} must be below {len(tokens)}, the tokens there are, got {found}"
        )
    return found if found >= 0 else None


def _backend(file: GGUFFile, tokens: list[str], bos: str) -> Any:
    """The `tokenizers.Tokenizer`."""
    import gguf
    import tokenizers
    from tokenizers import decoders, models, normalizers, processors

    name = file.get(f"{_G}pre", str)
    if name not in PRE_TOKENIZERS:
        raise file.error(
            f"{_G}pre must be one of {', '.join(PRE_TOKENIZERS)} (nothing else is supported), got {name!r}"
        )
    _, _, compose, whole = PRE_TOKENIZERS[name]
    if file.get(f"{_G}add_space_prefix", bool, False):
        raise file.error(
            f"{_G}add_space_prefix must be False (nothing else is supported), got True"
        )
    kinds = file.get(f"{_G}token_type", list)
    if len(kinds) != len(tokens):
        raise file.error(
            f"{_G}token_type must have one entry a token, {len(tokens)}, got {len(kinds)}"
        )
    unused = gguf.TokenType.UNUSED  # rows of the embedding beyond the vocabulary
    vocab = {t: i for i, (t, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != unused}
    try:
        model = models.BPE(vocab=vocab, merges=_merges(file), ignore_merges=whole)
    except Exception as error:  # the library raises bare Exception
        raise file.error(f"{_G}merges must be of tokens of the vocabulary, got: {error}") from None
    backend = tokenizers.Tokenizer(model)
    if compose:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(name)
    backend.decoder = decoders.ByteLevel()
    special = (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN)
    backend.add_tokens(
        [
            tokenizers.AddedToken(text, special=kind in special, normalized=False)
            for text, kind in zip(tokens, kinds, strict=True)
            if kind in (*special, gguf.TokenType.USER_DEFINED)
        ]
    )
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, vocab[bos])],
        )
    return backend


def _pre_tokenizer(name: str) -> Any:
    import tokenizers
    from tokenizers import pre_tokenizers as pre

    pattern, digits, _, _ = PRE_TOKENIZERS[name]
    parts = [pre.Digits(individual_digits=True)] if digits else []
    if pattern is None:
        return pre.Sequence([*parts, pre.ByteLevel(add_prefix_space=False)])
    parts.append(pre.Split(tokenizers.Regex(pattern), behavior="isolated"))
    return pre.Sequence([*parts, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


def _merges(file: GGUFFile) -> list[tuple[str, str]]:
    merges = [tuple(str(merge).split(" ")) for merge in file.get(f"{_G}merges", list)]
    wrong = next((i for i, merge in enumerate(merges) if len(merge) != 2), None)
    if wrong is not None:
        raise file.error(f"{_G}merges must be pairs of tokens, got {merges[wrong]!r} at {wrong}")
    return merges
