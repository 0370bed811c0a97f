"""Mind2Web: offline replay of annotated web tasks (arXiv 2306.06070), real or generated.

An observation has the task, the site's name, the earlier actions and a snapshot of the page.  An action is one JSON
object, ``{"op": "TYPE", "ref": "e12", "value": "Oslo"}``, alone or between action tags.  The page of the
next step is the annotated one, whatever was done.

Protocols:

* ``stop_at_error``: the episode ends at the first wrong action, and is won without one;
* ``teacher_forced``: every step is played, with the gold actions as its history; won when all are right.

``Task.meta["protocol"]`` has precedence over the option, so that one set of workers plays both.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from evolving_rl_jax import types
from evolving_rl_jax.envs.base import EnvError, Environment, one_line
from evolving_rl_jax.envs.mind2web import actions as web_actions
from evolving_rl_jax.envs.mind2web import endings
from evolving_rl_jax.envs.mind2web.actions import clean
from evolving_rl_jax.envs.mind2web.records import WebStep, WebTask
from evolving_rl_jax.envs.web.observation import (
    PAGE,
    action_line,
    observation_text,
    observed_site,
    split_observation,
)
from evolving_rl_jax.envs.web.page import Element
from evolving_rl_jax.envs.web.snapshot import Snapshot, shown_options, snapshot
from evolving_rl_jax.envs.web.token_count import Weights, counter

__all__ = [
    "PAGE",
    "Mind2Web",
    "Options",
    "action_line",
    "make",
    "observation_text",
    "observed_site",
    "split_observation",
]

PROTOCOLS = ("stop_at_error", "teacher_forced")
ELEMENTS = ("all", "controls")
_SNAPSHOTS = 4096  # texts remembered in one process


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of Mind2Web environments.

    Attributes:
      protocol: ``"stop_at_error"`` or ``"teacher_forced"``.
      snapshot_tokens: most tokens of a snapshot.
      elements: ``"all"``, or ``"controls"``: only what is made to be clicked, typed into or selected.
      token_weights: how tokens are counted, see `token_count.fit_weights`; () = estimated.
      max_tasks: tasks kept in memory in one process.

    Raises:
      ValueError: an option has a wrong value.
    """

    protocol: str = "stop_at_error"
    snapshot_tokens: int = 2000
    max_tasks: int = 64
    token_weights: Weights | tuple[()] = ()
    elements: str = "all"

    def __post_init__(self):
        weights = self.token_weights
        if weights and (
            len(weights) != 5 or not all(isinstance(w, float) and w > 0 for w in weights)
        ):
            raise ValueError(f"token_weights must be five numbers above 0 or none, got {weights!r}")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {list(PROTOCOLS)}, got {self.protocol!r}")
        if self.elements not in ELEMENTS:
            raise ValueError(f"elements must be one of {list(ELEMENTS)}, got {self.elements!r}")
        for name in ("snapshot_tokens", "max_tasks"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


class _TaskStore:
    """The tasks used last, and texts of their snapshots: episodes of one process share them."""

    def __init__(self, options: Options):
        self._max_tasks = options.max_tasks
        self._tasks: OrderedDict[str, WebTask] = OrderedDict()
        self._snapshots: OrderedDict[tuple, Snapshot] = OrderedDict()
        self._max_tokens = options.snapshot_tokens
        self._count = counter(options.token_weights)
        self._controls = options.elements == "controls"

    def task(self, path: str) -> WebTask:
        from evolving_rl_jax.envs.mind2web.store import read_task

        return _kept(self._tasks, path, self._max_tasks, lambda: read_task(path))

    def snapshot(self, task: WebTask, path: str, step: int, wanted: tuple[str, ...]) -> Snapshot:
        """What is shown of a step of ``task``, which the episode holds and ``path`` names."""

        def make() -> Snapshot:
            page, budget = task.steps[step].page, self._max_tokens
            return snapshot(page, task.text, wanted, budget, self._count, self._controls)

        return _kept(self._snapshots, (path, step, wanted), _SNAPSHOTS, make)


def _kept(cache: OrderedDict[Any, Any], key: Any, most: int, make: Callable[[], Any]) -> Any:
    """``cache[key]``, made if it is not there; the ``most`` used last are kept."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > most:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]


_STORES: dict[Options, _TaskStore] = {}


def make(options: Options) -> Environment:
    """Makes a Mind2Web environment; ``Task.path`` is a data set folder, a split and a number."""
    if options not in _STORES:
        _STORES[options] = _TaskStore(options)
    return Mind2Web(options, _STORES[options])


class Mind2Web(Environment):
    """Replays one task at a time; see the text of the module."""

    def __init__(self, options: Options, store: _TaskStore):
        self._protocol, self._forced = options.protocol, False
        self._store = store
        self._task: WebTask | None = None
        self._path = ""

    def reset(self, task: types.Task) -> types.Observation:
        self._task = None
        protocol = task.meta.get("protocol", self._protocol)
        if protocol not in PROTOCOLS:
            raise EnvError(f"protocol of {task.id} must be one of {PROTOCOLS}, got {protocol!r}")
        self._forced = protocol == "teacher_forced"
        try:
            loaded = self._store.task(task.path)
        except Exception as error:  # files of others can fail in any way
            raise EnvError(f"cannot load web task {task.path}: {one_line(error)}") from error
        self._task, self._path = loaded, task.path
        self._history: tuple[str, ...] = ()
        self._wanted: tuple[str, ...] = ()  # labels and values of the history
        self._step, self._num_correct, self._ended = 0, 0, False
        return types.Observation(self._observe(), ())

    def step(self, action: str) -> types.StepResult:
        if self._task is None or self._ended:
            raise EnvError("step was called before reset or after the end")
        step = self._task.steps[self._step]
        parsed = web_actions.parse_action(action)
        scores = self._score(step, parsed)
        correct = scores["correct"]
        self._num_correct += correct
        failed = endings.complaint(step.page.elements, self._shown().shown, parsed)
        line, words = self._told(step, parsed)
        self._history, self._wanted = (*self._history, line), (*self._wanted, words)
        self._step += 1
        self._ended = self._step == len(self._task.steps) or not (correct or self._forced)
        won = self._num_correct == len(self._task.steps)
        text = self._outcome(won, failed) if self._ended else self._observe()
        return types.StepResult(text, (), float(correct), self._ended, won, info=scores)

    def _shown(self) -> Snapshot:
        return self._store.snapshot(self._task, self._path, self._step, self._wanted)

    def _observe(self) -> str:
        task = self._task
        return observation_text(task.text, self._history, self._shown().text, task.website)

    def _outcome(self, won: bool, failed: str) -> str:
        if won:
            return endings.completed(self._history)
        if self._forced:
            total = len(self._task.steps)
            return f"The task has ended: {self._num_correct} of {total} actions were right."
        return endings.ending(failed, self._history[:-1])  # not of how many: that is annotated

    def _score(self, step: WebStep, action: web_actions.WebAction | None) -> dict[str, Any]:
        """The figures of one step, for rewards and metrics."""
        shown, node_id, reason = self._shown().shown, None, web_actions.INVALID
        op, value = (action.op, action.value) if action else ("", "")
        if action is not None:
            known = action.ref - 1 in shown
            node_id = step.page.elements[action.ref - 1].node_id if known else None
            reason = web_actions.UNKNOWN_REF
        verdict = web_actions.judge(step.gold, op, value, node_id, reason)
        scored = node_id is not None and step.gold.node_ids
        f1 = web_actions.action_f1(step.gold, op, value) if scored else 0.0
        visible = {step.page.elements[i].node_id for i in shown}
        reachable = web_actions.shares_node(step.gold, visible)
        return {
            "correct": verdict.ok,
            "element": bool(verdict.target_ok),
            "f1": f1,
            "success": bool(verdict.target_ok) and f1 == 1.0,
            "no_gold": not step.gold.node_ids,
            "missing": bool(step.gold.node_ids) and not reachable,
            "value_missing": reachable and not shows_value(step, self._task.text),
            "reason": verdict.reason,
            "num_steps": len(self._task.steps),
        }

    def _told(self, step: WebStep, action: web_actions.WebAction | None) -> tuple[str, str]:
        """What later steps see of an action, the gold one when forced: its line, its label and value."""
        if self._forced:
            return gold_line(step), gold_words(step)
        if action is None or action.ref - 1 not in self._shown().shown:
            return "(no action)", ""
        element = step.page.elements[action.ref - 1]
        value = "" if action.op == "CLICK" else action.value
        return action_line(element.name, action.op, value), f"{element.label} {value}".strip()


def gold_line(step: WebStep) -> str:
    """The annotated action of a step as one line of the history."""
    element, gold = _gold_element(step), step.gold
    if element is not None:
        name = element.name
    else:
        parts = web_actions.parse_repr(step.repr)
        name = f'{parts["role"] or "element"} "{parts["target_text"]}"'
    return action_line(name, web_actions.normalize_op(gold.op), gold.value)


def gold_words(step: WebStep) -> str:
    """The label and the value of the annotated action of a step."""
    element = _gold_element(step)
    label = web_actions.parse_repr(step.repr)["target_text"] if element is None else element.label
    value = "" if web_actions.normalize_op(step.gold.op) == "CLICK" else step.gold.value
    return f"{label} {value}".strip()


def shows_value(step: WebStep, task: str) -> bool:
    """Whether the value of a SELECT is among the options that the right element shows."""
    element = _gold_element(step)
    if web_actions.normalize_op(step.gold.op) != "SELECT" or element is None:
        return True
    return clean(step.gold.value) in map(clean, shown_options(element, task))


def _gold_element(step: WebStep) -> Element | None:
    found = (step.page.index.get(n) for n in step.gold.node_ids)
    return next((step.page.elements[i] for i in found if i is not None), None)
