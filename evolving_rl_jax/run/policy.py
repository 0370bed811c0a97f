"""Reads the policy of a run, and writes it as a Hugging Face folder or as a PEFT adapter."""

from __future__ import annotations

import pathlib

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
from evolving_rl_jax.run.parts import model_config
from evolving_rl_jax.run.weights import CheckpointReader, abstract_params


def load_policy(folder: RunFolder, which: str, hosts: Hosts = ALONE):
    """(params, model_cfg, iteration) of a checkpoint of the run; adapters are merged.

    Reads what was trained and nothing else, onto the devices that are there, however many the run was
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
        params, model_cfg = _load_base(folder, config, "--checkpoint 'warmstart'")
        return params, model_cfg, 0
    params, model_cfg, iteration = _restore(folder, config, which, hosts)
    lora = lora_lib.from_config(config.model.lora)
    if lora:
        base, _ = _load_base(folder, config, "--workdir")
        # Through the host: the base is on one device, the adapters are on all.
        mesh = jax.tree.leaves(params)[0].sharding.mesh
        whole = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        params = lora_lib.merge(base, jax.device_get(whole), lora)
    return params, model_cfg, iteration


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


def _load_base(folder, config, key):
    with user_errors((ValueError, FileNotFoundError), key):
        return models.load_hf(_base_model(folder, config))


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


def export_policy(folder: RunFolder, out: pathlib.Path, which: str) -> None:
    """Writes config.json, safetensors and the tokenizer's files of a checkpoint to ``out``.

    Adapters are merged into the weights.

    Raises:
      ConfigError: ``out`` is in use, or there is no such checkpoint.
    """
    check_unused(out)
    params, model_cfg, _ = load_policy(folder, which)
    config = folder.load_config()
    tokenizer = tokenizer_source(config, folder)
    with user_errors((OSError,), "--out"):
        models.save_hf(params, model_cfg, out, tokenizer_dir=tokenizer)


def export_adapter(folder: RunFolder, out: pathlib.Path, which: str) -> None:
    """Writes the adapters of a checkpoint to ``out`` as ``peft`` loads them.

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
    with user_errors((OSError,), "--out"):
        lora_lib.save_adapter(adapters, lora, out, base_model=_base_model(folder, config))
