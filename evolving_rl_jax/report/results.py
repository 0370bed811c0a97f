"""Success in the report: before and after, by arm, by task type, and who leaked."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from evolving_rl_jax.eval import statistics
from evolving_rl_jax.eval.compare import before_after
from evolving_rl_jax.eval.tables import score as shown_score
from evolving_rl_jax.eval.web import web_comparison
from evolving_rl_jax.report.readers import Group, Run
from evolving_rl_jax.types import SCORED

BEFORE, AFTER = "warmstart", "final"  # the two policies of the table
SPLITS = {
    "valid_unseen": "unseen households",
    "valid_seen": "seen households",
    "heldout_types": "held-out task types",
    "test_task": "new tasks on known sites",
    "test_website": "unseen sites",
    "test_domain": "unseen domains",
    "train": "training tasks",
}
CONDITIONS = {
    "none": "no skill",
    "own": "own skill",
    "oracle": "oracle skill",
    "misleading": "misleading skill",
}
MAIN_CONDITIONS = ("none", "own")  # those that the arms are compared in


def comparisons(run: Run, notices: list[str]) -> list[dict[str, Any]]:
    """Before against after, one entry for each temperature, the training temperature 1 first."""
    ends = [p for p in run.panels if p["name"] in (BEFORE, AFTER)]
    if not ends:
        notices.append("eval/ has no result of the warm start or of the trained policy yet.")
    found = []
    for temperature in temperatures([run]):
        before, after = run.panel(BEFORE, temperature), run.panel(AFTER, temperature)
        for name, result in (("warm start", before), ("trained policy", after)):
            if result is None:
                notices.append(f"The {name} has no evaluation at temperature {temperature:g}.")
        if len({r.get("game_list_hash") for r in (before, after) if r}) > 1:
            notices.append(
                f"At temperature {temperature:g} the two policies played different lists of games; "
                "the difference is over the games that both played."
            )
        notices += _graded(temperature, (("warm start", before), ("trained policy", after)))
        rows = sorted(before_after(before, after), key=lambda r: _split_order(r["split"]))
        results = [r for r in (before, after) if r]
        web = web_comparison(before, after)
        found.append({"temperature": temperature, "rows": rows, "results": results, "web": web})
    return found


def _graded(temperature: float, sides: Sequence[tuple[str, dict | None]]) -> list[str]:
    """What the plays were worth where they are graded, a line for each policy."""
    found = []
    for name, result in sides:
        said = [
            f"{split}, {CONDITIONS.get(condition, condition)}: {shown_score(row)}"
            for split, conditions in (result or {}).get("summary", {}).items()
            for condition, row in conditions.items()
            if row.get("score")
        ]
        if said:
            found.append(f"Mean score at temperature {temperature:g}, {name}: {'; '.join(said)}.")
    return found


def headlines(compared: Sequence[dict]) -> list[dict[str, Any]]:
    """The gain of each split at the first temperature, with own skills where there are any."""
    if not compared:
        return []
    rows = [row for row in compared[0]["rows"] if row["difference"]]
    own = [row for row in rows if row["condition"] == "own"]
    chosen = own or [row for row in rows if row["condition"] == "none"]
    return [{**row, "temperature": compared[0]["temperature"]} for row in chosen]


def temperatures(runs: Sequence[Run]) -> list[float]:
    """Those of the two ends, the training temperature 1 first, then from high to low."""
    known = {p["temperature"] for r in runs for p in r.panels if p["name"] in (BEFORE, AFTER)}
    return sorted(known, key=lambda t: (t != 1.0, -t))


# --- several groups ----------------------------------------------------------------------------


def arms_tables(
    groups: Sequence[Group], notices: list[str], base: Group | None = None
) -> list[dict[str, Any]]:
    """Success of every group after training, one table for each temperature.

    Args:
      groups: of runs.
      notices: gets what a reader should know.
      base: what the others are compared with; None = the arm ``joint``, else the first.

    Returns:
      dicts with ``temperature``, ``columns`` [(split, condition)], ``rows`` (``label``, ``seeds`` and a
      cell of `success` or None for each column) and ``differences``: rows against the group ``base``,
      whose cells are those of `difference`.
    """
    tables = []
    for temperature in temperatures([run for g in groups for run in g.runs]):
        policies = [(g.label, len(g.runs), _panels(g.runs, AFTER, temperature)) for g in groups]
        first = groups[0]
        start = _panels(first.runs, BEFORE, temperature)
        policies.insert(0, (f"warm start of {first.label}", len(first.runs), start))
        notices += [
            f"{g.label}: runs of one seed count as different ones ({', '.join(r.name for r in g.runs)})."
            for g in groups
            if len(set(g.seeds)) < len(g.seeds)
        ]
        hashes = {p.get("game_list_hash") for _, _, panels in policies for p in panels}
        if len(hashes) > 1:
            notices.append(
                f"At temperature {temperature:g} not all runs played the same list of games: success is "
                "that of each run on its own games, differences are over the games that both sides played."
            )
        columns = _columns([p for _, _, panels in policies for p in panels])
        rows = [
            {"label": label, "seeds": n, "cells": [success(panels, c) for c in columns]}
            for label, n, panels in policies
            if panels
        ]
        tables.append(
            {
                "temperature": temperature,
                "columns": columns,
                "rows": rows,
                **_differences(groups, temperature, columns, base),
            }
        )
    return tables


def _panels(runs: Sequence[Run], name: str, temperature: float) -> list[dict[str, Any]]:
    return [p for p in (run.panel(name, temperature) for run in runs) if p]


def _columns(panels: Sequence[dict]) -> list[tuple[str, str]]:
    keys = dict.fromkeys(key for panel in panels for key in statistics.outcomes(panel))
    keys = [key for key in keys if key[1] in MAIN_CONDITIONS]
    return sorted(keys, key=lambda k: (_split_order(k[0]), MAIN_CONDITIONS.index(k[1])))


def _plays(panels: Sequence[dict], column: tuple[str, str]) -> dict[statistics.Play, bool]:
    """(game, seed, run) -> won: over the plays that every run scored, of other lists each run's own."""
    found = [statistics.outcomes(panel).get(column, {}) for panel in panels]
    one_list = len({panel.get("game_list_hash") for panel in panels}) < 2
    return {
        (*play, run): won
        for run, plays in enumerate(found)
        for play, won in plays.items()
        if won is not None and (not one_list or all(t.get(play) is not None for t in found))
    }


def _by_run(plays: Mapping[statistics.Play, float]) -> list[float]:
    """The mean of each run."""
    runs: dict[Hashable, list[float]] = {}
    for (*_, run), value in plays.items():
        runs.setdefault(run, []).append(value)
    return [float(np.mean(values)) for values in runs.values()]


def _drawn(plays: Mapping[statistics.Play, float], panels, condition: str) -> tuple[dict, Any]:
    """What is drawn together, see `statistics.drawn_together`; and across it the runs."""
    groups = statistics.drawn_together(condition, *panels)
    runs = {play: play[-1] for play in plays}
    return groups, runs if len(set(runs.values())) > 1 else None


def success(panels: Sequence[dict], column: tuple[str, str]) -> dict[str, Any] | None:
    """Share of wins in a (split, condition) over runs; None without plays.

    Returns:
      As `statistics.success`, where ``n`` counts the plays of one run and several runs are drawn anew
      too, and ``over_runs``, the t-interval over runs where there are few.
    """
    plays = _plays(panels, column)
    groups, runs = _drawn(plays, panels, column[1])
    found = statistics.success(plays, groups, crossed=runs)
    if found is None:
        return None
    by_run = _by_run(plays)
    found["n"] //= len(by_run)
    over = statistics.over_runs(by_run)
    if over:
        over["low"], over["high"] = max(over["low"], 0.0), min(over["high"], 1.0)
    return {**found, "over_runs": over}


def _differences(
    groups: Sequence[Group], temperature: float, columns, base: Group | None
) -> dict[str, Any]:
    """Each group minus the base (see `arms_tables`), paired by seed and game."""
    base = base or next((g for g in groups if g.runs[0].arm == "joint"), groups[0])
    rows = []
    for group in groups:
        pairs = [] if group is base else _same_seeds(base, group, temperature)
        if pairs:
            cells = [difference(*zip(*pairs, strict=True), column) for column in columns]
            rows.append({"label": group.label, "cells": cells})
    return {"base": base.label, "differences": rows}


def _same_seeds(base: Group, group: Group, temperature: float) -> list[tuple[dict, dict]]:
    """The panels of runs of one seed, which share their warm start; in order if no seed is common."""
    first, second = (
        {run.seed: p for run in g.runs if (p := run.panel(AFTER, temperature))}
        for g in (base, group)
    )
    common = [(panel, second[seed]) for seed, panel in first.items() if seed in second]
    return common or list(zip(first.values(), second.values(), strict=False))


def difference(
    base: Sequence[dict], other: Sequence[dict], column: tuple[str, str]
) -> dict[str, Any] | None:
    """Success of ``other`` minus that of ``base``, panel by panel (one a run) and game by game.

    Returns:
      As `statistics.paired`, with ``over_runs`` as in `success`; None without common plays.
    """
    before, after = _plays(base, column), _plays(other, column)
    groups, runs = _drawn(before, [*base, *other], column[1])
    found = statistics.paired(before, after, groups, crossed=runs)
    if found is None:
        return None
    found["n"] //= len(base)
    by_run = _by_run({p: float(after[p]) - before[p] for p in before if p in after})
    return {**found, "over_runs": statistics.over_runs(by_run)}


def types_tables(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Success by task type, one table for each temperature, in the shape of `arms_tables`."""
    tables = []
    for temperature in temperatures([run for g in groups for run in g.runs]):
        policies = [("warm start", _panels(groups[0].runs, BEFORE, temperature))]
        policies += [(g.label, _panels(g.runs, AFTER, temperature)) for g in groups]
        policies = [(label, panels) for label, panels in policies if panels]
        keys = dict.fromkeys(
            (game["split"], str(game.get("type", "")))
            for _, panels in policies
            for panel in panels
            for game in panel["games"]
        )
        columns = [(label, c) for label, _ in policies for c in MAIN_CONDITIONS]
        rows = []
        for split, kind in sorted(keys, key=lambda k: (_split_order(k[0]), k)):
            cells = [
                success([_only(p, kind) for p in panels], (split, condition))
                for _, panels in policies
                for condition in MAIN_CONDITIONS
            ]
            rows.append({"split": split, "type": kind, "cells": cells})
        tables.append({"temperature": temperature, "columns": columns, "rows": rows})
    return tables


def _only(panel: dict[str, Any], kind: str) -> dict[str, Any]:
    return {**panel, "games": [g for g in panel["games"] if str(g.get("type", "")) == kind]}


def _split_order(split: str) -> int:
    names = list(SPLITS)
    return names.index(split) if split in names else len(names)


# --- leaks -------------------------------------------------------------------------------------


def leak_report(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What every panel retrieved, and whether any of it was a game of the panel.

    Returns:
      One dict a panel file: ``run``, ``file``, ``games``, ``sources`` (different games retrieved),
      ``leaked`` (what is a leak: panel games whose retrieved game is itself in the panel by id or by
      content, and skills of the run's bank that were extracted from a panel game), ``bank`` (how many
      of those), ``failed`` (outcomes left out because the infrastructure failed), ``excluded``,
      ``training_copies`` and ``identical_texts`` (counts that the evaluation wrote, None in files
      without), ``alike`` (shares of the games whose retrieved game has their type, their subject and
      their group, by these names; {} in files without) and ``rows`` [id, retrieved id, retrieved
      hash].
    """
    return [_leaks(run, panel) for run in runs for panel in run.panels]


def _leaks(run: Run, panel: dict[str, Any]) -> dict[str, Any]:
    games, written = panel["games"], panel.get("leaks") or {}
    ids, hashes = {g["id"] for g in games}, {g.get("hash") for g in games} - {None, ""}
    found = {g["id"]: g.get("retrieved") or {} for g in games}
    again = [g for g, r in found.items() if r.get("id") in ids or r.get("hash") in hashes]
    again += [str(v.get("panel_game")) for v in written.get("violations") or ()]
    bank = [r.id for r in run.bank if r.source_task_hash in hashes]
    outcomes = [o for g in games for o in g["conditions"].values()]

    def count(key):
        value = written.get(key)
        return len(value) if isinstance(value, list) else value

    return {
        "run": run.name,
        "file": panel["file"],
        "games": len(found),
        "sources": len({r.get("id") for r in found.values() if r}),
        "leaked": list(dict.fromkeys(again + bank)),
        "bank": len(bank),
        "failed": sum(o.get("status", "ok") not in SCORED for o in outcomes),
        **{key: count(key) for key in ("excluded", "training_copies", "identical_texts")},
        "alike": written.get("alike") or {},
        "rows": [[g, r.get("id", ""), str(r.get("hash", ""))[:12]] for g, r in found.items() if r],
    }
