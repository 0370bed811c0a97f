"""Reads the policy of a run, and writes it as a Hugging Face folder or as a PEFT adapter."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from evolving_rl_jax import models
from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.models.tokenizer import load_tokenizer
from evolving_rl_jax.parallel import make_mesh
from evolving_rl_jax.run.console import user_errors
from evolving_rl_jax.run.folder import RunFolder, check_unused
from evolving_rl_jax.run.hosts import ALONE, Hosts
from evolving_rl_jax.run.parts import model_config, read_adapter
from evolving_rl_jax.run.weights import CheckpointReader, abstract_params


def load_policy(folder: RunFolder, which: str, hosts: Hosts = ALONE):
    """(params, model_cfg, iteration) of a checkpoint of the run; adapters are merged.

    The base of adapters is read in ``config.model.dtype`` and merged weights are in it, as in training,
    whatever the base's file is in.  Reads
    what was trained and nothing else, onto the devices that are there, however many the run was
    trained on.

    Args:
      folder: the run folder.
      which: ``latest``, ``best``, ``warmstart`` or an iteration.
      hosts: all must call it.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    config = folder.load_config()
    if which == "warmstart":
        dtype = config.model.dtype if config.model.lora_adapter else None
        params, model_cfg = _load_base(folder, config, "--checkpoint 'warmstart'", dtype)
        if (given := read_adapter(config, model_cfg)) is not None:
            model_cfg = dataclasses.replace(model_cfg, dtype=dtype)
            params = lora_lib.merge(params, given, lora_lib.from_config(config.model.lora))
        return params, model_cfg, 0
    params, model_cfg, iteration = _restore(folder, config, which, hosts)
    lora = lora_lib.from_config(config.model.lora)
    if lora:
        base, adapters = _base_and_adapters(folder, config, params, model_cfg.dtype)
        params = lora_lib.merge(base, adapters, lora)
    return params, model_cfg, iteration


def _base_and_adapters(folder: RunFolder, config, adapters, dtype=None) -> tuple[Any, Any]:
    """The frozen weights (dtype None: in that of their file), and the adapters on the host."""
    base, _ = _load_base(folder, config, "--workdir", dtype)
    # Through the host: the base is on one device, the adapters are on all.
    mesh = jax.tree.leaves(adapters)[0].sharding.mesh
    whole = jax.device_put(adapters, NamedSharding(mesh, PartitionSpec()))
    return base, jax.device_get(whole)


def tokenizer_source(config, folder: RunFolder) -> str | pathlib.Path:
    """Where the tokenizer of a run's policy is: its own in the run folder, or the imported one's."""
    own = folder.path / "tokenizer"
    imported = config.model.hf_path
    return imported if imported and not (own / "tokenizer.json").is_file() else own


def _base_model(folder: RunFolder, config) -> str:
    """Where the policy that training started from is kept, if it is kept: a folder or a hub id."""
    imported = "" if config.warmstart.enabled else config.model.hf_path
    base = pathlib.Path(imported or folder.path / "warmstart")
    return str(base.absolute() if base.exists() else imported or base)


def _load_base(folder, config, key, dtype=None):
    with user_errors((ValueError, FileNotFoundError), key):
        return models.load_hf(_base_model(folder, config), dtype=dtype)


def _restore(folder: RunFolder, config, which: str, hosts: Hosts = ALONE):
    """(what was trained, model_cfg, iteration) of a checkpoint."""
    with user_errors((ValueError, FileNotFoundError), "--workdir"):
        tokenizer = load_tokenizer(tokenizer_source(config, folder))
    model_cfg = model_config(config, tokenizer.vocab_size)
    # Not the mesh of training, which may have had other devices: shared out over all that are here.
    mesh = make_mesh(data=1, fsdp=-1, tensor=1)
    abstract = abstract_params(model_cfg, mesh, lora_lib.from_config(config.model.lora))
    found = CheckpointReader(folder.path / "checkpoints", hosts).read_params(abstract, which)
    if found is None:
        raise ConfigError(
            f"--checkpoint must be one that is there, got {which!r} and no checkpoint yet in "
            f"{str(folder.path / 'checkpoints')!r}"
        )
    params, extra = found
    return params, model_cfg, extra["iteration"]


def export_policy(folder: RunFolder, out: pathlib.Path, which: str, dtype: str = "") -> str:
    """Writes config.json, safetensors and the tokenizer's files of a checkpoint to ``out``.

    Adapters are merged into the weights: in float32, and rounded once.

    Args:
      folder: the run folder.
      out: the folder to write.
      which: as for `load_policy`.
      dtype: of the weights; empty = ``config.model.dtype`` where adapters are merged, else that in
        which the policy is kept.

    Returns:
      How much of the adapters' change was lost by rounding, in a line; empty without adapters.

    Raises:
      ConfigError: ``out`` is in use, or there is no such checkpoint.
    """
    check_unused(out)
    config, said = folder.load_config(), ""
    lora = lora_lib.from_config(config.model.lora)
    if lora and (which != "warmstart" or config.model.lora_adapter):
        if which == "warmstart":  # the adapter that was given, not in the type of training
            base, model_cfg = _load_base(folder, config, "--checkpoint 'warmstart'")
            adapters, dtype = read_adapter(config, model_cfg), dtype or config.model.dtype
        else:
            trained, model_cfg, _ = _restore(folder, config, which)
            base, adapters = _base_and_adapters(folder, config, trained)
            dtype = dtype or model_cfg.dtype
        said = _loss_in_words(lora_lib.merge_loss(base, adapters, lora, dtype), dtype)
        params = lora_lib.merge(base, adapters, lora, dtype=dtype)
    else:
        params, model_cfg, _ = load_policy(folder, which)
        if dtype:
            params = jax.tree.map(lambda x: x.astype(dtype), params)
    tokenizer = tokenizer_source(config, folder)
    with user_errors((OSError,), "--out"):
        models.save_hf(params, model_cfg, out, tokenizer_dir=tokenizer)
    return said


def _loss_in_words(loss: lora_lib.MergeLoss, dtype: str) -> str:
    said = (
        f"adapters merged in float32, |dW|/|W| = {loss.change:.2g}; "
        f"rounded once to {dtype}, |lost|/|dW| = {loss.lost:.2g}"
    )
    if loss.lost > 0.01:
        said += " (--dtype=float32 loses nothing, --what=adapter writes them unmerged)"
    return said


def export_adapter(folder: RunFolder, out: pathlib.Path, which: str) -> str:
    """Writes the adapters of a checkpoint to ``out`` as ``peft`` loads them, unmerged, and the run's tokenizer.

    Returns:
      What is still to be done before ``peft`` finds the base, in a line; empty if nothing.

    Raises:
      ConfigError: ``out`` is in use, the run trains no adapters, or there is no such checkpoint.
    """
    check_unused(out)
    config = folder.load_config()
    lora = lora_lib.from_config(config.model.lora)
    if lora is None:
        raise ConfigError("--what=adapter must be of a run with config.model.lora.rank > 0, got 0")
    if which == "warmstart":
        raise ConfigError("--checkpoint must be latest, best or an iteration with --what=adapter, "
                          "got 'warmstart', which has no adapters")  # fmt: skip
    adapters, _, _ = _restore(folder, config, which)
    base = _base_model(folder, config)
    with user_errors((OSError,), "--out"):
        models.save_tokenizer(tokenizer_source(config, folder), out)
        lora_lib.save_adapter(adapters, lora, out, base_model=base)
    if not base.endswith(".gguf"):
        return ""
    return (
        f"peft cannot load a GGUF file as base: write it as a folder (evolving-rl import --gguf={base} "
        "--out=FOLDER) and name that folder in adapter_config.json"
    )
