"""``report.html`` of one run or several: one file that needs nothing else, and the console's table.

Reads ``config.json``, ``metrics.jsonl``, ``eval/*.json``, ``skills/bank.jsonl`` and ``episodes/``; a file
that is missing or unreadable becomes a sentence on the page.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from evolving_rl_jax.eval import tables
from evolving_rl_jax.files import write_atomic
from evolving_rl_jax.report import charts, viewer
from evolving_rl_jax.report import results as report_results
from evolving_rl_jax.report import skills as report_skills
from evolving_rl_jax.report.readers import Run, groups, read_run
from evolving_rl_jax.report.results import AFTER, BEFORE, CONDITIONS, SPLITS

TEMPLATES = pathlib.Path(__file__).parent / "templates"
SCRIPTS = ("page.js", "charts.js", "episodes.js", "tokens.js", "skills.js")
# What JSON text must not hold inside a script element, besides what ASCII output already escapes.
_UNSAFE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def write_report(
    workdir: str | os.PathLike,
    *more: str | os.PathLike,
    title: str | None = None,
    out: str | os.PathLike | None = None,
) -> pathlib.Path:
    """Writes the page and returns its path.

    Args:
      workdir: a run folder.
      more: further run folders, shown next to it; runs that differ only in their seed are one curve.
      title: heading of the page; the folders' names by default.
      out: the file to write; ``report.html`` in ``workdir`` by default.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    import jinja2

    runs = [read_run(folder) for folder in (workdir, *more)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # runs hold text that a model or a web page wrote
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent, points=_points, number=_number, p_value=_p_value, script_json=_script_json
    )
    page = environment.get_template("report.html.j2").render(
        title=title or _title(runs),
        chart_library=[_script(code) for code in chart_library()],
        style=_inline("report.css"),
        scripts=[_script((TEMPLATES / name).read_text(encoding="utf-8")) for name in SCRIPTS],
        split_names=SPLITS,
        condition_names=CONDITIONS,
        drawn=tables.DRAWN,
        drawn_runs=tables.DRAWN_RUNS,
        **_content(runs),
    )
    path = pathlib.Path(out) if out else runs[0].folder / "report.html"
    write_atomic(path, page.encode("utf-8", "replace"))  # a model can emit lone surrogates
    return path


def _title(runs: Sequence[Run]) -> str:
    """Up to three folders by name, more runs by what sets them apart."""
    labels = [g.label for g in groups(runs)]
    return " · ".join(labels if len(runs) > 3 else [run.name for run in runs])


def before_after_table(workdir: str | os.PathLike) -> str:
    """Success before and after training as plain text, one block for each temperature and web metric.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    run = read_run(workdir)
    notices: list[str] = []
    blocks = []
    for comparison in report_results.comparisons(run, notices):
        where = f"[{tables.DRAWN}] at temperature {comparison['temperature']:g}"
        blocks.append(f"success in % {where}\n{_ends(comparison['rows'])}")
        web = comparison["web"]
        for metric in dict.fromkeys(row["metric"] for row in web):
            rows = [row for row in web if row["metric"] == metric]
            blocks.append(f"{metric} in %, macro {where}\n{_ends(rows)}")
    unread = [n for n in run.notices if n.startswith("eval/")]
    text = "\n\n".join(blocks + unread + notices)
    return text.translate({0x2212: "-", 0x2013: "-"})  # consoles need not know these signs


def _ends(rows: Sequence[dict[str, Any]]) -> str:
    """The table of one figure before and after training."""
    lines = [("split", "condition", "games", "warm start", "trained", "paired difference")]
    for row in rows:
        sides = (row["difference"], row["after"], row["before"])
        lines.append(
            (
                row["split"],
                CONDITIONS.get(row["condition"], row["condition"]),
                next((str(side["n"]) for side in sides if side), "0"),
                tables.share(row["before"]),
                tables.share(row["after"]),
                tables.difference(row["difference"]),
            )
        )
    return tables.align(lines)


def chart_library() -> list[str]:
    """BokehJS and its plotting interface, from the installed package."""
    folder = importlib.resources.files("bokeh") / "server" / "static" / "js"
    names = ("bokeh.min.js", "bokeh-api.min.js")
    return [(folder / name).read_text(encoding="utf-8") for name in names]


def _content(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the template shows."""
    grouped = groups(runs)
    figures: list[dict[str, Any]] = []
    details = [_details(run, figures) for run in runs]
    notices: list[str] = []
    arms = report_results.arms_tables(grouped, notices)
    curves = charts.curves(grouped, figures)
    stages = [s for s in (charts.stages(g, figures) for g in grouped) if s]
    shown = viewer.episodes(runs)
    leaks = report_results.leak_report(runs)
    for row in leaks:
        row["packed"] = viewer.pack(row.pop("rows"))
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        notices += [prefix + n for n in run.notices]
    return {
        "runs": details,
        "groups": grouped,
        "arms": arms,
        "types": report_results.types_tables(grouped),
        "curves": curves,
        "stages": stages,
        "leaks": leaks,
        "bank": report_skills.figures(runs),
        "num_cards": len(cards := report_skills.cards(runs)),
        "max_cards": report_skills.MAX_CARDS,
        "cards": viewer.pack(cards),
        "shown": shown["iterations"],
        "chunks": shown["chunks"],
        "data": {"figures": figures, "index": shown["index"], "runs": [r.name for r in runs]},
        "notices": list(dict.fromkeys(notices)),
    }


def _details(run: Run, figures: list) -> dict[str, Any]:
    compared = report_results.comparisons(run, run.notices)
    return {
        "name": run.name,
        "arm": run.arm,
        "seed": run.seed,
        "env": (run.config.get("env") or {}).get("name", ""),
        "iterations": len(run.records),
        "comparisons": compared,
        "headlines": report_results.headlines(compared),
        "panels": [
            *charts.panels(run, figures, ends=(BEFORE, AFTER), names=CONDITIONS),
            *charts.streams(run, figures),
        ],
        "others": {n: json.dumps(o, indent=2)[:20_000] for n, o in run.others.items()},
        "config": json.dumps(run.config, indent=2, sort_keys=True) if run.config else "",
    }


# --- text ------------------------------------------------------------------------------------


def _script(code: str) -> Any:
    """Program text as the body of a script element, which only `</script` and `<!--` can disturb."""
    import markupsafe

    return markupsafe.Markup(code.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _script_json(value: Any) -> Any:
    """Data as the body of a script element; no text in it can end the element or a line."""
    import markupsafe

    text = json.dumps(viewer.finite(value), separators=(",", ":"), allow_nan=False)
    return markupsafe.Markup(text.translate(_UNSAFE))


def _inline(name: str) -> Any:
    import markupsafe

    return markupsafe.Markup((TEMPLATES / name).read_text(encoding="utf-8"))


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
