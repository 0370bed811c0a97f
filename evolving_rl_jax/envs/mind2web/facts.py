"""What an episode on a generated site revealed, and what a skill claims of it.

A fact is "of the two buttons of this name, press the one in this place".  Skills about generated sites
are written in one fixed sentence; these functions write and read it.  Text only, no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from evolving_rl_jax.envs.mind2web.actions import parse_action
from evolving_rl_jax.envs.mind2web.env import split_observation
from evolving_rl_jax.types import Episode, Task, Turn

_CLAIM = re.compile(r"\bpress (\w+) (\w+)")
_LINE = re.compile(r'^(\w+) "(.*?)"(?: \((.*?)\))? \[ref=e(\d+)\]')


def fact_sentence(slot: str, place: str) -> str:
    """``press search footer``."""
    return f"press {slot} {place}"


def facts_text(facts: Mapping[str, str]) -> str:
    """All facts (slot -> place) in one line."""
    return ", ".join(fact_sentence(slot, place) for slot, place in facts.items())


def skill_json(site: str, facts: Mapping[str, str]) -> str:
    """A skill as the extractor writes it; the name of the site says where it holds."""
    return json.dumps({"name": site, "description": facts_text(facts)})


def claims(text: str) -> dict[str, str]:
    """slot -> place that a skill names, the last one where it names several."""
    return dict(_CLAIM.findall(text.lower()))


def habits(task: Task, *, wrong: bool = False) -> dict[str, str]:
    """slot -> the right place on the site of ``task``, or the other one."""
    return {slot: places[int(wrong)] for slot, places in task.meta["habits"].items()}


def page_elements(observation: str) -> dict[int, tuple[str, str, str]]:
    """Number of the ref -> (role, label, context), of the elements that an observation shows."""
    found = map(_LINE.match, split_observation(observation)[2])
    return {int(m[4]): (m[1], m[2], m[3] or "") for m in found if m}


def revealed(task: Task, turns: Sequence[Turn], won: bool) -> dict[str, str]:
    """slot -> right place, as an episode that ends at its first error shows them.

    All actions but the last of a lost episode were right.  If that one pressed the right button in one
    of its two places, the other place is right.
    """
    facts: dict[str, str] = {}
    for i, (turn, step) in enumerate(zip(turns, task.meta["solution"], strict=False)):
        places = task.meta["habits"].get(step["slot"])
        action = parse_action(turn.action)
        element = page_elements(turn.observation).get(action.ref) if action else None
        if places is None or element is None or element[1] != step["label"]:
            continue
        right = won or i < len(turns) - 1
        if element[2] in places:
            facts[step["slot"]] = element[2] if right else _other(places, element[2])
    return facts


def _other(places: Sequence[str], place: str) -> str:
    return places[1] if place == places[0] else places[0]


def share_seen(episode: Episode) -> float | None:
    """Share of the facts of an episode's task that it revealed; None where the task states none."""
    task = episode.task
    if "habits" not in task.meta:
        return None
    return len(revealed(task, episode.turns, episode.won)) / len(task.meta["habits"])


def share_stated(episode: Episode, skill_text: str) -> float:
    """Share of the facts of an episode's task that it revealed and that a skill states rightly."""
    task, said = episode.task, claims(skill_text)
    shown = revealed(task, episode.turns, episode.won)
    right = sum(said.get(slot) == place for slot, place in shown.items())
    return right / len(task.meta["habits"])


def given_skill(task: Task, *, misleading: bool) -> str:
    """A skill (JSON text) that states all facts of the site of ``task``, or all of them wrongly."""
    return skill_json(task.group, habits(task, wrong=misleading))
