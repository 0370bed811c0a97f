"""Generated web tasks: sites written in the official layout, then compacted as real ones are."""

from __future__ import annotations

import pathlib
import shutil

from evolving_rl_jax.envs.mind2web.index import build_index
from evolving_rl_jax.envs.mind2web.sites import SitesSpec, generate_sites

__all__ = ["generate_tasks", "sites_spec"]


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


def generate_tasks(sites, folder: pathlib.Path, seed: int) -> None:
    """Makes the data set of ``config.data.sites`` in ``folder``; nothing of it is there before it is whole.

    Raises:
      ValueError: ``sites`` asks for what cannot be.
    """
    raw = folder.with_name(f".{folder.name}.raw")
    shutil.rmtree(raw, ignore_errors=True)
    try:
        generate_sites(raw, seed=seed, spec=sites_spec(sites))
        build_index([raw], folder, budgets=(), inside_run=True)
    finally:
        shutil.rmtree(raw, ignore_errors=True)
