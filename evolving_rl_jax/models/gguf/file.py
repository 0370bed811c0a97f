"""A GGUF file, opened: its metadata by key, checked for their type, and its tensors by name."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

_MAGIC = b"GGUF"
ARCHITECTURES = ("qwen2", "qwen3", "llama")


def is_gguf(path: str | Path) -> bool:
    """Whether a name means a GGUF file: by its ending, there or not, or by its first four bytes."""
    path = Path(path)
    if path.suffix == ".gguf":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def open_gguf(path: str | Path) -> GGUFFile:
    """Opens a file; the same one, unchanged, is read once.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the package ``gguf`` is not installed, the file is none of a model that is supported,
        or it is cut short; says what was found.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a GGUF file, found no such file")
    status = path.stat()
    return _open(os.path.abspath(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1)  # its parts are asked for one after the other
def _open(path: str, size: int, modified: int) -> GGUFFile:
    return GGUFFile(Path(path))


class GGUFFile:
    """One file with the whole of a model.

    Attributes:
      path: of the file.
      architecture: what ``general.architecture`` says, one of `ARCHITECTURES`.
      tensors: the package's `ReaderTensor` by name; their data are memory maps.
    """

    def __init__(self, path: Path):
        try:
            import gguf
        except ImportError:
            raise ValueError(
                f"{path} is a GGUF file, and the package gguf, which reads it, is not installed: "
                "pip install -e '.[gguf]'"
            ) from None
        self.path = path
        try:
            reader = gguf.GGUFReader(path)
        except Exception as error:  # the package has no error of its own: each read has another
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(
                f"{path} must be a whole GGUF file with tensors of known types, got {reason}"
            ) from None
        self._fields = reader.fields
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.architecture = self.get("general.architecture", str)
        if self.architecture not in ARCHITECTURES:
            raise self.error(
                f"general.architecture must be one of {', '.join(ARCHITECTURES)}, got "
                f"{self.architecture!r}"
            )
        if self.get("split.count", int, 1) > 1:
            raise self.error(
                "must be a whole model, got one of "
                f"{self.get('split.count', int)} parts: join them with llama-gguf-split --merge"
            )

    def error(self, message: str) -> ValueError:
        """A ValueError that names the file."""
        return ValueError(f"{self.path}: {message}")

    def keys(self, start: str) -> list[str]:
        """The keys of the metadata that begin so, without that beginning."""
        return [key.removeprefix(start) for key in self._fields if key.startswith(start)]

    def get(self, key: str, kind: type, default: Any = ...) -> Any:
        """The value of a key of the metadata.

        Args:
          key: its name.
          kind: int, float, str, bool or list.
          default: what an absent key gives; without it, one is an error.

        Raises:
          ValueError: the key is absent, or its value is of another kind.
        """
        if key not in self._fields:
            if default is ...:
                raise self.error(f"{key} must be given, found no such key")
            return default
        try:
            value = self._fields[key].contents()
        except UnicodeDecodeError as error:
            raise self.error(f"{key} must be UTF-8, got: {error}") from None
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise self.error(f"{key} must be of type {kind.__name__}, got {type(value).__name__}")
        return kind(value)
