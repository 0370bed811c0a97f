"""One line of a skill bank: the skill, where it came from, and what it was measured to be worth."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from evolving_rl_jax.skills.schema import Skill
from evolving_rl_jax.types import Task

SCHEMA_VERSION = 1
_Z = 1.959963984540054  # two-sided 95 %


class Outcome(NamedTuple):
    """One task played twice by one policy, with the skill in the prompt and without it.

    ``score_gained`` is how much further it was done with the skill (`Episode.score`); None = as won.
    """

    won_with: bool
    won_without: bool
    steps_with: int
    steps_without: int
    score_gained: float | None = None


def matched_interval(pairs: float, gained: float, lost: float) -> tuple[float, float]:
    """95 % interval of a difference of two shares of the same ``pairs``.

    Wald's interval with half a pair added to each of the four outcomes, which keeps its coverage
    for a handful of pairs and has a width even where all pairs agree.  Source: Agresti and Min,
    "Simple improved confidence intervals for comparing matched proportions", 2005.

    Args:
      pairs: in all.
      gained: won only by the second side.
      lost: won only by the first.
    """
    n, gained, lost = pairs + 2.0, gained + 0.5, lost + 0.5
    centre = (gained - lost) / n
    half = _Z * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return max(-1.0, centre - half), min(1.0, centre + half)


def belonging(task: Task) -> dict[str, Any]:
    """What a record says of where its source task belongs; empty where the task does not say it."""
    known = {"group": task.group, "kin": list(task.meta.get("kin", ()))}
    return {name: value for name, value in known.items() if value}


@dataclasses.dataclass(frozen=True)
class SkillRecord:
    """One extracted skill with its provenance and utility.

    Attributes:
      id: unique and reproducible from the run, e.g. ``"it00012-g03-n1"``.
      iteration: training iteration (from 0) in which this version was written.
      source_task_id: task whose episode it was extracted from.
      source_task_hash: content hash of that task.
      source_text: its sentence, which retrieval compares; empty when unknown.
      episode_id: the parent episode.
      policy_step: optimizer steps of the policy that wrote it.
      reward: extractor reward, None while not evaluated.
      skill: the skill as JSON values (``Skill.to_dict``), None when the text had none.
      reason: why there is no skill; empty when there is one.
      audit: verdict of ``audit`` as JSON values, None when it was not applied.
      uses, wins: scored episodes with the skill in the prompt, and those won.
      baseline_uses, baseline_wins: the paired episodes without it (same tasks, same seeds).
      gained, lost: pairs won only with the skill, and only without it.
      both_won: pairs won both ways.
      steps_saved: sum over those of the steps without minus the steps with it.
      score_gained: sum over all pairs of the score with the skill minus that without it.
      retired: why it is no longer used; empty while it is.
      version: 0 for the first line of an id, then counted up by ``Bank.revise_all``.
      meta: further facts for reports, JSON values.
    """

    id: str
    iteration: int
    source_task_id: str
    source_task_hash: str
    source_text: str = ""
    episode_id: str = ""
    policy_step: int = 0
    reward: float | None = None
    skill: Mapping[str, Any] | None = None
    reason: str = ""
    audit: Mapping[str, Any] | None = None
    uses: int = 0
    wins: float = 0.0
    baseline_uses: int = 0
    baseline_wins: float = 0.0
    gained: int = 0
    lost: int = 0
    both_won: int = 0
    steps_saved: float = 0.0
    score_gained: float = 0.0
    retired: str = ""
    version: int = 0
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether there is a skill, it did not fail its audit, and it is not retired."""
        audited = self.audit is None or bool(self.audit.get("passed"))
        return self.skill is not None and audited and not self.retired

    @property
    def utility(self) -> float | None:
        """Success rate with the skill minus without it; None when either was not measured."""
        if not self.uses or not self.baseline_uses:
            return None
        return self.wins / self.uses - self.baseline_wins / self.baseline_uses

    @property
    def utility_interval(self) -> tuple[float, float] | None:
        """95 % interval of ``utility`` from the paired counts; None when there are none."""
        paired = self.uses == self.baseline_uses > 0
        if not paired or self.gained - self.lost != self.wins - self.baseline_wins:
            return None
        return matched_interval(self.baseline_uses, self.gained, self.lost)

    @property
    def mean_score_gained(self) -> float | None:
        """Score with the skill minus without it, mean over the pairs; None without any."""
        return self.score_gained / self.baseline_uses if self.baseline_uses else None

    @property
    def mean_steps_saved(self) -> float | None:
        """Steps without minus steps with it, mean over the pairs won both ways; None without."""
        return self.steps_saved / self.both_won if self.both_won else None

    def measured(self, outcomes: Iterable[Outcome]) -> SkillRecord:
        """The record with further paired outcomes counted in."""
        outcomes = list(outcomes)
        both = [o for o in outcomes if o.won_with and o.won_without]
        saved = sum(o.steps_without - o.steps_with for o in both)
        return dataclasses.replace(
            self,
            uses=self.uses + len(outcomes),
            wins=self.wins + sum(o.won_with for o in outcomes),
            baseline_uses=self.baseline_uses + len(outcomes),
            baseline_wins=self.baseline_wins + sum(o.won_without for o in outcomes),
            gained=self.gained + sum(o.won_with and not o.won_without for o in outcomes),
            lost=self.lost + sum(o.won_without and not o.won_with for o in outcomes),
            both_won=self.both_won + len(both),
            steps_saved=self.steps_saved + saved,
            score_gained=self.score_gained + sum(map(_gain, outcomes)),
        )

    def as_skill(self) -> Skill:
        """The skill itself.

        Raises:
          ValueError: the record has none.
        """
        if self.skill is None:
            raise ValueError(f"record {self.id!r} must hold a skill, got none: {self.reason}")
        return Skill.from_dict(self.skill)


def _gain(outcome: Outcome) -> float:
    won = float(outcome.won_with) - float(outcome.won_without)
    return won if outcome.score_gained is None else outcome.score_gained


_FIELDS = {field.name: field for field in dataclasses.fields(SkillRecord)}
_REQUIRED = {
    name
    for name, field in _FIELDS.items()
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
}
# What a field must be; numbers may be written without a decimal point.
_KINDS = {
    "str": str,
    "int": int,
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "Mapping[str, Any]": dict,
    "Mapping[str, Any] | None": (dict, type(None)),
}


def encode(record: SkillRecord) -> bytes:
    """The record as one JSON line.

    Raises:
      ValueError: it is not JSON (NaN included).
    """
    fields = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(record)}
    try:
        return json.dumps(fields, allow_nan=False, default=_plain).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"record {record.id!r} must be JSON, got: {error}") from error


def decode(raw: bytes) -> SkillRecord:
    """The record of one JSON line; fields that it does not have get their defaults.

    Raises:
      ValueError: it is no record of this schema; says why.
    """
    fields = json.loads(raw)  # both of its errors are ValueErrors
    if not isinstance(fields, dict):
        raise ValueError(f"a record must be a JSON object, got {type(fields).__name__}")
    version = fields.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version must be {SCHEMA_VERSION}, got {version!r}")
    unknown, missing = fields.keys() - _FIELDS.keys(), _REQUIRED - fields.keys()
    if unknown or missing:
        raise ValueError(
            f"a record must have the fields of schema {SCHEMA_VERSION}, "
            f"got unknown {sorted(unknown)}, missing {sorted(missing)}"
        )
    for name, value in fields.items():
        kind = _KINDS[_FIELDS[name].type]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(
                f"{name} of a record must be {_FIELDS[name].type}, got {type(value).__name__}"
            )
    return SkillRecord(**fields)


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # a numpy scalar
        return value.item()
    raise TypeError(f"a value of type {type(value).__name__}")
