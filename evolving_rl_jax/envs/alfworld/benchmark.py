"""ALFWorld and the households that are generated in its format, as a benchmark."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evolving_rl_jax.envs.alfworld import env as alfworld
from evolving_rl_jax.envs.alfworld import facts
from evolving_rl_jax.envs.alfworld.corpus import collect_texts
from evolving_rl_jax.envs.alfworld.folder import SPLITS
from evolving_rl_jax.envs.alfworld.objects import claims
from evolving_rl_jax.envs.alfworld.objects.truth import is_by_object
from evolving_rl_jax.envs.alfworld.tasks import load_tasks
from evolving_rl_jax.envs.alfworld.texts import TEXTS
from evolving_rl_jax.envs.base import Environment, Progress
from evolving_rl_jax.envs.benchmark import Benchmark, Teacher, checked_options
from evolving_rl_jax.types import Episode, Task

__all__ = ["BENCHMARK", "COMPARISON"]

_INDEX = "games.json"  # written last


class Alfworld(Benchmark):
    """Household tasks in text."""

    name, texts, splits = "alfworld", TEXTS, SPLITS
    generator = "households"
    preload = ("evolving_rl_jax.envs.alfworld.engine.game",)

    def options(self, **options: Any) -> alfworld.Options:
        return checked_options(alfworld.Options, self.name, options)

    def make_environment(self, options: alfworld.Options) -> Environment:
        return alfworld.make(options)

    def check(self, options: alfworld.Options, tasks: Sequence[Task], progress: Progress) -> str:
        return alfworld.check(options, tasks, progress)

    def prove(self, env) -> str:
        from evolving_rl_jax.envs.alfworld.check import prove

        return prove(env.engine)

    def worker_options(self, env) -> dict[str, Any]:
        return {
            "engine": env.engine,
            "check_games": env.check_games,
            "memory_mb": env.memory_mb,
        }

    def variant(self, env) -> str:
        return env.engine

    def load(self, folder: pathlib.Path) -> Sequence[Task]:
        return load_tasks(folder)

    def is_generated(self, folder: pathlib.Path) -> bool:
        return (folder / _INDEX).is_file()

    def plan(self, data, seed: int) -> Sequence[Any]:
        from evolving_rl_jax.envs.alfworld.households.plan import plan_games

        return plan_games(_games_spec(data.households), seed)

    def generate(
        self, data, folder: pathlib.Path, seed: int, progress: Callable[[int], None]
    ) -> None:
        from evolving_rl_jax.envs.alfworld.households.write import generate_games

        generate_games(folder, seed=seed, spec=_games_spec(data.households), progress=progress)

    def subject(self, task: Task) -> str:
        return task.meta.get("object", "")

    def corpus(self, pool, tasks: Sequence[Task]) -> list[str]:
        return collect_texts(pool, tasks)

    def teacher(self, task: Task, rng, quality) -> Teacher:
        if is_by_object(task):
            from evolving_rl_jax.envs.alfworld.objects.teacher import ObjectTeacher

            return ObjectTeacher(task, rng, quality)
        from evolving_rl_jax.envs.alfworld.teacher import HouseholdTeacher

        return HouseholdTeacher(task, rng, quality)

    def teaches(self, task: Task) -> bool:
        from evolving_rl_jax.envs.alfworld.experts import is_worded_as_usual

        return self.states_facts(task) and is_worded_as_usual(task)

    def states_facts(self, task: Task) -> bool:
        return super().states_facts(task) or is_by_object(task)

    def given_skill(self, task: Task, i: int, *, misleading: bool) -> str:
        give = claims.given_skill if is_by_object(task) else facts.given_skill
        return give(task, i, misleading=misleading)

    def share_seen(self, episode: Episode) -> float | None:
        return (claims if is_by_object(episode.task) else facts).share_seen(episode)

    def share_stated(self, episode: Episode, skill_text: str) -> float:
        by_object = is_by_object(episode.task)
        return (claims if by_object else facts).share_stated(episode, skill_text)

    def judge_skill(
        self, episode: Episode, skill_text: str, played: Sequence[Task]
    ) -> Mapping[str, float]:
        by_object = is_by_object(episode.task)
        return claims.judge_skill(episode, skill_text, played) if by_object else {}


class Comparison(Alfworld):
    """Both engines at once, step by step; its episodes are whole games."""

    name = "alfworld_check"

    def options(self, **options: Any) -> Any:
        from evolving_rl_jax.envs.alfworld import check

        return checked_options(check.Options, self.name, options)

    def make_environment(self, options: Any) -> Environment:
        from evolving_rl_jax.envs.alfworld import check

        return check.make(options)


def _games_spec(households):
    """The ``GamesSpec`` of ``config.data.households``; raises ``ValueError`` naming what cannot be."""
    from evolving_rl_jax.envs.alfworld.households.plan import GamesSpec

    return GamesSpec(
        num_train_households=households.num_train,
        num_unseen_households=households.num_unseen,
        games_per_object=households.games_per_object,
        num_heldout=households.heldout_games,
        num_warmstart=households.warmstart_games,
        rooms=households.rooms,
    )


BENCHMARK, COMPARISON = Alfworld(), Comparison()
