"""Which logged episodes the report's page carries, and in what form.

A page must load at once whatever the run's length, so it carries a bounded part of ``episodes/``: at most
MAX_ITERATIONS iterations of a run, spread evenly with the first and the last among them, fewer when they
would take more than MAX_BYTES of the page.  Each iteration is one gzipped chunk that the page unpacks when
something in it is opened; a small index beside them feeds the list and its filters.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from evolving_rl_jax.report import readers
from evolving_rl_jax.report.readers import Run

MAX_ITERATIONS = 24  # of a run
MAX_BYTES = 6_000_000  # of all chunks together, as they stand in the page


def pack(value: Any) -> str:
    """JSON, gzipped, as base64: plain letters, so nothing in it can end a script element."""
    data = json.dumps(finite(value), separators=(",", ":"), allow_nan=False).encode()
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def finite(value: Any) -> Any:
    """Numbers that JSON does not have become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value


def episodes(runs: Sequence[Run]) -> dict[str, Any]:
    """The viewer's data.

    Returns:
      ``index``: one entry a source; ``chunks``: gzipped lists of records; ``iterations``: for each run
      its name, how many iterations were ``logged`` and which are ``shown``.
    """
    index: list[dict[str, Any]] = []
    chunks: list[str] = []
    iterations = []
    for number, run in enumerate(runs):
        paths = readers.episode_files(run.folder)
        if not paths:
            run.notices.append(
                "episodes/ has no logged iteration, so there are no episodes to open."
            )
        shown, cut = [], 0
        for path in _chosen(paths, MAX_BYTES // len(runs)):
            records = readers.read_episodes(path, run.notices)
            kept, packed = _fit(records, MAX_BYTES // len(runs))
            cut += len(records) - len(kept)
            entries = [_entry(r, number, len(chunks), i) for i, r in enumerate(kept)]
            if entries:
                index += entries
                chunks.append(packed)
                shown.append(readers.iteration_of(path))
        facts = {"run": run.name, "logged": len(paths), "shown": shown, "cut": cut}
        iterations.append(facts)
    return {"index": index, "chunks": chunks, "iterations": iterations}


def _chosen(paths: Sequence[pathlib.Path], budget: int) -> list[pathlib.Path]:
    """Evenly spread with both ends, as many as their sizes allow; two at least."""
    count = min(len(paths), MAX_ITERATIONS)
    while count > 2:
        chosen = _spread(paths, count)
        if sum(p.stat().st_size for p in chosen) * 4 / 3 <= budget:  # base64: 4 letters for 3 bytes
            return chosen
        count -= 1
    return _spread(paths, count)


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    if count >= len(items):
        return list(items)
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def _fit(records: list[dict], budget: int) -> tuple[list[dict], str]:
    """As many of the records as fit half the budget (two iterations share it), one at least."""
    packed = pack(records)
    while len(records) > 1 and len(packed) > budget / 2:
        records = records[: len(records) // 2]
        packed = pack(records)
    return records, packed


def _entry(record: dict[str, Any], run: int, chunk: int, position: int) -> dict[str, Any]:
    source = record.get("source") or {}
    skills = record.get("skills") or []
    played = [e for skill in skills for e in skill.get("episodes") or ()]
    tasks = record.get("tasks") or [{}]
    first = source or (played[0] if played else tasks[0])
    return {
        "run": run,
        "chunk": chunk,
        "position": position,
        "iteration": record.get("iteration", -1),
        "id": record.get("id", ""),
        "task": first.get("task", ""),
        "type": first.get("type", ""),
        "text": first.get("text", ""),
        "won": source.get("won") if source else None,
        "played": len(played),
        "wins": sum(bool(e.get("won")) for e in played),
        "rewards": [s.get("reward") for s in skills],
        "names": [s.get("name", "") for s in skills],
    }
