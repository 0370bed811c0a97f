"""From a configuration and a run folder to the parts of a run: games, workers, tokenizer, model, mesh.

Every stage keeps its result in the run folder and is skipped when it is already there.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.data.tasks import TaskOrder, copies_of, select, source_split
from evolving_rl_jax.envs.pool.pool import EnvPool
from evolving_rl_jax.rollout.prompts import COMPACT_SPECIAL_TOKENS
from evolving_rl_jax.run.console import progress, say, user_errors
from evolving_rl_jax.run.environments import ENVIRONMENTS, check_games, make_pool, prepare_games
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.run.hosts import ALONE, Hosts, check_hosts
from evolving_rl_jax.run.preemption import Preemption
from evolving_rl_jax.types import Task

__all__ = [
    "Parts",
    "check_games",
    "model_config",
    "open_parts",
    "prepare_games",
    "progress",
    "say",
    "user_errors",
]


class Parts:
    """What training and evaluation are made of; built in the order in which it is needed.

    The environment workers come from a server process that never imports jax, so none of them can
    claim an accelerator.

    Args:
      config: of the run.
      folder: the run folder.
      hosts: the processes of the run; what is made once is made by the first.
      preemption: tells when the run should save itself.

    Raises:
      ConfigError: something is missing or cannot be combined.
    """

    def __init__(
        self, config, folder: RunFolder, hosts=ALONE, preemption: Preemption | None = None
    ):
        self.config, self.folder, self.hosts = config, folder, hosts
        self.preemption = Preemption() if preemption is None else preemption
        check_hosts(config, hosts)
        self.environment = ENVIRONMENTS[config.env.name]
        self.tasks = prepare_games(config, folder, hosts)
        self.pool = self._start_pool()
        self.order = TaskOrder(self.train_tasks, seed=config.seed)
        try:
            if config.env.name == "alfworld" and config.env.engine == "cached":
                self.translate_games()
            self.tokenizer = self._prepare_tokenizer()
            with user_errors((ValueError,), "config"):
                self.prompts = self.environment.make_prompts(config.rollout.style, self.tokenizer)
            self._build_model()
        except BaseException:
            self.close()
            raise

    def say(self, text: str) -> None:
        """One message for a person, by the first process only."""
        if self.hosts.first:
            say(text)

    def progress(self, title: str, total: int | None = None):
        """The progress bar of the module, shown by the first process only."""
        return progress(title, total, shown=self.hosts.first)

    # -- tasks -----------------------------------------------------------------------------------

    def split(self, name: str) -> Sequence[Task]:
        """The tasks of a split, in the order of their ids."""
        return select(self.tasks, split=name)

    @property
    def train_tasks(self) -> Sequence[Task]:
        """The pool of source and retrieved tasks: the train split, trained task types only."""
        d = self.config.data
        pool = select(self.tasks, split=d.train_split, types=d.train_types)
        copies = {c["id"] for c in copies_of(self.panel_tasks, pool)}
        return [t for t in pool if t.id not in copies] if copies else pool

    @property
    def panel_tasks(self) -> list[Task]:
        """The games of all panels that are not played on the training split itself."""
        splits = set(self.config.eval.splits) - {self.config.data.train_split}
        return [t for t in self.tasks if t.split in splits]

    @property
    def warmstart_tasks(self) -> Sequence[Task]:
        """Games of the demonstrations, all task types; never evaluated and never in the training pool."""
        return self.split("warmstart")

    # -- parts -----------------------------------------------------------------------------------

    def _start_pool(self) -> EnvPool:
        return make_pool(self.config, self.folder)

    def translate_games(self) -> None:
        """Translates every game that the run will play, once, on all workers (of all hosts)."""
        wanted = [t for t in self.tasks if t.split in self._splits_in_use()]
        if not self.config.env.cache_dir:  # in the run folder, which all hosts see
            wanted = self.hosts.share(wanted)
        with self.progress("translating games", len(wanted)) as bar:
            failed = self.pool.prepare(wanted, progress=lambda done, _total: bar(done))
        for task_id, reason in sorted(failed.items()):
            say(f"game {task_id} cannot be played and is masked out: {reason}")
        self.hosts.meet("translated")

    def _splits_in_use(self) -> set[str]:
        splits = {self.config.data.train_split, *self.config.eval.splits}
        splits |= {"warmstart"} if self.config.warmstart.enabled else set()
        return splits | {self.source_split(s) for s in self.config.eval.splits}

    def source_split(self, panel_split: str) -> str:
        """The split that a panel takes past experience from."""
        return source_split(panel_split, {t.split for t in self.tasks})

    def source_tasks(self, panel_split: str) -> Sequence[Task]:
        """What a panel may take past experience from; of training games, the trained types only."""
        name = self.source_split(panel_split)
        return self.train_tasks if name == self.config.data.train_split else self.split(name)

    def _prepare_tokenizer(self):
        from evolving_rl_jax.models.tokenizer import (
            NUMBERED_PIECES,
            load_tokenizer,
            train_tokenizer,
        )

        if self.config.model.hf_path:
            with user_errors((ValueError, FileNotFoundError), "config.model.hf_path"):
                return load_tokenizer(self.config.model.hf_path)
        path = self.folder.path / "tokenizer"
        if self.hosts.first and not (path / "tokenizer.json").is_file():
            texts = self.environment.collect_texts(
                self.pool, self.warmstart_tasks or self.train_tasks
            )
            train_tokenizer(
                texts,
                vocab_size=self.config.model.vocab_size,
                out_dir=path,
                special_tokens=COMPACT_SPECIAL_TOKENS,
                pieces=NUMBERED_PIECES,
            )
        self.hosts.meet("tokenizer")
        with user_errors((ValueError, FileNotFoundError)):
            return load_tokenizer(path)

    def _build_model(self) -> None:
        from evolving_rl_jax.models import lora
        from evolving_rl_jax.models.attention import check_platform
        from evolving_rl_jax.parallel import check_rows_of_hosts, make_mesh

        self.lora = lora.from_config(self.config.model.lora)
        self.model_cfg = model_config(self.config, self.tokenizer.vocab_size)
        mesh = self.config.mesh
        with user_errors((ValueError,), "config.mesh"):
            self.mesh = make_mesh(data=mesh.data, fsdp=mesh.fsdp, tensor=mesh.tensor)
            check_rows_of_hosts(self.mesh)
        with user_errors((ValueError,)):
            check_platform(self.config.model.attention, self.mesh)
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        for group, key in (("train", "micro_batch_rows"), ("warmstart", "batch_rows")):
            rows = self.config[group][key]
            if rows % shards:
                raise ConfigError(
                    f"config.{group}.{key} must be a multiple of mesh data x fsdp = {shards}, "
                    f"got {rows}"
                )

    def close(self) -> None:
        """Stops the workers."""
        self.pool.shutdown()


def model_config(config, vocab_size: int):
    """The ModelConfig of ``config.model``: an imported policy's own, or one made from scratch.

    Raises:
      ConfigError: ``model.hf_path`` is no model folder that is supported.
    """
    from evolving_rl_jax import models

    m = config.model
    if m.hf_path:
        with user_errors((ValueError, FileNotFoundError), "config.model.hf_path"):
            return dataclasses.replace(models.config_from_hf(m.hf_path), dtype=m.dtype)
    return models.ModelConfig(
        vocab_size=vocab_size,
        hidden_size=m.hidden_size,
        intermediate_size=m.intermediate_size,
        num_layers=m.num_layers,
        num_heads=m.num_heads,
        num_kv_heads=m.num_kv_heads,
        head_dim=m.hidden_size // m.num_heads,
        rope_theta=m.rope_theta,
        qk_norm=m.qk_norm,
        model_type="qwen3" if m.qk_norm else "llama",
        dtype=m.dtype,
        max_position_embeddings=config.rollout.max_length,
    )


@contextlib.contextmanager
def open_parts(config, folder: RunFolder, hosts: Hosts = ALONE, preemption=None):
    """The parts of a run, with its workers stopped at the end whatever happens."""
    parts = Parts(config, folder, hosts, preemption)
    try:
        yield parts
    finally:
        parts.close()
