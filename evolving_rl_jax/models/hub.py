"""Where a model is: a local folder, or an id on the Hugging Face hub, fetched into the hub's cache.

``huggingface_hub`` is imported only when an id has to be looked up.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

CONFIG_FILES = ("config.json",)
WEIGHT_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def read_object(file: Path, what: str) -> dict[str, Any]:
    """The JSON object of a file.

    Args:
      file: its path.
      what: that the file must belong to or be, in words.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no JSON object.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} must {what}, found no such file")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} must be JSON, got: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{file} must be a JSON object, got a {type(raw).__name__}")
    return raw


def local_folder(name: str | Path, files: tuple[str, ...]) -> Path:
    """The folder that ``name`` means: itself where it exists, else a copy of the hub's repository.

    Args:
      name: a path, or a hub id such as ``Qwen/Qwen2.5-0.5B-Instruct``.
      files: patterns of the files that are needed; no others are fetched.

    Returns:
      The local folder.  A ``name`` that exists here, or has not the form of an id, is returned as
      it is.

    Raises:
      FileNotFoundError: no such folder, and the hub did not give the files; names both attempts.
    """
    path = Path(name)
    if path.exists() or not _ID.fullmatch(str(name)):
        return path
    start = f"{str(name)!r} must be a local folder or a model on the Hugging Face hub: no folder"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"{start}, and the package huggingface_hub, which asks the hub, is not installed"
        ) from None
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(files)))
    except Exception as error:  # no network, no such id, no permission: each is its own class
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{start}, and the hub (and its cache on this machine) gave: "
            f"{type(error).__name__}: {reason[:300]}"
        ) from error
