"""Facts that decide the next episode, where a task says what they are (generated ones do)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evolving_rl_jax.envs import benchmark
from evolving_rl_jax.skills.schema import parse_skill
from evolving_rl_jax.types import Episode, Task


def given_skill(condition: str, task: Task, i: int, prompts) -> str:
    """The skill of a condition that does not depend on the policy, as ``prompts`` shows skills.

    Args:
      condition: none, oracle or misleading.
      task: that states its facts, unless the condition is none.
      i: chooses one of several wrong skills.
      prompts: the policy's style.
    """
    if condition == "none":
        return ""
    text = benchmark(task.env).given_skill(task, i, misleading=condition == "misleading")
    skill, reason = parse_skill(text)
    if skill is None:
        raise ValueError(f"a given skill must be one that can be read, got {text!r}: {reason}")
    return prompts.render_skill(skill)


def share_seen(*attempts: Episode) -> float | None:
    """Share of the facts of a task that attempts at it revealed; None where the task states none."""
    return benchmark(attempts[0].task.env).share_seen_by(attempts)


def share_stated(episode: Episode, skill_text: str, *others: Episode) -> float:
    """Share of the facts, of a task that states any, that an episode (with other attempts at its task)
    revealed and a skill states rightly."""
    return benchmark(episode.task.env).share_stated_by([episode, *others], skill_text)


def judge_skill(episode: Episode, skill_text: str, played: Sequence[Task]) -> Mapping[str, float]:
    """What a skill states and whether it is so, where the tasks say; see ``Benchmark.judge_skill``."""
    return benchmark(episode.task.env).judge_skill(episode, skill_text, played)
