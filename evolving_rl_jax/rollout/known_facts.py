"""Facts that decide the next episode, where a task says what they are (generated games and sites do).

Households say where an object is kept (``rollout.facts``), web sites which of two buttons is the right
one (``rollout.web_facts``).
"""

from __future__ import annotations

from evolving_rl_jax.envs.alfworld import facts
from evolving_rl_jax.envs.mind2web import facts as web_facts
from evolving_rl_jax.rollout.evolve import observations
from evolving_rl_jax.types import Episode, Task


def given_skill(condition: str, task: Task, i: int) -> str:
    """The skill text of a condition that does not depend on the policy: none, oracle or misleading.

    Args:
      condition: which one.
      task: that states its facts, unless the condition is none.
      i: chooses one of several wrong places.
    """
    if condition == "none":
        return ""
    if "solution" in task.meta:
        return web_facts.given_skill(condition, task)
    obj, place = task.meta["object"], task.meta["place"]
    if condition == "oracle":
        return facts.fact_sentence(obj, place)
    wrong = sorted(p for p in task.meta["habits"].values() if p != place)
    return facts.fact_sentence(obj, wrong[i % len(wrong)])


def share_seen(episode: Episode) -> float | None:
    """Share of the facts of an episode's task that it revealed; None where the task states none."""
    task = episode.task
    if "solution" in task.meta:
        shown = web_facts.revealed(task, episode.turns, episode.won)
        return len(shown) / len(task.meta["habits"])
    if "place" in task.meta:
        return float(facts.fact_seen(task, observations(episode)))
    return None


def share_stated(episode: Episode, skill_text: str) -> float:
    """Share of the facts of an episode's task that it revealed and that a skill states rightly."""
    task = episode.task
    if "solution" in task.meta:
        shown = web_facts.revealed(task, episode.turns, episode.won)
        said = web_facts.claims(skill_text)
        right = sum(said.get(slot) == place for slot, place in shown.items())
        return right / len(task.meta["habits"])
    seen = facts.fact_seen(task, observations(episode))
    return float(seen and facts.fact_stated(task, skill_text))
