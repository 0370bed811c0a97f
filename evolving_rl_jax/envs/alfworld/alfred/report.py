"""What became of ALFRED's records: games a split and type beside ALFWorld's, and all that was left out."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from evolving_rl_jax.envs.alfworld.alfred.placement import Accuracy
from evolving_rl_jax.envs.alfworld.alfred.scene import KnownScene
from evolving_rl_jax.envs.alfworld.folder import SPLITS
from evolving_rl_jax.envs.alfworld.index import PUBLISHED
from evolving_rl_jax.envs.alfworld.names import TASK_TYPES

__all__ = ["AlfredReport", "Outcome"]

_SHOWN = 10  # trials named for one reason
# What ALFWorld has no games of at all: not named one by one.
_EXPECTED = ("movable receptacle", "sliced object", "another lamp than a desk lamp")


class Outcome(NamedTuple):
    """What became of one record.

    Attributes:
      split: of ALFRED.
      name: its trial, or where it lies when it cannot be read.
      reason: why there is no game; "" = there is one.
      detail: what of this one.
      where: file, and line of it.
      row: of the index.
    """

    split: str
    name: str
    reason: str
    detail: str
    where: str
    row: dict[str, Any] | None = None


@dataclasses.dataclass
class AlfredReport:
    """What a conversion gave.

    Attributes:
      records: split -> records of the source.
      types: split -> games of each task type.
      left_out: reason -> "SPLIT/TRIAL" of each record without a game, with what of this one.
      placed_by: rule -> objects of all games that it placed.
      not_placed: objects that no rule placed, of all games.
      added: class -> receptacles that the layouts of the training scenes lack.
      alone: scenes of games that training does not have, known from the trials of their own split.
      accuracy: of the placement rules, on training's plans, each left out in turn.
    """

    records: dict[str, int]
    types: dict[str, dict[str, int]]
    left_out: dict[str, list[str]]
    placed_by: dict[str, int]
    not_placed: int
    added: dict[str, int]
    alone: list[str]
    accuracy: list[Accuracy]

    @classmethod
    def of(
        cls,
        outcomes: Iterable[Outcome],
        accuracy: Sequence[Accuracy],
        scenes: Sequence[KnownScene],
    ) -> AlfredReport:
        """Counts the outcomes; ``scenes``: those of training."""
        records: Counter[str] = Counter()
        types: dict[str, Counter[str]] = defaultdict(Counter)
        left_out: dict[str, list[str]] = defaultdict(list)
        placed: Counter[str] = Counter()
        floors: set[str] = set()
        not_placed = 0
        for outcome in outcomes:
            records[outcome.split] += 1
            if outcome.row is None:
                detail = f" ({outcome.detail})" if outcome.detail else ""
                left_out[outcome.reason].append(f"{outcome.split}/{outcome.name}{detail}")
                continue
            meta = outcome.row["meta"]
            types[outcome.split][outcome.row["task_type"]] += 1
            placed.update({rule: len(names) for rule, names in meta["placed_by"].items()})
            not_placed += meta["not_placed"]
            floors.add(meta["scene"])
        added = Counter(name.rsplit(" ", 1)[0] for scene in scenes for name in scene.added)
        return cls(
            dict(records),
            {
                split: {t: counts[t] for t in TASK_TYPES if counts[t]}
                for split, counts in types.items()
            },
            {reason: sorted(names) for reason, names in sorted(left_out.items())},
            dict(sorted(placed.items())),
            not_placed,
            dict(sorted(added.items(), key=lambda pair: (-pair[1], pair[0]))),
            sorted(floors - {f"FloorPlan{scene.number}" for scene in scenes}),
            list(accuracy),
        )

    @property
    def num_games(self) -> int:
        """Games that were made."""
        return sum(sum(counts.values()) for counts in self.types.values())

    def lines(self) -> list[str]:
        """The report as text."""
        text = []
        for split in (split for split in SPLITS if split in self.records):
            counts, published = self.types.get(split, {}), PUBLISHED[split]
            text.append(
                f"{split}: {sum(counts.values())} games of {self.records[split]} records "
                f"(ALFWorld's release: {sum(published.values())})"
            )
            text += [f"  {t}: {counts.get(t, 0)} ({published[t]})" for t in TASK_TYPES]
        for reason, names in self.left_out.items():
            shown = [] if reason in _EXPECTED else names[:_SHOWN]
            more = (
                f", and {len(names) - len(shown)} more" if shown and len(names) > len(shown) else ""
            )
            text.append(
                f"left out, {reason}: {len(names)}"
                + (f": {', '.join(shown)}{more}" if shown else "")
            )
        if any(len(names) > _SHOWN for names in self.left_out.values()):
            text.append("all that was left out is named in games.json, report.left_out")
        text += [f"objects placed by {rule}: {n}" for rule, n in self.placed_by.items()]
        text.append(f"objects that no rule places: {self.not_placed}")
        classes = ", ".join(f"{kind} {n}" for kind, n in self.added.items())
        text.append(f"receptacles added to the layouts of training scenes: {classes or 'none'}")
        if self.alone:
            text.append(
                f"scenes without training trials, known from their own split: {', '.join(self.alone)}"
            )
        text += [f"left-one-out, {row.line()}" for row in self.accuracy]
        return text
