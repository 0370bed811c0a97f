"""Charts of the report, as plain dicts that the page hands to plotly.js.

Each function appends its figures to ``figures`` and returns charts that point at them by index.  A
trace names its colour by number: the page knows the palette of its light and dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evolving_rl_jax.eval import statistics
from evolving_rl_jax.train import metrics as run_metrics

DASHES = ("solid", "dot", "dash", "dashdot")


def _line(x: Sequence, y: Sequence, name: str, color: int = 0, **more: Any) -> dict[str, Any]:
    return {"x": list(x), "y": list(y), "name": name, "color": color, "mode": "lines", **more}


def _chart(figures: list, title: str, traces: list[dict], **more: Any) -> dict[str, Any]:
    figures.append({"traces": traces, **more})
    return {"title": title, "figure": len(figures) - 1}


def curves(records: Sequence[dict], figures: list) -> list[dict[str, Any]]:
    """Charts by prefix, one a metric; stage times have a section of their own."""
    groups: dict[str, list[dict]] = {}
    for name in dict.fromkeys(key for record in records for key in record):
        prefix, _, rest = name.rpartition("/")
        points = [(r["iteration"], finite(r.get(name))) for r in records]
        known = [y for _, y in points if y is not None]
        if name == "iteration" or prefix == "time" or not known:
            continue
        x, y = zip(*points, strict=True)
        traces = [_line(x, y, name)]
        if len(known) >= 20:
            traces[0]["opacity"] = 0.35
            traces.append(_line(x, _smooth(y), "moving average"))
        chart = _chart(figures, rest.replace("_", " "), traces)
        groups.setdefault(prefix or "other", []).append({**chart, "name": name, "last": known[-1]})
    first = [p for p in ("rollout", "train", "rate") if p in groups]
    return [{"prefix": p, "charts": groups[p]} for p in dict.fromkeys([*first, *groups])]


def _smooth(values: Sequence[float | None]) -> list[float | None]:
    """Centred moving average over a tenth of the run, gaps left out."""
    half = max(len(values) // 20, 2)
    means: list[float | None] = []
    for i in range(len(values)):
        near = [v for v in values[max(i - half, 0) : i + half + 1] if v is not None]
        means.append(sum(near) / len(near) if near else None)
    return means


def stages(records: Sequence[dict], figures: list) -> dict[str, Any] | None:
    """Share of each stage in the time of all iterations, and how it went over the run."""
    names = [k for k in dict.fromkeys(k for r in records for k in r) if k.startswith("time/")]
    names = [name for name in names if name != "time/total"]
    sums = {name: math.fsum(finite(r.get(name)) or 0.0 for r in records) for name in names}
    total = math.fsum(sums.values())
    if total <= 0:
        return None
    x = [r["iteration"] for r in records]
    traces = [
        _line(x, [finite(r.get(n)) or 0.0 for r in records], n[5:], i, stackgroup="time")
        for i, n in enumerate(names)
    ]
    parts = [
        {"name": n[5:], "share": sums[n] / total, "seconds": sums[n] / len(records), "color": i}
        for i, n in enumerate(names)
    ]
    chart = _chart(figures, "seconds of each iteration", traces)
    return {"parts": parts, "chart": chart, "total": run_metrics.format_duration(total)}


def panels(
    evaluations: Sequence[dict], figures: list, *, ends: Sequence[str], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Success by iteration where the run was also evaluated between its two ``ends``."""
    charts = []
    for temperature in dict.fromkeys(r["temperature"] for r in evaluations):
        panel = [r for r in evaluations if r["temperature"] == temperature]
        panel.sort(key=lambda r: r["iteration"])
        if all(r["name"] in ends for r in panel):
            continue
        series: dict[tuple, list[tuple]] = {}
        for result in panel:
            for row in statistics.compare(result, None):
                point = (result["iteration"], row["before"] and row["before"]["success"])
                series.setdefault((row["split"], row["condition"]), []).append(point)
        splits = list(dict.fromkeys(split for split, _ in series))
        conditions = list(dict.fromkeys(condition for _, condition in series))
        traces = [
            _line(
                *zip(*points, strict=True),
                f"{split}, {names.get(condition, condition)}",
                conditions.index(condition),
                mode="lines+markers",
                dash=DASHES[splits.index(split) % len(DASHES)],
            )
            for (split, condition), points in series.items()
        ]
        title = f"success at temperature {temperature:g}"
        charts.append(_chart(figures, title, traces, legend=True))
    return charts


def finite(value: Any) -> float | None:
    """The number, or None for anything else."""
    good = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if good else None
