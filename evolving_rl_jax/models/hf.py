"""Hugging Face model folders in and out, and GGUF files in: straight into shards, and back byte for byte.

A checkpoint keeps one ``[out, in]`` matrix per layer and projection; here kernels are ``[in, out]``
and stacked over layers.  Neither direction changes a number, so a folder that is read and written
has the same tensors.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from evolving_rl_jax.files import write_json
from evolving_rl_jax.models import safetensors
from evolving_rl_jax.models.config import ModelConfig, config_from_hf, config_to_hf
from evolving_rl_jax.models.gguf.file import is_gguf, open_gguf
from evolving_rl_jax.models.gguf.weights import hf_tensors
from evolving_rl_jax.models.hub import TOKENIZER_FILES, WEIGHT_FILES, local_folder, read_object
from evolving_rl_jax.models.tokenizer import load_tokenizer
from evolving_rl_jax.models.transformer import init

_HEAD_ROWS = 4096  # compared at a time, so that no whole matrix is in memory
_INDEX = "model.safetensors.index.json"
# Path in the parameter tree -> name in the checkpoint; {} is the layer, "kernel" paths are
# transposed.
_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "unembedding": "lm_head.weight",
    "layers/attention/norm": "model.layers.{}.input_layernorm.weight",
    "layers/mlp/norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers/attention/q_norm": "model.layers.{}.self_attn.q_norm.weight",
    "layers/attention/k_norm": "model.layers.{}.self_attn.k_norm.weight",
    **{
        f"layers/attention/{p}_proj/kernel": f"model.layers.{{}}.self_attn.{p}_proj.weight"
        for p in "qkvo"
    },
    **{
        f"layers/attention/{p}_proj/bias": f"model.layers.{{}}.self_attn.{p}_proj.bias"
        for p in "qkv"
    },
    **{
        f"layers/mlp/{p}_proj/kernel": f"model.layers.{{}}.mlp.{p}_proj.weight"
        for p in ("gate", "up", "down")
    },
}


class _Leaf(NamedTuple):
    """One array of the parameter tree and where its parts are kept in a checkpoint."""

    path: str
    names: tuple[str, ...]  # one per layer, or one
    stacked: bool
    transposed: bool


def _leaf(path: str, num_layers: int) -> _Leaf:
    name = _NAMES[path]
    stacked = "{}" in name
    names = tuple(name.format(i) for i in range(num_layers)) if stacked else (name,)
    return _Leaf(path, names, stacked, path.endswith("/kernel"))


def _path(key_path) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def load_hf(
    path: str | Path, *, dtype=None, shardings=None, head: bool = True
) -> tuple[dict[str, Any], ModelConfig]:
    """Reads a model folder into the parameter tree of `transformer.init`.

    Every device reads only the part of the memory-mapped files that its shard needs, one array
    after the other.

    Args:
      path: folder with ``config.json`` and ``model.safetensors`` or its shards and their index, the
        id of such a model on the Hugging Face hub (a local folder wins), or a GGUF file.
      dtype: of the parameters; None keeps that of the files.  ``cfg.dtype``, which says how to
        compute, is not changed.
      shardings: tree of `jax.sharding.Sharding` like the parameters; None puts all on the first
        device.
      head: False leaves the unembedding of an untied model out, whether the files hold it or not.

    Returns:
      (params, cfg).

    Raises:
      FileNotFoundError: a file is missing, or the hub does not give the model.
      ValueError: a tensor is missing, not expected, or of the wrong shape or dtype; the message
        names it.
    """
    if is_gguf(path):
        return load_gguf(path, dtype=dtype, shardings=shardings)
    path = local_folder(path, WEIGHT_FILES)
    cfg = config_from_hf(path)
    return _load(path, cfg, _open_folder(path), dtype, shardings, head), cfg


def load_gguf(
    path: str | Path, *, dtype=None, shardings=None
) -> tuple[dict[str, Any], ModelConfig]:
    """Reads a GGUF file of llama.cpp into the parameter tree of `transformer.init`.

    Tensors are de-quantised by the package ``gguf``, one after the other, and once for each device that
    keeps a shard of them.

    Args:
      path: the file, of the architecture qwen2, qwen3 or llama.
      dtype: of the parameters; None is float32, which holds what any quantisation says exactly.
      shardings: as for `load_hf`.

    Returns:
      (params, cfg).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the package is not installed, the file is cut short, or holds an architecture, an
        option, a quantisation or a tensor that is not supported; the message names it.
    """
    cfg = config_from_hf(path)
    return _load(path, cfg, _open_gguf(path, cfg), dtype, shardings), cfg


def _open_gguf(path, cfg: ModelConfig) -> dict[str, Any]:
    names = [name.format(i) for name in _NAMES.values() for i in range(cfg.num_layers)]
    sizes = {n: getattr(cfg, n) for n in ("num_layers", "num_heads", "num_kv_heads")}
    return hf_tensors(open_gguf(path), dict.fromkeys(names), **sizes)


def _leaves(cfg: ModelConfig, head: bool = True):
    """The arrays of a model as (leaf, shape), and the structure of their tree."""
    shapes = jax.eval_shape(lambda: init(cfg, jax.random.key(0)))
    if not head:
        shapes.pop("unembedding", None)
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    return [(_leaf(_path(key), cfg.num_layers), shape.shape) for key, shape in leaves], structure


def _load(path, cfg: ModelConfig, tensors, dtype, shardings, head=True) -> dict[str, Any]:
    leaves, structure = _leaves(cfg, head)
    if not (head or cfg.tie_word_embeddings):
        tensors.pop(_NAMES["unembedding"], None)
    if shardings is None:
        single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = structure.unflatten([single] * len(leaves))
    _check_names(path, cfg, leaves, tensors)
    arrays = [
        _read(path, tensors, leaf, shape, dtype, sharding)
        for (leaf, shape), sharding in zip(leaves, structure.flatten_up_to(shardings), strict=True)
    ]
    return structure.unflatten(arrays)


def _open_folder(path: Path) -> dict[str, np.ndarray]:
    if (path / _INDEX).is_file():
        named = read_object(path / _INDEX, "list the weights").get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(x, str) for x in named.values()):
            raise ValueError(f"{path / _INDEX}: weight_map must name a file for each tensor")
        files = sorted(set(named.values()))
    else:
        files = ["model.safetensors"]
    tensors = {}
    for name in files:
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"{path / name} must hold the model's weights, found no such file"
            )
        tensors |= safetensors.open_tensors(path / name)
    if "embed_tokens.weight" in tensors:  # saved without a head, as embedding models are
        tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
    return tensors


def _check_names(path, cfg, leaves, tensors):
    expected = {name for leaf, _ in leaves for name in leaf.names}
    missing = sorted(expected - tensors.keys())
    if missing:
        raise ValueError(
            f"{path} must hold {missing[0]}, found no such tensor ({len(missing)} missing)"
        )
    ignored = set()
    if cfg.tie_word_embeddings:  # some files repeat the tied embedding
        ignored = {_NAMES["unembedding"]}
        _check_head(path, tensors)
    unknown = sorted(
        n for n in tensors.keys() - expected - ignored if not n.endswith("rotary_emb.inv_freq")
    )
    if unknown:
        raise ValueError(
            f"{path} holds {unknown[0]}, which a {cfg.model_type} model here does not use "
            f"({len(unknown)} unexpected)"
        )


def _check_head(path, tensors):
    """A tied model whose file has a head must have the same numbers in both."""
    head, embedding = tensors.get(_NAMES["unembedding"]), tensors[_NAMES["embedding"]]
    if head is None:
        return
    same = head.shape == embedding.shape and all(
        np.array_equal(head[i : i + _HEAD_ROWS], embedding[i : i + _HEAD_ROWS])
        for i in range(0, len(head), _HEAD_ROWS)
    )
    if not same:
        raise ValueError(
            f"{path} holds an {_NAMES['unembedding']} that differs from {_NAMES['embedding']}, and "
            "config.json says tie_word_embeddings true: if the model was trained with this head, "
            "config.json is wrong and must say false; if it was trained tied, the tensor is a stale "
            "one and must go"
        )


def _check_shapes(path, tensors, leaf: _Leaf, shape):
    wanted = shape[1:] if leaf.stacked else shape
    wanted = wanted[::-1] if leaf.transposed else wanted
    for name in leaf.names:
        if tensors[name].shape != wanted:
            raise ValueError(f"{path}: {name} must have shape {wanted}, got {tensors[name].shape}")


def _read(path, tensors, leaf: _Leaf, shape, dtype, sharding) -> jax.Array:
    _check_shapes(path, tensors, leaf, shape)
    dtypes = {tensors[name].dtype for name in leaf.names}
    if dtype is None and len(dtypes) > 1:
        found = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"{path}: {leaf.names[0]} must have one dtype in all layers, got {found}")
    dtype = np.dtype(jax.numpy.dtype(dtype)) if dtype is not None else dtypes.pop()

    def part(name, index):
        tensor = np.asarray(tensors[name])
        tensor = tensor.T if leaf.transposed else tensor
        return np.ascontiguousarray(tensor[index]).astype(dtype, copy=False)

    def shard(index):
        if not leaf.stacked:
            return part(leaf.names[0], index)
        return np.stack([part(name, index[1:]) for name in leaf.names[index[0]]])

    return jax.make_array_from_callback(shape, sharding, shard)


def save_hf(
    params,
    cfg: ModelConfig,
    path: str | Path,
    tokenizer_dir: str | Path | None = None,
    *,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a folder that ``transformers`` loads: config, generation config, weights and, if
    given, the tokenizer.

    One array at a time is brought to the host.  ``config.json`` is written last, so a folder that
    has one is complete.

    Args:
      params: parameters, as `transformer.init` or `load_hf` return them, of one dtype or several.
      cfg: the model.
      path: folder, created where needed; files of the same names are replaced.
      tokenizer_dir: folder (or hub id) whose tokenizer files are copied.
      max_shard_bytes: weights beyond it are split over several files with an index.

    Raises:
      ValueError: the options of ``cfg`` are not those of its family, or the parameters are not on
        this host.
    """
    entries = list(_entries(params, cfg))
    raw = config_to_hf(cfg, dtype=str(params["embedding"].dtype))
    _write_folder(Path(path), raw, entries, tokenizer_dir, max_shard_bytes)


def save_tokenizer(tokenizer_dir: str | Path, path: str | Path) -> None:
    """Copies the files of a tokenizer (folder, hub id or GGUF file) to a folder, which is made where needed."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    _copy_tokenizer(load_tokenizer(tokenizer_dir), path)


def _copy_tokenizer(tokenizer, path: Path) -> None:
    for name in TOKENIZER_FILES:
        source = tokenizer.path / name
        if source.is_file() and source.resolve() != (path / name).resolve():
            shutil.copyfile(source, path / name)


def import_gguf(
    file: str | Path,
    path: str | Path,
    *,
    dtype: str = "float32",
    max_shard_bytes: int = 5_000_000_000,
) -> ModelConfig:
    """Writes the model, the tokenizer and the chat template of a GGUF file as a Hugging Face folder.

    One tensor at a time is de-quantised, so a model larger than memory can be written.

    Args:
      file: as for `load_gguf`.
      path: folder, created where needed; files of the same names are replaced.
      dtype: of the weights in the folder.
      max_shard_bytes: as for `save_hf`.

    Returns:
      The model.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: as `load_gguf`, or the file has no tokenizer that is supported, or no chat template.
        Nothing is written then.
    """
    cfg = config_from_hf(file)
    raw = config_to_hf(cfg, dtype=dtype)
    tensors, (leaves, _) = _open_gguf(file, cfg), _leaves(cfg)
    _check_names(file, cfg, leaves, tensors)
    for leaf, shape in leaves:
        _check_shapes(file, tensors, leaf, shape)
    tokenizer = load_tokenizer(file)  # its folder stays as long as it does

    def entry(name):
        kind = np.dtype(jax.numpy.dtype(dtype))
        return name, tensors[name].shape, kind, lambda: np.asarray(tensors[name]).astype(kind)

    entries = [entry(name) for leaf, _ in leaves for name in leaf.names]
    _write_folder(Path(path), raw, entries, tokenizer.path, max_shard_bytes)
    return cfg


def _write_folder(path: Path, raw, entries, tokenizer_dir, max_shard_bytes):
    path.mkdir(parents=True, exist_ok=True)
    _write_weights(path, entries, max_shard_bytes)
    generation = {}
    if tokenizer_dir is not None:
        tokenizer = load_tokenizer(tokenizer_dir)
        generation = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
        if tokenizer.bos_id is not None:
            generation["bos_token_id"] = tokenizer.bos_id
        _copy_tokenizer(tokenizer, path)
    if not (path / "generation_config.json").is_file():
        write_json(path / "generation_config.json", generation, indent=2)
    write_json(path / "config.json", raw | generation, indent=2)


def _entries(params, cfg) -> Iterator[tuple[str, tuple[int, ...], np.dtype, Any]]:
    """(name, shape, dtype, function that fetches the array) of every tensor of the checkpoint."""
    for key, array in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not getattr(array, "is_fully_addressable", True):
            raise ValueError(
                f"{_path(key)} must be on this host's devices to be saved, got {array.sharding}"
            )
        leaf = _leaf(_path(key), cfg.num_layers)
        shape = array.shape[1:] if leaf.stacked else array.shape
        for i, name in enumerate(leaf.names):

            def fetch(array=array, i=i, leaf=leaf):
                part = np.asarray(array[i] if leaf.stacked else array)
                return part.T if leaf.transposed else part

            yield name, shape[::-1] if leaf.transposed else shape, np.dtype(array.dtype), fetch


def _write_weights(path: Path, entries, max_shard_bytes):
    shards, sizes = [[]], [0]
    for entry in entries:
        size = int(np.prod(entry[1])) * entry[2].itemsize
        if shards[-1] and sizes[-1] + size > max_shard_bytes:
            shards.append([])
            sizes.append(0)
        shards[-1].append(entry)
        sizes[-1] += size
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        safetensors.write_tensors(path / file, shard)
    if len(shards) > 1:
        weight_map = {
            entry[0]: file for file, shard in zip(files, shards, strict=True) for entry in shard
        }
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        write_json(path / _INDEX, index, indent=2)
    # Weights of an earlier export into the same folder would be read instead of, or next to, these.
    for old in path.glob("model*.safetensors"):
        if old.name not in files:
            old.unlink()
    if len(shards) == 1:
        (path / _INDEX).unlink(missing_ok=True)
