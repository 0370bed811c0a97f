"""From a configuration and a run folder to the parts of a run: games, workers, tokenizer, prompts.

Every stage keeps its result in the run folder and is skipped when it is already there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from evolving_rl_jax import envs
from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.data.tasks import TaskOrder, copies_of, select, source_split
from evolving_rl_jax.envs.pool.pool import EnvPool
from evolving_rl_jax.rollout.past_episodes import episode_files
from evolving_rl_jax.rollout.prompts import (
    COMPACT_MARKERS,
    COMPACT_SPECIAL_TOKENS,
    make_prompts,
)
from evolving_rl_jax.run.console import progress, say, user_errors
from evolving_rl_jax.run.environments import make_pool, prepare_games
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.run.hosts import ALONE, Hosts, check_hosts
from evolving_rl_jax.run.lessons import given_lessons
from evolving_rl_jax.run.preemption import Preemption
from evolving_rl_jax.run.skills import check_embedder, check_tasks
from evolving_rl_jax.types import Task


@dataclasses.dataclass(frozen=True)
class Parts:
    """What training and evaluation are made of; `open_parts` fills it.

    Attributes:
      config: of the run.
      folder: the run folder.
      hosts: the processes of the run; what is made once is made by the first.
      preemption: tells when the run should save itself.
      tasks: all of them, in the order of their ids.
      train_tasks: the pool of source and retrieved tasks, see `training_tasks`.
      panel_tasks: the games of all panels that are not played on the training split itself.
      order: in which training takes the sources.
      pool: the environment workers.
      tokenizer: of the policy.
      prompts: what the policy reads.
      model_cfg: of the policy.
    """

    config: Any
    folder: RunFolder
    hosts: Hosts
    preemption: Preemption
    tasks: Sequence[Task]
    train_tasks: Sequence[Task]
    panel_tasks: Sequence[Task]
    order: TaskOrder
    pool: EnvPool
    tokenizer: Any
    prompts: Any
    model_cfg: Any

    def say(self, text: str) -> None:
        """One message for a person, by the first process only."""
        if self.hosts.first:
            say(text)

    def progress(self, title: str, total: int | None = None):
        """A progress bar, shown by the first process only; see `console.progress`."""
        return progress(title, total, shown=self.hosts.first)

    def split(self, name: str) -> Sequence[Task]:
        """The tasks of a split, in the order of their ids."""
        return select(self.tasks, split=name)

    def source_tasks(self, panel_split: str) -> Sequence[Task]:
        """What a panel may take past experience from; of training games, the trained types only."""
        train = self.config.data.train_split
        name = source_split(panel_split, {t.split for t in self.tasks}, train)
        return self.train_tasks if name == train else self.split(name)


@contextlib.contextmanager
def open_parts(
    config, folder: RunFolder, hosts: Hosts = ALONE, preemption: Preemption | None = None
) -> Iterator[Parts]:
    """The parts of a run, with its workers stopped at the end whatever happens.

    The environment workers come from a server process that never imports jax, so none of them can
    claim an accelerator.

    Args:
      config: of the run.
      folder: the run folder.
      hosts: the processes of the run; all must call this.
      preemption: tells when the run should save itself; None = never.

    Raises:
      ConfigError: something is missing or cannot be combined.
    """
    check_models(config)
    _check_lessons(config, folder)
    tasks = prepare_games(config, folder, hosts)
    panel = panel_tasks(config, tasks)
    train = training_tasks(config, tasks, panel)
    check_tasks(config, train, tasks)
    with make_pool(config, tasks, hosts, token_counter(config)) as pool:
        tokenizer = prepare_tokenizer(config, folder, hosts, pool, tasks, train)
        prompts = make_prompts_of(config, tokenizer)
        parts = Parts(
            config=config,
            folder=folder,
            hosts=hosts,
            preemption=Preemption() if preemption is None else preemption,
            tasks=tasks,
            train_tasks=train,
            panel_tasks=panel,
            order=TaskOrder(train, seed=config.seed),
            pool=pool,
            tokenizer=tokenizer,
            prompts=prompts,
            model_cfg=model_config(config, tokenizer.vocab_size),
        )
        if (longest := parts.model_cfg.max_position_embeddings) < config.rollout.max_length:
            parts.say(
                f"warning: config.rollout.max_length is {config.rollout.max_length}, but the policy was "
                f"made for {longest} tokens (max_position_embeddings): it has not seen positions beyond"
            )
        yield parts


def make_prompts_of(config, tokenizer) -> Any:
    """The prompts of a run.

    Raises:
      ConfigError: the tokenizer cannot be used for them.
    """
    with user_errors((ValueError,), "config"):
        texts = envs.benchmark(config.env.name).texts
        style, shown = config.rollout.style, config.rollout.show_actions
        return make_prompts(style, tokenizer, texts, shown)


def panel_tasks(config, tasks: Sequence[Task]) -> list[Task]:
    """The games of all panels that are not played on the training split itself."""
    splits = set(config.eval.splits) - {config.data.train_split}
    return [t for t in tasks if t.split in splits]


def training_tasks(config, tasks: Sequence[Task], panel: Sequence[Task]) -> Sequence[Task]:
    """The train split, trained task types only, without copies of the games of ``panel``."""
    pool = select(tasks, split=config.data.train_split, types=config.data.train_types)
    copies = {c["id"] for c in copies_of(panel, pool)}
    left = [t for t in pool if t.id not in copies] if copies else pool
    if pool and not left:
        raise ConfigError(
            f"config.data.train_split must have a task that is no copy of one of the panel, got "
            f"{config.data.train_split!r} with {len(pool)}, all of which are copies by id or content"
        )
    return left


def token_counter(config) -> Callable[[list[str]], list[int]] | None:
    """Texts -> tokens of each, by the tokenizer of the imported policy; None for one made from scratch,
    whose tokenizer is trained on what the workers show."""
    if not config.model.hf_path:
        return None
    from evolving_rl_jax.models.tokenizer import load_tokenizer

    with user_errors((ValueError, FileNotFoundError), "config.model.hf_path"):
        tokenizer = load_tokenizer(config.model.hf_path)
    return lambda texts: [len(ids) for ids in tokenizer.encode_batch(texts)]


def prepare_tokenizer(
    config,
    folder: RunFolder,
    hosts: Hosts,
    pool: EnvPool,
    tasks: Sequence[Task],
    train: Sequence[Task],
) -> Any:
    """The tokenizer of the imported policy, or one trained on texts of the games, once.

    An imported one without the markers of the compact form gets them, in the run folder.  The texts of
    a trained one are those of the demonstrations' games, or of the training games where there are none.

    Raises:
      ConfigError: the tokenizer of weights that are there is not.
    """
    from evolving_rl_jax.models.tokenizer import (
        NUMBERED_PIECES,
        PIECES,
        load_tokenizer,
        train_tokenizer,
    )

    path = folder.path / "tokenizer"
    if config.model.hf_path:
        return _imported_tokenizer(config, folder, hosts, path)
    if hosts.first and not (path / "tokenizer.json").is_file():
        if folder.has_weights:  # another tokenizer's ids would mean other words to them
            raise ConfigError(
                f"--workdir must hold the tokenizer of its weights, got {str(folder.path)!r} without "
                "tokenizer/tokenizer.json"
            )
        names = config.warmstart.splits
        shown = [task for name in names for task in select(tasks, split=name)] or train
        train_tokenizer(
            envs.benchmark(config.env.name).corpus(pool, shown),
            vocab_size=config.model.vocab_size,
            out_dir=path,
            special_tokens=COMPACT_SPECIAL_TOKENS,
            pieces=NUMBERED_PIECES if config.model.numbered_tokens else PIECES,
        )
    hosts.meet("tokenizer")
    with user_errors((ValueError, FileNotFoundError)):
        return load_tokenizer(path)


def _imported_tokenizer(config, folder: RunFolder, hosts: Hosts, path: pathlib.Path) -> Any:
    from evolving_rl_jax.models.markers import with_markers
    from evolving_rl_jax.models.tokenizer import load_tokenizer

    with user_errors((ValueError, FileNotFoundError), "config.model.hf_path"):
        tokenizer = load_tokenizer(config.model.hf_path)
        places = _marker_places(config, tokenizer)
        there = (path / "tokenizer.json").is_file()
        if not places or not (there or folder.trains):
            return tokenizer
        if hosts.first and not there:
            num_rows = model_config(config, 0).vocab_size
            with_markers(config.model.hf_path, COMPACT_MARKERS, num_rows, path)
        hosts.meet("tokenizer")
        marked = load_tokenizer(path)
    if any(marked.special_ids.get(m) != i for m, i in places.items()):
        raise ConfigError(
            f"config.model.hf_path must be the policy whose tokenizer is in {str(path)!r}, got "
            f"{config.model.hf_path!r}, where the markers of the compact form have other places"
        )
    return marked


def _marker_places(config, tokenizer) -> dict[str, int]:
    """Ids of the markers that an imported tokenizer lacks, see `markers.place_markers`."""
    from evolving_rl_jax.models.markers import place_markers

    if config.rollout.style != "compact":
        return {}
    return place_markers(tokenizer, COMPACT_MARKERS, model_config(config, 0).vocab_size)


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


def check_models(config) -> None:
    """Raises ConfigError where a model that ``config`` names is not there, before anything is written."""
    if config.model.hf_path:
        from evolving_rl_jax.models.tokenizer import load_tokenizer

        with user_errors((ValueError, FileNotFoundError), "config.model.hf_path"):
            _marker_places(config, load_tokenizer(config.model.hf_path))
        read_adapter(config, model_config(config, 0))
    check_embedder(config.skills.embedder)


def _check_lessons(config, folder: RunFolder) -> None:
    """Raises ConfigError where a warm start yet to be made is given what it cannot learn from."""
    w = config.warmstart
    if not (w.enabled and folder.trains) or (folder.path / "warmstart" / "done").is_file():
        return
    if w.source == "conversations":
        from evolving_rl_jax.models.tokenizer import load_tokenizer

        given_lessons(config, make_prompts_of(config, load_tokenizer(config.model.hf_path)))
    elif w.source == "episodes":
        with user_errors((OSError,), "config.warmstart.path"):
            episode_files(w.path)


def read_adapter(config, model_cfg) -> Any:
    """The adapters of ``config.model.lora_adapter`` as numpy arrays; None where new ones are trained.

    Raises:
      ConfigError: no adapter of PEFT that is supported, or not the one that ``model.lora`` describes.
    """
    from evolving_rl_jax.models import lora as lora_lib

    path, wanted = config.model.lora_adapter, lora_lib.from_config(config.model.lora)
    if not path:
        return None
    with user_errors((ValueError, FileNotFoundError), "config.model.lora_adapter"):
        adapters, found = lora_lib.load_adapter(path, model_cfg)
    for name in ("rank", "alpha", "targets"):
        ours, theirs = getattr(wanted, name), getattr(found, name)
        if name == "targets":
            ours, theirs = sorted(ours), sorted(theirs)
        if ours != theirs:
            raise ConfigError(
                f"config.model.lora.{name} must be that of the adapter {path!r}, {theirs}, got {ours}"
            )
    return adapters


def training_mesh(config, hosts: Hosts = ALONE):
    """The devices of an update as ``config.mesh`` arranges them; nothing but training needs them so.

    Raises:
      ConfigError: they cannot be arranged so, or sources, rows and kernels of the configuration do not
        fit.
    """
    from evolving_rl_jax.models.attention import check_platform
    from evolving_rl_jax.parallel import check_rows_of_hosts, make_mesh

    check_hosts(config, hosts)
    with user_errors((ValueError,), "config.mesh"):
        mesh = make_mesh(**config.mesh)
        check_rows_of_hosts(mesh)
    with user_errors((ValueError,)):
        check_platform(config.model.attention, mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    groups = {"train": "micro_batch_rows"}
    groups |= {"warmstart": "batch_rows"} if config.warmstart.enabled else {}
    for group, key in groups.items():
        rows = config[group][key]
        if rows % shards:
            raise ConfigError(
                f"config.{group}.{key} must be a multiple of mesh data x fsdp = {shards}, got {rows}"
            )
    return mesh
