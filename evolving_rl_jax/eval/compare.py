"""`evolving-rl eval --compare A B`: the paired difference of two runs or two checkpoints."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.eval import statistics, tables
from evolving_rl_jax.files import write_json

_WANTED = {"name", "iteration", "temperature", "game_list_hash", "games"}  # of a result


def print_comparison(names: Sequence[str], workdir: str = "", out: str = "") -> None:
    """Prints the paired difference of two results, and writes it as JSON where asked.

    Args:
      names: of the two, as in `find_results`.
      workdir: a run folder, or "".
      out: file to write, or "".

    Raises:
      ConfigError: there are no such results, or ``out`` cannot be written.
    """
    result = compare(*(find_results(name, workdir) for name in names), tuple(names))
    print(compare_table(result))
    if out:
        try:
            write_json(pathlib.Path(out), result)
        except OSError as error:
            raise ConfigError(f"--out must be a file that can be written, got {error}") from error
        print(f"written: {out}")


def find_results(name: str, workdir: str = "") -> dict[float, dict[str, Any]]:
    """Temperature -> result of what ``name`` means.

    Args:
      name: a result file; a run folder, whose ``final`` panel it is, or else that of its newest
        evaluated checkpoint; or, of the run folder ``workdir``, ``warmstart``, ``final``, an
        iteration, or the name of a result.
      workdir: a run folder, or "".

    Raises:
      ConfigError: there is no such result.
    """
    path = pathlib.Path(name)
    if path.is_file():
        result = _read(path)
        if "games" not in result:
            raise ConfigError(f"{path} must be a result of eval with games, got {sorted(result)}")
        return {result["temperature"]: result}
    if workdir:
        chosen = _named(_all_results(pathlib.Path(workdir)), name)
    elif path.is_dir():
        results = _all_results(path)
        chosen = _named(results, "final") or _newest(results)
    else:
        chosen = []
    if not chosen:
        where = f"of {workdir!r} " if workdir else ""
        raise ConfigError(
            f"--compare must name results {where}that are there (a file, a run folder, or a "
            f"checkpoint with --workdir, evaluated by `evolving-rl eval` before), got {name!r}"
        )
    return {r["temperature"]: r for r in chosen}


def _all_results(folder: pathlib.Path) -> list[dict[str, Any]]:
    results = []
    for path in sorted((folder / "eval").glob("*.json")):
        result = _read(path)
        if "games" in result:
            results.append(result)
    return results


def _read(path: pathlib.Path) -> dict[str, Any]:
    """A file of ``eval/``.  One that a kill tore, or a result without its parts, is a ConfigError."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        statistics.outcomes(result)
        missing = _WANTED - result.keys() if "games" in result else set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} must be a result of eval, got {type(error).__name__}") from error
    if missing:
        raise ConfigError(f"{path} must be a result of eval, got one without {sorted(missing)}")
    return result


def _named(results: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    found = [r for r in results if r["name"] == name]
    if not found and name.isdigit():
        found = [r for r in results if r["name"] == f"checkpoint_{int(name):05d}"]
        found = found or [
            r for r in results if r["iteration"] == int(name) and r["name"] == "final"
        ]
    return found


def _newest(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    # A suffix names another panel: other splits, fewer games.
    evaluated = [r for r in results if re.fullmatch(r"checkpoint_\d{5,}", r["name"])]
    newest = max((r["iteration"] for r in evaluated), default=None)
    return [r for r in evaluated if r["iteration"] == newest]


def before_after(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, seed: int = 0
) -> list[dict[str, Any]]:
    """Two policies: one row for each split and condition found in either result.

    Args:
      before: content of an evaluation file (``{"games": [...]}``), or None.
      after: the same of the later policy, or None.
      seed: of the bootstrap.

    Returns:
      dicts with ``split``, ``condition``, ``before`` and ``after`` (see `statistics.success`, or None)
      and ``difference`` (see `statistics.paired`, or None).  Seeds of a game are drawn together,
      and what `statistics.drawn_together` says.
    """
    first, second = statistics.outcomes(before), statistics.outcomes(after)
    splits = dict.fromkeys(split for split, _ in [*first, *second])
    conditions = dict.fromkeys([*statistics.CONDITIONS, *(c for _, c in [*first, *second])])
    together = {c: statistics.drawn_together(c, before, after) for c in conditions}
    rows = []
    for split, condition in ((s, c) for s in splits for c in conditions):
        a, b = (side.get((split, condition), {}) for side in (first, second))
        if a or b:
            groups = together[condition]
            rows.append(
                {
                    "split": split,
                    "condition": condition,
                    "before": statistics.success(a, groups, seed),
                    "after": statistics.success(b, groups, seed),
                    "difference": statistics.paired(a, b, groups, seed),
                }
            )
    return rows


def compare(
    before: Mapping[float, Mapping[str, Any]],
    after: Mapping[float, Mapping[str, Any]],
    names: tuple[str, str],
    temperatures: Sequence[float] = (),
) -> dict[str, Any]:
    """The paired comparison at every temperature that both sides have.

    Args:
      before: results of one side by temperature.
      after: of the other.
      names: of the two sides, for people.
      temperatures: only these; empty = all.

    Returns:
      ``names`` and ``comparisons``, each with ``temperature``, ``policies``, ``rows`` (see
      `before_after`) and ``notes`` on what else differs.

    Raises:
      ConfigError: no common temperature, or the panels are not the same games.
    """
    common = [t for t in sorted({*before} & {*after}) if not temperatures or t in temperatures]
    if not common:
        wanted = f" among {sorted(temperatures)}" if temperatures else ""
        raise ConfigError(
            f"--compare must name results of one temperature{wanted}, got {sorted(before)} and "
            f"{sorted(after)}"
        )
    comparisons = []
    for temperature in common:
        a, b = before[temperature], after[temperature]
        if a["game_list_hash"] != b["game_list_hash"]:
            raise ConfigError(
                "--compare must name results of one panel, got the game lists "
                f"{a['game_list_hash']} ({names[0]}) and {b['game_list_hash']} ({names[1]})"
            )
        comparisons.append(
            {
                "temperature": temperature,
                "policies": [a["name"], b["name"]],
                "iterations": [a["iteration"], b["iteration"]],
                "game_list_hash": a["game_list_hash"],
                "rows": before_after(a, b, a.get("seed", 0)),
                "notes": _notes(a, b),
            }
        )
    return {"mode": "compare", "names": list(names), "comparisons": comparisons}


def _notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    notes = []
    seeds = [r.get("seeds", [r.get("seed")]) for r in (a, b)]
    if seeds[0] != seeds[1]:
        notes.append(f"seeds {seeds[0]} and {seeds[1]}: only common ones are paired")
    versions = [r.get("versions") or {} for r in (a, b)]
    for package in sorted({*versions[0]} & {*versions[1]}):
        if versions[0][package] != versions[1][package]:
            notes.append(f"{package} {versions[0][package]} and {versions[1][package]}")
    return notes


def compare_table(result: Mapping[str, Any]) -> str:
    """A comparison as plain text."""
    lines = []
    for comparison in result["comparisons"]:
        first, second = (
            f"{name} ({policy}, iteration {iteration})"
            for name, policy, iteration in zip(
                result["names"], comparison["policies"], comparison["iterations"], strict=True
            )
        )
        lines.append(f"success in % [{tables.DRAWN}], temperature {comparison['temperature']:g}")
        lines += [f"A = {first}", f"B = {second}"]
        for row in comparison["rows"]:
            sides = "  ".join(tables.share(row[side]) for side in ("before", "after"))
            change = tables.points(row["difference"]) if row["difference"] else "no common game"
            lines.append(f"{row['split']:<16} {row['condition']:<12} {sides}  B - A {change}")
        lines += [f"note: {note}" for note in comparison["notes"]]
    return "\n".join(lines)
