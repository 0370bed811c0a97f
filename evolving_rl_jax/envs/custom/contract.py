"""What an environment of one's own must have, and whether an object has it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from evolving_rl_jax.envs.base import Environment, TaskError
from evolving_rl_jax.files import encodable
from evolving_rl_jax.types import Task

__all__ = ["UserEnvironment", "checked_tasks", "find", "problems"]

_OPTIONAL = ("teacher", "audit_rules", "prompt_texts")


class UserEnvironment(Protocol):
    """The contract.  The last three methods may be missing.

    Attributes:
      name: for people.
      splits: names of the splits that there are tasks of; ``train`` is trained on by default.
      episodes_per_worker: may be missing: most that a worker process plays at a time, where each episode
        costs a process or much memory of its own.
    """

    name: str
    splits: tuple[str, ...]

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split.

        Their ids are unique over all splits, ``env`` may be anything, and an empty ``content_hash`` is
        filled in from what defines the task: its text, its path and its ``meta``.
        """

    def make(self, **options: Any) -> Environment:
        """An environment that plays one task at a time; called in worker processes.

        ``StepResult.reward`` is any score that the step adds: the sum over an episode is what it is
        worth to the solver and to the skill it was played with.  ``won`` says whether it succeeded.
        """

    def teacher(self, task: Task, rng) -> Any:
        """Plays demonstrations: ``act(observation, actions) -> str``, ``skill(observations, won) -> str``.

        The skill is JSON text with the fields of `docs/add-an-environment.md`; its observations are all that the
        episode read.  ``target``, if it has one, names what the next action is for.
        """

    def audit_rules(self) -> Any:
        """Further audits of a skill: an object like `skills.AuditRules`."""

    def prompt_texts(self) -> Any:
        """A `envs.texts.PromptTexts`, a `ChatTexts`, or a text: the rules that an agent is told."""


def find(spec: str) -> UserEnvironment:
    """The object that ``package.module:attribute`` names, checked.

    A module in the current folder is found as well; a class is called without arguments.

    Raises:
      ValueError: it cannot be imported, or lacks something; the message names all that it lacks.
    """
    module_name, attribute = spec.split(":")
    here = os.getcwd()
    if here not in sys.path:  # a console script does not have it there; workers start in it too
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as e:  # whatever the module does when it is imported
        why = f"{type(e).__name__}: {e}"
        raise ValueError(f"environment {spec!r} cannot be imported: {why}") from e
    if not hasattr(module, attribute):
        raise ValueError(f"environment {spec!r}: the module has no {attribute!r}")
    found = getattr(module, attribute)
    if isinstance(found, type):
        try:
            found = found()
        except Exception as e:  # of somebody's own code, or it wants arguments
            raise ValueError(
                f"environment {spec!r} must be made by a call without arguments, got "
                f"{type(e).__name__}: {e}"
            ) from e
    missing = list(problems(found))
    if missing:
        raise ValueError(f"environment {spec!r} must have {'; '.join(missing)}")
    return found


def problems(found: Any) -> Iterator[str]:
    """What an object lacks of the contract, a line for each."""
    if not (isinstance(getattr(found, "name", None), str) and found.name):
        yield f"name: str, got {getattr(found, 'name', None)!r}"
    splits = getattr(found, "splits", None)
    named = isinstance(splits, tuple) and splits and all(isinstance(s, str) for s in splits)
    if not named:
        yield f"splits: tuple[str, ...] with at least one name, got {splits!r}"
    elif len(set(splits)) != len(splits):
        yield f"splits: different names, got {splits!r}"
    room = getattr(found, "episodes_per_worker", None)
    if room is not None and not (type(room) is int and room >= 1):
        yield f"episodes_per_worker as an int of at least 1 where it has one, got {room!r}"
    for method, form in (("tasks", "tasks(split) -> Sequence[Task]"),
                         ("make", "make(**options) -> Environment")):  # fmt: skip
        if not callable(getattr(found, method, None)):
            yield f"{form}, got {getattr(found, method, None)!r}"
    for method in _OPTIONAL:
        if getattr(found, method, None) is not None and not callable(getattr(found, method)):
            yield f"{method} as a method where it has one, got {getattr(found, method)!r}"


def checked_tasks(found: UserEnvironment, spec: str) -> list[Task]:
    """All tasks of an environment, sorted by id, as a run has them.

    Raises:
      TaskError: something else than a Task, a wrong split, an id twice, an empty split.
    """
    tasks: dict[str, Task] = {}
    for split in found.splits:
        try:
            given = found.tasks(split)
        except Exception as e:  # of somebody's own code
            raise TaskError(f"{spec}.tasks({split!r}) raised {type(e).__name__}: {e}") from e
        if not isinstance(given, Sequence) or not given:
            raise TaskError(
                f"{spec}.tasks({split!r}) must be a sequence of tasks, got {given!r:.80}"
            )
        for task in given:
            if not isinstance(task, Task):
                raise TaskError(f"{spec}.tasks({split!r}) must hold types.Task, got {task!r:.80}")
            _check_fields(spec, task)
            for field in ("id", "text", "task_type"):
                if not getattr(task, field):
                    raise TaskError(
                        f"{spec}: Task.{field} must be a text that is not empty, got {task!r:.120}"
                    )
            if task.split != split:
                raise TaskError(f"{spec}: task {task.id!r} of {split!r} says split {task.split!r}")
            if task.id in tasks:
                raise TaskError(f"{spec}: two tasks have the id {task.id!r}")
            if type(task.step_limit) is not int or task.step_limit < 1:
                raise TaskError(
                    f"{spec}: Task.step_limit must be >= 1, got {task.step_limit!r} in {task.id!r}"
                )
            tasks[task.id] = dataclasses.replace(
                task, env=spec, content_hash=task.content_hash or _content_hash(task)
            )
    return [tasks[i] for i in sorted(tasks)]


_TEXTS = ("id", "split", "task_type", "text", "path", "content_hash", "group", "env")


def _check_fields(spec: str, task: Task) -> None:
    """Raises TaskError where a field has another type than it must have, or holds what no file can."""
    for field in _TEXTS:
        value = getattr(task, field)
        if not isinstance(value, str) or encodable(value) != value:
            raise TaskError(
                f"{spec}: Task.{field} must be a text of whole characters, got {value!r:.80}"
            )
    meta = task.meta
    if not isinstance(meta, dict) or not all(isinstance(key, str) for key in meta):
        raise TaskError(f"{spec}: Task.meta must be a dict with texts as keys, got {meta!r:.120}")
    if "sealed" in meta:
        raise TaskError(
            f"{spec}: Task.meta of {task.id!r} must not have 'sealed', which is of archives"
        )
    for key in ("kin", "answers"):
        value = meta.get(key, ())
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise TaskError(
                f"{spec}: Task.meta[{key!r}] of {task.id!r} must be a list of texts, got {value!r:.80}"
            )


def _content_hash(task: Task) -> str:
    """sha256 of what defines a task where its environment does not say so itself.

    Raises:
      TaskError: ``meta`` holds what is no JSON, of which another process may see another order or address.
    """
    for key, value in task.meta.items():
        try:
            json.dumps(value, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise TaskError(
                f"Task.meta of {task.id!r} must hold JSON values, or content_hash be given, got "
                f"{type(value).__name__} in {key!r} ({error})"
            ) from None
    parts = (task.task_type, task.text, task.path, json.dumps(task.meta, sort_keys=True))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
