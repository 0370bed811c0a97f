"""Weights & Biases, for those who ask for it with ``config.train.wandb``.

The run's own record is ``metrics.jsonl``; this sends the same numbers to a W&B project.  Where to, and
whether over a network at all, is W&B's own configuration (``WANDB_MODE=offline``, ``WANDB_BASE_URL``).
"""

from __future__ import annotations

import importlib.util
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.files import write_atomic


def check_wandb(project: str) -> None:
    """Raises ConfigError when a project is named and the ``wandb`` package is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "config.train.wandb must be empty without the wandb package (it comes with "
            f"the extra wandb: pip install -e '.[wandb]'), got {project!r}"
        )


class WandbRun:
    """One W&B run for one run folder; a resumed training goes on with it.

    Iterations that are repeated after a resume are already there and W&B keeps their first record,
    which is the same one.

    Args:
      project: its W&B project.
      folder: the run folder; keeps W&B's files and the run's id.
      config: of the run, plain data.

    Raises:
      ConfigError: the package is not installed, or W&B cannot open the project.
    """

    def __init__(self, project: str, folder: pathlib.Path, config: Mapping[str, Any]):
        check_wandb(project)
        import wandb

        id_file = folder / "wandb" / "run_id"
        id_file.parent.mkdir(parents=True, exist_ok=True)
        if not id_file.is_file():
            write_atomic(id_file, uuid.uuid4().hex[:16])
        try:
            self._run = wandb.init(
                project=project,
                dir=str(folder),
                id=id_file.read_text(encoding="utf-8").strip(),
                name=folder.name,
                resume="allow",
                config=dict(config),
            )
        except Exception as e:  # no account, no network, no such project: wandb has no common base
            raise ConfigError(
                f"config.train.wandb must name a project that W&B can open, got {project!r} "
                f"({type(e).__name__}: {' '.join(str(e).split())}); WANDB_MODE=offline needs no network"
            ) from e

    def log(self, iteration: int, values: Mapping[str, float | None]) -> None:
        """Sends the values of an iteration; None ones are left out."""
        known = {name: value for name, value in values.items() if value is not None}
        self._run.log(known, step=iteration)

    def close(self) -> None:
        self._run.finish()
