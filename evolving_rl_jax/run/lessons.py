"""What a warm start is given to learn from beside scripted players: conversations, or an earlier run's wins."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.rollout.conversations import read_conversations
from evolving_rl_jax.rollout.past_episodes import read_episodes
from evolving_rl_jax.run.console import user_errors
from evolving_rl_jax.types import Sample


class Lesson(NamedTuple):
    """One sequence to learn.

    Attributes:
      sample: its tokens, and which of them are taught.
      extraction: whether it teaches to extract or to solve.
      group: what it is held out with.
    """

    sample: Sample
    extraction: bool
    group: str


def given_lessons(config, prompts, say: Callable[[str], None] = lambda _: None) -> list[Lesson]:
    """The sequences of ``config.warmstart.path``.

    Args:
      config: of the run; its source is ``conversations`` or ``episodes``.
      prompts: of the policy.
      say: takes what a person should know of them.

    Raises:
      ConfigError: the file or folder cannot be used; says how much of it and why.
    """
    with user_errors((ValueError, OSError), "config.warmstart.path"):
        if config.warmstart.source == "conversations":
            return _conversations(config, prompts, say)
        return _episodes(config, prompts, say)


def _conversations(config, prompts, say) -> list[Lesson]:
    w = config.warmstart
    found = read_conversations(w.path, prompts.chat, config.train.row_length)
    if found.problems and not (w.skip_bad and found.samples):
        hint = "" if w.skip_bad else "; warmstart.skip_bad=True leaves them out"
        raise ConfigError(
            f"config.warmstart.path must hold conversations that can all be used, got {w.path!r} with "
            f"{found.explain()}{hint}"
        )
    if found.problems:
        say(f"warm start: left out {found.explain()}")
    say(f"warm start: {len(found.samples)} conversations")
    return [Lesson(s, False, str(n)) for s, n in zip(found.samples, found.lines, strict=True)]


def _episodes(config, prompts, say) -> list[Lesson]:
    w = config.warmstart
    found = read_episodes(w.path, prompts.tokenizer, w.min_reward)
    skills = sum(s.extraction for s in found.sequences)
    if not found.sequences:
        raise ConfigError(
            f"config.warmstart.path must hold episodes that were won, got {w.path!r} with none of "
            f"{found.episodes}, and no skill of {found.skills} that won {w.min_reward:g} of its own"
        )
    say(
        f"warm start: {len(found.sequences) - skills} sequences of {found.episodes} episodes (those won) "
        f"and {skills} of {found.skills} skills"
        + f", {found.unreadable} cut in a character left out"
        * bool(found.unreadable)
    )
    return [Lesson(s.sample, s.extraction, s.task) for s in found.sequences]
