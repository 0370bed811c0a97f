"""Markers in an imported tokenizer: unused special tokens get their names, or spare rows of the embedding.

The compact form of prompts needs one token for each of its markers.  No weight changes: a special token
that the model was given and nothing uses is renamed, and where there are too few of those the ids
between the tokenizer's last and the embedding's last row are named.  What is then trained or exported
is a model of the same shape with a tokenizer that has the markers.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evolving_rl_jax.files import write_atomic, write_json
from evolving_rl_jax.models.hub import TOKENIZER_FILES
from evolving_rl_jax.models.tokenizer import Tokenizer, load_tokenizer

__all__ = ["place_markers", "with_markers"]

# What a family calls the special tokens that it keeps for others.
_RESERVED = re.compile(r"reserved|unused|extra", re.IGNORECASE)
_RENAMED_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_RENAMED_FILES += ("added_tokens.json", "vocab.json")


def place_markers(tokenizer: Tokenizer, markers: Sequence[str], num_rows: int) -> dict[str, int]:
    """The id that each marker which a tokenizer lacks gets: of an unused token, or of a spare row.

    Reserved tokens come first, then the others that neither the chat template, the settings nor the
    tokenizer's own post-processing name, in the order of their ids.

    Args:
      tokenizer: of the imported model.
      markers: texts of the tokens that are needed.
      num_rows: of the model's embedding.

    Raises:
      ValueError: there are too few of both.
    """
    missing = [m for m in markers if m not in tokenizer.special_ids]
    unused = _unused(tokenizer, markers)
    spare = max(0, num_rows - tokenizer.vocab_size)
    if len(missing) > len(unused) + spare:
        raise ValueError(
            f"{tokenizer.path} must have {len(missing)} special tokens that nothing uses, or so many more "
            f"rows in the embedding than tokens, for the markers {', '.join(missing)}; found "
            f"{len(unused)} and {spare}"
        )
    rows = range(tokenizer.vocab_size, num_rows)
    ids = [*(tokenizer.special_ids[text] for text in unused), *rows]
    return dict(zip(missing, ids, strict=False))


def with_markers(
    path: str | Path, markers: Sequence[str], num_rows: int, out_dir: str | Path
) -> Tokenizer:
    """Writes the tokenizer of a model folder or hub id with a token for each marker.

    ``tokenizer.json`` is written last: a folder that has it is complete.

    Args:
      path: of the imported model; a GGUF file too.
      markers, num_rows: as for `place_markers`.
      out_dir: folder, created where needed.

    Returns:
      The new tokenizer.

    Raises:
      FileNotFoundError, ValueError: as `load_tokenizer` and `place_markers`.
    """
    tokenizer = load_tokenizer(path)
    places = place_markers(tokenizer, markers, num_rows)
    texts = {i: text for text, i in tokenizer.special_ids.items()}
    renamed = {texts[i]: marker for marker, i in places.items() if i in texts}
    added = {marker: i for marker, i in places.items() if i not in texts}
    source, out_dir = tokenizer.path, Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and name not in _RENAMED_FILES:
            shutil.copyfile(source / name, out_dir / name)
    for name in reversed(_RENAMED_FILES):
        if not (source / name).is_file():
            continue
        raw = json.loads((source / name).read_text(encoding="utf-8"))
        raw = _renamed(raw, renamed)
        if name == "tokenizer.json":
            write_atomic(out_dir / name, _added(raw, list(added)))
        else:
            write_json(out_dir / name, _named(raw, name, added), indent=2)
    return load_tokenizer(out_dir)


def _unused(tokenizer: Tokenizer, markers: Sequence[str]) -> list[str]:
    """Special tokens that nothing of the tokenizer's files uses, reserved ones first."""
    raw = json.loads((tokenizer.path / "tokenizer.json").read_text(encoding="utf-8"))
    special = {t["content"] for t in raw.get("added_tokens", ()) if t.get("special")}
    processing = json.dumps([raw.get(k) for k in ("post_processor", "normalizer", "decoder")])
    kept = {*tokenizer.named_tokens.values(), *markers}
    template = tokenizer.chat_template or ""
    found = [
        text
        for text, i in tokenizer.special_ids.items()
        if text in special
        and text not in kept
        and i not in tokenizer.stop_ids
        and text not in template
        and json.dumps(text) not in processing
    ]
    return sorted(found, key=lambda t: (not _RESERVED.search(t), tokenizer.special_ids[t]))


def _renamed(node: Any, names: dict[str, str]) -> Any:
    """A JSON value with every string, key or value, that is one of ``names`` replaced."""
    if isinstance(node, dict):
        return {names.get(k, k): _renamed(v, names) for k, v in node.items()}
    if isinstance(node, list):
        return [_renamed(v, names) for v in node]
    return names.get(node, node) if isinstance(node, str) else node


def _added(raw: dict, markers: Sequence[str]) -> str:
    """The text of ``tokenizer.json`` with new special tokens after its last id."""
    if not markers:
        return json.dumps(raw, ensure_ascii=False, indent=2) + "\n"
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(json.dumps(raw))
    backend.add_special_tokens([tokenizers.AddedToken(m, normalized=False) for m in markers])
    return backend.to_str(pretty=True) + "\n"


def _named(raw: Any, name: str, ids: dict[str, int]) -> Any:
    """Settings in which the added markers are special tokens as the renamed ones are."""
    if name == "added_tokens.json":
        return raw | ids
    if name == "tokenizer_config.json" and "added_tokens_decoder" in raw:
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        entries = {str(i): {"content": m, **flags, "special": True} for m, i in ids.items()}
        raw = raw | {"added_tokens_decoder": raw["added_tokens_decoder"] | entries}
    return raw
