"""What the policy reads, as token ids, and how its text becomes an action or a skill.

Turns are appended as ids: the ids of earlier turns never change and sampled ids are never
re-tokenised.  A style is one class; ``make_prompts`` selects it.  ``actions`` are the admissible
ones, which a style may show; ``last_id`` is the last id of the sequence that a turn is appended to.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from evolving_rl_jax.rollout.actions import parse_compact, parse_tagged
from evolving_rl_jax.rollout.chat import ChatFormat
from evolving_rl_jax.skills.schema import Skill, render_skill
from evolving_rl_jax.types import Task

# Markers of the compact form; each is one token of the trained tokenizer.
TASK, SKILL, OBS, ACT, EXTRACT = "<task>", "<skill>", "<obs>", "<act>", "<extract>"
COMPACT_MARKERS = (TASK, SKILL, OBS, ACT, EXTRACT)
COMPACT_SPECIAL_TOKENS = ("<pad>", "<eos>", *COMPACT_MARKERS)

_BANNER = re.compile(r"^-= Welcome to TextWorld, ALFRED! =-\s*|\s*Your task is to:[^\n]*$")


class CompactPrompts:
    """Short forms for small policies trained from scratch.

    A solver turn is the policy's own short reasoning and the action, ``mug> go to cabinet 3``:
    naming what it is after before it acts is what lets a small policy use a skill.  The extraction
    follows on the source episode's own tokens, so that its prefix is already in the cache.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        missing = [m for m in COMPACT_MARKERS if m not in tokenizer.special_ids]
        if missing:
            names = ", ".join(missing)
            raise ValueError(f"rollout.style 'compact' needs the tokens {names} in the tokenizer")
        self.ids = {m: tokenizer.special_ids[m] for m in COMPACT_MARKERS}
        self.stop_ids = (tokenizer.eos_id,)
        # Games repeat themselves: most observations have been met before.
        self._encode = functools.lru_cache(1 << 16)(lambda text: tuple(tokenizer.encode(text)))

    def _text(self, text: str) -> list[int]:
        """Ids of ``text`` on one line with a leading space: a word is the same token everywhere."""
        return list(self._encode(" " + " ".join(text.split())))

    def solver_prompt(
        self, task: Task, skill_text: str, observation: str, actions: Sequence[str] = ()
    ) -> list[int]:
        """Ids that open an episode: the task, the skill if there is one, what is seen, the marker
        of the first turn."""
        ids = [self.ids[TASK], *self._text(task.text)]
        if skill_text:
            ids += [self.ids[SKILL], *self._text(skill_text)]
        seen = _without_banner(observation)
        if seen and not seen.startswith("You are in the middle of a room"):
            ids += [self.ids[OBS], *self._text(seen)]
        return [*ids, self.ids[ACT]]

    def next_turn(
        self, observation: str, actions: Sequence[str] = (), *, last_id: int | None = None
    ) -> list[int]:
        """Ids appended after an action: what it did, and the marker of the next turn."""
        return [self.ids[OBS], *self._text(observation), self.ids[ACT]]

    def extractor_prompt(
        self, won: bool, observation: str = "", *, last_id: int | None = None
    ) -> list[int]:
        """Ids appended to a finished source episode to ask for a skill: what its last action did,
        the outcome, the marker of a skill."""
        seen = [self.ids[OBS], *self._text(observation)] if observation else []
        outcome = "success" if won else "failure"
        return [*seen, self.ids[EXTRACT], *self._text(outcome), self.ids[SKILL]]

    def action_ids(self, target: str, action: str) -> list[int]:
        """A solver turn as a teacher writes it (warm start), stop token included."""
        return [*self._text(f"{target}> {action}"), self.tokenizer.eos_id]

    def skill_ids(self, skill_json: str) -> list[int]:
        """An extraction as a teacher writes it (warm start), stop token included."""
        return [*self._text(skill_json), self.tokenizer.eos_id]

    def parse_action(self, text: str) -> tuple[str, bool]:
        """(action, valid) of a solver turn."""
        _, action, valid = parse_compact(text)
        return action, valid

    def render_skill(self, skill: Skill) -> str:
        """The skill as the solver reads it: what it says, without its title."""
        return " ".join([skill.description, *skill.decision_rules]).strip()


_SOLVER = """\
You are an agent that completes a household task in a text game. You read one observation at a \
time and answer with exactly one action.

Every answer has two parts:
<reasoning>what you know, what is still missing, and why the next action helps</reasoning>
<action>one of the admissible actions of the latest observation, copied word for word</action>

Keep in mind what you have already seen, look in new places until you have found what the task \
needs, and do not repeat an action that changed nothing."""

_SKILL = """

Below is a skill that was written down after an earlier task. It may be incomplete or wrong: use \
what fits this task, and trust your own observations where they disagree with it.

"""

_EXTRACTOR = """\
The episode is over: the task was {outcome}.

Write one skill that will help with similar tasks in the future. State what this episode taught \
that holds beyond it: where kinds of things are found, which steps worked in which order, what \
failed and why.

Answer in English with one JSON object and nothing else. Its fields:
- "name": a short title
- "description": what the skill does and when it helps, in one or two sentences
- "when_to_use": a list of situations
- "workflow": a list of steps in order, each an object with "goal", "action", \
"tools_or_strategy" and "completion_condition"
- "decision_rules": a list of rules for choosing between actions
- "error_handling": a list of objects with "error", "cause" and "response".
"""


class ChatPrompts:
    """Long forms for language models, written with the tokenizer's own chat template.

    The system message holds the rules and then the skill, before anything about the task, so that
    episodes with one skill share a prefix.  Observations with their admissible actions are user
    turns, answers are assistant turns, and the extraction is one more user turn on the source
    episode's own tokens.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.chat = ChatFormat(tokenizer)
        self.chat.check()
        self.stop_ids = tuple(dict.fromkeys((self.chat.end_id, *tokenizer.stop_ids)))
        # Qwen3 would reason twice, and its own reasoning does not stay in later turns.
        switch = "enable_thinking" in tokenizer.chat_template
        self._system = _SOLVER + ("\n\n/no_think" if switch else "")

    def solver_prompt(
        self, task: Task, skill_text: str, observation: str, actions: Sequence[str] = ()
    ) -> list[int]:
        """Ids that open an episode: rules, the skill if there is one, the task, what is seen."""
        user = opening_text(task, observation, actions)
        return self.chat.opening(self._system + skill_section(skill_text), user)

    def next_turn(
        self, observation: str, actions: Sequence[str] = (), *, last_id: int | None = None
    ) -> list[int]:
        """Ids appended after an action: the end of its turn if it has none, what it did."""
        return self.chat.next_turn(observation_text(observation, actions), last_id)

    def extractor_prompt(
        self, won: bool, observation: str = "", *, last_id: int | None = None
    ) -> list[int]:
        """Ids appended to a finished source episode: what its last action did, the request for a
        skill."""
        seen = observation_text(observation) + "\n\n" if observation else ""
        request = _EXTRACTOR.format(outcome="completed" if won else "not completed")
        return self.chat.next_turn(seen + request, last_id)

    def action_ids(self, target: str, action: str) -> list[int]:
        """A solver turn as a teacher writes it, stop token included."""
        reasoning = f"<reasoning>The next thing I need is the {target}.</reasoning>"
        return self.chat.answer(f"{reasoning}\n<action>{action}</action>")

    def skill_ids(self, skill_json: str) -> list[int]:
        """An extraction as a teacher writes it, stop token included."""
        return self.chat.answer(skill_json)

    def parse_action(self, text: str) -> tuple[str, bool]:
        """(action, valid) of a solver turn."""
        return parse_tagged(text)

    def render_skill(self, skill: Skill) -> str:
        """The skill as the solver reads it: all of it, in sections."""
        return render_skill(skill, "markdown")


def system_text(skill_text: str = "") -> str:
    """The system message of a chat solver: the rules, and the skill if there is one."""
    return _SOLVER + skill_section(skill_text)


def skill_section(skill_text: str) -> str:
    """How a skill is introduced in the system message; empty without one."""
    return _SKILL + skill_text if skill_text else ""


def opening_text(task: Task, observation: str, actions: Sequence[str] = ()) -> str:
    """The first user message of a chat solver."""
    seen = observation_text(_without_banner(observation), actions)
    return f"Task: {task.text.strip()}\n\n{seen}"


def _without_banner(observation: str) -> str:
    """The first observation of a game without the greeting and the task that it repeats."""
    return _BANNER.sub("", observation.strip()).strip()


def observation_text(observation: str, actions: Sequence[str] = ()) -> str:
    """A user message of a chat solver: what is seen, and what can be done."""
    text = f"Observation:\n{observation.strip()}"
    if actions:
        text += "\n\nAdmissible actions:\n" + "\n".join(f"- {a}" for a in actions)
    return text


STYLES = {"compact": CompactPrompts, "chat": ChatPrompts}


def make_prompts(style: str, tokenizer):
    """The prompts of ``style``; raises ``ValueError`` for an unknown one."""
    if style not in STYLES:
        raise ValueError(f"rollout.style must be one of {', '.join(STYLES)}, got {style!r}")
    return STYLES[style](tokenizer)
