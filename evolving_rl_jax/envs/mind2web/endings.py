"""What is said of an action that was not the right one: what a person at the page would see, nothing of the annotation.

It depends on the page and the action alone, so whatever was annotated, the same words follow.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from evolving_rl_jax.envs.web.actions import WebAction, clean
from evolving_rl_jax.envs.web.observation import action_line
from evolving_rl_jax.envs.web.page import Element

__all__ = ["complaint", "completed", "ending", "split_ending"]

_ENDED, _COMPLETED = "The task has ended.", "The task is completed:"
_WENT_ON = "These actions went on:"
# Roles of controls that take no text.
_UNTYPED = (
    "button",
    "checkbox",
    "link",
    "radio",
    "tab",
    "menuitem",
    "option",
    "img",
    "heading",
    "text",
)


def ending(failed: str, history: Sequence[str]) -> str:
    """The last observation of a task that an action has ended; `split_ending` takes it apart.

    Args:
      failed: what came of that action, see `complaint`.
      history: the actions before it, a line each.
    """
    return _listing(f"{failed} {_ENDED}", history)


def completed(history: Sequence[str]) -> str:
    """The last observation of a task all of whose actions, a line each in ``history``, were right."""
    return _listing(f"{_COMPLETED} all {len(history)} actions were right.", history)


def _listing(first: str, history: Sequence[str]) -> str:
    lines = [f"{i}. {line}" for i, line in enumerate(history, 1)]
    return "\n".join([first, _WENT_ON, *lines] if lines else [first])


def split_ending(text: str) -> tuple[str, list[str]]:
    """(what came of the last action, "" if it was right; the actions that went on); ("", []) of other texts."""
    first, _, rest = text.strip().partition("\n")
    if not first.endswith(_ENDED) and not first.startswith(_COMPLETED):
        return "", []
    lines = rest.removeprefix(_WENT_ON).strip().splitlines()
    failed = first.removesuffix(_ENDED).strip() if first.endswith(_ENDED) else ""
    return failed, [line.partition(". ")[2] for line in lines]


def complaint(
    elements: Collection[Element], shown: Collection[int], action: WebAction | None
) -> str:
    """What came of an action that did not go on, with the action itself: ``CLICK button "Go": nothing happened.``

    Args:
      elements: of the page.
      shown: numbers of those that the agent saw.
      action: as it was read; None where it could not be.
    """
    if action is None:
        return "The action could not be read."
    if action.ref - 1 not in shown:
        return f"There is no e{action.ref} on the page."
    element = elements[action.ref - 1]
    line = action_line(element.name, action.op, action.value)
    return f"{line}: {_why(element, action)}."


def _why(element: Element, action: WebAction) -> str:
    if action.op == "TYPE" and element.role in _UNTYPED:
        return "it takes no text"
    if action.op == "SELECT" and not element.options:
        return "it is no list"
    if action.op == "SELECT" and clean(action.value) not in map(clean, element.options):
        return "the list has no such option"
    return "nothing happened"
