"""Files: the one way in which one is put in place (whole, durable, or not at all), and a fingerprint.

Lies at the bottom, next to `types` and `config`, and needs the standard library alone: environments and
skills write files too, and may not import a run's room.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

# File systems that keep no order of names to make durable say so with one of these.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16  # of a large file, about 1 MB in all


class SaveFailed(OSError):
    """What a run wanted to keep could not be written; the message says what and why."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path next to ``path``; what was made there takes its place at the end.

    A reader, or whoever comes after a crash or a power loss, sees the old one or the new one.  Any
    number of threads, processes and hosts may write to one path: each has a temporary name of its own,
    the last one stays.  After an exception the temporary file or folder is gone; a process killed in
    between leaves one ``NAME.PROCESS-RANDOM.partial`` behind, which nothing reads.

    Raises:
      FileNotFoundError: nothing was made, or the folder of ``path`` is missing.
    """
    path = pathlib.Path(path)
    # Random too: processes of several hosts can have the same number.
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        put(temporary, path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def put(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Puts a finished file or folder in the place of ``path``, durably."""
    members = temporary.rglob("*") if temporary.is_dir() else ()
    for member in (*members, temporary):
        sync(member)
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: pathlib.Path) -> None:
    """Makes what a file or folder holds survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if not path.is_dir() or e.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def write_atomic(path: str | os.PathLike, data: str | bytes) -> None:
    """Writes a file whole, see `replacing`; text as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def write_json(path: str | os.PathLike, value: Any, *, indent: int | None = None) -> None:
    """Writes a value as JSON, see `replacing`; folders are made where needed."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(value, indent=indent) + ("\n" if indent is not None else ""))


def encodable(text: str) -> str:
    """Without lone surrogates: they are valid JSON, and no file or tokenizer could take them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def sample_hash(path: str | os.PathLike) -> str:
    """Of a file's size and of sixteen even parts of it: tells weights that were trained on from before."""
    size = os.path.getsize(path)
    found = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            found.update(file.read(_SAMPLE_BYTES))
    return found.hexdigest()
