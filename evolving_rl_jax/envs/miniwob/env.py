"""MiniWoB++ as an environment: pages in a real browser, read and used as all web pages are here.

An observation has the task's sentence, the earlier actions and the page; an action is one JSON object,
``{"op": "TYPE", "ref": "e3", "value": "Oslo"}``, alone or between action tags.  Beside CLICK, TYPE and SELECT
there is KEY, which presses one key of the keyboard on an element.  What cannot be done costs a step, and
the next observation says why.
"""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

from evolving_rl_jax.envs.base import EnvError, Environment
from evolving_rl_jax.envs.miniwob.browser import Browser, Frame
from evolving_rl_jax.envs.miniwob.families import refuse
from evolving_rl_jax.envs.web.actions import OPS, parse_action, plain_op
from evolving_rl_jax.envs.web.observation import action_line, observation_text
from evolving_rl_jax.envs.web.page import Page, parse_page
from evolving_rl_jax.envs.web.snapshot import snapshot
from evolving_rl_jax.types import Observation, StepResult, Task

__all__ = ["ALL_OPS", "MiniWob", "Options", "make"]

ALL_OPS = (*OPS, "KEY")
_WITH_VALUE = ("SELECT", "KEY")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the environment.

    Attributes:
      snapshot_tokens: most tokens of a page that are shown.
      browser_mb: a browser that holds more megabytes is replaced between two episodes.
      answer_s: longest time for one answer of the browser before it is replaced.

    Raises:
      ValueError: an option has a wrong value.
    """

    snapshot_tokens: int = 2000
    browser_mb: float = 1500.0
    answer_s: float = 30.0

    def __post_init__(self):
        tokens = self.snapshot_tokens
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise ValueError(f"snapshot_tokens must be an integer of at least 1, got {tokens!r}")
        for name in ("browser_mb", "answer_s"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
                raise ValueError(f"{name} must be a number above 0, got {value!r}")


# One browser a process: all environments of it share that of their options.
_BROWSERS: weakref.WeakValueDictionary[Options, Browser] = weakref.WeakValueDictionary()


def make(options: Options) -> Environment:
    """Makes an environment; its browser starts with the first episode."""
    browser = _BROWSERS.get(options)
    if browser is None:
        browser = _BROWSERS[options] = Browser(options.answer_s, options.browser_mb)
    return MiniWob(options, browser)


class MiniWob(Environment):
    """One episode at a time, in a frame of the process's browser.

    When the browser was replaced because of another episode, this one is played again in the new one, from
    its actions: pages are deterministic.
    """

    def __init__(self, options: Options, browser: Browser):
        self._options, self._browser = options, browser
        self._frame: Frame | None = None
        self._over = True

    @property
    def browser(self) -> Browser:
        """The browser that it plays in."""
        return self._browser

    def reset(self, task: Task) -> Observation:
        self.close()
        family, seed = task.meta.get("family"), task.meta.get("seed")
        if not isinstance(family, str) or not isinstance(seed, int):
            raise EnvError(f"task {task.id} of miniwob must have a family and a seed in its meta")
        refuse(family)
        self._family, self._seed = family, seed
        self._history: list[str] = []
        self._words: list[str] = []
        self._done: list[tuple] = []  # what the browser was asked to do
        self._open()
        self._over = False
        return Observation(self._observe(), ())

    def step(self, action: str) -> StepResult:
        if self._over:
            raise EnvError("step was called before reset or after the end")
        asked = parse_action(action, plain_op)  # ENTER is no CLICK here
        if asked is None:
            return self._refused("(no action)", "it is no JSON object with an op and a ref")
        op, ref, value = asked
        said = action_line(f"e{ref}", op, value)
        if op not in ALL_OPS:
            return self._refused(said, f"op must be one of {', '.join(ALL_OPS)}")
        if ref - 1 not in self._shown:
            return self._refused(said, f"there is no e{ref} on the page")
        if op == "KEY" and value == " ":
            value = "Space"
        if op in _WITH_VALUE and not value.strip():
            return self._refused(said, f"{op} needs a value")
        element = self._page.elements[ref - 1]
        said = action_line(element.name, op, value)
        words = element.label if op == "CLICK" else f"{element.label} {value}".strip()
        done = (int(element.node_id), op, value if op == "TYPE" else value.strip())
        self._again()
        state = self._browser.call("act", self._frame, *done)
        self._done.append(done)
        self._take(state)
        why = state["refused"]
        self._history.append(f"{said} (not done: {why})" if why else said)
        self._words.append("" if why else words)
        return self._result(state)

    def close(self) -> None:
        """Gives the page back; the browser goes on, and ends with the process."""
        frame, self._frame, self._over = self._frame, None, True
        if frame is not None:
            self._browser.give(frame)

    def _open(self) -> None:
        self._frame = self._browser.take(self._family)
        state = self._browser.call("reset", self._frame, self._seed)
        if state["errors"]:
            raise EnvError(
                f"the page {self._family} of miniwob raised with seed {self._seed}: {state['errors'][0]:.200}"
            )
        self._task = state["task"]
        self._take(state)

    def _again(self) -> None:
        """Plays the episode again where its browser is gone."""
        if not self._browser.holds(self._frame):
            shown = self._text
            self._open()
            for done in self._done:
                self._take(self._browser.call("act", self._frame, *done))
            if self._text != shown:
                raise EnvError(
                    f"the page {self._family} of miniwob was not the same when played again"
                )

    def _take(self, state: dict[str, Any]) -> None:
        self._page: Page = parse_page(state["html"])
        found = snapshot(self._page, self._task, self._words, self._options.snapshot_tokens)
        self._text, self._shown = found.text, found.shown

    def _observe(self) -> str:
        return observation_text(self._task, tuple(self._history), self._text)

    def _refused(self, said: str, why: str) -> StepResult:
        self._history.append(f"{said} (not done: {why})")
        self._words.append("")
        return StepResult(self._observe(), (), 0.0, False, False)

    def _result(self, state: dict[str, Any]) -> StepResult:
        if not state["done"]:
            return StepResult(self._observe(), (), 0.0, False, False)
        self._over = True
        score = max(0.0, min(1.0, float(state["reward"])))
        won = score >= 1.0
        said = "The task is completed." if won else "The task has ended and is not completed."
        if 0 < score < 1:
            said = f"The task has ended, {score:.0%} of it is completed."
        return StepResult(said, (), score, True, won, info={"raw_reward": state["reward"]})
