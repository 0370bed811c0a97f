"""The skill bank in the report: its figures, and a card for each of the most useful skills."""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from typing import Any

from evolving_rl_jax.report.readers import Run
from evolving_rl_jax.skills.records import SkillRecord

MAX_CARDS = 300  # on a page; the bank itself keeps everything
_MAX_REASONS = 5


def cards(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The usable and retired skills, best first: by measured utility, then by reward and uses.

    Utility is the success rate with the skill minus without it; skills for which it was not measured
    come after those for which it was.  Identical skills share the card of the best of them.
    """
    records = [(run, r) for run in runs for r in run.bank if r.skill is not None]
    records.sort(key=lambda pair: _order(pair[1]))
    copies = collections.Counter(_content(r) for _, r in records)
    best: dict[str, tuple[Run, SkillRecord]] = {}
    for run, record in records:
        best.setdefault(_content(record), (run, record))
    chosen = list(best.items())[:MAX_CARDS]
    return [_card(run, record, copies[content]) for content, (run, record) in chosen]


def best_skills(records: Sequence[SkillRecord], num: int) -> list[SkillRecord]:
    """The ``num`` different usable skills of the highest measured utility, best first."""
    found: dict[str, SkillRecord] = {}
    for record in sorted(records, key=_order):
        if record.usable and record.skill is not None and record.utility is not None:
            found.setdefault(_content(record), record)
    return list(found.values())[:num]


def _order(record: SkillRecord) -> tuple:
    utility = record.utility
    missing = -2.0  # below any utility and any reward
    reward = missing if record.reward is None else record.reward
    usable = record.usable
    return (
        not usable,
        utility is None,
        0.0 if utility is None else -utility,
        -reward,
        -record.uses,
        record.id,
    )


def _content(record: SkillRecord) -> str:
    return json.dumps(record.skill, sort_keys=True, default=str)


def _card(run: Run, record: SkillRecord, copies: int) -> dict[str, Any]:
    audit = record.audit or {}
    return {
        "run": run.name,
        "id": record.id,
        "iteration": record.iteration,
        "skill": dict(record.skill or {}),
        "utility": record.utility,
        "interval": record.utility_interval,
        "steps_saved": record.mean_steps_saved,
        "reward": record.reward,
        "uses": record.uses,
        "wins": record.wins,
        "baseline_uses": record.baseline_uses,
        "baseline_wins": record.baseline_wins,
        "copies": copies,
        "usable": record.usable,
        "retired": record.retired,
        "reasons": [str(r) for r in audit.get("reasons") or ()]
        or [r for r in [record.reason] if r],
        "source": record.source_task_id,
        "source_hash": record.source_task_hash[:12],
        "policy_step": record.policy_step,
        "episode": record.episode_id,
    }


def figures(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run with a bank: how many extractions, how many usable, why others were refused."""
    rows = []
    for run in runs:
        if run.bank:
            reasons = collections.Counter(r.reason for r in run.bank if r.reason)
            rows.append(
                {
                    "run": run.name,
                    "extractions": len(run.bank),
                    "usable": sum(r.usable for r in run.bank),
                    "retired": sum(bool(r.retired) for r in run.bank),
                    "different": len({_content(r) for r in run.bank if r.usable}),
                    "measured": sum(r.utility is not None for r in run.bank),
                    "reasons": reasons.most_common(_MAX_REASONS),
                }
            )
    return rows
