"""Charts of the report, as plain dicts that the page hands to its chart library.

Each function appends its figures to ``figures`` and returns charts that point at them by index.  A
series names its colour by number: the page knows the palette of its light and dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evolving_rl_jax.eval.compare import before_after
from evolving_rl_jax.record import metrics as run_metrics
from evolving_rl_jax.report.readers import Group, Run

DASHES = ("solid", "dotted", "dashed", "dotdash")
_SHARE = (("y", "success"), ("low", "low"), ("high", "high"))
# Metrics that are shares of the same things, drawn in one chart: prefix of their names -> title.
TOGETHER = {"skill/states_": "what skills state"}
SMOOTH_FROM = 20  # iterations from which curves are smoothed


def curves(groups: Sequence[Group], figures: list) -> list[dict[str, Any]]:
    """Charts by prefix, one a metric, with one curve and its band for every group.

    A group of one run gives the moving average over a tenth of the run, with a band of one standard
    deviation of the values in that window; of several, the mean of the runs' moving averages, with a
    band from the lowest to the highest run.  Stage times have a section of their own.
    """
    names = dict.fromkeys(k for g in groups for run in g.runs for r in run.records for k in r)
    sections: dict[str, list[dict]] = {}
    for name in names:
        prefix, _, rest = name.rpartition("/")
        if name == "iteration" or prefix == "time":
            continue
        series = [_curve(g, name, i) for i, g in enumerate(groups)]
        series = [s for s in series if s]
        if series:
            chart = _chart(figures, rest.replace("_", " "), series, name=name)
            chart["last"] = [(s["color"], s["y"][-1]) for s in series]
            sections.setdefault(prefix or "other", []).append(chart)
    for prefix, title in TOGETHER.items():
        chart = _together(groups, [n for n in names if n.startswith(prefix)], title, figures)
        if chart:
            sections[prefix.rpartition("/")[0]].insert(0, chart)
    first = [p for p in ("rollout", "retrieval", "train", "rate") if p in sections]
    return [{"prefix": p, "charts": sections[p]} for p in dict.fromkeys([*first, *sections])]


def _together(
    groups: Sequence[Group], names: Sequence[str], title: str, figures: list
) -> dict[str, Any] | None:
    """One chart of several metrics: a colour for each group, a dash for each metric; no bands."""
    series, drawn = [], []
    for name, dash in zip(names, DASHES, strict=False):
        what = name.rpartition("/")[2].replace("_", " ")
        drawn.append(f"{what} ({dash})")
        for i, group in enumerate(groups):
            curve = _curve(group, name, i)
            if curve:
                label = f"{group.label}, {what}" if len(groups) > 1 else what
                series.append(
                    {"label": label, "color": i, "dash": dash, "x": curve["x"], "y": curve["y"]}
                )
    if not series:
        return None
    chart = _chart(figures, f"{title}: {', '.join(drawn)}", series, name=", ".join(names))
    chart["last"] = [(s["color"], s["y"][-1]) for s in series]
    return chart


def _curve(group: Group, name: str, color: int) -> dict[str, Any] | None:
    values = [{r["iteration"]: finite(r.get(name)) for r in run.records} for run in group.runs]
    values = [v for v in values if any(y is not None for y in v.values())]
    if not values:
        return None
    x = sorted(set().union(*values))
    raw = np.array([[_nan(v.get(i)) for i in x] for v in values])
    series = {"label": group.label, "color": color, "x": x}
    if len(values) == 1:
        center, deviation = _smooth(raw[0])
        if len(x) < SMOOTH_FROM:
            return {**series, "y": _plain(raw[0])}
        band = {"low": _plain(center - deviation), "high": _plain(center + deviation)}
        return {**series, "y": _plain(center), **band, "raw": _plain(raw[0])}
    smooth = np.array([_smooth(row)[0] if len(x) >= SMOOTH_FROM else row for row in raw])
    known = ~np.isnan(smooth)
    count = np.maximum(known.sum(0), 1)
    any_known = known.any(0)
    mean = np.where(any_known, np.nansum(smooth, 0) / count, np.nan)
    low = np.where(any_known, np.where(known, smooth, np.inf).min(0), np.nan)
    high = np.where(any_known, np.where(known, smooth, -np.inf).max(0), np.nan)
    return {**series, "y": _plain(mean), "low": _plain(low), "high": _plain(high)}


def _smooth(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centred moving mean and standard deviation over a tenth of the run, gaps left out."""
    half = max(len(values) // 20, 2)
    means, deviations = np.full(len(values), np.nan), np.full(len(values), np.nan)
    for i in range(len(values)):
        near = values[max(i - half, 0) : i + half + 1]
        near = near[~np.isnan(near)]
        if near.size:
            means[i], deviations[i] = near.mean(), near.std()
    return means, deviations


def stages(group: Group, figures: list) -> dict[str, Any] | None:
    """Share of each stage in the time of all iterations, and how the first run's went."""
    records = [r for run in group.runs for r in run.records]
    names = [k for k in dict.fromkeys(k for r in records for k in r) if k.startswith("time/")]
    names = [name for name in names if name != "time/total"]
    sums = {name: math.fsum(finite(r.get(name)) or 0.0 for r in records) for name in names}
    total = math.fsum(sums.values())
    if total <= 0:
        return None
    parts = [
        {"name": n[5:], "share": sums[n] / total, "seconds": sums[n] / len(records), "color": i}
        for i, n in enumerate(names)
    ]
    first = group.runs[0].records
    x = [r["iteration"] for r in first]
    series = [
        {"label": n[5:], "color": i, "x": x, "y": [finite(r.get(n)) or 0.0 for r in first]}
        for i, n in enumerate(names)
    ]
    chart = _chart(figures, "seconds of each iteration", series, stacked=True)
    total_text = run_metrics.format_duration(total)
    return {
        "label": group.label,
        "parts": parts,
        "chart": chart,
        "total": total_text,
        "iterations": len(records),
    }


def panels(run: Run, figures: list, *, ends: Sequence[str], names: Mapping[str, str]) -> list:
    """Success by iteration where the run was also evaluated between its two ``ends``."""
    charts = []
    for temperature in dict.fromkeys(r["temperature"] for r in run.panels):
        panel = [r for r in run.panels if r["temperature"] == temperature]
        panel.sort(key=lambda r: (r["iteration"], r["name"] in ends))
        if all(r["name"] in ends for r in panel):
            continue
        # A series is of one list of games; of two panels of an iteration the end of the run counts.
        found: dict[tuple, dict[int, tuple]] = {}
        games: dict[tuple, int] = {}
        for result in panel:
            played = result.get("game_list_hash"), tuple(result.get("seeds", ()))
            for row in before_after(result, None):
                success = row["before"]
                if success:
                    point = (result["iteration"], *(success[k] for k in ("success", "low", "high")))
                    series = found.setdefault((row["split"], row["condition"], played), {})
                    series[result["iteration"]] = point
                    games[played, row["split"]] = success["n"]
        splits = list(dict.fromkeys(split for split, *_ in found))
        conditions = list(dict.fromkeys(condition for _, condition, _ in found))
        several = len({played for *_, played in found}) > 1
        series = [
            {
                "label": f"{split}, {names.get(condition, condition)}"
                + (f", {games[played, split]} plays" if several else ""),
                "color": conditions.index(condition),
                "dash": DASHES[splits.index(split) % len(DASHES)],
                "points": True,
                **dict(
                    zip(
                        ("x", "y", "low", "high"),
                        map(list, zip(*points.values(), strict=True)),
                        strict=True,
                    )
                ),
            }
            for (split, condition, played), points in found.items()
        ]
        charts.append(_chart(figures, f"success at temperature {temperature:g}", series))
    return charts


def streams(run: Run, figures: list) -> list[dict[str, Any]]:
    """Growth curves of test-time evolution: success against past tasks, bank on and off."""
    charts = []
    for file, result in run.others.items():
        bins = result.get("curve") or ()
        series = []
        for side, label in (("with", "bank on"), ("without", "bank off")):
            known = [b for b in bins if b.get(side)]
            columns = {name: [finite(b[side].get(key)) for b in known] for name, key in _SHARE}
            x = [(b["past_from"] + b["past_to"]) / 2 for b in known]
            if known:
                series.append(
                    {"label": label, "color": len(series), "points": True, "x": x, **columns}
                )
        if series:
            title = f"success against the number of past tasks, {file}"
            charts.append(_chart(figures, title, series))
    return charts


def _chart(figures: list, title: str, series: list[dict], **more: Any) -> dict[str, Any]:
    figures.append({"title": title, "series": series, **more})
    return {"title": title, "figure": len(figures) - 1, "name": more.get("name", "")}


def finite(value: Any) -> float | None:
    """The number, or None for anything else."""
    good = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if good else None


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _plain(values: np.ndarray) -> list[float | None]:
    """Five digits are more than a screen shows, and keep the page small."""
    return [None if math.isnan(v) else float(f"{v:.5g}") for v in values]
