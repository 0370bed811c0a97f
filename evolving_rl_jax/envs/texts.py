"""What a benchmark says in a prompt, as text; ``rollout.prompts`` makes token ids of it.

A benchmark overrides what is particular to it.  There is a short form for small policies that are
trained from scratch and a long one for language models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from evolving_rl_jax.envs.answers import parse_compact, parse_line, parse_tagged
from evolving_rl_jax.types import Task

__all__ = ["SKILL_FORM", "ChatTexts", "CompactTexts", "PromptTexts", "ShortChatTexts"]


class CompactTexts:
    """Short forms; the markers between the texts are of the prompt style, not of the benchmark.

    An answer is the policy's own short reasoning and the action, ``mug> go to cabinet 3``: naming
    what it is after before it acts is what lets a small policy use a skill.
    """

    def plain(self, text: str) -> str:
        """A task or a skill as it is shown."""
        return text

    def opening(self, observation: str) -> list[str]:
        """What of the first observation is shown, each part after a marker."""
        return [observation] if observation else []

    def following(self, observation: str) -> list[str]:
        """What of the answer to an action is shown."""
        return [observation]

    def ending(self, observation: str) -> list[str]:
        """What of the answer to the last action the extractor is shown."""
        return [observation] if observation else []

    def shorten(self, observation: str, action: str, lines: int) -> str:
        """What of a past observation an extraction needs, in about ``lines`` lines, where all do not
        fit; ``action`` answered it.  As it is where it cannot be shortened."""
        return observation

    def answer(self, target: str, action: str, observation: str = "") -> str:
        """A turn as a teacher writes it: ``action`` after ``observation``; ``target`` names what it is for."""
        return f"{target}> {action}"

    def parse(self, text: str, observation: str = "") -> tuple[str, bool]:
        """(action, valid) of a turn that answers ``observation``."""
        _, action, valid = parse_compact(text)
        return action, valid


class ChatTexts:
    """Long forms: the system message, user turns and assistant turns of a chat.

    Attributes:
      rules: what an agent is told before anything else.
      request: asks for a skill after an episode that was ``{outcome}``.
      contrast: is said before it where ``{attempts}`` episodes of one task were shown.
      again: stands between two of them; the first was ``{outcome}``.
      thought: the reasoning that a teacher writes, of a ``{target}``.
    """

    rules: str
    request: str
    contrast = (
        "You have seen {attempts} attempts at the same task; the last one got furthest. Compare them: "
        "what was done differently, and what came of it, tells what holds for other tasks."
    )
    again = (
        "That attempt is over: the task was {outcome}. The same task once more, from its beginning:"
    )
    thought = "The next thing I need is the {target}."

    def system(self, skill_text: str = "", switch: str = "", show_actions: str = "all") -> str:
        """The system message: the rules, and the skill if there is one.

        Args:
          skill_text: empty for none.
          switch: what a chat template needs to be told, after the rules.
          show_actions: ``config.rollout.show_actions``.
        """
        skill = _SKILL + skill_text if skill_text else ""
        return self.rules_for(show_actions) + switch + skill

    def rules_for(self, show_actions: str) -> str:
        """The rules where admissible actions are shown so; those of all turns unless overridden."""
        return self.rules

    def opening(self, task: Task, observation: str, actions: Sequence[str] = ()) -> str:
        """The first user message: the task, what is seen, what can be done."""
        return f"Task: {task.text.strip()}\n\n{self.following(observation, actions)}"

    def following(self, observation: str, actions: Sequence[str] = ()) -> str:
        """A later user message: what the action did, what can be done."""
        text = f"Observation:\n{observation.strip()}"
        if actions:
            text += "\n\nAdmissible actions:\n" + "\n".join(f"- {a}" for a in actions)
        return text

    def changed(self, observation: str, new: Sequence[str], gone: Sequence[str]) -> str:
        """A later user message that says how what can be done has changed."""
        text = self.following(observation)
        for title, actions in (("Admissible now too:", new), ("No longer admissible:", gone)):
            if actions:
                text += f"\n\n{title}\n" + "\n".join(f"- {a}" for a in actions)
        return text

    def ending(self, observation: str) -> str:
        """What the last action did, before the request for a skill."""
        return self.following(observation) if observation else ""

    def shorten(self, observation: str, action: str, lines: int) -> str:
        """What of a past observation an extraction needs, in about ``lines`` lines, where all do not
        fit; ``action`` answered it.  As it is where it cannot be shortened."""
        return observation

    def extraction(self, won: bool, observation: str = "", attempts: int = 1) -> str:
        """The user message that asks for a skill after one or several attempts at a task."""
        request = self.request.format(outcome=self.outcome(won))
        if attempts > 1:
            request = f"{self.contrast.format(attempts=attempts)}\n\n{request}"
        return f"{self.ending(observation)}\n\n{request}".strip()

    def another(
        self, won: bool, ended: str, task: Task, observation: str, actions: Sequence[str] = ()
    ) -> str:
        """The user message that closes an attempt and opens the next one at the same task."""
        parts = (
            self.ending(ended),
            self.again.format(outcome=self.outcome(won)),
            self.opening(task, observation, actions),
        )
        return "\n\n".join(filter(None, parts))

    def outcome(self, won: bool) -> str:
        """What became of a task."""
        return "completed" if won else "not completed"

    def answer(self, target: str, action: str, observation: str = "") -> str:
        """A turn as a teacher writes it: ``action`` after ``observation``; ``target`` names what it is for."""
        thought = self.thought.format(target=target)
        return f"<reasoning>{thought}</reasoning>\n<action>{action}</action>"

    def parse(self, text: str, observation: str = "") -> tuple[str, bool]:
        """(action, valid) of a turn that answers ``observation``."""
        return parse_tagged(text)


class ShortChatTexts(ChatTexts):
    """Short chats: no headings, no reasoning, and an answer of one line, the action."""

    contrast = "You saw {attempts} attempts, the last got furthest: compare them."
    again = "The task was {outcome}. Once more from its beginning:"

    def opening(self, task: Task, observation: str, actions: Sequence[str] = ()) -> str:
        """The first user message: the task, what is seen, what can be done."""
        return f"Task: {task.text.strip()}\n{self.following(observation, actions)}"

    def following(self, observation: str, actions: Sequence[str] = ()) -> str:
        """A later user message: what the action did, what can be done."""
        text = " ".join(observation.split())
        return f"{text}\nActions: {', '.join(actions)}" if actions else text

    def changed(self, observation: str, new: Sequence[str], gone: Sequence[str]) -> str:
        """A later user message that says how what can be done has changed."""
        text = self.following(observation)
        for title, actions in (("New", new), ("Gone", gone)):
            text += f"\n{title}: {', '.join(actions)}" if actions else ""
        return text

    def answer(self, target: str, action: str, observation: str = "") -> str:
        """A turn as a teacher writes it: the action."""
        return action

    def parse(self, text: str, observation: str = "") -> tuple[str, bool]:
        """(action, valid) of a turn that answers ``observation``."""
        return parse_line(text)


class PromptTexts(NamedTuple):
    """The texts of a benchmark in all forms; a short chat that it has not is None."""

    compact: CompactTexts
    chat: ChatTexts
    chat_short: ShortChatTexts | None = None


# Ends a request for a skill.
SKILL_FORM = """\
Answer in English with one JSON object and nothing else. Its fields:
- "name": a short title
- "description": what the skill does and when it helps, in one or two sentences
- "when_to_use": a list of situations
- "workflow": a list of steps in order, each an object with "goal", "action", \
"tools_or_strategy" and "completion_condition"
- "decision_rules": a list of rules for choosing between actions
- "error_handling": a list of objects with "error", "cause" and "response".
"""

_SKILL = """

Below is a skill that was written down after an earlier task. It may be incomplete or wrong: use \
what fits this task, and trust your own observations where they disagree with it.

"""
