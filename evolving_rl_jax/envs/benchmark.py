"""What a benchmark offers a run beside its environment: tasks, prompt texts, a teacher, known facts.

Everything is text, and everything above ``envs/`` asks here instead of knowing a benchmark by name.
"""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from evolving_rl_jax.envs.base import Environment, Progress, TaskError
from evolving_rl_jax.envs.texts import PromptTexts
from evolving_rl_jax.types import Episode, Task

__all__ = ["Benchmark", "Teacher", "WithoutFacts"]


class Teacher(Protocol):
    """Plays one episode of the warm start and writes a skill after it.

    Attributes:
      given: the skill (JSON text) that its prompt holds; empty for none.
      target: what its last action is for, as an answer in compact style names it.
    """

    given: str
    target: str

    def act(self, observation: str, actions: Sequence[str]) -> str:
        """The next action, after what the last one (or the reset) answered."""

    def skill(self, observations: Sequence[str], won: bool) -> str:
        """A skill (JSON text) after the episode, whose last observation is how it ended."""


class Benchmark(abc.ABC):
    """One benchmark.

    Attributes:
      name: of its environment, as ``config.env.name`` and ``Task.env`` have it.
      texts: what its prompts say.
      splits: those of the published data; generated data may have more.
      preload: modules that the server of its worker processes imports once for all of them.
      episodes_per_worker: most that a worker process plays at a time (None: any number); others wait.
      scores_steps: whether every step has a score to learn from, or only the episode.
      draws_groups: whether tasks of a group (a site, a family of pages) are so alike that intervals draw groups.
      generator: the group of ``config.data`` that says what is generated where no data is given.
    """

    name: str
    texts: PromptTexts
    splits: tuple[str, ...]
    generator: str
    preload: tuple[str, ...] = ()
    episodes_per_worker: int | None = None
    scores_steps: bool = False
    draws_groups: bool = False

    # -- the environment -------------------------------------------------------------------------

    @abc.abstractmethod
    def options(self, **options: Any) -> Any:
        """The options of the environment, checked; raises ``ValueError`` for a wrong value."""

    @abc.abstractmethod
    def make_environment(self, options: Any) -> Environment:
        """The environment with checked options."""

    def check(self, options: Any, tasks: Sequence[Task], progress: Progress) -> str:
        """As ``envs.check``, with checked options."""
        return ""

    def prove(self, env) -> str:
        """Whether what plays it works here: for one, an engine plays a task as the one that it must equal.

        Returns:
          A line for people; empty where there is nothing to compare.

        Raises:
          EngineMismatch: they differ.
          EnvError: something is missing or does not fit.
        """
        return ""

    @abc.abstractmethod
    def worker_options(self, env) -> dict[str, Any]:
        """The options that workers are given, from ``config.env``."""

    def measured_options(
        self, tasks: Sequence[Task], count: Callable[[list[str]], list[int]]
    ) -> dict[str, Any]:
        """Further options of workers, measured at the start with the policy's tokenizer.

        Args:
          tasks: of the run.
          count: texts -> tokens of each.
        """
        return {}

    @abc.abstractmethod
    def variant(self, env) -> str:
        """How ``config.env`` has the benchmark played, in a word for a result's file."""

    def protocols(self, env) -> tuple[str, ...]:
        """How a panel plays each task: as ``config.env`` says, then otherwise; () = one way only."""
        return ()

    def plays_on(self, task: Task, options: Mapping[str, Any]) -> bool:
        """Whether a failed step of this task never ends it, so that all of its steps are played.

        Args:
          task: that is played.
          options: of the environment that plays it.
        """
        return False

    # -- tasks -----------------------------------------------------------------------------------

    @abc.abstractmethod
    def load(self, folder: pathlib.Path) -> Sequence[Task]:
        """All tasks of a folder, sorted by id.

        Raises:
          TaskError: it holds none, or not what it should.
        """

    @abc.abstractmethod
    def is_generated(self, folder: pathlib.Path) -> bool:
        """Whether `generate` has finished in a folder."""

    @abc.abstractmethod
    def plan(self, data, seed: int) -> Sequence[Any]:
        """What `generate` would make of ``config.data``: objects with ``split`` and ``task_type``.

        Raises:
          ValueError: ``config.data`` asks for what cannot be.
        """

    @abc.abstractmethod
    def generate(
        self, data, folder: pathlib.Path, seed: int, progress: Callable[[int], None]
    ) -> None:
        """Makes the tasks of ``config.data`` where no data is given."""

    def audit_rules(self) -> Any:
        """Further audits of a skill, like ``skills.AuditRules``; None for none."""
        return None

    def subject(self, task: Task) -> str:
        """What a task is about, such as its object, for figures of what is alike; "" if unsaid."""
        return ""

    # -- the warm start --------------------------------------------------------------------------

    @abc.abstractmethod
    def corpus(self, pool, tasks: Sequence[Task]) -> list[str]:
        """The texts that a tokenizer is trained on; ``pool`` plays what has to be played."""

    @abc.abstractmethod
    def teacher(self, task: Task, rng, quality) -> Teacher:
        """A teacher for one episode of a task that states its facts.

        Args:
          task: to play.
          rng: numpy generator of all its choices.
          quality: ``config.warmstart``: how well it plays and writes.
        """

    def skill_after(self, attempts: Sequence[tuple[Teacher, Sequence[str], bool]]) -> str:
        """The skill (JSON text) that a teacher writes down after its attempts at one task.

        Args:
          attempts: the teacher of each, all observations of the attempt, and whether it was won, from the
            one that failed first to the furthest.  As it is, the last one writes of all that was read.
        """
        teacher, _, won = attempts[-1]
        return teacher.skill([text for _, seen, _ in attempts for text in seen], won)

    def teaches(self, task: Task) -> bool:
        """Whether `teacher` can play a task."""
        return self.states_facts(task)

    def lesson_group(self, task: Task) -> str:
        """What ``warmstart.held_out`` keeps back whole: the place of a task, where tasks share one."""
        return task.group or task.id

    # -- known facts: what decides the next episode, where a task says it --------------------------

    def states_facts(self, task: Task) -> bool:
        """Whether a task says what decides it (generated ones do)."""
        return "habits" in task.meta

    @abc.abstractmethod
    def given_skill(self, task: Task, i: int, *, misleading: bool) -> str:
        """A skill (JSON text) with the facts of a task, or with wrong ones, of which i chooses."""

    @abc.abstractmethod
    def share_seen(self, episode: Episode) -> float | None:
        """Share of the facts of an episode's task that it revealed; None where it states none."""

    @abc.abstractmethod
    def share_stated(self, episode: Episode, skill_text: str) -> float:
        """Share of the facts, of a task that states any, that it revealed and a skill states rightly."""

    def share_seen_by(self, attempts: Sequence[Episode]) -> float | None:
        """`share_seen` of several attempts at one task; right as it is where a task has one fact."""
        seen = [self.share_seen(episode) for episode in attempts]
        return None if None in seen else max(seen)

    def share_stated_by(self, attempts: Sequence[Episode], skill_text: str) -> float:
        """`share_stated` of several attempts at one task; right as it is where a task has one fact."""
        return max(self.share_stated(episode, skill_text) for episode in attempts)

    def judge_skill(
        self, episode: Episode, skill_text: str, played: Sequence[Task]
    ) -> Mapping[str, float]:
        """What kind of thing a skill states and whether it is so, by name; {} where no task says.

        Args:
          episode: that it was written after.
          skill_text: as the solver reads it.
          played: the tasks that were played with it.
        """
        return {}


class WithoutFacts(Benchmark):
    """A benchmark whose tasks do not say what decides them: no oracle skills, nothing to be stated."""

    def states_facts(self, task: Task) -> bool:
        return False

    def given_skill(self, task: Task, i: int, *, misleading: bool) -> str:
        raise TaskError(f"tasks of {self.name} state no facts to make a skill of")

    def share_seen(self, episode: Episode) -> None:
        return None

    def share_stated(self, episode: Episode, skill_text: str) -> float:
        return 0.0


def checked_options(accepted: type, name: str, options: dict[str, Any]) -> Any:
    """An options dataclass made of keywords; raises ``ValueError`` naming an unknown one."""
    known = {field.name for field in dataclasses.fields(accepted)}
    for key in options:
        if key not in known:
            raise ValueError(f"option of {name} must be one of {sorted(known)}, got {key!r}")
    return accepted(**options)
