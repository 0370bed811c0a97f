"""What the policy reads on household tasks, in short and in long form."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence

from evolving_rl_jax.envs.alfworld.households.problem import receptacle_classes
from evolving_rl_jax.envs.texts import (
    SKILL_FORM,
    ChatTexts,
    CompactTexts,
    PromptTexts,
    ShortChatTexts,
)
from evolving_rl_jax.types import Task

__all__ = ["TEXTS"]

_BANNER = re.compile(r"^-= Welcome to TextWorld, ALFRED! =-\s*|\s*Your task is to:[^\n]*$")
_ROOM = "You are in the middle of a room"
_PLACE = re.compile(r"\b([a-z]+) \d+")

_RULES = """\
You are an agent that completes a household task in a text game. You read one observation at a \
time and answer with exactly one action.

Every answer has two parts:
<reasoning>what you know, what is still missing, and why the next action helps</reasoning>
<action>one of the admissible actions of the latest observation, copied word for word</action>

Keep in mind what you have already seen, look in new places until you have found what the task \
needs, and do not repeat an action that changed nothing."""

_CHOICE = "one of the admissible actions of the latest observation, copied word for word"
_COMMANDS = (
    "go to X, open X, close X, take X from Y, move X to Y, clean X with Y, heat X with Y, cool X with Y, "
    "use X, examine X, look, inventory"
)
# By rollout.show_actions, where not all admissible actions stand at every turn.
_CHOICES = {
    "first": "one admissible action: the first observation lists some, and what you find has its own",
    "changed": "one admissible action, copied word for word; later lists say what has changed",
    "none": "one command",
}

_SHORT_RULES = f"""\
You play a household text game. Answer every observation with one command on one line and nothing \
else, with names as the game writes them: {_COMMANDS}."""

_SHORT_REQUEST = """\
The task was {outcome}. Write one skill for similar tasks: what holds beyond this episode, such as \
where kinds of things are found. Answer with one JSON object: {{"name": a short title, "description": \
what to know, in one or two sentences, "decision_rules": a list of rules}}."""

_REQUEST = """\
The episode is over: the task was {outcome}.

Write one skill that will help with similar tasks in the future. State what this episode taught \
that holds beyond it: where kinds of things are found, which steps worked in which order, what \
failed and why.

"""
_REQUEST += SKILL_FORM


def _without_banner(observation: str) -> str:
    """The first observation of a game without the greeting and the task that it repeats."""
    return _BANNER.sub("", observation.strip()).strip()


@functools.cache
def _usual_places() -> Counter[str]:
    """Kinds of places of the compact room that games are generated in, with their numbers."""
    return Counter(name.split()[0] for name in receptacle_classes())


class HouseholdCompact(CompactTexts):
    """Short forms: a room is the kinds of its places with how many there are of each.

    Names within a kind are numbered from 1, so that says what can be gone to.  The compact room of
    generated games is always the same and is not described.
    """

    def opening(self, observation: str) -> list[str]:
        """What of the first observation is shown, each part after a marker."""
        seen = _without_banner(observation)
        if not seen.startswith(_ROOM):
            return [seen] if seen else []
        places = Counter(_PLACE.findall(seen))
        if not places or places == _usual_places():
            return []
        return [", ".join(f"{number} {kind}" for kind, number in sorted(places.items()))]


class HouseholdChat(ChatTexts):
    """Long forms, with all admissible actions at every turn."""

    rules, request = _RULES, _REQUEST

    def opening(self, task: Task, observation: str, actions: Sequence[str] = ()) -> str:
        """The first user message: the task, what is seen, what can be done."""
        return super().opening(task, _without_banner(observation), actions)

    def rules_for(self, show_actions: str) -> str:
        """The rules, which name the commands where their list does not stand at every turn."""
        if show_actions == "all":
            return self.rules
        choice = f"{_CHOICES[show_actions]} (commands: {_COMMANDS})"
        return self.rules.replace(_CHOICE, choice)


class HouseholdShortChat(ShortChatTexts):
    """Short chats: the commands are named once, in the rules."""

    rules, request = _SHORT_RULES, _SHORT_REQUEST

    def opening(self, task: Task, observation: str, actions: Sequence[str] = ()) -> str:
        """The first user message: the task, what is seen, what can be done."""
        return super().opening(task, _without_banner(observation), actions)


TEXTS = PromptTexts(HouseholdCompact(), HouseholdChat(), HouseholdShortChat())
