"""Mind2Web and the sites that are generated in its format, as a benchmark."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evolving_rl_jax.envs.base import Environment
from evolving_rl_jax.envs.benchmark import Benchmark, Teacher, checked_options
from evolving_rl_jax.envs.mind2web import env as mind2web
from evolving_rl_jax.envs.mind2web import facts
from evolving_rl_jax.envs.mind2web.corpus import collect_texts
from evolving_rl_jax.envs.mind2web.official import SPLITS
from evolving_rl_jax.envs.mind2web.store import INDEX, load_web_tasks
from evolving_rl_jax.envs.mind2web.texts import TEXTS
from evolving_rl_jax.types import Episode, Task

__all__ = ["BENCHMARK"]


class Mind2WebTasks(Benchmark):
    """Annotated tasks on web sites, replayed."""

    name, texts, splits = "mind2web", TEXTS, SPLITS
    generator, draws_groups = "sites", True
    scores_steps = True

    def options(self, **options: Any) -> mind2web.Options:
        return checked_options(mind2web.Options, self.name, options)

    def make_environment(self, options: mind2web.Options) -> Environment:
        return mind2web.make(options)

    def worker_options(self, env) -> dict[str, Any]:
        return {
            "protocol": env.protocol,
            "snapshot_tokens": env.snapshot_tokens,
            "elements": env.elements,
        }

    def measured_options(
        self, tasks: Sequence[Task], count: Callable[[list[str]], list[int]]
    ) -> dict[str, Any]:
        from evolving_rl_jax.envs.mind2web.corpus import sample_pages
        from evolving_rl_jax.envs.web.token_count import fit_weights

        pages = sample_pages(tasks)
        return {"token_weights": fit_weights(pages, count)} if any(pages) else {}

    def variant(self, env) -> str:
        return env.protocol

    def plays_on(self, task: Task, options: Mapping[str, Any]) -> bool:
        return task.meta.get("protocol", options.get("protocol")) == "teacher_forced"

    def protocols(self, env) -> tuple[str, ...]:
        return env.protocol, *(p for p in mind2web.PROTOCOLS if p != env.protocol)

    def load(self, folder: pathlib.Path) -> Sequence[Task]:
        return load_web_tasks(folder)

    def is_generated(self, folder: pathlib.Path) -> bool:
        return (folder / INDEX).is_file()

    def plan(self, data, seed: int) -> Sequence[Any]:
        from evolving_rl_jax.envs.mind2web.sites import plan_sites
        from evolving_rl_jax.envs.mind2web.tasks import sites_spec

        return plan_sites(sites_spec(data.sites))

    def generate(
        self, data, folder: pathlib.Path, seed: int, progress: Callable[[int], None]
    ) -> None:
        from evolving_rl_jax.envs.mind2web.tasks import generate_tasks

        generate_tasks(data.sites, folder, seed)

    def corpus(self, pool, tasks: Sequence[Task]) -> list[str]:
        return collect_texts(tasks)

    def teacher(self, task: Task, rng, quality) -> Teacher:
        from evolving_rl_jax.envs.mind2web.teacher import WebTeacher

        return WebTeacher(task, rng, quality)

    def given_skill(self, task: Task, i: int, *, misleading: bool) -> str:
        return facts.given_skill(task, misleading=misleading)

    def skill_after(self, attempts: Sequence[tuple[Teacher, Sequence[str], bool]]) -> str:
        from evolving_rl_jax.envs.mind2web.teacher import joint_skill

        return joint_skill([(teacher, won) for teacher, _, won in attempts])

    def share_seen(self, episode: Episode) -> float | None:
        return facts.share_seen([episode])

    def share_stated(self, episode: Episode, skill_text: str) -> float:
        return facts.share_stated([episode], skill_text)

    def share_seen_by(self, attempts: Sequence[Episode]) -> float | None:
        return facts.share_seen(attempts)

    def share_stated_by(self, attempts: Sequence[Episode], skill_text: str) -> float:
        return facts.share_stated(attempts, skill_text)


BENCHMARK = Mind2WebTasks()
