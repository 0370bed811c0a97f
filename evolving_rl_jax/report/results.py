"""Success in the report: before and after, by arm, by task type, and who leaked."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from evolving_rl_jax.eval import statistics
from evolving_rl_jax.eval.web import web_comparison
from evolving_rl_jax.report.reading import Group, Run
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
_RESAMPLES = 4000


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
        rows = sorted(statistics.compare(before, after), key=lambda r: _split_order(r["split"]))
        results = [r for r in (before, after) if r]
        web = web_comparison(before, after)
        found.append({"temperature": temperature, "rows": rows, "results": results, "web": web})
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


def arms_tables(groups: Sequence[Group], notices: list[str]) -> list[dict[str, Any]]:
    """Success of every group after training, one table for each temperature.

    Returns:
      dicts with ``temperature``, ``columns`` [(split, condition)], ``rows`` (``label``, ``seeds`` and a
      cell of `success` or None for each column) and ``differences``: rows against the group ``base``,
      whose cells are {value, low, high, n}.
    """
    tables = []
    for temperature in temperatures([run for g in groups for run in g.runs]):
        policies = [(g.label, len(g.runs), _panels(g.runs, AFTER, temperature)) for g in groups]
        first = groups[0]
        start = _panels(first.runs, BEFORE, temperature)
        policies.insert(0, (f"warm start of {first.label}", len(first.runs), start))
        hashes = {p.get("game_list_hash") for _, _, panels in policies for p in panels}
        if len(hashes) > 1:
            notices.append(
                f"At temperature {temperature:g} not all runs played the same list of games: "
                "differences are over the games that both sides played."
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
                **_differences(groups, temperature, columns),
            }
        )
    return tables


def _panels(runs: Sequence[Run], name: str, temperature: float) -> list[dict[str, Any]]:
    return [p for p in (run.panel(name, temperature) for run in runs) if p]


def _columns(panels: Sequence[dict]) -> list[tuple[str, str]]:
    keys = dict.fromkeys(key for panel in panels for key in statistics.outcomes(panel))
    keys = [key for key in keys if key[1] in MAIN_CONDITIONS]
    return sorted(keys, key=lambda k: (_split_order(k[0]), MAIN_CONDITIONS.index(k[1])))


def _wins(panels: Sequence[dict], column: tuple[str, str]) -> dict[statistics.Play, list[bool]]:
    """(game id, seed) -> won in each run, over the plays that every run scored."""
    tables = [statistics.outcomes(panel).get(column, {}) for panel in panels]
    plays = [p for p in (tables[0] if tables else {}) if all(t.get(p) is not None for t in tables)]
    return {p: [bool(t[p]) for t in tables] for p in plays}


def _clusters(panels: Sequence[dict], condition: str) -> dict[str, Hashable]:
    """Game id -> what is resampled together: games that one source's skill served."""
    return statistics.sources_of(*panels) if condition == "own" else {}


def success(panels: Sequence[dict], column: tuple[str, str]) -> dict[str, Any] | None:
    """Share of wins in a (split, condition) with its 95 % interval; None without plays.

    One run: `statistics.success`.  Several: percentile bootstrap that draws runs and games anew, both
    with replacement (games that share a skill together), so it holds for other seeds and games.
    """
    wins = _wins(panels, column)
    if not wins:
        return None
    groups = _clusters(panels, column[1])
    if len(panels) == 1:
        return statistics.success({play: won for play, (won,) in wins.items()}, groups)
    labels = [groups.get(game, game) for game, _ in wins]
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    rows = [numbers[label] for label in labels]
    sums = np.zeros((len(numbers), len(panels)))
    np.add.at(sums, rows, np.array(list(wins.values()), float))
    sizes = np.bincount(rows).astype(float)
    rng = np.random.default_rng(0)

    def draw(n):
        return rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES)

    runs, games = draw(len(panels)) / len(panels), draw(len(numbers))
    rates = np.einsum("br,gr,bg->b", runs, sums, games, optimize=True) / (games @ sizes)
    low, high = map(float, np.quantile(rates, [0.025, 0.975]))
    value = float(sums.sum() / (len(wins) * len(panels)))
    return {"success": value, "n": len(wins), "low": low, "high": high}


def _differences(groups: Sequence[Group], temperature: float, columns) -> dict[str, Any]:
    """Each group minus the base (the arm `joint`, else the first), paired by game."""
    base = next((g for g in groups if g.runs[0].arm == "joint"), groups[0])
    rows = []
    base_panels = _panels(base.runs, AFTER, temperature)
    for group in groups:
        panels = _panels(group.runs, AFTER, temperature)
        if group is base or not panels or not base_panels:
            continue
        cells = [_difference(base_panels, panels, column) for column in columns]
        rows.append({"label": group.label, "cells": cells})
    return {"base": base.label, "differences": rows}


def _difference(base: Sequence[dict], other: Sequence[dict], column) -> dict[str, Any] | None:
    ours, theirs = _wins(other, column), _wins(base, column)
    common = [play for play in ours if play in theirs]
    if not common:
        return None
    means = [[float(np.mean(side[play])) for play in common] for side in (theirs, ours)]
    groups = _clusters([*base, *other], column[1])
    labels = [groups.get(game, game) for game, _ in common]
    value, low, high = statistics.paired_difference(*means, groups=labels)
    return {"value": value, "low": low, "high": high, "n": len(common)}


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
    return {"games": [g for g in panel["games"] if str(g.get("type", "")) == kind]}


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
      without) and ``rows`` [id, retrieved id, retrieved hash].
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
        "rows": [[g, r.get("id", ""), str(r.get("hash", ""))[:12]] for g, r in found.items() if r],
    }
