"""When training has collapsed: limits on the figures of an iteration, and what a run does then.

A limit of ``config.collapse`` that is broken in ``patience`` iterations in a row is a collapse.  The
decision follows from the figures alone, and what the rule remembers of them is small and travels in
every checkpoint, so a run that was killed and resumed comes to the same decisions.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from evolving_rl_jax.config import ConfigError, flat
from evolving_rl_jax.files import write_atomic

FILE_NAME = "collapses.jsonl"
OFF, WARN, STOP, RESTORE_BEST = "off", "warn", "stop", "restore_best"

# Limit -> its figure, and the count that must be above 0 for it to say anything.  A limit that is called min_* is broken below it, one that is called max_* above it.
LIMITS = {
    "min_entropy.solver": ("train/entropy_solver", "train/sequences_solver"),
    "min_entropy.extractor": ("train/entropy_extractor", "train/sequences_extractor"),
    "max_kl.solver": ("train/kl_solver", "train/sequences_solver"),
    "max_kl.extractor": ("train/kl_extractor", "train/sequences_extractor"),
    "max_zero_variance.solver": ("train/zero_variance_solver", "train/sequences_solver"),
    "max_zero_variance.extractor": ("train/zero_variance_extractor", "train/sequences_extractor"),
    "min_skill_valid": ("rollout/skill_valid", None),
    "min_skill_tokens": ("rollout/skill_tokens", None),
    "max_logprob_gap": ("train/logprob_gap_mean", "train/trained_tokens"),
    "max_win_rate_drop": ("rollout/win_rate", "rollout/scored_episodes"),
}
_DROP = "max_win_rate_drop"  # the one whose figure is compared with its own past


class CollapsedError(ConfigError):
    """A run that its collapse rule has ended; the message says why and how to go on."""


@dataclasses.dataclass(frozen=True)
class Breach:
    """A limit that was broken for too long.

    Attributes:
      metric: name of the figure.
      value: the newest one; for ``max_win_rate_drop`` how far its mean has fallen.
      key: of the limit, below ``config.collapse``.
      limit: its value.
      iterations: in a row in which it was broken.
    """

    metric: str
    value: float
    key: str
    limit: float
    iterations: int

    def __str__(self) -> str:
        side = "below" if self.key.startswith("min_") else "above"
        what = f"the fall of the mean {self.metric}" if self.key == _DROP else self.metric
        return (
            f"{what} = {self.value:.4g} is {side} config.collapse.{self.key} = {self.limit:g} "
            f"for {self.iterations} iterations in a row"
        )


@dataclasses.dataclass(frozen=True)
class Collapse:
    """What the rule found after an iteration.

    Attributes:
      iteration: index of the iteration, from 0.
      action: what the run does: ``warn`` | ``stop`` | ``restore_best``.
      breaches: the limits that were broken, at least one.
    """

    iteration: int
    action: str
    breaches: tuple[Breach, ...]

    def __str__(self) -> str:
        return f"iteration {self.iteration + 1}: " + "; ".join(map(str, self.breaches))


class CollapseRule:
    """Watches the figures of a run, one iteration after the other.

    Under ``warn`` a limit that stays broken is reported once, and again only after it was kept in
    between.  Under ``restore_best`` counting starts anew after every return, and after
    ``max_restores`` of them the run is stopped instead.

    Args:
      config: the group ``config.collapse``; a limit of 0 is off.
      saved: `state` of a run to go on with.  What it counted under other settings is dropped.
    """

    def __init__(self, config: Any, saved: Mapping[str, Any] | None = None):
        self._config = config
        self._settings = flat(config)
        chosen = {} if config.action == OFF else LIMITS
        self._limits = {k: self._settings[k] for k in chosen if self._settings[k]}
        same = saved is not None and saved["settings"] == self._settings
        kept = saved if same else {}
        self._in_a_row: dict[str, int] = dict(kept.get("in_a_row", {}))
        self._reported: set[str] = set(kept.get("reported", ()))
        self._win_rates: list[float] = list(kept.get("win_rates", ()))
        self._best_mean: float | None = kept.get("best_mean")
        self._restores: int = kept.get("restores", 0)
        self._stopped: str = kept.get("stopped", "")
        self.trusted = True

    @property
    def state(self) -> dict[str, Any]:
        """What the rule remembers, JSON-serialisable."""
        return {
            "settings": self._settings,
            "in_a_row": self._in_a_row,
            "reported": sorted(self._reported),
            "win_rates": self._win_rates,
            "best_mean": self._best_mean,
            "restores": self._restores,
            "stopped": self._stopped,
        }

    def observe(self, iteration: int, metrics: Mapping[str, float]) -> Collapse | None:
        """Takes the figures of the iteration that has ended.

        Afterwards ``trusted`` says whether its checkpoint may be one to return to: under
        ``restore_best`` not while any limit is broken.

        Args:
          iteration: index, from 0.
          metrics: by the names of docs/metrics.md; a limit whose figure is absent, or a mean over
            nothing, is left as it was.  A figure that is not finite breaks its limit.

        Returns:
          A collapse that must be acted upon now, or None.
        """
        values = self._measured(metrics)
        for key, value in values.items():
            broken = not _within(key, value, self._limits[key])
            self._in_a_row[key] = self._in_a_row.get(key, 0) + 1 if broken else 0
            if not broken:
                self._reported.discard(key)
        self.trusted = self._config.action != RESTORE_BEST or not any(self._in_a_row.values())
        due = [k for k in values if self._in_a_row[k] >= self._config.patience]
        due = [k for k in due if k not in self._reported]
        if not due:
            return None
        breaches = tuple(self._breach(key, values[key]) for key in due)
        return self._decide(iteration, breaches)

    def raise_if_stopped(self) -> None:
        """Raises CollapsedError when the rule, as it is set now, has ended this run."""
        if self._stopped:
            raise CollapsedError(
                f"training must stay within the limits of config.collapse, got {self._stopped}: "
                f"the run is saved and earlier checkpoints are kept; with "
                f"--config.collapse.action=warn, or another limit, the same command goes on"
            )

    def _measured(self, metrics: Mapping[str, float]) -> dict[str, float]:
        values = {}
        for key in self._limits:
            metric, count = LIMITS[key]
            if metric not in metrics or (count and not metrics.get(count, 0) > 0):
                continue
            value = float(metrics[metric])
            if key == _DROP:  # where parts are paid, few are won
                value = self._fall(float(metrics.get("rollout/reward", value)))
            if value is not None:
                values[key] = value
        return values

    def _fall(self, win_rate: float) -> float | None:
        """How far the mean win rate is below its best; None until there is a whole window."""
        self._win_rates = [*self._win_rates, win_rate][-self._config.window :]
        if len(self._win_rates) < self._config.window:
            return None
        mean = sum(self._win_rates) / len(self._win_rates)
        self._best_mean = mean if self._best_mean is None else max(self._best_mean, mean)
        return self._best_mean - mean

    def _breach(self, key: str, value: float) -> Breach:
        return Breach(LIMITS[key][0], value, key, self._limits[key], self._in_a_row[key])

    def _decide(self, iteration: int, breaches: tuple[Breach, ...]) -> Collapse:
        action = self._config.action
        if action == RESTORE_BEST and self._restores >= self._config.max_restores:
            action = STOP
        found = Collapse(iteration, action, breaches)
        if action == STOP:
            self._stopped = str(found)
            if self._restores:
                most = self._config.max_restores
                self._stopped += f", after {self._restores} of at most {most} returns"
        if action == RESTORE_BEST:
            self._restores += 1
            self._in_a_row, self._win_rates = {}, []
        else:
            self._reported |= {b.key for b in breaches}
        return found


def _within(key: str, value: float, limit: float) -> bool:
    if not math.isfinite(value):
        return False
    return value >= limit if key.startswith("min_") else value <= limit


class CollapseLog:
    """``collapses.jsonl``: one line for every collapse of a run; no file while there is none.

    Args:
      folder: the run folder.
      resume_from: the next iteration to run; lines of it and later ones are dropped.
      write: False in all processes of a run but one.
    """

    def __init__(self, folder: str | os.PathLike, *, resume_from: int, write: bool = True):
        self._path, self._write = pathlib.Path(folder) / FILE_NAME, write
        if write and self._path.is_file():
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if _iteration(line) < resume_from]
            if kept != lines:
                write_atomic(self._path, "".join(kept))

    def append(self, collapse: Collapse, restored: int | None) -> None:
        """Writes a line; ``restored`` is the iteration of the checkpoint that was returned to."""
        if not self._write:
            return
        breaches = [dataclasses.asdict(b) for b in collapse.breaches]
        for breach in breaches:
            breach["value"] = breach["value"] if math.isfinite(breach["value"]) else None
        record = {"iteration": collapse.iteration, "action": collapse.action}
        record |= {"restored": restored, "message": str(collapse), "breaches": breaches}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


def ended_by_rule(folder: str | os.PathLike) -> str:
    """What the rule ended the run in ``folder`` for; empty = the run may go on, or has gone on."""
    folder = pathlib.Path(folder)
    try:
        record = json.loads((folder / FILE_NAME).read_text(encoding="utf-8").splitlines()[-1])
        done = (folder / "metrics.jsonl").read_bytes().count(b"\n")
        ended = record["action"] == STOP and done == record["iteration"] + 1
        return record["message"] if ended else ""
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return ""


def _iteration(line: str) -> float:
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):  # torn by a kill
        return math.inf
