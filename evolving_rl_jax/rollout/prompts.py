"""What the policy reads, as token ids, and how its text becomes an action or a skill.

Turns are appended as ids: the ids of earlier turns never change and sampled ids are never re-tokenised.
A style is one class; ``make_prompts`` selects it.
"""

from __future__ import annotations

import functools
import re

from evolving_rl_jax.rollout.actions import parse_compact
from evolving_rl_jax.skills.schema import Skill
from evolving_rl_jax.types import Task

# Markers of the compact form; each is one token of the trained tokenizer.
TASK, SKILL, OBS, ACT, EXTRACT = "<task>", "<skill>", "<obs>", "<act>", "<extract>"
COMPACT_MARKERS = (TASK, SKILL, OBS, ACT, EXTRACT)
COMPACT_SPECIAL_TOKENS = ("<pad>", "<eos>", *COMPACT_MARKERS)

_BANNER = re.compile(r"^-= Welcome to TextWorld, ALFRED! =-\s*|\s*Your task is to:[^\n]*$")


class CompactPrompts:
    """Short forms for small policies trained from scratch.

    A solver turn is the policy's own short reasoning and the action, ``mug> go to cabinet 3``: naming
    what it is after before it acts is what lets a small policy use a skill.  The extraction follows
    on the source episode's own tokens, so that its prefix is already in the cache.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        missing = [m for m in COMPACT_MARKERS if m not in tokenizer.special_ids]
        if missing:
            raise ValueError(f"rollout.style 'compact' must have the tokens {', '.join(missing)} in the tokenizer")
        self.ids = {m: tokenizer.special_ids[m] for m in COMPACT_MARKERS}
        self.stop_ids = (tokenizer.eos_id,)
        # Games repeat themselves: most observations have been met before.
        self._encode = functools.lru_cache(1 << 16)(lambda text: tuple(tokenizer.encode(text)))

    def _text(self, text: str) -> list[int]:
        """Ids of ``text`` on one line with a leading space, so that a word is the same token everywhere."""
        return list(self._encode(" " + " ".join(text.split())))

    def solver_prompt(self, task: Task, skill_text: str, observation: str) -> list[int]:
        """Ids that open an episode: the task, the skill if there is one, what is seen, the turn marker."""
        ids = [self.ids[TASK], *self._text(task.text)]
        if skill_text:
            ids += [self.ids[SKILL], *self._text(skill_text)]
        seen = _BANNER.sub("", observation.strip()).strip()
        if seen and not seen.startswith("You are in the middle of a room"):
            ids += [self.ids[OBS], *self._text(seen)]
        return [*ids, self.ids[ACT]]

    def next_turn(self, observation: str) -> list[int]:
        """Ids appended after an action: what it did, and the marker of the next turn."""
        return [*self.observation(observation), self.ids[ACT]]

    def observation(self, observation: str) -> list[int]:
        """Ids of an observation alone (after the last action of an episode)."""
        return [self.ids[OBS], *self._text(observation)]

    def extractor_prompt(self, won: bool) -> list[int]:
        """Ids appended to a finished source episode to ask for a skill."""
        outcome = "success" if won else "failure"
        return [self.ids[EXTRACT], *self._text(outcome), self.ids[SKILL]]

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


STYLES = {"compact": CompactPrompts}


def make_prompts(style: str, tokenizer):
    """The prompts of ``style``; raises ``ValueError`` for an unknown one."""
    if style not in STYLES:
        raise ValueError(f"rollout.style must be one of {', '.join(STYLES)}, got {style!r}")
    return STYLES[style](tokenizer)
