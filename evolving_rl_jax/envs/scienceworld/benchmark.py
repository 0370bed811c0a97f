"""ScienceWorld as a benchmark."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from evolving_rl_jax.envs.base import EnvError, Environment
from evolving_rl_jax.envs.benchmark import Teacher, WithoutFacts, checked_options
from evolving_rl_jax.envs.corpus import collect_texts
from evolving_rl_jax.envs.scienceworld import index
from evolving_rl_jax.envs.scienceworld.env import Options, ScienceWorld
from evolving_rl_jax.envs.scienceworld.game import Simulator
from evolving_rl_jax.envs.scienceworld.teacher import GoldTeacher
from evolving_rl_jax.envs.scienceworld.texts import TEXTS
from evolving_rl_jax.types import Task

__all__ = ["BENCHMARK"]


class Science(WithoutFacts):
    """Elementary science tasks; a task's group is its kind."""

    name, texts, splits = "scienceworld", TEXTS, index.SPLITS
    generator = "scienceworld"
    episodes_per_worker = 1  # each is a Java process
    preload = ("evolving_rl_jax.envs.scienceworld.env",)

    def options(self, **options: Any) -> Options:
        return checked_options(Options, self.name, options)

    def make_environment(self, options: Options) -> Environment:
        return ScienceWorld(options)

    def worker_options(self, env) -> dict[str, Any]:
        return {"actions": env.listed_actions}

    def variant(self, env) -> str:
        return env.listed_actions

    def load(self, folder: pathlib.Path) -> Sequence[Task]:
        return index.load_tasks(folder)

    def is_generated(self, folder: pathlib.Path) -> bool:
        return (folder / index.FILE).is_file()

    def plan(self, data, seed: int) -> Sequence[Any]:
        with _simulator() as simulator:
            return index.plan(simulator, data.scienceworld)

    def generate(
        self, data, folder: pathlib.Path, seed: int, progress: Callable[[int], None]
    ) -> None:
        with contextlib.closing(Simulator()) as simulator:
            planned = index.plan(simulator, data.scienceworld)
            index.write(folder, simulator, planned, data.scienceworld.simplifications, progress)

    def subject(self, task: Task) -> str:
        return task.text

    def corpus(self, pool, tasks: Sequence[Task]) -> list[str]:
        return collect_texts(pool, tasks, GoldTeacher)

    def teaches(self, task: Task) -> bool:
        return bool(task.meta.get("walkthrough"))

    def teacher(self, task: Task, rng, quality) -> Teacher:
        return GoldTeacher(task, rng, quality.action_noise)


@contextlib.contextmanager
def _simulator() -> Iterator[Simulator]:
    """A simulator for the time of a block; what it lacks is a wrong value of a user's."""
    simulator = Simulator()
    try:
        yield simulator
    except EnvError as e:
        raise ValueError(str(e)) from e
    finally:
        simulator.close()


BENCHMARK = Science()
