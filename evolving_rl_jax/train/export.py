"""Writes the policy of a run as a Hugging Face folder."""

from __future__ import annotations

import pathlib

from evolving_rl_jax import models
from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.models.tokenizer import load_tokenizer
from evolving_rl_jax.parallel import make_mesh
from evolving_rl_jax.train.build import model_config, user_errors
from evolving_rl_jax.train.checkpoint import Checkpoints
from evolving_rl_jax.train.optimizer import make_optimizer
from evolving_rl_jax.train.run_folder import RunFolder
from evolving_rl_jax.train.state import abstract_state


def load_policy(folder: RunFolder, which: str):
    """(params, model_cfg, iteration) of a checkpoint of the run.

    Args:
      folder: the run folder.
      which: ``latest``, ``best``, ``warmstart`` or an iteration.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    config = folder.load_config()
    if which == "warmstart":
        source = config.model.hf_path or folder.path / "warmstart"
        with user_errors((ValueError, FileNotFoundError), "--checkpoint 'warmstart'"):
            params, model_cfg = models.load_hf(source)
        return params, model_cfg, 0
    with user_errors((ValueError, FileNotFoundError), "--workdir"):
        tokenizer = load_tokenizer(config.model.hf_path or folder.path / "tokenizer")
    model_cfg = model_config(config, tokenizer.vocab_size)
    mesh = make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    optimizer = make_optimizer(config, config.train.num_iterations * config.train.minibatches)
    checkpoints = Checkpoints(folder.path / "checkpoints", config.checkpoint)
    restored = checkpoints.restore(abstract_state(model_cfg, optimizer, mesh), which=which)
    if restored is None:
        raise ConfigError(
            f"--checkpoint must be one that is there, got {which!r} and no checkpoint yet in "
            f"{str(folder.path / 'checkpoints')!r}"
        )
    state, extra = restored
    return state.params, model_cfg, extra["iteration"]


def export_policy(folder: RunFolder, out: pathlib.Path, which: str) -> None:
    """Writes config.json, safetensors and the tokenizer's files of a checkpoint to ``out``.

    Raises:
      ConfigError: ``out`` is in use, or there is no such checkpoint.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out must be a new or empty folder, got {str(out)!r}")
    params, model_cfg, _ = load_policy(folder, which)
    config = folder.load_config()
    tokenizer = config.model.hf_path or folder.path / "tokenizer"
    models.save_hf(params, model_cfg, out, tokenizer_dir=tokenizer)
