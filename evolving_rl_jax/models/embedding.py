"""Sentence embeddings from a decoder (Qwen3-Embedding): the hidden state of the last token.

A text is encoded as its tokenizer's post-processor says (Qwen3-Embedding appends an end token),
run through the model, and the last token's hidden state, after the final norm, is scaled to unit
length.  Queries carry an instruction, what is searched carries none.
Source: Zhang et al., "Qwen3 Embedding", arXiv 2506.05176.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evolving_rl_jax.files import sample_hash
from evolving_rl_jax.models.config import ModelConfig
from evolving_rl_jax.models.hf import load_hf
from evolving_rl_jax.models.hub import TOKENIZER_FILES, WEIGHT_FILES, local_folder
from evolving_rl_jax.models.transformer import apply

INSTRUCTION = "Given a task, retrieve similar tasks whose experience helps to solve it"
_PROMPTS_FILE = "config_sentence_transformers.json"
_MODULES_FILE, _POOLING_FILE = "modules.json", "config.json"
_MODULES = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers, that are done here
_LEAST_LENGTH = 16  # shorter batches are padded to it; longer ones to the next power of two


def query_prompt(instruction: str) -> str:
    """What Qwen3-Embedding expects in front of a query."""
    return f"Instruct: {instruction}\nQuery:"


class DecoderEmbedder:
    """An ``Embedder`` (see ``skills.embedders``) of a Hugging Face folder or hub id.

    Args:
      path: with ``config.json``, safetensors and ``tokenizer.json``; a causal model or one without
        a head.
      instruction: of queries; "" for none.  None takes the prompt named ``query`` of the folder's
        ``config_sentence_transformers.json``, or else ``INSTRUCTION``.
      max_length: longer texts are cut to so many tokens; their end token stays.
      batch_size: texts at a time.
      dtype: to compute in; the vectors are float32.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the folder is no model or tokenizer that is supported.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        instruction: str | None = None,
        max_length: int = 512,
        batch_size: int = 16,
        dtype: str = "float32",
    ):
        if max_length < 2 or batch_size < 1:
            raise ValueError(
                f"max_length must be >= 2 and batch_size >= 1, got {max_length} and {batch_size}"
            )
        extra = (_PROMPTS_FILE, _MODULES_FILE, f"*/{_POOLING_FILE}")
        folder = local_folder(path, (*WEIGHT_FILES, *TOKENIZER_FILES, *extra))
        _check_modules(folder)
        self._params, cfg = load_hf(folder, head=False)
        self.cfg = dataclasses.replace(cfg, dtype=dtype)
        self._encode = _tokenizer(folder, max_length)
        self._batch_size = batch_size
        self._prompt = _prompt_of(folder, instruction)
        config = (folder / "config.json").read_bytes()
        weights = sorted((p.name, sample_hash(p)) for p in folder.glob("*.safetensors"))
        facts = f"{Path(path).name} {weights} {self._prompt!r} {max_length} {dtype}".encode()
        self.fingerprint = f"decoder:{hashlib.sha256(config + facts).hexdigest()}"

    def fit(self, texts: Sequence[str]) -> DecoderEmbedder:
        """Does nothing: the model is pretrained."""
        return self

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [n, D] float32 of texts as they are."""
        return self._embed(list(texts))

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [n, D] float32 of texts behind the instruction."""
        return self._embed([self._prompt + text for text in texts])

    def _embed(self, texts: list[str]) -> np.ndarray:
        ids = self._encode(texts)
        empty = [text for text, i in zip(texts, ids, strict=True) if not i]
        if empty:
            raise ValueError(f"texts to embed must have tokens, got {empty[0]!r} without any")
        out = np.zeros((len(texts), self.cfg.hidden_size), np.float32)
        # By length, so that few tokens are padding.
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            longest = max(len(ids[i]) for i in rows)
            width = max(_LEAST_LENGTH, 1 << (longest - 1).bit_length())
            tokens = np.zeros((self._batch_size, width), np.int32)
            lengths = np.ones(self._batch_size, np.int32)
            for row, i in enumerate(rows):
                tokens[row, : len(ids[i])], lengths[row] = ids[i], len(ids[i])
            found = _last_hidden(self._params, self.cfg, tokens, lengths)
            out[rows] = np.asarray(found)[: len(rows)]
        return out


@functools.partial(jax.jit, static_argnums=1)
def _last_hidden(params, cfg: ModelConfig, tokens, lengths):
    """Unit vectors [B, D] float32 of right-padded tokens [B, T] with lengths [B]."""
    columns = jnp.arange(tokens.shape[1])
    segment_ids = (columns < lengths[:, None]).astype(jnp.int32)
    hidden, _ = apply(params, cfg, tokens, segment_ids=segment_ids)
    last = hidden[jnp.arange(tokens.shape[0]), lengths - 1].astype(jnp.float32)
    return last / jnp.maximum(jnp.linalg.norm(last, axis=-1, keepdims=True), 1e-12)


def _tokenizer(folder: Path, max_length: int):
    """texts -> ids, as the folder's tokenizer writes a single text."""
    import tokenizers

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} must belong to an embedding model, found no such file")
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{file} must be a tokenizers file, got: {error}") from None
    backend.no_padding()
    backend.enable_truncation(max_length)
    return lambda texts: [encoding.ids for encoding in backend.encode_batch(texts)]


def _check_modules(folder: Path) -> None:
    """Raises ValueError where sentence-transformers would do more, or pool otherwise."""
    use = f"use sentence-transformers:{folder} for it"
    file = folder / _MODULES_FILE
    modules = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in _MODULES:
            names = ", ".join(_MODULES)
            raise ValueError(f"{file} must name no modules but {names}, got {kind}; {use}")
        pooling = folder / str(module.get("path", "")) / _POOLING_FILE
        if kind == "Pooling" and pooling.is_file():
            found = json.loads(pooling.read_text(encoding="utf-8"))
            modes = [n for n, on in found.items() if n.startswith("pooling_mode_") and on is True]
            modes += [found["pooling_mode"]] if isinstance(found.get("pooling_mode"), str) else []
            if modes not in ([], ["pooling_mode_lasttoken"], ["lasttoken"]):
                raise ValueError(f"{pooling} must pool by the last token, got {modes}; {use}")
    if before := _prompts(folder).get("document"):
        file = folder / _PROMPTS_FILE
        raise ValueError(f"{file} must have no prompt for documents, got {before!r}; {use}")


def _prompts(folder: Path) -> dict[str, Any]:
    file = folder / _PROMPTS_FILE
    if not file.is_file():
        return {}
    return json.loads(file.read_text(encoding="utf-8")).get("prompts") or {}


def _prompt_of(folder: Path, instruction: str | None) -> str:
    if instruction is not None:
        return query_prompt(instruction) if instruction else ""
    query = _prompts(folder).get("query")
    return query if isinstance(query, str) else query_prompt(INSTRUCTION)
