"""What training writes down of an iteration: its figures, its skills, and a few episodes whole."""

from __future__ import annotations

from collections.abc import Mapping

from evolving_rl_jax.record.episodes import episode_records
from evolving_rl_jax.record.figures import bank_records
from evolving_rl_jax.record.metrics import MetricsLogger
from evolving_rl_jax.record.tracking import WandbRun
from evolving_rl_jax.rollout.evolve import Experience, StepScoring
from evolving_rl_jax.run.parts import Parts
from evolving_rl_jax.skills.bank import Bank


class RunRecord:
    """``metrics.jsonl``, ``skills/bank.jsonl`` and ``episodes/`` of a run, written by its first process.

    Args:
      parts: of the run.
      start: the iteration to go on with; what the files hold of it and later ones is dropped.
    """

    def __init__(self, parts: Parts, start: int):
        config, folder, first = parts.config, parts.folder, parts.hosts.first
        self._parts, self._scoring = parts, StepScoring.from_config(config)
        self._bank = Bank(folder.bank_file)
        wandb = None
        if first:
            self._bank.truncate_to(start)
            if config.train.wandb:
                wandb = WandbRun(config.train.wandb, folder.path, config.to_dict())
        self._metrics = MetricsLogger(
            folder.path,
            total=config.train.num_iterations,
            resume_from=start,
            write=first,
            wandb=wandb,
        )

    def keep(self, iteration: int, experience: Experience, version: int) -> None:
        """Adds the skills to the bank and writes the file of episodes.

        Args:
          iteration: from 0.
          experience: of all hosts.
          version: iterations that the policy that played was trained for.
        """
        parts = self._parts
        if parts.hosts.first:
            step = version * parts.config.train.minibatches
            self._bank.append(bank_records(experience, iteration, step, self._scoring))
        records = episode_records(experience, iteration, parts.config, parts.tokenizer)
        if records:
            parts.folder.write_episodes(iteration, records)

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Adds the figures of a finished iteration to the metrics, and shows them."""
        self._metrics.log(iteration, figures)

    def close(self) -> None:
        """Closes the files."""
        self._metrics.close()
