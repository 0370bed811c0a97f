"""``report.html`` of a run folder: one file that needs nothing else, and the console's table.

Reads ``config.json``, ``metrics.jsonl``, ``eval/*.json`` and ``episodes/iteration_*.jsonl.gz``; a
file that is missing or unreadable becomes a sentence on the page.
"""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import re
import zlib
from collections.abc import Sequence
from typing import Any

from evolving_rl_jax.eval import charts, statistics
from evolving_rl_jax.train import metrics as run_metrics

BEFORE, AFTER = "warmstart", "final"  # the two policies of the table
SPLITS = {
    "valid_unseen": "unseen households",
    "valid_seen": "seen households",
    "heldout_types": "held-out task types",
    "train": "training tasks",
}
CONDITIONS = {
    "none": "no skill",
    "own": "own skill",
    "oracle": "oracle skill",
    "misleading": "misleading skill",
}
SOURCES_PER_ITERATION = 3  # example sources shown of the first and of the last logged iteration
MAX_TEXT = 4000  # characters shown of one text

_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zlib.error)


def write_report(workdir: str | os.PathLike, *, title: str | None = None) -> pathlib.Path:
    """Writes ``workdir/report.html`` and returns its path.

    Args:
      workdir: a run folder.
      title: heading of the page; the folder's name by default.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    folder = _run_folder(workdir)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
        autoescape=True,  # episodes hold text that a model or a web page wrote
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent, points=_points, number=_number, shorten=_shorten, p_value=_p_value
    )
    page = environment.get_template("report.html.j2").render(
        title=title or folder.name or str(folder),
        plotly_js=_script(get_plotlyjs()),
        split_names=SPLITS,
        condition_names=CONDITIONS,
        **_content(folder),
    )
    path = folder / "report.html"
    temporary = folder / "report.html.tmp"
    temporary.write_bytes(page.encode("utf-8", "replace"))  # a model can emit lone surrogates
    os.replace(temporary, path)
    return path


def before_after_table(workdir: str | os.PathLike) -> str:
    """Success before and after training as plain text, one block for each temperature.

    Shares are percentages with 95 % Wilson intervals, differences are points with a 95 % paired
    bootstrap interval.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    notices: list[str] = []
    blocks = []
    for comparison in _comparisons(_evaluations(_run_folder(workdir), notices), notices):
        rows = [("split", "condition", "games", "warm start", "trained", "paired difference")]
        for row in comparison["rows"]:
            rows.append(
                (
                    row["split"],
                    CONDITIONS.get(row["condition"], row["condition"]),
                    _games(row),
                    _share(row["before"]),
                    _share(row["after"]),
                    _gain(row["difference"]),
                )
            )
        heading = f"success in % [95 % interval] at temperature {comparison['temperature']:g}"
        blocks.append(heading + "\n" + _align(rows))
    text = "\n\n".join(blocks + notices)
    return text.translate({0x2212: "-", 0x2013: "-"})  # consoles need not know these signs


def _run_folder(workdir: str | os.PathLike) -> pathlib.Path:
    folder = pathlib.Path(workdir)
    if not folder.is_dir():
        raise FileNotFoundError(f"workdir must be a run folder, got {str(workdir)!r} (not there)")
    return folder


def _content(folder: pathlib.Path) -> dict[str, Any]:
    """Everything that the template shows."""
    notices: list[str] = []
    config = _config(folder, notices)
    records = _records(folder, notices)
    evaluations = _evaluations(folder, notices)
    comparisons = _comparisons(evaluations, notices)
    figures: list[dict[str, Any]] = []
    return {
        "config": config,
        "config_text": json.dumps(config, indent=2, sort_keys=True) if config else "",
        "iterations": len(records),
        "headlines": _headlines(comparisons),
        "comparisons": comparisons,
        "panels": charts.panels(evaluations, figures, ends=(BEFORE, AFTER), names=CONDITIONS),
        "curves": charts.curves(records, figures),
        "stages": charts.stages(records, figures),
        "examples": _examples(folder, notices),
        "figures": figures,
        "notices": notices,
    }


# --- reading ---------------------------------------------------------------------------------


def _config(folder: pathlib.Path, notices: list[str]) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except _UNREADABLE as e:
        notices.append(_sentence("config.json", e, "the configuration is not shown"))
        return {}


def _records(folder: pathlib.Path, notices: list[str]) -> list[dict[str, Any]]:
    try:
        records = run_metrics.read_metrics(folder)
    except OSError as e:
        notices.append(_sentence("metrics.jsonl", e, "there are no curves"))
        return []
    if not records:
        notices.append("metrics.jsonl is missing or empty, so there are no curves.")
    return records


def _evaluations(folder: pathlib.Path, notices: list[str]) -> list[dict[str, Any]]:
    results = []
    for path in sorted((folder / "eval").glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            result["temperature"] = float(result["temperature"])
            result["name"] = str(result["name"])
            result["iteration"] = int(result.get("iteration", -1))
            result["versions"] = dict(result.get("versions") or {})
            statistics.outcomes(result)  # a file of another form shows here
            results.append(result)
        except _UNREADABLE as e:
            notices.append(_sentence(f"eval/{path.name}", e, "it is left out"))
    return results


def _examples(folder: pathlib.Path, notices: list[str]) -> list[dict[str, Any]]:
    """Sources of the first and the last logged iteration, those with the most telling skills."""
    paths = sorted((folder / "episodes").glob("iteration_*.jsonl.gz"), key=_iteration_of)
    if not paths:
        notices.append("episodes/ has no logged iteration, so there are no example skills.")
    examples = []
    for path in dict.fromkeys([*paths[:1], *paths[-1:]]):
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                sources = [_source(json.loads(line)) for line in file if line.strip()]
        except _UNREADABLE as e:
            notices.append(_sentence(f"episodes/{path.name}", e, "its examples are left out"))
            continue
        sources.sort(key=lambda s: (-s["spread"], str(s["task"])))  # stable between reports
        chosen = sources[:SOURCES_PER_ITERATION]
        examples.append({"iteration": _iteration_of(path), "sources": chosen})
    return examples


def _iteration_of(path: pathlib.Path) -> int:
    digits = re.findall(r"\d+", path.name)
    return int(digits[0]) if digits else -1


def _source(line: dict[str, Any]) -> dict[str, Any]:
    """One source episode with its best, its worst and one rejected skill."""
    skills = [dict(skill) for skill in line.get("skills") or ()]
    for skill in skills:
        skill["episodes"] = [_episode(e) for e in skill.get("episodes") or ()]
        skill["wins"] = sum(bool(e.get("won")) for e in skill["episodes"])
    rated = [s for s in skills if s.get("valid") and isinstance(s.get("reward"), int | float)]
    rated.sort(key=lambda s: -s["reward"])
    shown = [("best skill", rated[0])] if rated else []
    if len(rated) > 1 and rated[-1]["reward"] < rated[0]["reward"]:
        shown.append(("worst skill", rated[-1]))
    shown += [("rejected skill", s) for s in skills if not s.get("valid")][:1]
    spread = rated[0]["reward"] - rated[-1]["reward"] if rated else -1.0
    source = _episode(line["source"])
    return {
        "task": source.get("task"),
        "episode": source,
        "spread": spread,
        "num_skills": len(skills),
        "skills": [{"label": label, **skill} for label, skill in shown],
    }


def _episode(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "turns": [dict(turn) for turn in data.get("turns") or ()]}


def _sentence(name: str, error: Exception, consequence: str) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{name} is missing, so {consequence}."
    return f"{name} cannot be read ({type(error).__name__}: {error}), so {consequence}."


# --- comparison ------------------------------------------------------------------------------


def _comparisons(evaluations: Sequence[dict], notices: list[str]) -> list[dict[str, Any]]:
    """One entry for each temperature, the training temperature 1 first."""
    results = {(r["name"], r["temperature"]): r for r in evaluations}
    temperatures = {t for name, t in results if name in (BEFORE, AFTER)}
    if not temperatures:
        notices.append("eval/ has no result of the warm start or of the trained policy yet.")
    comparisons = []
    for temperature in sorted(temperatures, key=lambda t: (t != 1.0, -t)):
        before, after = results.get((BEFORE, temperature)), results.get((AFTER, temperature))
        for name, result in (("warm start", before), ("trained policy", after)):
            if result is None:
                notices.append(f"The {name} has no evaluation at temperature {temperature:g}.")
        hashes = {r.get("game_list_hash") for r in (before, after) if r}
        if len(hashes) > 1:
            notices.append(
                f"At temperature {temperature:g} the two policies played different lists of games; "
                "the difference is over the games that both played."
            )
        comparisons.append(
            {
                "temperature": temperature,
                "rows": sorted(statistics.compare(before, after), key=_split_order),
                "results": [r for r in (before, after) if r],
            }
        )
    return comparisons


def _split_order(row: dict[str, Any]) -> int:
    names = list(SPLITS)
    return names.index(row["split"]) if row["split"] in names else len(names)


def _headlines(comparisons: Sequence[dict]) -> list[dict[str, Any]]:
    """The gain of each split at the first temperature, with own skills where there are any."""
    if not comparisons:
        return []
    rows = [row for row in comparisons[0]["rows"] if row["difference"]]
    own = [row for row in rows if row["condition"] == "own"]
    chosen = own or [row for row in rows if row["condition"] == "none"]
    return [{**row, "temperature": comparisons[0]["temperature"]} for row in chosen]


# --- text ------------------------------------------------------------------------------------


def _script(code: str) -> Any:
    import markupsafe

    return markupsafe.Markup(code.replace("</script", "<\\/script"))


def _percent(value: Any, digits: int = 1) -> str:
    number = charts.finite(value)
    return "–" if number is None else f"{100 * number:.{digits}f}"


def _points(value: Any) -> str:
    number = charts.finite(value)
    return "–" if number is None else f"{100 * number:+.1f}".replace("-", "−")


def _number(value: Any) -> str:
    number = charts.finite(value)
    return "–" if number is None else f"{number:.3g}"


def _p_value(value: Any) -> str:
    number = charts.finite(value)
    if number is None:
        return "–"
    return "< 0.001" if number < 0.001 else f"{number:.3f}"


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    extra = len(text) - MAX_TEXT
    return text if extra <= 0 else f"{text[:MAX_TEXT]}… ({extra} more characters)"


def _games(row: dict[str, Any]) -> str:
    for part in (row["difference"], row["after"], row["before"]):
        if part:
            return str(part["n"])
    return "0"


def _share(part: dict[str, Any] | None) -> str:
    if not part:
        return "–"
    return f"{_percent(part['success'])} [{_percent(part['low'])}, {_percent(part['high'])}]"


def _gain(part: dict[str, Any] | None) -> str:
    if not part:
        return "–"
    return f"{_points(part['value'])} [{_points(part['low'])}, {_points(part['high'])}]"


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
