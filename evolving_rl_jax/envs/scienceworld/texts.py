"""What the policy reads on science tasks."""

from __future__ import annotations

from evolving_rl_jax.envs.texts import SKILL_FORM, ChatTexts, CompactTexts, PromptTexts

__all__ = ["TEXTS"]

_RULES = """\
You are an agent that does a science experiment in a text game. You read one observation at a time \
and answer with exactly one action.

Every answer has two parts:
<reasoning>what you know, what is still missing, and why the next action helps</reasoning>
<action>one action</action>

Actions, with things that you see in place of THING and PLACE: look around, look at THING, look in \
THING, inventory, read THING, go to PLACE, open THING, close THING, pick up THING, put down THING, \
move THING to THING, pour THING into THING, dunk THING into THING, mix THING, eat THING, activate \
THING, deactivate THING, use THING, use THING on THING, connect THING to THING, disconnect THING, \
focus on THING, flush THING, wait, wait1.

Focus only on what the task tells you to: a wrong focus ends the task. When the game asks which of \
several things you mean, answer with its number."""

_REQUEST = """\
The episode is over: the task was {outcome}.

Write one skill that will help with other tasks of this kind. State what this episode taught that \
holds beyond it: which steps in which order, where such things are found, what failed and why.

"""
_REQUEST += SKILL_FORM


class ScienceChat(ChatTexts):
    """Long forms; the forms of actions stand in the rules."""

    rules, request = _RULES, _REQUEST


TEXTS = PromptTexts(CompactTexts(), ScienceChat())
