"""Reads a run folder for the report; a missing or damaged file becomes a sentence on the page."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import pathlib
import re
import zlib
from collections.abc import Sequence
from typing import Any

from evolving_rl_jax.config import RESUMABLE
from evolving_rl_jax.eval import statistics
from evolving_rl_jax.record import metrics as run_metrics
from evolving_rl_jax.skills.bank import Bank
from evolving_rl_jax.skills.records import SkillRecord

UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zlib.error)
# Keys in which runs of one group may differ: seeds, and where and how fast they ran.
_SET_APART = {"train.num_iterations", "collapse", "optimizer.decay_updates", "warmstart.batch_rows"}
NOT_IN_GROUP = ("seed", "env.cache_dir", *(key for key in RESUMABLE if key not in _SET_APART))


@dataclasses.dataclass
class Run:
    """What a run folder holds.

    Attributes:
      folder: the folder.
      config: ``config.json`` as plain data, {} when it cannot be read.
      records: of ``metrics.jsonl``.
      panels: contents of the panel files in ``eval/``, by file name.
      others: contents of the other files in ``eval/``.
      bank: the newest record of every skill.
      notices: sentences on collapses of the run, and on what could not be read.
    """

    folder: pathlib.Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    panels: list[dict[str, Any]]
    others: dict[str, dict[str, Any]]
    bank: list[SkillRecord]
    notices: list[str]

    @property
    def name(self) -> str:
        return self.folder.name or str(self.folder)

    @property
    def arm(self) -> str:
        return str(_get(self.config, "algorithm.arm") or "")

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    def panel(self, name: str, temperature: float) -> dict[str, Any] | None:
        """The panel that the policy ``name`` played at a temperature."""
        found = (p for p in self.panels if (p["name"], p["temperature"]) == (name, temperature))
        return next(found, None)


@dataclasses.dataclass
class Group:
    """Runs of one configuration that differ in their seed."""

    label: str
    runs: list[Run]

    @property
    def seeds(self) -> list[Any]:
        return [run.seed for run in self.runs]


def read_run(workdir: str | os.PathLike) -> Run:
    """Reads everything but the episodes.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    folder = pathlib.Path(workdir)
    if not folder.is_dir():
        raise FileNotFoundError(f"workdir must be a run folder, got {str(workdir)!r} (not there)")
    notices: list[str] = []
    panels, others = _evaluations(folder, notices)
    return Run(
        folder=folder.absolute(),
        config=_config(folder, notices),
        records=_records(folder, notices),
        panels=panels,
        others=others,
        bank=_bank(folder, notices),
        notices=_collapses(folder) + notices,
    )


def _config(folder: pathlib.Path, notices: list[str]) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except UNREADABLE as e:
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


def _collapses(folder: pathlib.Path) -> list[str]:
    """A sentence for each line of ``collapses.jsonl``; a last line that a kill has torn is left out."""
    try:
        text = (folder / "collapses.jsonl").read_text(encoding="utf-8")
        records = [json.loads(x) for x in text.splitlines(keepends=True) if x.endswith("\n")]
        return [f"Collapse, {r['message']}; {_consequence(r)}." for r in records]
    except FileNotFoundError:  # nothing has collapsed
        return []
    except UNREADABLE as e:
        return [_sentence("collapses.jsonl", e, "collapses of the run are not shown")]


def _consequence(record: dict[str, Any]) -> str:
    if record["action"] == "restore_best":
        to = record["restored"]
        state = f"its state after iteration {to}" if to else "the policy it began with"
        return f"the run went back to {state}"
    return "the run was stopped" if record["action"] == "stop" else "the run went on"


def _evaluations(folder: pathlib.Path, notices: list[str]):
    panels, others = [], {}
    for path in sorted((folder / "eval").glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if "games" not in result:
                others[path.name] = dict(result)
                continue
            panels.append({**_panel(result), "file": path.name})
        except UNREADABLE as e:
            notices.append(_sentence(f"eval/{path.name}", e, "it is left out"))
    return panels, others


def _panel(result: dict[str, Any]) -> dict[str, Any]:
    result["temperature"] = float(result["temperature"])
    result["name"] = str(result["name"])
    result["iteration"] = int(result.get("iteration", -1))
    result["versions"] = dict(result.get("versions") or {})
    statistics.outcomes(result)  # a file of another form shows here
    return result


def _bank(folder: pathlib.Path, notices: list[str]) -> list[SkillRecord]:
    path = folder / "skills" / "bank.jsonl"
    if not path.is_file():
        return []
    try:
        return Bank(path).records
    except UNREADABLE as e:
        notices.append(_sentence("skills/bank.jsonl", e, "no skills of the bank are shown"))
        return []


def episode_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The logged iterations in order."""
    return sorted((folder / "episodes").glob("iteration_*.jsonl.gz"), key=iteration_of)


def iteration_of(path: pathlib.Path) -> int:
    digits = re.findall(r"\d+", path.name)
    return int(digits[0]) if digits else -1


def read_episodes(path: pathlib.Path, notices: list[str]) -> list[dict[str, Any]]:
    """The sources of a logged iteration."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [dict(json.loads(line)) for line in file if line.strip()]
    except UNREADABLE as e:
        notices.append(_sentence(f"episodes/{path.name}", e, "its episodes are left out"))
        return []


def _sentence(name: str, error: Exception, consequence: str) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{name} is missing, so {consequence}."
    return f"{name} cannot be read ({type(error).__name__}: {error}), so {consequence}."


# --- grouping --------------------------------------------------------------------------------


def groups(runs: Sequence[Run]) -> list[Group]:
    """Runs that differ only in NOT_IN_GROUP share a group, in order of first appearance."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps(_flat(run.config), sort_keys=True) if run.config else str(run.folder)
        members.setdefault(key, []).append(run)
    found = list(members.values())
    labels = _labels([group[0] for group in found])
    return [Group(label, group) for label, group in zip(labels, found, strict=True)]


def _labels(runs: Sequence[Run]) -> list[str]:
    """The arm, else what else sets the configurations apart, else the folder's name."""
    if len(runs) == 1:
        return [runs[0].arm or runs[0].name]
    flat = [_flat(run.config) for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config)
    apart = [k for k in keys if len({repr(config.get(k)) for config in flat}) > 1]
    shown = [k for k in apart if k != "algorithm.arm"][:3]
    labels = []
    for run, config in zip(runs, flat, strict=True):
        parts = [f"{key.split('.')[-1]}={config.get(key)}" for key in shown]
        labels.append(", ".join([run.arm or run.name, *parts]))
    for label in {label for label in labels if labels.count(label) > 1}:
        labels = [
            f"{x} ({run.name})" if x == label else x for x, run in zip(labels, runs, strict=True)
        ]
    return labels


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a configuration, without those that may differ within a group."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in NOT_IN_GROUP:
            continue
        if isinstance(value, dict):
            flat.update(_flat(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def _get(config: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config
