"""What the policy is told on annotated web tasks, in short and in long form."""

from __future__ import annotations

import re

from evolving_rl_jax.envs.mind2web.endings import split_ending
from evolving_rl_jax.envs.texts import PromptTexts
from evolving_rl_jax.envs.web.compact import compact_text, parse_web_compact
from evolving_rl_jax.envs.web.texts import WebChat, WebCompact, parse_web, shorten_page

__all__ = ["TEXTS", "compact_text", "parse_web", "parse_web_compact", "shorten_page"]

_DONE = re.compile(r'^[A-Z]+ \S+ (?=")')  # the operation and the role of an action

_RULES = """\
You are an agent that carries out a task on web sites. You see one page at a time, as a list of its \
elements, and answer with exactly one action on one of them.

Every answer has two parts:
<reasoning>what the task still needs, and which element of this page serves it</reasoning>
<action>{"op": "CLICK", "ref": "e12"}</action>

The action is a JSON object with these fields:
- "op": CLICK, TYPE (into a text field) or SELECT (from a list)
- "ref": the ref of the element, as the page shows it in [ref=...]
- "value": the text to type or the option to select; leave it out for CLICK

Only refs of the page that you see now are valid. Do not repeat what the earlier actions have done."""

_REQUEST = """\
The episode is over: the task was {outcome}.

Write one skill that will help with other tasks on this web site and on sites like it. State what this \
episode taught that holds beyond its own values: how such tasks proceed from page to page, which of \
several similar elements is the right one and how to tell, what a field expects, what failed and why. \
Do not mention refs: they change from page to page.

Answer in English with one JSON object and nothing else. Its fields:
- "name": a short title
- "description": what the skill does and when it helps, in one or two sentences
- "when_to_use": a list of kinds of tasks or sites
- "inputs_to_identify": a list of what must be read from the task before acting
- "workflow": a list of steps in order, each an object with "goal", "action", \
"tools_or_strategy" (how to recognise the element) and "completion_condition"
- "decision_rules": a list of rules for choosing between elements
- "error_handling": a list of objects with "error", "cause" and "response".
"""


class Mind2WebChat(WebChat):
    """Long forms."""

    rules, request = _RULES, _REQUEST


class Mind2WebCompact(WebCompact):
    """Short forms."""

    def shorten(self, observation: str, action: str, lines: int) -> str:
        """The part of the page around the action, without a word on what is left out."""
        shown = super().shorten(observation, action, lines)
        head, _, last = shown.rpartition("\n")
        return head if last.endswith("lines left out)") else shown

    def ending(self, observation: str) -> list[str]:
        """The actions that went on, each after "ok", then what came of the one that did not."""
        failed, before = split_ending(observation)
        went_on = " ".join(f"ok {compact_text(_DONE.sub('', line))}" for line in before)
        return [part for part in (went_on, compact_text(failed.removesuffix("."))) if part]


TEXTS = PromptTexts(Mind2WebCompact(), Mind2WebChat())
