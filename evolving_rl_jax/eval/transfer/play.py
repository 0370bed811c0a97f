"""Somebody else's policy on the fixed panel: without skills, with our bank, with another run's.

Skills are retrieved as at training time, by what their source tasks are about; skills that come from
a panel game, or from a copy of one, are left out.  Every finished game is kept in ``plays.jsonl``, so
the same command goes on where it was stopped; games that the infrastructure failed are played again.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evolving_rl_jax.eval import statistics, tables
from evolving_rl_jax.eval.games import site_labels
from evolving_rl_jax.eval.journal import Journal
from evolving_rl_jax.eval.results import versions
from evolving_rl_jax.files import write_json
from evolving_rl_jax.skills.bank import Bank, SkillRecord, write_bank
from evolving_rl_jax.skills.records import Outcome, belonging
from evolving_rl_jax.skills.retrieval import SkillRetriever
from evolving_rl_jax.types import SCORED, Episode, Task

NONE, OURS, OTHER = "none", "ours", "other"
_KEYS = {NONE: 0, OURS: 1, OTHER: 2}
PAIRS = ((NONE, OURS), (NONE, OTHER), (OTHER, OURS))


@dataclasses.dataclass
class BankInPlay:
    """A bank as the panel may use it.

    Attributes:
      retriever: over its usable skills that do not come from a panel game.
      records: those skills by id.
      left_out: ids of usable skills that do.
    """

    retriever: SkillRetriever
    records: dict[str, SkillRecord]
    left_out: list[str]


def bank_in_play(
    bank: Bank, panel: Sequence[Task], tasks: Sequence[Task], retriever: SkillRetriever
) -> BankInPlay:
    """Prepares a bank for a panel.

    Args:
      bank: of any run.
      panel: the games that will be played.
      tasks: where the sentence of a source is looked up when the record has none.
      retriever: an empty one.

    Raises:
      ValueError: no usable skill is left.
    """
    ids, hashes = {t.id for t in panel}, {t.content_hash for t in panel}
    sources = {(t.id, t.content_hash): t for t in tasks}
    records, left_out = {}, []
    for record in bank.records:
        if not record.usable:
            continue
        if record.source_task_id in ids or record.source_task_hash in hashes:
            left_out.append(record.id)
            continue
        key = record.source_task_id, record.source_task_hash
        if source := sources.get(key):
            text, meta = record.source_text or source.text, {**belonging(source), **record.meta}
            record = dataclasses.replace(record, source_text=text, meta=meta)
        records[record.id] = record
    if not records:
        raise ValueError(
            f"{bank.path} must hold usable skills from outside of the panel, got {len(bank)} "
            f"records, {len(left_out)} of them from panel games"
        )
    retriever.add(list(records.values()))
    return BankInPlay(retriever, records, left_out)


def play_transfer(
    make_driver: Callable[[int], Any],
    panel: Sequence[Task],
    banks: Mapping[str, BankInPlay],
    journal: Journal,
    *,
    seeds: Sequence[int],
    render: Callable[[list[SkillRecord]], str],
    top: int = 1,
    progress: Callable[[int], None] | None = None,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Plays whatever the journal does not hold yet, and writes it there.

    Args:
      make_driver: seed -> a driver with ``play`` and ``run``.
      panel: the games; order does not matter.
      banks: ``ours`` and perhaps ``other``.
      journal: of plays.
      seeds: every game is played once with each.
      render: skills -> their text in the prompt.
      top: skills in a prompt, at most.
      progress: called with the number of plays that the journal holds.
      after: called after every play that was written.
    """
    panel = sorted(panel, key=lambda t: t.id)
    kept = 0
    for seed in seeds:
        driver, pending = make_driver(seed), 0
        for condition in (NONE, *banks):
            for i, task in enumerate(panel):
                if journal.done(task, seed, condition):
                    kept += 1
                    continue
                found = banks[condition].retriever.retrieve(task, top) if condition in banks else []
                text = render([record for record, _ in found]) if found else ""
                done = _keeper(journal, task, seed, condition, found, after)
                driver.play(_KEYS[condition] * 1_000_000 + i, task, text, done)
                pending += 1
        if pending:
            before = kept
            report = (lambda n: progress(before + n)) if progress else None  # noqa: B023
            driver.run(report)
            kept += pending


def _keeper(journal: Journal, task: Task, seed: int, condition: str, found, after):
    def done(episode: Episode, _handle) -> None:
        journal.add(
            {
                "id": task.id,
                "hash": task.content_hash,
                "split": task.split,
                "type": task.task_type,
                "seed": seed,
                "condition": condition,
                "won": bool(episode.won),
                "score": episode.score,
                "status": episode.status,
                "error": episode.error,
                "steps": len(episode.turns),
                "skills": [
                    {"id": r.id, "source": r.source_task_id, "similarity": s} for r, s in found
                ],
                "skill": episode.skill_text,
            }
        )
        after()

    return done


# -- what came of it -------------------------------------------------------------------------------


def transfer_result(
    journal: Journal,
    panel: Sequence[Task],
    banks: Mapping[str, BankInPlay],
    *,
    seeds: Sequence[int],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Success by split and condition, paired differences, failures and leaks, as JSON values.

    Games of one site or family are resampled together, others with those that play with the same skill.
    ``missing`` counts games that have not been played yet.
    """
    conditions = (NONE, *banks)
    wanted = {(t.id, s, c) for t in panel for s in seeds for c in conditions}
    plays = [journal.plays[key] for key in sorted(wanted & journal.plays.keys())]
    outcomes: dict[tuple[str, str], dict] = {
        (split, c): {} for split in sorted({t.split for t in panel}) for c in conditions
    }
    scores: dict[tuple[str, str], dict] = {key: {} for key in outcomes}
    sites = site_labels(panel)
    groups: dict[str, dict[str, tuple]] = {c: dict(sites) for c in conditions}
    for p in plays:
        won = p["won"] if p["status"] in SCORED else None
        outcomes[p["split"], p["condition"]][p["id"], p["seed"]] = won
        score = _score(p) if p["status"] in SCORED else None
        scores[p["split"], p["condition"]][p["id"], p["seed"]] = score
        if p["skills"] and p["id"] not in sites:
            groups[p["condition"]][p["id"]] = ("skills", *(s["id"] for s in p["skills"]))
    rows = [
        {
            "split": split,
            "condition": condition,
            **(statistics.success(table, groups[condition], seeds[0]) or {"n": 0}),
            # How far games were done; as success where steps are not scored one by one.
            "score": statistics.success(scores[split, condition], groups[condition], seeds[0]),
        }
        for (split, condition), table in outcomes.items()
    ]
    return {
        "mode": "transfer",
        **facts,
        "seeds": list(seeds),
        "versions": versions(),
        "missing": len(wanted) - len(plays),
        "summary": rows,
        "paired": statistics.paired_rows(outcomes, groups, PAIRS, seeds[0]),
        "paired_scores": statistics.paired_rows(scores, groups, PAIRS, seeds[0]),
        "failures": [
            {key: p[key] for key in ("id", "seed", "condition", "status", "error")}
            for p in plays
            if p["status"] not in SCORED
        ],
        "leaks": {
            "left_out": {name: bank.left_out for name, bank in banks.items()},
            "violations": _violations(plays, panel, banks),
        },
        "plays": plays,
    }


def _score(play: Mapping[str, Any]) -> float:
    return play.get("score", float(play["won"]))


def _violations(plays, panel, banks) -> list[dict[str, str]]:
    """Skills in a prompt that came from a panel game: empty unless something is broken."""
    ids, hashes = {t.id for t in panel}, {t.content_hash for t in panel}
    found = []
    for play in plays:
        for skill in play["skills"]:
            record = banks[play["condition"]].records.get(skill["id"])
            leaked = record is None or record.source_task_hash in hashes or skill["source"] in ids
            found += [{"id": play["id"], "skill": skill["id"]}] if leaked else []
    return found


def measured_skills(journal: Journal, bank: BankInPlay) -> list[SkillRecord]:
    """Our skills that were used, with what they were worth to this policy."""
    outcomes: dict[str, list[Outcome]] = {}
    for (game, seed, condition), play in sorted(journal.plays.items()):
        base = journal.plays.get((game, seed, NONE))
        if condition != OURS or base is None:
            continue
        if play["status"] in SCORED and base["status"] in SCORED:
            gained = _score(play) - _score(base)
            pair = Outcome(play["won"], base["won"], play["steps"], base["steps"], gained)
            for skill in play["skills"]:
                outcomes.setdefault(skill["id"], []).append(pair)
    blank = {"uses": 0, "wins": 0.0, "baseline_uses": 0, "baseline_wins": 0.0, "gained": 0}
    blank |= {"lost": 0, "both_won": 0, "steps_saved": 0.0, "score_gained": 0.0}
    return [
        dataclasses.replace(bank.records[i], **blank).measured(found)
        for i, found in sorted(outcomes.items())
    ]


def write_transfer(out: pathlib.Path, result: Mapping[str, Any], skills: list[SkillRecord]) -> None:
    """Writes ``result.json`` and ``skills.jsonl`` (a bank) into the folder ``out``."""
    write_json(out / "result.json", result)
    write_bank(out / "skills.jsonl", skills)


def transfer_table(result: Mapping[str, Any]) -> str:
    """Success and paired differences as plain text."""
    lines = [f"success in % [{tables.DRAWN}] of {result['policy']}"]
    for row in result["summary"]:
        share = tables.share(row, "no game could be scored")
        lines.append(f"{row['split']:<16} {row['condition']:<6} {row['n']:>5} games  {share}")
    for row in result["paired"]:
        label = f"{row['condition']} against {row['baseline']}"
        lines.append(f"{row['split']:<16} {label:<20} {tables.points(row)}")
    if any(
        row.get("score") and row["score"]["success"] != row["success"] for row in result["summary"]
    ):
        lines.append("share of steps right in %")
        for row in result["summary"]:
            share = tables.share(row["score"] or {"n": 0}, "no game could be scored")
            lines.append(f"{row['split']:<16} {row['condition']:<6} {row['n']:>5} games  {share}")
        for row in result["paired_scores"]:
            label = f"{row['condition']} against {row['baseline']}"
            lines.append(f"{row['split']:<16} {label:<20} {tables.points(row)}")
    if result["failures"]:
        lines.append(f"excluded, {len(result['failures'])} plays without an outcome; the same "
                     "command plays them again")  # fmt: skip
    if result["missing"]:
        lines.append(f"not played yet: {result['missing']}; the same command goes on")
    for name, ids in result["leaks"]["left_out"].items():
        if ids:
            lines.append(
                f"leak report: {len(ids)} skills of {name!r} come from panel games, unused"
            )
    return "\n".join(lines)
