"""What a run reports while it trains: ``metrics.jsonl``, TensorBoard, W&B and a progress line.

One JSON object a line, ``{"iteration": i, "rollout/win_rate": 0.41, ...}``, is the record that
reports and resumed runs read; TensorBoard, W&B and the console show the same numbers.
"""

from __future__ import annotations

import collections
import json
import logging
import math
import os
import pathlib
import statistics
import time
from collections.abc import Mapping
from typing import Any

from evolving_rl_jax.files import write_atomic

log = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"

# The figures of the progress line, in order: metric -> label.  Absent ones are left out.
PROGRESS = {
    "rollout/win_rate": "win",
    "rollout/source_success": "source",
    "rollout/skill_valid": "skills valid",
    "rollout/fact_stated_when_seen": "fact stated",
    "train/loss": "loss",
    "train/kl": "kl",
}

# Counts of an iteration from which the logger derives a rate per second of `time/total`.
RATES = {
    "rollout/episodes": "rate/episodes_per_s",
    "rollout/decoded_tokens": "rate/tokens_per_s",
}


class MetricsLogger:
    """Appends one record an iteration to ``workdir/metrics.jsonl`` and shows it.

    A record reaches the file in a single ``write`` and is synced, so a kill leaves at most one torn
    line, which the next start drops.  ``rate/episodes_per_s`` and ``rate/tokens_per_s`` are added
    when ``rollout/episodes`` or ``rollout/decoded_tokens`` is logged.

    Args:
      workdir: the run folder, created when it is missing.
      tensorboard: also write scalars into ``workdir/tensorboard``.
      console: print one progress line an iteration.
      total: iterations of the whole run, for the time left.
      resume_from: the next iteration to run; records of it and later ones are dropped, in the file
        and in TensorBoard.  None keeps everything.
      wandb: a `tracking.WandbRun` that gets the same numbers, or None; closed with the logger.
      write: False writes and shows nothing: in all processes of a run but one.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        tensorboard: bool = True,
        console: bool = True,
        total: int,
        resume_from: int | None = None,
        wandb: Any = None,
        write: bool = True,
    ):
        self._path = pathlib.Path(workdir) / FILE_NAME
        self._total, self._write = total, write
        self._console = console and write
        self._file = self._writer = None
        self._wandb = wandb
        if write:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _rewrite(self._path, resume_from)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if tensorboard and write:
            from tensorboardX import SummaryWriter  # slow to import, and optional

            folder = str(self._path.parent / "tensorboard")
            self._writer = SummaryWriter(folder, purge_step=resume_from)
        self._durations: collections.deque[float] = collections.deque(maxlen=10)
        self._logged = 0
        self._last = time.perf_counter()

    def log(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Records the metrics of a finished iteration (counted from 0).

        Args:
          iteration: index of the iteration.
          metrics: flat names to scalars (Python, numpy or jax); a value that is not finite is
            written as null.

        Raises:
          ValueError: a value is not a number, or a metric is called ``iteration``.
        """
        values = {name: _scalar(name, value) for name, value in metrics.items()}
        now = time.perf_counter()
        duration, self._last = now - self._last, now
        seconds = values.get("time/total") or duration
        for count, rate in RATES.items():
            if values.get(count) is not None and seconds > 0:
                values.setdefault(rate, values[count] / seconds)
        line = json.dumps({"iteration": int(iteration), **values}, allow_nan=False) + "\n"
        if self._write:
            _append(self._file, line.encode())
        self._to_tensorboard(iteration, values)
        if self._wandb is not None:
            self._wandb.log(iteration, values)
        self._remember(duration)
        if self._console:
            left = self.seconds_left(iteration)
            text = progress_line(iteration, self._total, values, seconds=seconds, left=left)
            print(text, flush=True)

    def seconds_left(self, iteration: int) -> float:
        """Estimated seconds after ``iteration`` is done, from the median recent duration."""
        remaining = max(self._total - iteration - 1, 0)
        return remaining * statistics.median(self._durations) if self._durations else math.nan

    def close(self) -> None:
        """Closes the files.  Logging afterwards is an error."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._wandb is not None:
            self._wandb.close()
            self._wandb = None

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _remember(self, duration: float) -> None:
        # The first iteration compiles; its duration says little about the others.
        if self._logged == 1:
            self._durations.clear()
        self._durations.append(duration)
        self._logged += 1

    def _to_tensorboard(self, iteration: int, values: Mapping[str, float | None]) -> None:
        if self._writer is None:
            return
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, iteration)
        self._writer.flush()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of ``workdir/metrics.jsonl`` in file order; [] when there is no such file.

    A line that is not a JSON object with an iteration (torn by a kill) is left out with a warning.
    """
    path = pathlib.Path(workdir) / FILE_NAME
    return [record for _, record in _records(path)] if path.is_file() else []


def progress_line(
    iteration: int,
    total: int,
    values: Mapping[str, float | None],
    *,
    seconds: float,
    left: float,
) -> str:
    """One line for the console: place in the run, chosen figures, rates, duration and time left."""
    width = len(str(total))
    parts = [f"iteration {iteration + 1:>{width}}/{total}"]
    for name, label in PROGRESS.items():
        if name in values:
            parts.append(f"{label} {_figure(values[name])}")
    for name, label in zip(RATES.values(), ("episodes/s", "tokens/s"), strict=True):
        if values.get(name) is not None:
            parts.append(f"{_short(values[name])} {label}")
    parts.append(f"{seconds:.1f} s")
    if math.isfinite(left):
        parts.append(f"{format_duration(left)} left")
    return "  ".join(parts)


def format_duration(seconds: float) -> str:
    """Seconds as people say them: ``42 s``, ``3 min 20 s``, ``2 h 05 min``.

    >>> format_duration(200)
    '3 min 20 s'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _figure(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.1e}"


def _short(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:.0f}k"
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.{0 if value >= 10 else 1}f}"


def _scalar(name: str, value: Any) -> float | None:
    if name == "iteration":
        raise ValueError("a metric must not be called 'iteration', that is the key of the record")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"metric {name!r} must be a number, got {value!r}") from None
    return number if math.isfinite(number) else None


def _append(file: int, data: bytes) -> None:
    # One write: with O_APPEND a reader never sees half a record of a living process.
    written = os.write(file, data)
    if written != len(data):
        raise OSError(f"{FILE_NAME} must take {len(data)} bytes, got {written} (disk full?)")
    os.fsync(file)


def _records(path: pathlib.Path) -> list[tuple[bytes, dict[str, Any]]]:
    """(line, record) pairs of the lines that are whole."""
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            record["iteration"] = int(record["iteration"])
        except (ValueError, KeyError, TypeError):
            log.warning("%s line %d dropped: not a whole record (%.40r)", path, number, line)
            continue
        records.append((line, record))
    return records


def _rewrite(path: pathlib.Path, resume_from: int | None) -> None:
    """Drops torn lines and those from ``resume_from`` on; the file is replaced in one step."""
    if not path.is_file():
        return
    limit = math.inf if resume_from is None else resume_from
    kept = b"".join(line + b"\n" for line, record in _records(path) if record["iteration"] < limit)
    if kept == path.read_bytes():
        return
    write_atomic(path, kept)
