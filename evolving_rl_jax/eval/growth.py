"""What streams gave: success with the bank and without it, its growth, failures, leaks, and the table."""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any

import numpy as np

from evolving_rl_jax.eval import statistics, tables
from evolving_rl_jax.eval.games import site_labels
from evolving_rl_jax.eval.stream import WITH, WITHOUT, Side, StreamPlay
from evolving_rl_jax.types import SCORED

_BINS = 10  # points of the growth curve
_RELATED = 4  # earlier tasks of the same household from which on they are one point


def stream_result(plays: list[StreamPlay], seed: int = 0) -> dict[str, Any]:
    """Summary, growth curve, failures and every play, as JSON values.

    ``summary`` has success ``with`` and ``without`` the bank and their paired difference over all
    plays and over the later half of each stream; ``curve`` the same for tenths of the stream, by
    ``past``, the number of tasks before; ``by_related`` by the number of earlier tasks of the same
    household (or site).  Intervals draw together the tasks of one site, others with those that one skill was
    in the prompt of; with several streams, in each of which other skills grow, both are drawn crosswise.
    """
    length = max((play.position for play in plays), default=-1) + 1
    edges = np.unique(np.linspace(0, length, min(_BINS, length) + 1).astype(int)).tolist()
    later = [p for p in plays if 2 * p.position >= length]
    curve = []
    for low, high in zip(edges, edges[1:], strict=False):
        members = [p for p in plays if low <= p.position < high]
        curve.append({"past_from": low, "past_to": high - 1, **with_and_without(members, seed)})
    related = []
    for count in sorted({min(p.related, _RELATED) for p in plays}):
        members = [p for p in plays if min(p.related, _RELATED) == count]
        related.append(
            {"related": count, "or_more": count == _RELATED, **with_and_without(members, seed)}
        )
    return {
        "summary": {
            "all": with_and_without(plays, seed),
            "later_half": with_and_without(later, seed),
        },
        "curve": curve,
        "by_related": related,
        "failures": _failures(plays),
        "leaks": _leaks(plays),
        "plays": [_play_record(p) for p in plays],
    }


def with_and_without(plays: list[StreamPlay], seed: int = 0) -> dict[str, Any]:
    """Success with the bank on, with it off, and the paired difference; see `stream_result`."""

    def outcomes(side, of=operator.attrgetter("won")):
        sides = {(p.task.id, p.seed): getattr(p, side) for p in plays}
        return {k: of(s) if s.scored else None for k, s in sides.items()}

    with_bank, without = outcomes("with_bank"), outcomes("without")
    scores = [outcomes(side, operator.attrgetter("value")) for side in ("with_bank", "without")]
    skills = {(p.task.id, p.seed): _skill_of(p) for p in plays}
    sites = site_labels(p.task for p in plays)
    if len({p.seed for p in plays}) > 1:
        groups, crossed = sites, skills
    else:
        groups, crossed = {game: skill for (game, _), skill in skills.items()} | sites, None
    return {
        "with": statistics.success(with_bank, groups, seed, crossed=crossed),
        "without": statistics.success(without, sites, seed),
        "difference": statistics.paired(without, with_bank, groups, seed, crossed=crossed),
        # How far tasks were done; the same as success where steps are not scored one by one.
        "score": {
            "with": statistics.success(scores[0], groups, seed, crossed=crossed),
            "without": statistics.success(scores[1], sites, seed),
            "difference": statistics.paired(scores[1], scores[0], groups, seed, crossed=crossed),
        },
        "skill_in_prompt": sum(bool(p.skills) for p in plays) / max(len(plays), 1),
    }


def _skill_of(play: StreamPlay) -> Hashable:
    """What a play shares with others of its stream: the first skill in its prompt, or nothing."""
    return (play.seed, "skill", play.skills[0][0].id) if play.skills else (play.seed, play.task.id)


def _failures(plays: list[StreamPlay]) -> list[dict[str, Any]]:
    return [
        {"id": p.task.id, "seed": p.seed, "condition": side, "status": e.status, "error": e.error}
        for p in plays
        for side, e in ((WITH, p.with_bank), (WITHOUT, p.without))
        if e.status not in SCORED
    ]


def _leaks(plays: list[StreamPlay]) -> dict[str, Any]:
    """Skills may only come from earlier tasks of the stream, and never from the task itself."""
    positions = {(p.seed, p.task.id): p.position for p in plays}
    violations, identical = [], 0
    for play in plays:
        for record, _ in play.skills:
            earlier = positions.get((play.seed, record.source_task_id), play.position)
            same = record.source_task_hash == play.task.content_hash
            if earlier >= play.position or same:
                violations.append({"id": play.task.id, "skill": record.id})
            identical += record.source_text == play.task.text
    return {"violations": violations, "identical_texts": identical}


def _play_record(play: StreamPlay) -> dict[str, Any]:
    def outcome(side: Side) -> dict[str, Any]:
        found = {"won": side.won, "status": side.status, "steps": side.steps}
        return {**found, "score": side.value}

    return {
        "seed": play.seed,
        "position": play.position,
        "related": play.related,
        "id": play.task.id,
        "hash": play.task.content_hash,
        "split": play.task.split,
        "type": play.task.task_type,
        "skills": [
            {"id": r.id, "source": r.source_task_id, "similarity": s} for r, s in play.skills
        ],
        "with": {**outcome(play.with_bank), "skill": play.with_bank.skill_text},
        "without": outcome(play.without),
    }


def stream_table(result: dict[str, Any]) -> str:
    """The growth curve as plain text."""
    rows = [(f"after {r['past_from']}-{r['past_to']} tasks", r) for r in result["curve"]]
    rows += [
        (f"{r['related']}{'+' if r['or_more'] else ''} of the same group seen", r)
        for r in result["by_related"]
    ]
    rows += [("later half", result["summary"]["later_half"]), ("all", result["summary"]["all"])]
    heading = (
        f"success in % with the bank and without it [{tables.DRAWN}, crosswise with several "
        f"streams], {result['name']}, temperature {result['temperature']:g}"
    )
    cells = [
        (
            label,
            tables.share(row["with"], "none"),
            f"off {tables.share(row['without'], 'none')}",
            f"difference {tables.difference(row['difference'], '')}",
        )
        for label, row in rows
    ]
    lines = [heading, tables.align(cells)]
    scored = result["summary"]["all"]["score"]
    if scored["with"] != result["summary"]["all"]["with"]:
        lines.append(
            f"share of steps right in %: {tables.share(scored['with'], 'none')}, "
            f"off {tables.share(scored['without'], 'none')}, "
            f"difference {tables.difference(scored['difference'], '')}"
        )
    if result["failures"]:
        lines.append(f"excluded, {len(result['failures'])} plays that the infrastructure failed")
    return "\n".join(lines)
