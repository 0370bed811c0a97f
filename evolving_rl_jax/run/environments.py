"""The tasks of a run and the workers that play them, as its benchmark offers them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from evolving_rl_jax import envs
from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.data.needs import check_games
from evolving_rl_jax.data.tasks import source_split
from evolving_rl_jax.envs.base import EnvError, TaskError
from evolving_rl_jax.envs.pool.pool import EnvPool
from evolving_rl_jax.run.console import progress, say, user_errors
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.run.hosts import ALONE, Hosts
from evolving_rl_jax.run.inputs import check_inputs, keep_inputs
from evolving_rl_jax.types import Task

# The folder of a run on several hosts must be one folder.
SHARED_FOLDER = "--workdir must be on a file system that all hosts of a run see"


def prepare_games(config, folder: RunFolder, hosts: Hosts = ALONE) -> Sequence[Task]:
    """The tasks of the run: those of ``config.data.games``, or generated into the run folder.

    On several hosts process 0 generates them and the others read them.

    Raises:
      ConfigError: tasks are missing or malformed, not enough for the configuration, not to be trained
        on, or not those that the run began with; nothing has been written then.
    """
    with user_errors((ValueError,), "config.env.name"):
        benchmark = envs.benchmark(config.env.name)
    with user_errors((ValueError,), "config.env.options"):
        benchmark.worker_options(config.env)
    given = config.data.games
    path = pathlib.Path(given) if given else folder.path / "games"
    if not given:
        _generate(benchmark, config, folder, path, hosts)
    with user_errors((TaskError,), "config.data.games" if given else SHARED_FOLDER):
        tasks = benchmark.load(path)
    check_games(config, tasks)
    _check_sealed(config, tasks)
    inputs = check_inputs(config, folder, tasks)
    folder.begin()
    keep_inputs(folder, inputs)
    return tasks


def _generate(
    benchmark: envs.Benchmark, config, folder: RunFolder, path: pathlib.Path, hosts: Hosts
) -> None:
    """Generates the tasks unless they are there; the first host does, all return when it is done."""
    if not benchmark.is_generated(path):
        with user_errors((ValueError,), f"config.data.{benchmark.generator}"):
            planned = benchmark.plan(config.data, config.seed)
        check_games(config, planned)
        folder.begin()
        if hosts.first:
            with progress("generating games") as bar:
                benchmark.generate(config.data, path, config.seed, bar)
    hosts.meet("games")


def make_pool(
    config,
    tasks: Sequence[Task],
    hosts: Hosts = ALONE,
    count: Callable[[list[str]], list[int]] | None = None,
) -> EnvPool:
    """The environment workers of the run, once their engine has been compared with its reference.

    Args:
      config: of the run.
      tasks: all of them; some are played by both engines.
      hosts: the processes of the run; the first one compares.
      count: texts -> tokens of each, by the policy's tokenizer; None where there is none yet.

    Raises:
      EngineMismatch: the two differ; on all hosts.
      EnvError: what plays is missing or does not fit; on all hosts.
    """
    env = config.env
    benchmark = envs.benchmark(env.name)
    options = benchmark.worker_options(env)
    if count is not None:
        options |= benchmark.measured_options(tasks, count)
    found = _difference(config, tasks, options) if hosts.first else None
    found = hosts.from_first(found)
    if found is not None:
        raise found
    return EnvPool(
        env=env.name, options=options, num_workers=env.num_workers, deadline_s=env.deadline_s
    )


def _difference(
    config, tasks: Sequence[Task], options: dict[str, Any]
) -> envs.EngineMismatch | EnvError | None:
    """In what the engine differs from its reference on the splits that the run plays, or what is missing."""
    splits = {config.data.train_split, *config.eval.splits}
    splits |= set(config.warmstart.splits) if config.warmstart.enabled else set()
    known = {t.split for t in tasks}
    splits |= {source_split(s, known, config.data.train_split) for s in config.eval.splits}
    try:
        said = envs.check(
            config.env.name, [t for t in tasks if t.split in splits], progress, **options
        )
    except (envs.EngineMismatch, EnvError) as error:
        return error
    if said:
        say(said)
    return None


def _check_sealed(config, tasks: Sequence[Task]) -> None:
    """Raises ConfigError for tasks of a protected archive among those to train on."""
    split = config.data.train_split
    sealed = [t.id for t in tasks if t.split == split and t.meta.get("sealed")]
    if sealed:
        raise ConfigError(
            "config.data.train_split must be a split without tasks of the password-protected archive "
            f"(a run writes down what it trains on), got {split!r} with {sealed[0]}"
        )
