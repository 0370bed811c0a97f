"""MiniWoB++ as a benchmark."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from evolving_rl_jax.envs.base import EnvError, Environment, Progress
from evolving_rl_jax.envs.benchmark import Teacher, WithoutFacts, checked_options
from evolving_rl_jax.envs.miniwob import index
from evolving_rl_jax.envs.miniwob.chromium import versions
from evolving_rl_jax.envs.miniwob.corpus import collect_texts
from evolving_rl_jax.envs.miniwob.env import Options, make
from evolving_rl_jax.envs.miniwob.families import PLAYED_UNSEEN
from evolving_rl_jax.envs.miniwob.solvers import SCRIPTS
from evolving_rl_jax.envs.miniwob.teacher import ScriptTeacher
from evolving_rl_jax.envs.miniwob.texts import TEXTS
from evolving_rl_jax.types import Task

__all__ = ["BENCHMARK"]

_ALL_TOKENS = 1_000_000  # of the page that a task's hash is of


class MiniWobTasks(WithoutFacts):
    """Small web tasks in a real browser; a task's group is its family."""

    name, texts, splits = "miniwob", TEXTS, index.SPLITS
    generator, draws_groups = "miniwob", True
    preload = ("evolving_rl_jax.envs.miniwob.env",)
    episodes_per_worker = 128  # frames of one browser: 2.5 MB each, and each slows the others

    def options(self, **options: Any) -> Options:
        return checked_options(Options, self.name, options)

    def make_environment(self, options: Options) -> Environment:
        return make(options)

    def worker_options(self, env) -> dict[str, Any]:
        return {"snapshot_tokens": env.snapshot_tokens, "browser_mb": env.browser_mb}

    def check(self, options: Options, tasks: Sequence[Task], progress: Progress) -> str:
        return _fit()

    def prove(self, env) -> str:
        return _fit()

    def variant(self, env) -> str:
        return "browser"

    def load(self, folder: pathlib.Path) -> Sequence[Task]:
        return index.load_tasks(folder)

    def is_generated(self, folder: pathlib.Path) -> bool:
        return (folder / index.FILE).is_file()

    def plan(self, data, seed: int) -> Sequence[Any]:
        planned = index.plan(data.miniwob)
        versions()  # before anything is written: generating needs the browser
        return planned

    def generate(
        self, data, folder: pathlib.Path, seed: int, progress: Callable[[int], None]
    ) -> None:
        planned = index.plan(data.miniwob)
        env = make(Options(snapshot_tokens=_ALL_TOKENS))

        def show(family: str, seed: int) -> str:
            return env.reset(_task(family, seed)).text

        try:
            index.write(folder, show, planned, progress)
        finally:
            env.browser.close()

    def subject(self, task: Task) -> str:
        return task.text

    def corpus(self, pool, tasks: Sequence[Task]) -> list[str]:
        return collect_texts(pool, tasks)

    def teaches(self, task: Task) -> bool:
        family = task.meta.get("family")
        return family in SCRIPTS and family not in PLAYED_UNSEEN

    def lesson_group(self, task: Task) -> str:
        return task.id  # its group is a kind of page, and to lack one says nothing of other pages

    def teacher(self, task: Task, rng, quality) -> Teacher:
        return ScriptTeacher(task, rng, quality.action_noise, quality.good_extraction)


def _fit() -> str:
    """Says that browser and driver fit; raises ``EnvError`` where one is missing or they do not."""
    try:
        browser, driver = versions()
    except ValueError as e:
        raise EnvError(str(e)) from e
    return f"Chromium {browser} and chromedriver {driver} fit"


def _task(family: str, seed: int) -> Task:
    meta = {"family": family, "seed": seed}
    return Task(f"{family}/{seed}", "miniwob", "", family, "", f"{family}/{seed}", "", meta=meta)


BENCHMARK = MiniWobTasks()
