"""What the policy reads, as token ids, and how its text becomes an action or a skill.

Turns are appended as ids: the ids of earlier turns never change and sampled ids are never
re-tokenised.  A style is one class; ``make_prompts`` selects it and gives it the texts of a benchmark
(``envs.texts``).  ``actions`` are the admissible ones, which a style may show; ``last_id`` is the last
id of the sequence that a turn is appended to.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from evolving_rl_jax.envs.texts import ChatTexts, CompactTexts, PromptTexts
from evolving_rl_jax.rollout.chat import ChatFormat
from evolving_rl_jax.skills.schema import Skill, render_skill
from evolving_rl_jax.types import Task

# Markers of the compact form; each is one token of the trained tokenizer.
TASK, SKILL, OBS, ACT, EXTRACT = "<task>", "<skill>", "<obs>", "<act>", "<extract>"
COMPACT_MARKERS = (TASK, SKILL, OBS, ACT, EXTRACT)
COMPACT_SPECIAL_TOKENS = ("<pad>", "<eos>", *COMPACT_MARKERS)


class CompactPrompts:
    """Short forms for small policies trained from scratch.

    The extraction follows on the source episode's own tokens, so that its prefix is already in the
    cache.

    Args:
      tokenizer: with one token for each marker.
      texts: of the benchmark.

    Raises:
      ValueError: a marker is missing.
    """

    def __init__(self, tokenizer, texts: CompactTexts):
        self.tokenizer, self.texts = tokenizer, texts
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

    def _seen(self, texts: Iterable[str]) -> list[int]:
        return [i for text in texts for i in (self.ids[OBS], *self._text(text))]

    def solver_prompt(
        self, task: Task, skill_text: str, observation: str, actions: Sequence[str] = ()
    ) -> list[int]:
        """Ids that open an episode: the task, the skill if there is one, what is seen, the marker
        of the first turn."""
        ids = [self.ids[TASK], *self._text(self.texts.plain(task.text))]
        if skill_text:
            ids += [self.ids[SKILL], *self._text(self.texts.plain(skill_text))]
        return [*ids, *self._seen(self.texts.opening(observation)), self.ids[ACT]]

    def next_turn(
        self,
        observation: str,
        actions: Sequence[str] = (),
        *,
        before: Sequence[str] = (),
        last_id: int | None = None,
    ) -> list[int]:
        """Ids appended after an action: what it did, and the marker of the next turn."""
        return [*self._seen(self.texts.following(observation)), self.ids[ACT]]

    def extractor_prompt(
        self, won: bool, observation: str = "", *, last_id: int | None = None, attempts: int = 1
    ) -> list[int]:
        """Ids appended to a finished source episode to ask for a skill: what its last action did,
        the outcome, the marker of a skill.  They are the same after several attempts."""
        return [*self._ended(won, observation), self.ids[SKILL]]

    def next_attempt(
        self,
        won: bool,
        ended: str,
        task: Task,
        observation: str,
        actions: Sequence[str] = (),
        *,
        last_id: int | None = None,
    ) -> list[int]:
        """Ids appended to a finished source episode to show another attempt at its task.

        Args:
          won: whether the attempt that ends here was won.
          ended: what its last action did.
          task: of both.
          observation: what the next one read first.
          actions: that were admissible then.
          last_id: of the sequence so far.
        """
        return [*self._ended(won, ended), *self.solver_prompt(task, "", observation, actions)]

    def _ended(self, won: bool, observation: str) -> list[int]:
        outcome = "success" if won else "failure"
        seen = self._seen(self.texts.ending(observation))
        return [*seen, self.ids[EXTRACT], *self._text(outcome)]

    def action_ids(self, target: str, action: str, observation: str = "") -> list[int]:
        """A solver turn as a teacher writes it (warm start), stop token included."""
        return [*self._text(self.texts.answer(target, action, observation)), self.tokenizer.eos_id]

    def skill_ids(self, skill_json: str) -> list[int]:
        """An extraction as a teacher writes it (warm start), stop token included."""
        return [*self._text(skill_json), self.tokenizer.eos_id]

    def parse_action(self, text: str, observation: str = "") -> tuple[str, bool]:
        """(action, valid) of a solver turn that answers ``observation``."""
        return self.texts.parse(text, observation)

    def render_skill(self, skill: Skill) -> str:
        """The skill as the solver reads it: what it says, without its title."""
        return self.texts.plain(" ".join([skill.description, *skill.decision_rules]).strip())


class ChatPrompts:
    """Long forms for language models, written with the tokenizer's own chat template.

    The system message holds the rules and then the skill, before anything about the task, so that
    episodes with one skill share a prefix.  Observations with their admissible actions are user
    turns, answers are assistant turns, and the extraction is one more user turn on the source
    episode's own tokens.

    Args:
      tokenizer: with a chat template.
      texts: of the benchmark.
      show_actions: at which turns admissible actions are listed, ``config.rollout.show_actions``.

    Raises:
      ValueError: the template cannot be used, see `ChatFormat`.
    """

    def __init__(self, tokenizer, texts: ChatTexts, show_actions: str = "all"):
        self.tokenizer, self.texts, self.show_actions = tokenizer, texts, show_actions
        self.chat = ChatFormat(tokenizer)
        self.chat.check()
        self.stop_ids = tuple(dict.fromkeys((self.chat.end_id, *tokenizer.stop_ids)))
        # Qwen3 would reason twice, and its own reasoning does not stay in later turns.
        self._switch = "\n\n/no_think" if "enable_thinking" in tokenizer.chat_template else ""

    def solver_prompt(
        self, task: Task, skill_text: str, observation: str, actions: Sequence[str] = ()
    ) -> list[int]:
        """Ids that open an episode: rules, the skill if there is one, the task, what is seen."""
        system = self.texts.system(skill_text, self._switch, self.show_actions)
        shown = () if self.show_actions == "none" else actions
        return self.chat.opening(system, self.texts.opening(task, observation, shown))

    def next_turn(
        self,
        observation: str,
        actions: Sequence[str] = (),
        *,
        before: Sequence[str] = (),
        last_id: int | None = None,
    ) -> list[int]:
        """Ids appended after an action: the end of its turn if it has none, what it did.

        Args:
          observation: what the action did.
          actions: that are admissible now.
          before: those of the turn before.
          last_id: of the sequence so far.
        """
        return self.chat.next_turn(self._following(observation, actions, before), last_id)

    def _following(self, observation: str, actions: Sequence[str], before: Sequence[str]) -> str:
        return following(self.texts, self.show_actions, observation, actions, before)

    def extractor_prompt(
        self, won: bool, observation: str = "", *, last_id: int | None = None, attempts: int = 1
    ) -> list[int]:
        """Ids appended to a finished source episode: what its last action did, the request for a
        skill, of as many ``attempts`` as were shown."""
        return self.chat.next_turn(self.texts.extraction(won, observation, attempts), last_id)

    def next_attempt(
        self,
        won: bool,
        ended: str,
        task: Task,
        observation: str,
        actions: Sequence[str] = (),
        *,
        last_id: int | None = None,
    ) -> list[int]:
        """Ids appended to a finished source episode to show another attempt, as `CompactPrompts` has it."""
        shown = () if self.show_actions == "none" else actions
        text = self.texts.another(won, ended, task, observation, shown)
        return self.chat.next_turn(text, last_id)

    def action_ids(self, target: str, action: str, observation: str = "") -> list[int]:
        """A solver turn as a teacher writes it, stop token included."""
        return self.chat.answer(self.texts.answer(target, action, observation))

    def skill_ids(self, skill_json: str) -> list[int]:
        """An extraction as a teacher writes it, stop token included."""
        return self.chat.answer(skill_json)

    def parse_action(self, text: str, observation: str = "") -> tuple[str, bool]:
        """(action, valid) of a solver turn that answers ``observation``."""
        return self.texts.parse(text, observation)

    def render_skill(self, skill: Skill) -> str:
        """The skill as the solver reads it: all of it, in sections."""
        return render_skill(skill, "markdown")


class ShortChatPrompts(ChatPrompts):
    """Short chats of the same form: an answer is one line, and a skill is shown by what it says."""

    def render_skill(self, skill: Skill) -> str:
        """The skill as the solver reads it: what it says, without its title."""
        return "\n".join([skill.description, *skill.decision_rules]).strip()


STYLES = {"compact": CompactPrompts, "chat": ChatPrompts, "chat_short": ShortChatPrompts}


def following(
    texts: ChatTexts,
    show_actions: str,
    observation: str,
    actions: Sequence[str],
    before: Sequence[str],
) -> str:
    """A later user message of a chat, with what ``config.rollout.show_actions`` lists of the admissible
    actions; ``before`` are those of the turn before."""
    if show_actions == "changed":
        new = [a for a in actions if a not in before]
        gone = [a for a in before if a not in actions]
        return texts.changed(observation, new, gone)
    return texts.following(observation, actions if show_actions == "all" else ())


def make_prompts(style: str, tokenizer, texts: PromptTexts, show_actions: str = "all"):
    """The prompts of ``style`` with the texts of a benchmark.

    Args:
      style: ``config.rollout.style``.
      tokenizer: of the policy.
      texts: of the benchmark.
      show_actions: ``config.rollout.show_actions``; the compact form never lists actions.

    Raises:
      ValueError: an unknown style, one that the benchmark has no texts for, or a tokenizer that cannot
        be used for it.
    """
    if style not in STYLES:
        raise ValueError(f"rollout.style must be one of {', '.join(STYLES)}, got {style!r}")
    of_style = getattr(texts, style)
    if of_style is None:
        raise ValueError(
            f"rollout.style must be one that the benchmark has texts for, got {style!r}"
        )
    if style == "compact":
        return CompactPrompts(tokenizer, of_style)
    return STYLES[style](tokenizer, of_style, show_actions)
