"""An object of the contract as a benchmark: everything above ``envs/`` works with it unchanged."""

from __future__ import annotations

import collections
import functools
import inspect
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from evolving_rl_jax.envs.base import Environment, TaskError, one_line
from evolving_rl_jax.envs.benchmark import Teacher, WithoutFacts
from evolving_rl_jax.envs.corpus import collect_texts
from evolving_rl_jax.envs.custom.contract import UserEnvironment, checked_tasks, find
from evolving_rl_jax.envs.sound import of_type, sound
from evolving_rl_jax.envs.texts import SKILL_FORM, ChatTexts, CompactTexts, PromptTexts
from evolving_rl_jax.types import Observation, StepResult, Task

__all__ = ["UserBenchmark", "load"]

_RULES = """\
You are an agent that completes a task in an environment that answers in text. You read one \
observation at a time and answer with exactly one action.

Every answer has two parts:
<reasoning>what you know, what is still missing, and why the next action helps</reasoning>
<action>one action, as the latest observation accepts it</action>"""

_REQUEST = """\
The episode is over: the task was {outcome}.

Write one skill that will help with similar tasks in the future. State what this episode taught \
that holds beyond it: which steps worked in which order, what failed and why.

"""
_REQUEST += SKILL_FORM


class _Chat(ChatTexts):
    request = _REQUEST

    def __init__(self, rules: str = _RULES):
        self.rules = rules


class UserBenchmark(WithoutFacts):
    """One environment of somebody's own.

    Args:
      spec: ``package.module:attribute``.
      found: the object that it names.

    Raises:
      ValueError: it gives prompt texts of another kind.
    """

    generator = "games"

    def __init__(self, spec: str, found: UserEnvironment):
        self.name, self.splits, self.found = spec, found.splits, found
        self.preload = (spec.partition(":")[0],)
        self.episodes_per_worker = getattr(found, "episodes_per_worker", None)
        self.texts = _prompt_texts(spec, found)

    def options(self, **options: Any) -> dict[str, Any]:
        return options

    def make_environment(self, options: dict[str, Any]) -> Environment:
        made = self.found.make(**options)
        if not isinstance(made, Environment):
            raise ValueError(
                f"{self.name}.make() must return an envs.base.Environment, got {made!r:.80}"
            )
        return _AsListed(made)

    def worker_options(self, env) -> dict[str, Any]:
        options = json.loads(env.options) if env.options else {}
        try:
            inspect.signature(self.found.make).bind(**options)
        except TypeError as error:
            raise ValueError(f"{self.name}.make() {error}, got {env.options or 'none'}") from None
        return options

    def variant(self, env) -> str:
        return self.found.name

    def load(self, folder: pathlib.Path) -> Sequence[Task]:
        """The environment's own tasks; it reads no folder of a run."""
        return checked_tasks(self.found, self.name)

    def is_generated(self, folder: pathlib.Path) -> bool:
        return True  # there is nothing to generate

    def plan(self, data, seed: int) -> Sequence[Any]:
        return checked_tasks(self.found, self.name)

    def generate(
        self, data, folder: pathlib.Path, seed: int, progress: Callable[[int], None]
    ) -> None:
        raise TaskError(f"{self.name} has its own tasks: nothing is generated")

    def audit_rules(self) -> Any:
        rules = getattr(self.found, "audit_rules", None)
        return rules() if rules else None

    def corpus(self, pool, tasks: Sequence[Task]) -> list[str]:
        return collect_texts(pool, tasks, self.teacher if self.teaches() else None)

    def teaches(self, task: Task | None = None) -> bool:
        return getattr(self.found, "teacher", None) is not None

    def teacher(self, task: Task, rng, quality=None) -> Teacher:
        try:
            found = self.found.teacher(task, rng)
        except Exception as e:  # of somebody's own code
            raise TaskError(f"{self.name}.teacher() raised {one_line(e)}") from e
        return _UserTeacher(found, self.name)


class _AsListed(Environment):
    """Gives an action the spelling in which it was listed: what a policy writes is read in lower case."""

    def __init__(self, inner: Environment):
        self._inner = inner
        self._listed: dict[str, str] = {}

    def reset(self, task: Task) -> Observation:
        return self._note(self._inner.reset(task), Observation)

    def step(self, action: str) -> StepResult:
        return self._note(
            self._inner.step(self._listed.get(" ".join(action.split()), action)), StepResult
        )

    def load(self, task: Task) -> None:
        self._inner.load(task)

    def close(self) -> None:
        self._inner.close()

    def _note(self, seen, kind: type):
        """Of actions that differ in case or blanks alone none can be told from what was written."""
        of_type(seen, kind)
        seen = sound(seen)
        counts = collections.Counter(map(_read, seen.actions))
        self._listed = {_read(a): a for a in seen.actions if counts[_read(a)] == 1}
        return seen


def _read(action: str) -> str:
    """An action as it is read off what a policy writes."""
    return " ".join(action.lower().split())


class _UserTeacher:
    """A teacher of the contract with what the warm start reads beside its two methods."""

    given = ""

    def __init__(self, found: Any, name: str):
        for method in ("act", "skill"):
            if not callable(getattr(found, method, None)):
                raise TaskError(
                    f"{name}.teacher() must return an object with {method}(), got {found!r:.80}"
                )
        self._found, self._name = found, name

    @property
    def target(self) -> str:
        return getattr(self._found, "target", "") or "task"

    def act(self, observation: str, actions: Sequence[str]) -> str:
        return self._asked("act", observation, actions)

    def skill(self, observations: Sequence[str], won: bool) -> str:
        return self._asked("skill", observations, won)

    def _asked(self, method: str, *arguments: Any) -> str:
        try:
            said = getattr(self._found, method)(*arguments)
        except Exception as e:  # of somebody's own code
            raise TaskError(f"{self._name}: the teacher's {method}() raised {one_line(e)}") from e
        if not isinstance(said, str):
            raise TaskError(
                f"{self._name}: the teacher's {method}() must return a text, got {said!r:.80}"
            )
        return said


def _prompt_texts(spec: str, found: UserEnvironment) -> PromptTexts:
    ask = getattr(found, "prompt_texts", None)
    try:
        given = ask() if ask else _RULES
    except Exception as e:  # of somebody's own code
        raise ValueError(f"{spec}.prompt_texts() raised {one_line(e)}") from e
    if isinstance(given, PromptTexts):
        return given
    if isinstance(given, str) and given.strip():
        given = _Chat(given)
    if not isinstance(given, ChatTexts):
        raise ValueError(
            f"{spec}.prompt_texts() must return PromptTexts, ChatTexts or the rules as a text, got {given!r:.80}"
        )
    return PromptTexts(CompactTexts(), given)


@functools.cache
def load(spec: str) -> UserBenchmark:
    """The benchmark of ``package.module:attribute``.

    Raises:
      ValueError: there is no such object, or it does not keep the contract.
    """
    return UserBenchmark(spec, find(spec))
