"""The safetensors file format, read as memory maps and written one tensor at a time.

A file is an 8-byte little-endian header length, a JSON header ``{name: {dtype, shape,
data_offsets}}`` padded with spaces to a multiple of 8, then the raw little-endian row-major data.
Reading maps the file, so a slice touches only its own pages; writing takes the tensors from an
iterator, so a model is never held a second time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import ml_dtypes
import numpy as np

from evolving_rl_jax.files import replacing

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def open_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of a file as a read-only memory map, by name.

    Raises:
      ValueError: the file is not safetensors, is cut short, or holds a dtype that numpy has no
        equal of.
    """
    path = Path(path)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError(f"header length {length} in a file of {size} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        base = 8 + length
        data = np.memmap(path, np.uint8, "r", base) if size > base else np.zeros(0, np.uint8)
        return {name: _view(data, name, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be a safetensors file, got: {error}") from None


def _view(data, name, entry):
    dtype, shape, (start, stop) = _DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
    if dtype is None:
        raise ValueError(f"{name} has dtype {entry['dtype']}")
    if stop > data.size or stop - start != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{name} {shape} at bytes {start}-{stop} of {data.size}")
    return data[start:stop].view(dtype).reshape(shape)


def write_tensors(
    path: str | Path, tensors: Iterable[tuple[str, tuple[int, ...], np.dtype, Callable]]
) -> None:
    """Writes a file that is complete when it appears (a temporary name, then a rename).

    Args:
      path: of the file.
      tensors: (name, shape, dtype, function that returns the numpy array); each function is called
        once, in turn.

    Raises:
      ValueError: a dtype that the format lacks.
    """
    path = Path(path)
    # Largest dtype first, then by name: the order of the reference writer, which keeps every tensor
    # aligned.
    tensors = sorted(tensors, key=lambda t: (-np.dtype(t[2]).itemsize, t[0]))
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, dtype, _ in tensors:
        dtype = np.dtype(dtype)
        if dtype not in _NAMES:
            raise ValueError(
                f"{name} must have one of the dtypes {', '.join(map(str, _NAMES))}, got {dtype}"
            )
        stop = offset + dtype.itemsize * math.prod(shape)
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, dtype, get in tensors:
            file.write(np.ascontiguousarray(get(), dtype).view(np.uint8).data)
