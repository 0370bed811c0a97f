"""What the policy reads on MiniWoB++: the prompts of web pages, with a keyboard."""

from __future__ import annotations

from evolving_rl_jax.envs.miniwob.env import ALL_OPS
from evolving_rl_jax.envs.texts import SKILL_FORM, PromptTexts
from evolving_rl_jax.envs.web.texts import WebChat, WebCompact

__all__ = ["TEXTS"]

_RULES = """\
You are an agent that carries out a task on a web page. You see the page as a list of its elements, \
and answer with exactly one action on one of them. The page shows what the action did.

Every answer has two parts:
<reasoning>what the task still needs, and which element of this page serves it</reasoning>
<action>{"op": "CLICK", "ref": "e12"}</action>

The action is a JSON object with these fields:
- "op": CLICK, TYPE (into a text field, in place of what it holds), SELECT (from a list) or KEY (presses \
one key)
- "ref": the ref of the element, as the page shows it in [ref=...]
- "value": the text to type, the option to select, or the key: one letter, Enter, Backspace, Escape, Home, \
End, PageUp, PageDown, ArrowUp, ArrowDown, ArrowLeft, ArrowRight, Control+C (copies a field), Control+V; \
leave it out for CLICK

Only refs of the page that you see now are valid. Write names and values exactly as the task does. A \
wrong click may end the task."""

_REQUEST = """\
The episode is over: the task was {outcome}.

Write one skill that will help with other tasks on this kind of page, whose names, values and places will \
be others. State how the page is used: which kinds of elements serve what, in which order, what opens or \
shows what, when it is sent off, what failed and why. Do not mention refs, names or values of this task.

"""
_REQUEST += SKILL_FORM


class MiniWobCompact(WebCompact):
    """Short forms, with a keyboard."""

    ops = ALL_OPS


class MiniWobChat(WebChat):
    """Long forms."""

    rules, request = _RULES, _REQUEST


TEXTS = PromptTexts(MiniWobCompact(), MiniWobChat())
