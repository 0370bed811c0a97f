"""Byte-level BPE tokenizers in Hugging Face form: training a small one, and a light wrapper.

Loading needs only the ``tokenizers`` library, not ``transformers``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from evolving_rl_jax.files import write_atomic, write_json
from evolving_rl_jax.models.gguf.file import is_gguf, open_gguf
from evolving_rl_jax.models.gguf.tokenizer import tokenizer_files
from evolving_rl_jax.models.hub import TOKENIZER_FILES, local_folder, read_object

SPECIAL_TOKENS = ("<pad>", "<eos>", "<obs>", "<act>", "<skill>")
# One digit a piece, words and punctuation with their leading space, runs of newlines: "cabinet 3"
# is two tokens, and a number never merges with what stands next to it.
PIECES = r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
# The same, except that a numbered thing (" cabinet 3") is one piece: a small policy copies such
# names from skills and observations, and one token is copied in one step.
NUMBERED_PIECES = r" ?\p{L}+(?: \p{N}+)?|" + PIECES
_BYTES = 256


class Tokenizer:
    """Text to ids and back, without ever adding or reading special tokens on its own.

    Attributes:
      path: folder that it was loaded from; of a GGUF file, one that is there as long as the tokenizer.
      vocab_size: one more than the largest id.
      special_ids: id of every special token by its text.
      pad_id, eos_id: the folder's padding and end token (padding falls back to the end token).
      bos_id: its begin token, or None.
      stop_ids: ids that end a generation: the end token and those that ``generation_config.json``
        adds.
      named_tokens: text of every token that ``tokenizer_config.json`` names (``bos_token``, ...),
        which is what a chat template may use.
      chat_template: Jinja source of the folder's chat template, or None.
    """

    def __init__(self, backend, path: Path, settings: dict, stop_ids: Sequence[int]):
        self.path = path
        self._backend = backend
        self.named_tokens = _named_tokens(settings)
        self.chat_template = _chat_template(path, settings)
        self.special_ids = {
            t.content: i for i, t in sorted(backend.get_added_tokens_decoder().items())
        }
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        eos = self._named_id("eos_token")
        if eos is None:
            raise ValueError(
                f"{path / 'tokenizer_config.json'} must name an eos_token of the vocabulary, "
                f"got {settings.get('eos_token')!r}"
            )
        pad = self._named_id("pad_token")
        self.eos_id, self.pad_id = eos, eos if pad is None else pad
        self.bos_id = self._named_id("bos_token")
        self.stop_ids = tuple(dict.fromkeys((eos, *stop_ids)))

    def keep(self, scratch: tempfile.TemporaryDirectory) -> None:
        """Has a temporary folder stay as long as this object, and go with it."""
        self._scratch = scratch

    def _named_id(self, key):
        token = self.named_tokens.get(key)
        return None if token is None else self._backend.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; what looks like a special token in it is ordinary characters."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts."""
        return [e.ids for e in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of ids; inverse of `encode` for any text."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)


def _named_tokens(settings: dict) -> dict[str, str]:
    named = {}
    for key, token in settings.items():
        text = token.get("content") if isinstance(token, dict) else token
        if key.endswith("_token") and isinstance(text, str):
            named[key] = text
    return named


def _chat_template(path: Path, settings: dict) -> str | None:
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name: the default one is for conversations
        template = {t["name"]: t["template"] for t in template}.get("default")
    return template


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads ``tokenizer.json`` and ``tokenizer_config.json`` of a Hugging Face folder or hub id, or
    the tokenizer that a GGUF file describes.

    Raises:
      FileNotFoundError: a file is missing, or the hub does not give the files.
      ValueError: a file cannot be read, or names no end token.
    """
    if not is_gguf(path):
        return _load_folder(local_folder(path, TOKENIZER_FILES))
    files = tokenizer_files(open_gguf(path))
    scratch = tempfile.TemporaryDirectory(prefix="gguf-tokenizer-")
    for name, text in files.items():
        (Path(scratch.name) / name).write_text(text, encoding="utf-8")
    tokenizer = _load_folder(Path(scratch.name))
    tokenizer.keep(scratch)
    return tokenizer


def _load_folder(path: Path) -> Tokenizer:
    import tokenizers

    raw = _read_json(path / "tokenizer.json")
    # Marked special, so that `encode_special_tokens` turns all of them into plain text when met in
    # a text.
    for token in raw.get("added_tokens", ()):
        token["special"] = True
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(raw))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f"{path / 'tokenizer.json'} must be a tokenizers file, got: {error}"
        ) from None
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.no_truncation()
    stop = []
    if (path / "generation_config.json").is_file():
        stop = _read_json(path / "generation_config.json").get("eos_token_id") or []
    stop = [stop] if isinstance(stop, int) else stop
    if not isinstance(stop, list) or not all(isinstance(i, int) for i in stop):
        raise ValueError(
            f"{path / 'generation_config.json'}: eos_token_id must be an id or a list of them, got {stop!r}"
        )
    _check_decoder(path, raw.get("decoder"))
    return Tokenizer(backend, path, _read_json(path / "tokenizer_config.json"), stop)


def _check_decoder(path: Path, decoder) -> None:
    """Only of byte-level tokens does each alone say which text it is: others drop or add spaces."""
    parts = decoder if isinstance(decoder, dict) else {}
    kinds = [part.get("type") for part in (parts, *parts.get("decoders", ()))]
    if "ByteLevel" not in kinds:
        raise ValueError(
            f"{path / 'tokenizer.json'} must be of a byte-level tokenizer (decoder ByteLevel), got "
            f"decoder {parts.get('type')!r}"
        )


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    out_dir: str | Path,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    pieces: str = PIECES,
) -> Tokenizer:
    """Trains a byte-level BPE tokenizer and saves it in Hugging Face form.

    All 256 bytes are in the vocabulary, so any text is encoded without loss; the rest goes to the
    most frequent merges.  The same texts give the same file.

    Args:
      texts: what the policy will read and write.
      vocab_size: ids in all; fewer result when the texts have nothing left to merge.
      out_dir: folder, created where needed.
      special_tokens: with ids 0, 1, ... in this order; must include ``<pad>`` and ``<eos>``.
      pieces: regular expression of the pieces that no token crosses.

    Returns:
      The tokenizer as `load_tokenizer` reads it back.

    Raises:
      ValueError: the vocabulary cannot hold the bytes and the special tokens, or one of those is
        missing.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    special_tokens = list(special_tokens)
    missing = {"<pad>", "<eos>"} - set(special_tokens)
    if missing or len(set(special_tokens)) != len(special_tokens):
        raise ValueError(
            f"special_tokens must be distinct and include <pad> and <eos>, got {special_tokens}"
        )
    least = _BYTES + len(special_tokens)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size must be at least {least} (256 bytes and the special tokens), "
            f"got {vocab_size}"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "additional_special_tokens": [t for t in special_tokens if t not in ("<pad>", "<eos>")],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
    write_json(out_dir / "tokenizer_config.json", settings, indent=2)
    write_atomic(out_dir / "tokenizer.json", backend.to_str(pretty=True) + "\n")
    return load_tokenizer(out_dir)


def _read_json(path: Path) -> dict:
    return read_object(path, "belong to a Hugging Face tokenizer")
