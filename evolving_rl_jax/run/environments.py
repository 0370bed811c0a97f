"""What differs between environments in a run: tasks, workers, prompts, texts and demonstrations.

Everything else (stages, engine, audit, arms, updates, evaluation) is the same for all of them.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from evolving_rl_jax import envs
from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.data.needs import check_games
from evolving_rl_jax.data.tasks import TaskError, load_tasks, source_split
from evolving_rl_jax.envs.alfworld.corpus import collect_texts
from evolving_rl_jax.envs.alfworld.households.plan import GamesSpec, plan_games
from evolving_rl_jax.envs.alfworld.households.write import generate_games
from evolving_rl_jax.envs.mind2web import env as mind2web
from evolving_rl_jax.envs.mind2web.corpus import collect_web_texts
from evolving_rl_jax.envs.mind2web.sites import plan_sites
from evolving_rl_jax.envs.mind2web.tasks import prepare_web_tasks, sites_spec
from evolving_rl_jax.envs.pool.pool import EnvPool
from evolving_rl_jax.rollout.demonstrations import Demonstrator
from evolving_rl_jax.rollout.prompts import make_prompts
from evolving_rl_jax.rollout.web_demonstrations import WebDemonstrator
from evolving_rl_jax.rollout.web_prompts import make_web_prompts
from evolving_rl_jax.run.console import progress, say, user_errors
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.run.hosts import ALONE, Hosts
from evolving_rl_jax.types import Task

# The folder of a run on several hosts must be one folder.
SHARED_FOLDER = "--workdir must be on a file system that all hosts of a run see"


class EnvironmentParts(NamedTuple):
    """The parts of a run that depend on its environment.

    Attributes:
      prepare: (config, folder, hosts) -> tasks, generated where none are given.
      options: config -> options of the environment workers.
      make_prompts: (style, tokenizer) -> what the policy reads.
      collect_texts: (pool, tasks) -> what a tokenizer is trained on.
      demonstrator: (pool, prompts, settings, seed) -> plays the demonstrations of the warm start.
    """

    prepare: Callable[..., Sequence[Task]]
    options: Callable[[Any], dict[str, Any]]
    make_prompts: Callable[..., Any]
    collect_texts: Callable[..., list[str]]
    demonstrator: Callable[..., Any]


def prepare_games(config, folder: RunFolder, hosts: Hosts = ALONE) -> Sequence[Task]:
    """The tasks of the run: those of ``config.data.games``, or generated into the run folder.

    On several hosts process 0 generates them and the others read them.

    Raises:
      ConfigError: tasks are missing or malformed, or not enough for the configuration; nothing has
        been written then.
    """
    return ENVIRONMENTS[config.env.name].prepare(config, folder, hosts)


def make_pool(config, tasks: Sequence[Task], hosts: Hosts = ALONE) -> EnvPool:
    """The environment workers of the run, once their engine has been compared with its reference.

    Args:
      config: of the run.
      tasks: all of them; some are played by both engines.
      hosts: the processes of the run; the first one compares.

    Raises:
      EngineMismatch: the two differ; on all hosts.
    """
    env = config.env
    options = ENVIRONMENTS[env.name].options(config)
    found = _difference(config, tasks, options) if hosts.first else None
    found = hosts.from_first(found)
    if found is not None:
        raise found
    return EnvPool(
        env=env.name, options=options, num_workers=env.num_workers, deadline_s=env.deadline_s
    )


def _difference(
    config, tasks: Sequence[Task], options: dict[str, Any]
) -> envs.EngineMismatch | None:
    """In what the engine differs from its reference on the splits that the run plays."""
    splits = {config.data.train_split, *config.eval.splits}
    splits |= {"warmstart"} if config.warmstart.enabled else set()
    known = {t.split for t in tasks}
    splits |= {source_split(s, known) for s in config.eval.splits}
    try:
        said = envs.check(
            config.env.name, [t for t in tasks if t.split in splits], progress, **options
        )
    except envs.EngineMismatch as error:
        return error
    if said:
        say(said)
    return None


def prepare_household_games(config, folder: RunFolder, hosts: Hosts = ALONE) -> Sequence[Task]:
    """Loads the games of ``config.data.games``, or generates households into the run folder.

    On several hosts process 0 generates them and the others read them.

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
    if hosts.first:
        with user_errors((ValueError,), "config.data.households"):
            spec = _games_spec(config.data.households)
        check_games(config, plan_games(spec, config.seed))
        folder.begin()
        with progress("generating games") as bar:
            generate_games(path, seed=config.seed, spec=spec, progress=bar)
    hosts.meet("games")
    with user_errors((TaskError,), SHARED_FOLDER):
        return load_tasks(path)


def _games_spec(households) -> GamesSpec:
    return GamesSpec(
        num_train_households=households.num_train,
        num_unseen_households=households.num_unseen,
        games_per_object=households.games_per_object,
        num_heldout=households.heldout_games,
        num_warmstart=households.warmstart_games,
        rooms=households.rooms,
    )


def alfworld_options(config) -> dict[str, Any]:
    """What the workers take, from ``config.env``."""
    return {"engine": config.env.engine, "check_games": config.env.check_games}


def prepare_sites(config, folder: RunFolder, hosts: Hosts = ALONE) -> Sequence[Task]:
    """Loads the web tasks of ``config.data.games``, or generates sites into the run folder.

    Raises:
      ConfigError: as `prepare_games`, or tasks of the password-protected archive among those to
        train on: a run writes down what it trains on.
    """
    path = folder.path / "games"
    if not config.data.games:
        with user_errors((ValueError,), "config.data.sites"):
            check_games(config, plan_sites(sites_spec(config.data.sites)))
        folder.begin()
        if hosts.first:
            prepare_web_tasks(config.data, path, config.seed)
        hosts.meet("games")
    with user_errors((TaskError,), "config.data.games" if config.data.games else SHARED_FOLDER):
        tasks = prepare_web_tasks(config.data, path, config.seed)
    check_games(config, tasks)
    sealed = [t.id for t in tasks if t.split == config.data.train_split and t.meta["sealed"]]
    if sealed:
        raise ConfigError(
            "config.data.train_split must be a split without tasks of the password-protected archive "
            f"(a run writes down what it trains on), got {config.data.train_split!r} with {sealed[0]}"
        )
    folder.begin()
    return tasks


ENVIRONMENTS = {
    "alfworld": EnvironmentParts(
        prepare_household_games, alfworld_options, make_prompts, collect_texts, Demonstrator
    ),
    "mind2web": EnvironmentParts(
        prepare_sites,
        lambda config: mind2web.options_from_config(config.env),
        make_web_prompts,
        lambda _pool, tasks: collect_web_texts(tasks),
        WebDemonstrator,
    ),
}
