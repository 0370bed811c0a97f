"""From a configuration and a run folder to the parts of a run: games, workers, tokenizer, model, mesh.

Every stage keeps its result in the run folder and is skipped when it is already there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import sys
from collections import Counter

from tqdm import tqdm

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.data.tasks import TaskError, TaskOrder, load_tasks
from evolving_rl_jax.envs.household_plan import Game, GamesSpec, plan_games
from evolving_rl_jax.envs.households import generate_games
from evolving_rl_jax.envs.workers import EnvPool
from evolving_rl_jax.rollout.prompts import COMPACT_SPECIAL_TOKENS, make_prompts
from evolving_rl_jax.train.corpus import collect_texts
from evolving_rl_jax.train.run_folder import RunFolder
from evolving_rl_jax.types import Task


def say(text: str) -> None:
    """One message for a person, on standard error so that standard output stays data."""
    tqdm.write(text, file=sys.stderr)


@contextlib.contextmanager
def progress(title: str, total: int | None = None):
    """A progress bar of what takes a while; yields a function of the number done so far."""
    interval = 1.0 if sys.stderr.isatty() else 10.0  # a log file wants few lines
    with tqdm(
        total=total, desc=title, unit="", dynamic_ncols=True, mininterval=interval, delay=0.5
    ) as bar:

        def update(done: int) -> None:
            bar.update(done - bar.n)

        yield update


@contextlib.contextmanager
def user_errors(kinds: tuple[type[Exception], ...], key: str = ""):
    """Turns what a value of the user's caused into a ConfigError that names the key."""
    try:
        yield
    except ConfigError:
        raise
    except kinds as e:
        raise ConfigError(f"{key}: {e}" if key else str(e)) from e


def prepare_games(config, folder: RunFolder) -> list[Task]:
    """Loads the games of ``config.data.games``, or generates households into the run folder.

    Raises:
      ConfigError: games are missing or malformed, or not enough for the configuration; nothing has
        been written then.
    """
    path = pathlib.Path(config.data.games) if config.data.games else folder.path / "games"
    if config.data.games or (path / "games.json").is_file():
        with user_errors((TaskError,), "config.data.games"):
            tasks = load_tasks(path)
        check_games(config, tasks)
        folder.begin()
        return tasks
    with user_errors((ValueError,), "config.data.households"):
        spec = _games_spec(config.data.households)
    check_games(config, plan_games(spec, config.seed))
    folder.begin()
    with progress("generating games") as bar:
        generate_games(path, seed=config.seed, spec=spec, progress=bar)
    return load_tasks(path)


def _games_spec(households) -> GamesSpec:
    return GamesSpec(
        num_train_households=households.num_train,
        num_unseen_households=households.num_unseen,
        games_per_object=households.games_per_object,
        num_heldout=households.heldout_games,
        num_warmstart=households.warmstart_games,
    )


def check_games(config, games: list[Task] | list[Game]) -> None:
    """Raises ConfigError when the games are too few or lack what the configuration asks for."""
    d, num_retrieved = config.data, config.rollout.num_retrieved
    sizes = Counter(g.split for g in games)
    known = ", ".join(sorted(sizes))
    pool = sum(g.split == d.train_split and g.task_type in d.train_types for g in games)
    if not pool:
        raise ConfigError(
            f"config.data.train_split and train_types must select games of the splits {known}, got "
            f"{d.train_split!r} and {d.train_types}"
        )
    if num_retrieved > pool - 1:
        raise ConfigError(
            f"config.rollout.num_retrieved must be < the number of training tasks ({pool}), got "
            f"{num_retrieved}"
        )
    for name in config.eval.splits:
        if not sizes[name]:
            raise ConfigError(
                f"config.eval.splits must be splits with games ({known}), got {name!r}"
            )
        if "own" in config.eval.conditions and not sizes[source_split(name)]:
            raise ConfigError(
                f"config.eval.conditions must not have 'own' for the split {name!r} without games "
                f"in {source_split(name)!r}, got the splits {known}"
            )
    if config.warmstart.enabled and not sizes["warmstart"]:
        raise ConfigError(
            f"config.warmstart.enabled must be False without games in the split 'warmstart', got "
            f"the splits {known}"
        )
    _check_habits(config, [g for g in games if isinstance(g, Task)])


def _check_habits(config, tasks: list[Task]) -> None:
    """Scripted solvers and given skills need to know where things are kept."""
    users = {}
    if {"oracle", "misleading"} & set(config.eval.conditions):
        users |= dict.fromkeys(config.eval.splits, "eval.conditions")
    if config.warmstart.enabled:
        users["warmstart"] = "warmstart.enabled"
    for task in tasks:
        if task.split in users and "habits" not in task.meta:
            raise ConfigError(
                f"config.{users[task.split]} must not need household facts (oracle and misleading "
                f"skills, warm start) with downloaded games, got {task.path}"
            )


class Parts:
    """What training and evaluation are made of; built in the order in which it is needed.

    The environment workers start before jax is imported, so none of them can claim an accelerator.
    """

    say = staticmethod(say)
    progress = staticmethod(progress)

    def __init__(self, config, folder: RunFolder):
        self.config, self.folder = config, folder
        self.tasks = prepare_games(config, folder)
        self.pool = self._start_pool()
        self.order = TaskOrder(self.train_tasks, seed=config.seed)
        try:
            if config.env.engine == "cached":
                self.translate_games()
            self.tokenizer = self._prepare_tokenizer()
            with user_errors((ValueError,), "config"):
                self.prompts = make_prompts(config.rollout.style, self.tokenizer)
            self._build_model()
        except BaseException:
            self.close()
            raise

    # -- tasks -----------------------------------------------------------------------------------

    def split(self, name: str) -> list[Task]:
        """The tasks of a split, in the order of their ids."""
        return [t for t in self.tasks if t.split == name]

    @property
    def train_tasks(self) -> list[Task]:
        """The pool of source and retrieved tasks: the train split, trained task types only."""
        d = self.config.data
        return [t for t in self.split(d.train_split) if t.task_type in d.train_types]

    @property
    def warmstart_tasks(self) -> list[Task]:
        """Games of the demonstrations, all task types; never evaluated and never in the training pool."""
        return self.split("warmstart")

    # -- parts -----------------------------------------------------------------------------------

    def _start_pool(self) -> EnvPool:
        env = self.config.env
        cache = env.cache_dir or str(self.folder.path / "cache")
        options = {"engine": env.engine}
        if env.engine == "cached":
            options["cache_dir"] = cache
        return EnvPool(
            env=env.name, options=options, num_workers=env.num_workers, deadline_s=env.deadline_s
        )

    def translate_games(self) -> None:
        """Translates every game that the run will play, once, on all workers."""
        wanted = [t for t in self.tasks if t.split in self._splits_in_use()]
        with progress("translating games", len(wanted)) as bar:
            failed = self.pool.prepare(wanted, progress=lambda done, _total: bar(done))
        for task_id, reason in sorted(failed.items()):
            say(f"game {task_id} cannot be played and is masked out: {reason}")

    def _splits_in_use(self) -> set[str]:
        splits = {self.config.data.train_split, *self.config.eval.splits}
        splits |= {"warmstart"} if self.config.warmstart.enabled else set()
        return splits | {source_split(s) for s in self.config.eval.splits}

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
        if not (path / "tokenizer.json").is_file():
            texts = collect_texts(self.pool, self.warmstart_tasks or self.train_tasks)
            train_tokenizer(
                texts,
                vocab_size=self.config.model.vocab_size,
                out_dir=path,
                special_tokens=COMPACT_SPECIAL_TOKENS,
                pieces=NUMBERED_PIECES,
            )
        with user_errors((ValueError, FileNotFoundError)):
            return load_tokenizer(path)

    def _build_model(self) -> None:
        from evolving_rl_jax.models import lora
        from evolving_rl_jax.parallel import make_mesh

        self.lora = lora.from_config(self.config.model.lora)
        self.model_cfg = model_config(self.config, self.tokenizer.vocab_size)
        mesh = self.config.mesh
        with user_errors((ValueError,), "config.mesh"):
            self.mesh = make_mesh(data=mesh.data, fsdp=mesh.fsdp, tensor=mesh.tensor)
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        for group, key in (("train", "micro_batch_rows"), ("warmstart", "batch_rows")):
            rows = self.config[group][key]
            if rows % shards:
                raise ConfigError(
                    f"config.{group}.{key} must be a multiple of mesh data x fsdp = {shards}, "
                    f"got {rows}"
                )

    def make_engine(self, params):
        """The generation engine with the sizes of ``config.rollout``."""
        import jax

        from evolving_rl_jax.generate.engine import Engine
        from evolving_rl_jax.parallel import generation_mesh

        r = self.config.rollout
        mesh = generation_mesh(self.model_cfg.num_kv_heads, jax.local_devices())
        return Engine(
            self.model_cfg,
            params,
            num_slots=r.num_slots,
            max_length=r.max_length,
            prefill_chunk=r.prefill_buckets,
            decode_window=r.decode_window,
            row_buckets=r.row_buckets or None,
            column_buckets=r.column_buckets or None,
            pad_id=self.tokenizer.pad_id,
            seed=self.config.seed,
            mesh=mesh if mesh.size > 1 else None,
        )

    def make_panel(self, num_games: int = 0):
        """The fixed panel of ``config.eval.splits`` (the first ``num_games`` of each by id; 0 = all)."""
        from evolving_rl_jax.eval.evaluate import Panel
        from evolving_rl_jax.skills.retrieval import Retriever, TfidfEmbedder

        games: list[Task] = []
        pool: dict[str, Task] = {}
        for name in self.config.eval.splits:
            members = self.split(name)
            games += members[:num_games] if num_games else members
            pool.update((t.id, t) for t in self.split(source_split(name)))
        retriever = Retriever([pool[i] for i in sorted(pool)], TfidfEmbedder())
        return Panel(games, retriever, self.prompts, self.config.rollout.max_skill_chars)

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
        dtype=m.dtype,
        max_position_embeddings=config.rollout.max_length,
    )


def source_split(split: str) -> str:
    """The declared pool that a panel split draws its past experience from."""
    return "train" if split == "valid_seen" else "valid_unseen_sources"


@contextlib.contextmanager
def open_parts(config, folder: RunFolder):
    """The parts of a run, with its workers stopped at the end whatever happens."""
    parts = Parts(config, folder)
    try:
        yield parts
    finally:
        parts.close()
