"""What the policy reads on web tasks, and how its text becomes an action or a skill.

Every observation has the task, the earlier actions and the page, so a turn can be a sequence of its own
(``config.rollout.context`` recent with ``recent_turns`` 0, the paper's per-step samples), or be appended
to the turns before it.  The classes have the interface of ``rollout.prompts``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evolving_rl_jax.envs.mind2web.actions import WebAction
from evolving_rl_jax.envs.mind2web.env import split_observation
from evolving_rl_jax.rollout.actions import parse_web, parse_web_compact
from evolving_rl_jax.rollout.prompts import (
    ACT,
    EXTRACT,
    OBS,
    SKILL,
    TASK,
    ChatPrompts,
    CompactPrompts,
    skill_section,
)
from evolving_rl_jax.skills.schema import Skill
from evolving_rl_jax.types import Task

_REF = re.compile(r"\[ref=e(\d+)\]")
_MARKS = re.compile(r'["()\[\]|]')
_PRESSED = re.compile(r'\b(?:button|link) (?=")')


def compact_text(line: str) -> str:
    """``button "Search" (footer) [ref=e7]`` as ``search footer 7``: fewer and fewer kinds of tokens.

    What can only be clicked needs no role.  The tokenizer makes one token of a word and its number, so
    whoever finds the right word has the ref with it.
    """
    line = _MARKS.sub(" ", _PRESSED.sub("", _REF.sub(r"\1", line)))
    return " ".join(line.lower().split())


class CompactWebPrompts(CompactPrompts):
    """Short forms for small policies trained from scratch; everything is in lower case.

    A solver turn names the element with its ref, ``search footer 7> click``.
    """

    def solver_prompt(
        self, task: Task, skill_text: str, observation: str, actions: Sequence[str] = ()
    ) -> list[int]:
        """Ids that open a sequence: task, skill if there is one, earlier actions, page."""
        _, earlier, page = split_observation(observation)
        ids = [self.ids[TASK], *self._text(task.text.lower())]
        if skill_text:
            ids += [self.ids[SKILL], *self._text(skill_text.lower())]
        if earlier:
            ids += [self.ids[OBS], *self._text(" ".join(map(compact_text, earlier)))]
        return ids + self._page(page)

    def next_turn(
        self, observation: str, actions: Sequence[str] = (), *, last_id: int | None = None
    ) -> list[int]:
        """Ids appended after an action: the next page (the actions are in the sequence already)."""
        return self._page(split_observation(observation)[2])

    def _page(self, lines: list[str]) -> list[int]:
        return [self.ids[OBS], *self._text(" ".join(map(compact_text, lines))), self.ids[ACT]]

    def extractor_prompt(
        self, won: bool, observation: str = "", *, last_id: int | None = None
    ) -> list[int]:
        """Ids appended to a finished source episode: the outcome, the marker of a skill."""
        outcome = "success" if won else "failure"
        return [self.ids[EXTRACT], *self._text(outcome), self.ids[SKILL]]

    def action_ids(self, target: str, action: WebAction) -> list[int]:
        """A solver turn as a teacher writes it, stop token included; ``target`` names the element."""
        text = f"{target} {action.ref}> {action.op} {action.value}".strip()
        return [*self._text(text.lower()), self.tokenizer.eos_id]

    def parse_action(self, text: str) -> tuple[str, bool]:
        """(action as JSON, valid) of a solver turn."""
        return parse_web_compact(text)

    def render_skill(self, skill: Skill) -> str:
        """The skill as the solver reads it: what it says, without its title."""
        return super().render_skill(skill).lower()


_SOLVER = """\
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

_EXTRACTOR = """\
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


class ChatWebPrompts(ChatPrompts):
    """Long forms for language models, written with the tokenizer's own chat template."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        switch = "enable_thinking" in tokenizer.chat_template
        self._system = _SOLVER + ("\n\n/no_think" if switch else "")

    def solver_prompt(
        self, task: Task, skill_text: str, observation: str, actions: Sequence[str] = ()
    ) -> list[int]:
        """Ids that open a sequence: rules, the skill if there is one, the observation (it has the
        task)."""
        return self.chat.opening(self._system + skill_section(skill_text), observation)

    def next_turn(
        self, observation: str, actions: Sequence[str] = (), *, last_id: int | None = None
    ) -> list[int]:
        """Ids appended after an action: the end of its turn if it has none, the next page."""
        _, _, page = split_observation(observation)
        text = "Page:\n" + "\n".join(page) if page else observation
        return self.chat.next_turn(text, last_id)

    def extractor_prompt(
        self, won: bool, observation: str = "", *, last_id: int | None = None
    ) -> list[int]:
        """Ids appended to a finished source episode: how it ended, the request for a skill."""
        request = _EXTRACTOR.format(outcome="completed" if won else "not completed")
        return self.chat.next_turn(f"{observation}\n\n{request}".strip(), last_id)

    def action_ids(self, target: str, action: WebAction) -> list[int]:
        """A solver turn as a teacher writes it, stop token included."""
        reasoning = f"<reasoning>The next thing to use is {target}.</reasoning>"
        return self.chat.answer(f"{reasoning}\n<action>{action.to_json()}</action>")

    def parse_action(self, text: str) -> tuple[str, bool]:
        """(action as JSON, valid) of a solver turn."""
        return parse_web(text)


WEB_STYLES = {"compact": CompactWebPrompts, "chat": ChatWebPrompts}


def make_web_prompts(style: str, tokenizer):
    """The prompts of ``style`` for web tasks; raises ``ValueError`` for an unknown one."""
    if style not in WEB_STYLES:
        raise ValueError(f"rollout.style must be one of {', '.join(WEB_STYLES)}, got {style!r}")
    return WEB_STYLES[style](tokenizer)
