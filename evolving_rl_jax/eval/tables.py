"""Figures as text: a share, a difference, and tables of them, for consoles and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOTHING = "–"
# What the intervals of a table of one policy's plays are made of.
DRAWN = "95 % interval: Wilson where games stand alone; else 9,999 drawings of what shares a skill or a game"
DRAWN_RUNS = (
    "95 % intervals: first a bootstrap that draws training runs (seeds) and games anew, with games that share "
    "a skill drawn together; after 't', where there are fewer than 6 runs, the t-interval over runs: the one "
    "to judge by, since drawing so few runs anew is too sure of them"
)


def percent(value: float | None) -> str:
    """A share in percent."""
    return NOTHING if value is None else f"{100 * value:.1f}"


def signed(value: float | None) -> str:
    """A difference in points."""
    return NOTHING if value is None else f"{100 * value:+.1f}"


def share(row: Mapping[str, Any] | None, empty: str = NOTHING) -> str:
    """``success [low, high]`` in percent, with the t-interval over runs where there is one."""
    return _with_interval(row, "success", percent) if row and row["n"] else empty


def score(row: Mapping[str, Any]) -> str:
    """``value [low, high]`` of graded episodes; without the interval where there is none."""
    found = row["score"]
    if found["low"] is None:
        return f"{found['value']:.2f}"
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def difference(row: Mapping[str, Any] | None, empty: str = NOTHING) -> str:
    """``value [low, high]`` in points, with the t-interval over runs where there is one."""
    return _with_interval(row, "value", signed) if row else empty


def _with_interval(row, key: str, text) -> str:
    runs = row.get("over_runs")
    more = f", t [{text(runs['low'])}, {text(runs['high'])}]" if runs else ""
    return f"{text(row[key])} [{text(row['low'])}, {text(row['high'])}]{more}"


def points(row: Mapping[str, Any]) -> str:
    """A paired difference with what it is made of and its p-values."""
    return (
        f"{difference(row)} (+{row['gained']} -{row['lost']}, "
        f"McNemar p {row['p']:.2g}, by group {row['p_grouped']:.2g})"
    )


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells as columns of text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [f"| {' | '.join(heading)} |", f"|{' --- |' * len(heading)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
