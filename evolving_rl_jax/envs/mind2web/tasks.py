"""The web tasks of a run: a compacted data set, or generated sites compacted into the run folder."""

from __future__ import annotations

import pathlib
import shutil

from evolving_rl_jax.envs.mind2web.index import build_index
from evolving_rl_jax.envs.mind2web.sites import SitesSpec, generate_sites
from evolving_rl_jax.envs.mind2web.store import INDEX, load_web_tasks
from evolving_rl_jax.types import Task

__all__ = ["prepare_web_tasks", "sites_spec"]


def sites_spec(sites) -> SitesSpec:
    """The ``SitesSpec`` of ``config.data.sites``; raises ``ValueError`` naming what cannot be."""
    return SitesSpec(
        num_train_sites=sites.num_train,
        tasks_per_site=sites.tasks_per_site,
        num_test_task=sites.test_tasks,
        num_test_sites=sites.num_test,
        tasks_per_test_site=sites.tasks_per_test_site,
        num_warmstart_sites=sites.warmstart_sites,
        tasks_per_warmstart_site=sites.tasks_per_warmstart_site,
    )


def prepare_web_tasks(data, folder: pathlib.Path, seed: int) -> list[Task]:
    """All tasks of ``config.data``, sorted by id.

    Args:
      data: ``config.data``: ``games`` is the folder of a compacted data set; where it is empty, sites are
        generated as ``sites`` says.
      folder: where generated data is kept; what is there already is read.
      seed: of the generator.

    Raises:
      TaskError: ``data.games`` is no compacted data set.
      ValueError: ``data.sites`` asks for what cannot be.
    """
    if data.games:
        return load_web_tasks(data.games)
    if not (folder / INDEX).is_file():
        raw = folder.with_name(f".{folder.name}.raw")
        shutil.rmtree(raw, ignore_errors=True)
        try:
            generate_sites(raw, seed=seed, spec=sites_spec(data.sites))
            build_index([raw], folder, budgets=(), inside_run=True)
        finally:
            shutil.rmtree(raw, ignore_errors=True)
    return load_web_tasks(folder)
