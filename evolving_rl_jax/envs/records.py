"""A run's tasks on disk where an environment has no files of its own: JSON lines, compressed."""

from __future__ import annotations

import gzip
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from evolving_rl_jax.envs.base import TaskError
from evolving_rl_jax.files import write_atomic

__all__ = ["read_records", "write_records"]


def write_records(path: pathlib.Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one record a line, at once; the same records give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(json.dumps(record) + "\n" for record in records)
    write_atomic(path, gzip.compress(body.encode(), mtime=0))


def read_records(path: pathlib.Path, fields: Mapping[str, type], writer: str) -> Iterator[dict]:
    """The records that `write_records` wrote, checked.

    Args:
      path: of the file.
      fields: that every record has, with their types.
      writer: whose run writes it, for the message.

    Raises:
      TaskError: no file, a damaged one, or a record without a field.
    """
    if not path.is_file():
        raise TaskError(
            f"{path.parent} must hold {path.name}, which a run of {writer} writes, found none"
        )
    for number, record in enumerate(_records(path), 1):
        for field, kind in fields.items():
            if not isinstance(record.get(field), kind):
                raise TaskError(f"{path}, line {number}: {field} must be a {kind.__name__}")
        yield record


def _records(path: pathlib.Path) -> Iterator[dict]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield dict(json.loads(line))
    except (OSError, EOFError, ValueError, TypeError) as e:
        raise TaskError(f"{path} is damaged: {e}") from e
