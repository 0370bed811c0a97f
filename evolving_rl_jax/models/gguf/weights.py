"""The tensors of a GGUF file under their Hugging Face names, de-quantised one by one when asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from evolving_rl_jax.models.gguf.file import GGUFFile

ROPE_FACTORS = "rope_freqs.weight"  # an option of the rotary embedding, kept as a tensor


class Tensor:
    """One tensor, float32 when read with `numpy.asarray`.

    Attributes:
      shape: as in a Hugging Face file, ``[out, in]``.
      dtype: float32.

    Args:
      tensor: the package's.
      heads: of a projection whose rows the file keeps in another order (see `hf_tensors`); 0 of others.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, tensor: Any, heads: int = 0):
        self._tensor, self._heads = tensor, heads
        self.shape = tuple(int(n) for n in tensor.shape[::-1])

    def __array__(self, dtype=None, copy=None):
        array = dequantized(self._tensor)
        if self._heads:
            pairs = array.reshape(self._heads, -1, 2, *array.shape[1:])
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        return array if dtype is None else array.astype(dtype, copy=False)


def dequantized(tensor: Any) -> np.ndarray:
    """The numbers of a tensor of the file, float32."""
    import gguf

    return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)


def hf_tensors(
    file: GGUFFile, names: Iterable[str], *, num_layers: int, num_heads: int, num_kv_heads: int
) -> dict[str, Tensor]:
    """The tensors of a file by Hugging Face name.

    Files of the architecture ``llama`` keep the rows of query and key projections in the order of the
    rotary embedding that takes neighbours as pairs; here, as in Hugging Face files, a pair lies half
    a head apart, and the rows come back in that order.

    Args:
      file: the opened file.
      names: the Hugging Face names that the model may have.
      num_layers, num_heads, num_kv_heads: of the model.

    Returns:
      {name: tensor}, those of the file that have none of ``names`` under their own name.

    Raises:
      ValueError: a quantisation that the package cannot undo; names the tensor.
    """
    import gguf

    _check_types(file)
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
    known = gguf.get_tensor_name_map(kind, num_layers)
    found, left = {}, dict(file.tensors)
    left.pop(ROPE_FACTORS, None)
    for name in names:
        tensor = left.pop(known.get_name(name, try_suffixes=(".weight", ".bias")), None)
        if tensor is None:
            continue
        heads = {"q_proj": num_heads, "k_proj": num_kv_heads}.get(name.split(".")[-2], 0)
        found[name] = Tensor(tensor, heads if file.architecture == "llama" else 0)
    return found | {name: Tensor(tensor) for name, tensor in left.items()}


def _check_types(file: GGUFFile) -> None:
    """Each type of the file is tried on one row, so that nothing is begun that cannot be ended."""
    import gguf

    first = {tensor.tensor_type: tensor for tensor in reversed(file.tensors.values())}
    for kind, tensor in first.items():
        try:
            gguf.dequantize(np.asarray(tensor.data[:1]), kind)
        except NotImplementedError:
            raise file.error(
                f"{tensor.name} must be of a type that the package gguf can de-quantise, got {kind.name}"
            ) from None
