"""The summary of an ablation: success of every arm, solvers x extractors, and what the skills say.

Reads finished runs and the crossed panels; writes ``ablation.json`` (every number) and ``ablation.md``.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from evolving_rl_jax.eval import statistics, tables
from evolving_rl_jax.files import write_atomic, write_json
from evolving_rl_jax.record.figures import pooled
from evolving_rl_jax.report import results as report_results
from evolving_rl_jax.report.readers import UNREADABLE, Group, Run, groups, read_run
from evolving_rl_jax.report.results import AFTER, BEFORE, CONDITIONS, SPLITS
from evolving_rl_jax.report.skills import best_skills
from evolving_rl_jax.skills import Bank, render_skill

WARMSTART = "warmstart"  # as a policy of the crossing, next to the arms
_SHOWN_SKILLS = 3  # of each arm
_CROSS_FOLDER = re.compile(r"(\d+)-t(.+)")


def cross_file(
    workdir: pathlib.Path, seed: int, temperature: float, solver: str, extractor: str
) -> pathlib.Path:
    """Where the panel of a solver with an extractor's skills is kept."""
    return workdir / "cross" / f"{seed}-t{temperature:g}" / f"{solver}+{extractor}.json"


def trained_for(panel: dict[str, Any]) -> tuple[int | None, int | None]:
    """Iterations of training of the solver and of the extractor of a crossed panel; None = not said."""
    return panel.get("iteration"), panel.get("skills_from", {}).get("iteration")


def write_summary(
    workdir: str | os.PathLike, folders: Sequence[str | os.PathLike], *, named: bool = False
) -> str:
    """Writes ``ablation.json`` and ``ablation.md`` into ``workdir``.

    Args:
      workdir: of the ablation; its ``cross/`` holds the crossed panels.
      folders: of the runs.
      named: the runs are of several configurations, called as their folders are without the seed, and
        compared with the first; else of several arms.

    Returns:
      The text of ``ablation.md``.
    """
    workdir = pathlib.Path(workdir)
    runs = [read_run(folder) for folder in folders]
    notices = [f"{run.name}: {n}" for run in runs for n in run.notices]
    if named:
        names = dict.fromkeys(_method(run) for run in runs)
        compared = [Group(name, [r for r in runs if _method(r) == name]) for name in names]
    else:
        compared = groups(runs)
    base = compared[0] if named else None
    arms = report_results.arms_tables(compared, notices, base=base)
    for row in (row for table in arms for row in table["rows"]):
        if row["label"].startswith("warm start"):
            row["label"] = "warm start"  # the arms of a seed share it
    summary = {
        "runs": [
            {"name": r.name, "arm": _method(r) if named else r.arm, "seed": r.seed} for r in runs
        ],
        "games": sorted({str(p.get("game_list_hash")) for r in runs for p in r.panels}),
        "versions": next((p["versions"] for r in runs for p in r.panels if "versions" in p), {}),
        "success": arms,
        "by_seed": _by_seed(runs, named),
        "cross": cross_tables(workdir, runs, notices),
        "skills": _skills(compared),
        "notices": notices,
    }
    write_json(workdir / "ablation.json", summary)
    text = _markdown(summary)
    write_atomic(workdir / "ablation.md", text)
    return text


def _method(run: Run) -> str:
    """The name of a run's configuration, from its folder ``NAME-SEED``."""
    return run.name.rpartition("-")[0]


def _by_seed(runs: Sequence[Run], named: bool) -> list[dict[str, Any]]:
    """Success of every run and of its warm start, without pooling."""
    rows = []
    for run in runs:
        for panel in run.panels:
            if panel["name"] in (BEFORE, AFTER):
                arm = _method(run) if named else run.arm
                about = {"arm": arm, "seed": run.seed, "policy": panel["name"]}
                rows.append(
                    {**about, "temperature": panel["temperature"], "success": _rates(panel)}
                )
    return rows


def _rates(panel: dict[str, Any]) -> dict[str, float | None]:
    """``split/condition`` -> share of its scored plays that were won."""
    rates = {}
    for (split, condition), plays in statistics.outcomes(panel).items():
        scored = [won for won in plays.values() if won is not None]
        rates[f"{split}/{condition}"] = sum(scored) / len(scored) if scored else None
    return rates


# -- solvers x extractors --------------------------------------------------------------------------


def cross_tables(
    workdir: pathlib.Path, runs: Sequence[Run], notices: list[str]
) -> list[dict[str, Any]]:
    """Success of every solver with every extractor's skills, pooled over seeds.

    Args:
      workdir: of the ablation.
      runs: that were crossed.
      notices: takes what was left out, a line each.

    Returns:
      For each temperature and split a dict with ``policies`` and ``cells`` [solver][extractor] of
      `report_results.success`, None where a panel is missing.
    """
    seeds = {run.seed for run in runs}  # others may have been crossed in the folder too
    ends = {(r.seed, WARMSTART): 0 for r in runs}
    ends |= {
        (r.seed, r.arm): p.get("iteration") for r in runs for p in r.panels if p["name"] == AFTER
    }
    panels = {}
    for key, panel in _crossed(workdir).items():
        seed, _, *pair = key
        if seed not in seeds:
            continue
        if trained_for(panel) == tuple(ends.get((seed, policy)) for policy in pair):
            panels[key] = panel
        else:
            notices.append(f"{'+'.join(pair)}, seed {seed}: left out of the crossing, whose policies have "
                           "been trained on since it was played")  # fmt: skip
    crossed = {key[:2] for key in panels}
    for run in runs:  # a policy with its own skills; the arms of a seed share the warm start
        for panel in run.panels:
            name = {BEFORE: WARMSTART, AFTER: run.arm}.get(panel["name"])
            where = run.seed, panel["temperature"]
            if name and where in crossed:
                panels.setdefault((*where, name, name), panel)
    found = []
    arms = dict.fromkeys(run.arm for run in runs)
    policies = [WARMSTART, *arms]
    for temperature in sorted({t for _, t, _, _ in panels}, reverse=True):
        members = [p for key, p in panels.items() if key[1] == temperature]
        for split in dict.fromkeys(s for p in members for s, _ in statistics.outcomes(p)):
            cells = [
                [_pooled(panels, temperature, solver, extractor, split) for extractor in policies]
                for solver in policies
            ]
            about = {"temperature": temperature, "split": split}
            found.append({**about, "policies": policies, "cells": cells})
    return found


def _crossed(workdir: pathlib.Path) -> dict[tuple[int, float, str, str], dict[str, Any]]:
    found = {}
    for path in sorted((workdir / "cross").glob("*/*.json")):
        where = _CROSS_FOLDER.fullmatch(path.parent.name)
        solver, plus, extractor = path.stem.partition("+")
        if where and plus:
            key = int(where[1]), float(where[2]), solver, extractor
            found[key] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _pooled(panels, temperature: float, solver: str, extractor: str, split: str):
    chosen = [p for k, p in sorted(panels.items()) if k[1:] == (temperature, solver, extractor)]
    return report_results.success(chosen, (split, "own")) if chosen else None


# -- what the skills say ---------------------------------------------------------------------------


def _skills(grouped: Sequence[Group]) -> list[dict[str, Any]]:
    """How valid and true the skills of each policy are, and the best of them."""
    rows = [_skill_row("warm start", BEFORE, grouped[0].runs)]  # the arms share it
    rows += [_skill_row(group.label, AFTER, group.runs) for group in grouped]
    return [row for row in rows if row]


def _skill_row(label: str, name: str, runs: Sequence[Run]) -> dict[str, Any] | None:
    temperature = next(iter(report_results.temperatures(runs)), 1.0)
    panels = [p for p in (r.panel(name, temperature) for r in runs) if p and p.get("sources")]
    if not panels:
        return None
    sources = pooled([p["sources"] for p in panels])
    means = {k: sources.get(k) for k in ("skill_valid", "fact_seen", "fact_stated_when_seen")}
    banks = [r.folder / "eval" / f"{name}-t{temperature:g}.skills.jsonl" for r in runs]
    return {"label": label, "temperature": temperature, **means, "best": _best(banks)}


def _best(banks: Sequence[pathlib.Path]) -> list[dict[str, Any]]:
    records = []
    for path in banks:
        try:
            records += Bank(path).records if path.is_file() else []
        except UNREADABLE:
            continue
    return [
        {"text": render_skill(r.as_skill()), "utility": r.utility, "pairs": r.baseline_uses}
        for r in best_skills(records, _SHOWN_SKILLS)
    ]


# -- the text --------------------------------------------------------------------------------------


def _markdown(summary: dict[str, Any]) -> str:
    seeds = sorted({r["seed"] for r in summary["runs"]})
    arms = dict.fromkeys(r["arm"] for r in summary["runs"])
    known = summary["versions"]
    shown = [name for name in ("evolving-rl-jax", "jax", "python") if name in known]
    versions = ", ".join(f"{name} {known[name]}" for name in shown) or "versions unknown"
    lines = [
        "# Ablation",
        "",
        f"Arms {', '.join(arms)}; seeds {', '.join(map(str, seeds))}; list of games "
        f"{', '.join(summary['games'])}; {versions}.",
        "",
        f"Success in %. One run: {tables.DRAWN}. Several runs: {tables.DRAWN_RUNS}.",
    ]
    for table in summary["success"]:
        columns = [_column(*c) for c in table["columns"]]
        lines += ["", f"## After training, temperature {table['temperature']:g}", ""]
        rows = [[r["label"], *map(tables.share, r["cells"])] for r in table["rows"]]
        lines += tables.markdown(["", *columns], rows)
        if table["differences"]:
            lines += ["", f"Minus {table['base']}, in points, paired by seed and game:", ""]
            rows = [[r["label"], *map(tables.difference, r["cells"])] for r in table["differences"]]
            lines += tables.markdown(["", *columns], rows)
    lines += _seeds_text(summary["by_seed"])
    for table in summary["cross"]:
        title = (
            f"{SPLITS.get(table['split'], table['split'])}, temperature {table['temperature']:g}"
        )
        lines += ["", f"## Solver (row) with the skills of (column): {title}", ""]
        rows = [
            [p, *map(tables.share, cells)]
            for p, cells in zip(table["policies"], table["cells"], strict=True)
        ]
        lines += tables.markdown(["", *table["policies"]], rows)
    lines += _skills_text(summary["skills"])
    if summary["notices"]:
        lines += ["", "## Notes", "", *(f"- {n}" for n in summary["notices"])]
    return "\n".join(lines) + "\n"


def _seeds_text(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Own-skill success of every run: a row for each seed, which shares its warm start."""
    lines: list[str] = []
    columns = ["warm start", *dict.fromkeys(r["arm"] for r in rows)]
    for temperature in sorted({r["temperature"] for r in rows}, reverse=True):
        chosen = [r for r in rows if r["temperature"] == temperature]
        for key in dict.fromkeys(k for r in chosen for k in r["success"] if k.endswith("/own")):
            cells = {}
            for r in chosen:
                policy = "warm start" if r["policy"] == BEFORE else r["arm"]
                cells.setdefault((r["seed"], policy), r["success"].get(key))
            title = f"Every seed: {_column(*key.split('/'))}, temperature {temperature:g}"
            lines += ["", f"## {title}", ""]
            body = [
                [str(seed), *(tables.percent(cells.get((seed, column))) for column in columns)]
                for seed in sorted({seed for seed, _ in cells})
            ]
            lines += tables.markdown(["seed", *columns], body)
    return lines


def _skills_text(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["", "## What the skills say", ""]
    keys = ("skill_valid", "fact_seen", "fact_stated_when_seen")
    body = [[r["label"], *(tables.percent(r[k]) for k in keys)] for r in rows]
    heading = ["", "valid", "source saw the decisive fact", "skill states it when seen"]
    lines += tables.markdown(heading, body)
    for row in rows:
        lines += ["", f"Best skills of {row['label']} by measured utility:", ""]
        lines += [
            f"- {tables.percent(s['utility'])} points over {s['pairs']} games: {_inline(s['text'])}"
            for s in row["best"]
        ] or ["- none was measured"]
    return lines


def _inline(text: str) -> str:
    """Text of a model as Markdown code on one line."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"


def _column(split: str, condition: str) -> str:
    return f"{SPLITS.get(split, split)}, {CONDITIONS.get(condition, condition)}"
