"""What a panel gave: success with intervals, paired comparisons, failures, leaks, and the file."""

from __future__ import annotations

import importlib.metadata
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from evolving_rl_jax import __version__
from evolving_rl_jax.data.shares import retrieved_shares
from evolving_rl_jax.data.tasks import copies_of
from evolving_rl_jax.eval import statistics, tables, web
from evolving_rl_jax.eval.games import PanelGame
from evolving_rl_jax.files import write_json
from evolving_rl_jax.skills.records import Outcome, SkillRecord
from evolving_rl_jax.types import SCORED, Task

# Distributions whose versions can change a number.
PACKAGES = (
    "jax", "jaxlib", "numpy", "scipy", "scikit-learn", "tokenizers", "alfworld",
    "textworld",
)  # fmt: skip
BASELINE = "none"


# -- figures ---------------------------------------------------------------------------------------


def summarise(games: list[PanelGame], conditions: tuple[str, ...], seed: int = 0) -> dict:
    """split -> condition -> success over plays (micro) and as the mean over task types (macro).

    Micro figures are ``n``, ``success``, ``low``, ``high``, ``interval`` (how it was made),
    ``excluded``; macro ones ``macro``, ``macro_low``, ``macro_high``; ``by_type`` has the micro
    figures of each task type.  ``score`` (``value``, ``low``, ``high``) is there where episodes are worth
    other things than 0 and 1 and no step has a score of its own: the mean of their rewards.  Intervals are 95 %; plays that share a skill or a game are resampled
    together, see `statistics.share`.
    """
    summary: dict = {}
    for split in sorted({g.task.split for g in games}):
        members = [g for g in games if g.task.split == split]
        summary[split] = {c: _condition(members, c, seed) for c in conditions}
    return summary


def _condition(games: list[PanelGame], condition: str, seed: int) -> dict[str, Any]:
    scored = [g for g in games if g.status(condition)[0] in SCORED]
    types = sorted({g.task.task_type for g in games})
    figures = {
        **_rate(scored, condition, seed),
        "excluded": len(games) - len(scored),
        **dict.fromkeys(("macro", "macro_low", "macro_high")),
        "by_type": {
            t: _rate([g for g in scored if g.task.task_type == t], condition, seed) for t in types
        },
    }
    if scored:
        figures["macro"], figures["macro_low"], figures["macro_high"], _ = statistics.share(
            [g.episodes[condition].won for g in scored],
            [g.drawn_with(condition) for g in scored],
            columns=[g.task.task_type for g in scored],
            seed=seed,
        )
    return figures | _graded(scored, condition, seed)


def _graded(games: list[PanelGame], condition: str, seed: int) -> dict[str, Any]:
    """The mean reward of plays where it says more than whether they were won, else nothing."""
    episodes = [g.episodes[condition] for g in games]
    if any("correct" in (info or {}) for e in episodes for info in e.infos):
        return {}
    if all(e.reward == float(e.won) for e in episodes):
        return {}
    groups = [g.drawn_with(condition) for g in games]
    found = statistics.bootstrap([e.reward for e in episodes], groups, seed=seed)
    value, low, high = map(float, found)
    # One group, or no spread between them, says nothing of how sure the mean is.
    if low == high:
        return {"score": {"value": value, "low": None, "high": None}}
    return {"score": {"value": value, "low": low, "high": high}}


def _rate(games: list[PanelGame], condition: str, seed: int) -> dict[str, Any]:
    plays = {(g.task.id, g.seed): bool(g.episodes[condition].won) for g in games}
    groups = {g.task.id: g.drawn_with(condition) for g in games}
    found = statistics.success(plays, groups, seed)
    if found is None:
        found = dict.fromkeys(("n", "success", "low", "high", "interval")) | {"n": 0}
    found.pop("excluded", None)
    return found


def paired_rows(result: Mapping[str, Any], seed: int = 0) -> list[dict[str, Any]]:
    """With and without skills on the same games: one row for each split and condition."""
    found = statistics.outcomes(result)
    pairs = [(BASELINE, c) for c in sorted({c for _, c in found} - {BASELINE})]
    groups = {c: statistics.drawn_together(c, result) for c in {c for _, c in found}}
    return statistics.paired_rows(found, groups, pairs, seed)


def failures(games: list[PanelGame]) -> list[dict[str, Any]]:
    """Every play that the infrastructure failed; none of them counts."""
    found = []
    for game in games:
        for condition in sorted(game.episodes):
            status, error = game.status(condition)
            if status not in SCORED:
                where = {"id": game.task.id, "seed": game.seed, "condition": condition}
                found.append({**where, "status": status, "error": error})
    return found


# -- leaks -----------------------------------------------------------------------------------------


def leak_report(
    games: list[PanelGame], pool: Sequence[Task], training: Sequence[Task] = ()
) -> dict[str, Any]:
    """What the panel could have learned of itself.

    Returns:
      ``pool`` and ``retrieved`` (tasks), ``excluded`` (tasks of the pool that are panel games, by
      id or by content; they are never retrieved), ``training_copies`` (the same of the training
      split; training leaves them out), ``identical_texts`` (games whose retrieved task has the
      same sentence, though it is another game), ``alike`` (see `data.shares.retrieved_shares`, each
      game once) and ``violations`` (panel games that were retrieved all the same: always empty
      unless something is broken).
    """
    panel = [g.task for g in games]
    retrieved = {g.source.id: g.source for g in games if g.source is not None}
    pairs = {g.task.id: (g.task, g.source) for g in games if g.source is not None}
    same_text = [task.text == source.text for task, source in pairs.values()]
    return {
        "pool": len(pool),
        "retrieved": len(retrieved),
        "excluded": copies_of(panel, pool),
        "training_copies": copies_of(panel, training),
        "identical_texts": sum(same_text),
        "alike": retrieved_shares(pairs.values()),
        "violations": copies_of(panel, [retrieved[i] for i in sorted(retrieved)]),
    }


# -- the skills that were measured -----------------------------------------------------------------


def skill_records(
    games: list[PanelGame], name: str, iteration: int, policy_step: int
) -> list[SkillRecord]:
    """The ``own`` skills of a panel as records, with the utility that the panel measured.

    A skill's pairs are the games that were played with it and, under the same seed, without.
    """
    records: dict[str, SkillRecord] = {}
    for game in games:
        if game.candidate is None:
            continue
        record_id = f"{name}-s{game.seed or 0}-{game.source.id}"
        record = records.get(record_id) or game.candidate.record(
            record_id, game.source, iteration=iteration, policy_step=policy_step
        )
        records[record_id] = record.measured(_outcomes(game, record))
    return list(records.values())


def _outcomes(game: PanelGame, record: SkillRecord) -> list[Outcome]:
    sides = [game.episodes.get("own"), game.episodes.get(BASELINE)]
    if not record.usable or not all(e is not None and e.scored for e in sides):
        return []
    ours, without = sides
    gained = ours.score - without.score
    return [Outcome(ours.won, without.won, len(ours.turns), len(without.turns), gained)]


# -- the file --------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Of Python and of the packages that can change a number; "not installed" where one is not."""
    found = {"python": platform.python_version(), "evolving-rl-jax": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_result(
    path: pathlib.Path,
    panel,
    games: list[PanelGame],
    *,
    name: str,
    iteration: int,
    temperature: float,
    seed: int,
    conditions: tuple[str, ...],
    figures: dict,
    data: Mapping[str, Any] | None = None,
    writes: bool = True,
    batching: Mapping[str, Any] | None = None,
    skills_from: Mapping[str, Any] | None = None,
) -> dict:
    """Writes ``eval/NAME.json`` atomically; docs/metrics.md describes every field.

    Args:
      path: of the file.
      panel: that was played.
      games: with their episodes, of all seeds.
      name, iteration: which policy.
      temperature: of sampling.
      seed: the first seed.
      conditions: that were played.
      figures: on the source episodes.
      data: further facts about the games, such as the hash of the whole data set.
      writes: whether this process does; the others of a run only return the result.
      batching: whether numbers depend on what shared a call, see `run.engine.evaluating`.
      skills_from: which policy wrote the skills, where it is not this one.
    """
    for game in games:
        game.seed = seed if game.seed is None else game.seed
    result = {
        "name": name,
        "iteration": iteration,
        "temperature": temperature,
        "seed": seed,
        "seeds": sorted({g.seed for g in games}) or [seed],
        "game_list_hash": panel.game_list_hash,
        "dataset": {
            "games": len(panel.tasks),
            "split_games": panel.split_games,
            **(data or {}),
        },
        "versions": versions(),
        **({"batching": dict(batching)} if batching else {}),
        **({"skills_from": dict(skills_from)} if skills_from else {}),
        "sources": figures,
        "summary": summarise(games, conditions, seed),
        "games": [_game_record(g) for g in games],
    }
    if panel.protocols:
        web.add_to(result, games, panel.protocols)
    result["paired"] = paired_rows(result, seed)
    result["failures"] = failures(games)
    result["leaks"] = panel.leaks(games)
    if writes:
        write_json(path, result)
    return result


def _game_record(game: PanelGame) -> dict:
    task = game.task
    record = {
        "id": task.id,
        "hash": task.content_hash,
        "split": task.split,
        "type": task.task_type,
        "group": task.group,
        **({"drawn": game.site} if game.site else {}),
        "seed": game.seed,
        "conditions": {},
    }
    if game.source is not None:
        record["retrieved"] = {
            "id": game.source.id,
            "hash": game.source.content_hash,
            "split": game.source.split,
            "similarity": game.similarity,
        }
    for condition, e in sorted(game.episodes.items()):
        record["conditions"][condition] = {
            "won": bool(e.won),
            "status": game.status(condition)[0],
            "steps": len(e.turns),
            # Texts of the password-protected archive are never written down.
            "skill": "" if task.meta.get("sealed") else e.skill_text,
        }
    return record


# -- the table -------------------------------------------------------------------------------------


def success_table(result: Mapping[str, Any]) -> str:
    """The summary of a result as plain text: one line for each split and condition."""
    lines = [
        f"success in % [{tables.DRAWN}], {result['name']}, temperature {result['temperature']:g}"
    ]
    differences = {(r["split"], r["condition"]): r for r in result.get("paired", ())}
    for split, conditions in result["summary"].items():
        for condition, r in conditions.items():
            macro = f"  macro {tables.percent(r['macro'])}" if r["n"] else ""
            score = f"  mean score {tables.score(r)}" if "score" in r else ""
            share = tables.share(r, "no game could be scored") + macro + score
            line = f"{split:<16} {condition:<12} {r['n']:>5} games  {share}"
            row = differences.get((split, condition))
            lines.append(line + (f"  against none {tables.points(row)}" if row else ""))
    lines += _notes(result)
    if "web" in result:
        lines.append(web.web_table(result))
    return "\n".join(lines)


def batching_note(batching: Mapping[str, Any]) -> str:
    """One line on what the numbers of an evaluation depend on, see `run.engine.evaluating`."""
    rows, dtype = batching["independent_rows"], batching["dtype"]
    if rows:
        return f"independent of slots and batch size: every call had {rows} rows, {dtype}"
    if dtype == "float32":
        return "played in float32: slots and batch size change rounding only"
    return (
        f"played in {dtype}: other slots, batch sizes or orders draw other tokens; "
        "eval.independent_rows makes them the same"
    )


def _notes(result: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know: several seeds, failures, leaks."""
    seeds, failed, leaks = result["seeds"], result["failures"], result["leaks"]
    notes = [f"seeds {', '.join(map(str, seeds))}; a game's seeds count as one for the intervals"]
    notes = notes if len(seeds) > 1 else []
    if "batching" in result:
        notes.append(batching_note(result["batching"]))
    if failed:
        shown = "; ".join(f"{f['id']} ({f['condition']}): {f['status']}" for f in failed[:3])
        notes.append(f"excluded, {len(failed)} plays that the infrastructure failed: {shown}")
    for key, text in (
        ("excluded", "tasks of the source pool are panel games and were never retrieved"),
        (
            "training_copies",
            "training tasks are copies of panel games and are left out of training",
        ),
        ("violations", "PANEL GAMES WERE RETRIEVED; the result must not be used"),
    ):
        if leaks[key]:
            notes.append(f"leak report: {len(leaks[key])} {text}, {leaks[key][0]['id']} first")
    return notes
