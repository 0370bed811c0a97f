"""What attempts on a generated site revealed, and what a skill claims of it.

A fact is which of three choices a habit of the site makes right: "of the three buttons of this name, press the
one in this place".  Skills about generated sites are written in one fixed sentence for each; these functions
write and read them.  Text only, no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from evolving_rl_jax.envs.mind2web.site_kinds import VERBS
from evolving_rl_jax.envs.web.actions import clean, parse_action
from evolving_rl_jax.envs.web.observation import split_observation
from evolving_rl_jax.types import Episode, Task, Turn

_CLAIM = re.compile(rf"\b(?:{'|'.join(sorted(set(VERBS.values())))}) (\w+) (\w+)")
_LINE = re.compile(r'^(\w+) "(.*?)"(?: \((.*?)\))? \[ref=e(\d+)\]')


def fact_sentence(slot: str, choice: str) -> str:
    """``press checkout footer``, ``use find left``, ``write arrival month`` or ``set filter near``."""
    return f"{VERBS.get(slot, 'press')} {slot} {choice}"


def facts_text(facts: Mapping[str, str]) -> str:
    """All facts (slot -> choice) in one line."""
    return ", ".join(fact_sentence(slot, choice) for slot, choice in facts.items())


def skill_json(site: str, facts: Mapping[str, str]) -> str:
    """A skill as the extractor writes it; the name of the site says where it holds."""
    return json.dumps({"name": site, "description": facts_text(facts)})


def claims(text: str) -> dict[str, str]:
    """slot -> choice that a skill names, the last one where it names several."""
    return dict(_CLAIM.findall(text.lower()))


def habits(task: Task, *, wrong: bool = False) -> dict[str, str]:
    """slot -> the right choice on the site of ``task``, or a wrong one."""
    return {slot: choices[int(wrong)] for slot, choices in task.meta["habits"].items()}


def page_elements(observation: str) -> dict[int, tuple[str, str, str]]:
    """Number of the ref -> (role, label, context), of the elements that an observation shows."""
    found = map(_LINE.match, split_observation(observation)[2])
    return {int(m[4]): (m[1], m[2], m[3] or "") for m in found if m}


def choices_at(task: Task, step: int) -> dict[str, dict[str, str]]:
    """choice -> what it would do at a step of the solution (role, label, context, op, value); {} at no habit.

    Sites of before every kind of habit was there have places of buttons alone.
    """
    plan = task.meta["solution"][step]
    if "choices" in plan:
        return plan["choices"]
    places = task.meta["habits"].get(plan["slot"], ())
    return {place: {**plan, "context": place} for place in places}


def chosen(task: Task, step: int, turn: Turn) -> str:
    """Which choice a turn made at a step of the solution; "" for none of them."""
    action = parse_action(turn.action)
    element = page_elements(turn.observation).get(action.ref) if action else None
    for choice, plan in choices_at(task, step).items() if element else ():
        op = plan.get("op", "CLICK")
        same = element[1:] == (plan["label"], plan["context"]) and action.op == op
        if same and (op == "CLICK" or clean(action.value) == clean(plan["value"])):
            return choice
    return ""


def tried(
    task: Task, turns: Sequence[Turn], right: Sequence[bool]
) -> Iterator[tuple[str, str, bool]]:
    """(slot, choice, whether it was right) of what an episode chose, whose answered turns were ``right`` or not."""
    for i, (plan, turn, was) in enumerate(zip(task.meta["solution"], turns, right, strict=False)):
        choice = chosen(task, i, turn)
        if choice:
            yield plan["slot"], choice, was


def until_error(turns: Sequence[Turn], won: bool) -> list[bool]:
    """Which turns were right of an episode that ended because it was won, or at its first error."""
    return [won or i < len(turns) - 1 for i in range(len(turns))]


def revealed(
    task: Task, *attempts: tuple[Sequence[Turn], Sequence[bool]]
) -> tuple[dict[str, str], dict[str, set[str]]]:
    """What attempts at a task, each (turns, which of them were right), reveal together.

    Returns:
      slot -> the right choice, which was made and went on, or is left after all others were ruled out; and
      slot -> choices ruled out, where that does not decide it.
    """
    right: dict[str, str] = {}
    ruled_out: dict[str, set[str]] = {}
    for turns, rights in attempts:
        for slot, choice, went_on in tried(task, turns, rights):
            if went_on:
                right[slot] = choice
            else:
                ruled_out.setdefault(slot, set()).add(choice)
    for slot, gone in ruled_out.items():
        left = [c for c in task.meta["habits"][slot] if c not in gone]
        if len(left) == 1:
            right.setdefault(slot, left[0])
    order = [slot for slot in task.meta["habits"] if slot in right]
    undecided = {slot: gone for slot, gone in ruled_out.items() if slot not in right}
    return {slot: right[slot] for slot in order}, undecided


def _shown(attempts: Sequence[Episode]) -> dict[str, str]:
    return revealed(attempts[0].task, *((e.turns, [r > 0 for r in e.rewards]) for e in attempts))[0]


def share_seen(attempts: Sequence[Episode]) -> float | None:
    """Share of the facts of a task that attempts at it revealed; None where it states none."""
    task = attempts[0].task
    return len(_shown(attempts)) / len(task.meta["habits"]) if "habits" in task.meta else None


def share_stated(attempts: Sequence[Episode], skill_text: str) -> float:
    """Share of the facts of a task that attempts at it revealed and that a skill states rightly."""
    said = claims(skill_text)
    right = sum(said.get(slot) == choice for slot, choice in _shown(attempts).items())
    return right / len(attempts[0].task.meta["habits"])


def given_skill(task: Task, *, misleading: bool) -> str:
    """A skill (JSON text) that states all facts of the site of ``task``, or all of them wrongly."""
    return skill_json(task.group, habits(task, wrong=misleading))
