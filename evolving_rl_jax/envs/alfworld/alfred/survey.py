"""What the plans of a scene's trials tell of the scene: receptacles, and where objects were found.

The package's layouts lack some receptacles (burners, coffee machines, bins, ...).  Plans name them with
their points and with the location from which the agent used them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from evolving_rl_jax.envs.alfworld.alfred.trial import Point, Pose, Trial
from evolving_rl_jax.envs.alfworld.households.scenes import tables

__all__ = ["Pickup", "SceneSurvey", "Survey", "Use"]


class Pickup(NamedTuple):
    """An object that a plan took from a fixed receptacle."""

    trial: str
    thing: Pose
    receptacle: Pose


class Use(NamedTuple):
    """A fixed receptacle as a plan used it."""

    receptacle: Pose
    id: str  # "" where the plan does not say it
    location: str


@dataclasses.dataclass
class SceneSurvey:
    """What is known of a scene.

    Attributes:
      pickups: in the order of the trials.
      uses: how often each use occurred.
      lamps: points of desk lamps that were turned on.
    """

    pickups: list[Pickup] = dataclasses.field(default_factory=list)
    uses: Counter[Use] = dataclasses.field(default_factory=Counter)
    lamps: Counter[Point] = dataclasses.field(default_factory=Counter)


class Survey:
    """All scenes: of the training trials, and for scenes without one of the trials of other splits."""

    def __init__(self):
        self._splits: dict[str, dict[int, SceneSurvey]] = defaultdict(dict)

    def add(self, trial: Trial) -> None:
        """Notes what a trial tells, of whatever task type it is."""
        scenes = self._splits["train" if trial.split == "train" else ""]
        scene = scenes.setdefault(trial.scene, SceneSurvey())
        fixed = tables().contains
        for step in trial.steps:
            if step.action == "ToggleObject" and step.thing and step.thing.kind == "DeskLamp":
                scene.lamps[step.thing.at] += 1
            if step.receptacle is None or step.receptacle.kind not in fixed:
                continue
            if step.location:
                scene.uses[Use(step.receptacle, _id_of(step), step.location)] += 1
            if step.action == "PickupObject":
                scene.pickups.append(Pickup(trial.name, step.thing, step.receptacle))

    def scene(self, number: int) -> SceneSurvey:
        """What is known of a scene; empty when nothing is."""
        for split in ("train", ""):
            if number in self._splits[split]:
                return self._splits[split][number]
        return SceneSurvey()

    def train_scenes(self) -> Mapping[int, SceneSurvey]:
        """Scenes with training trials, by number."""
        return dict(sorted(self._splits["train"].items()))


def _id_of(step) -> str:
    """The id of the receptacle, where it is one: heating names the appliance, picking up nothing."""
    kinds = step.receptacle_id.replace("|", " ").split()
    return step.receptacle_id if kinds and step.receptacle.kind in (kinds[0], kinds[-1]) else ""
