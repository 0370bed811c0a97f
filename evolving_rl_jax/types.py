"""The nouns of the project and the axis legend.

Axis letters, used in every shape comment::

    G source tasks in an iteration      K retrieved tasks per source    N skills per source
    R repeats of one (task, skill)      M sequences in a training batch
    B rows   T tokens a row   V vocabulary   L layers   S engine slots   C cache columns

Wins are always ``[G, K, N, R]``.  This module imports numpy only, so environment workers can use it
without claiming an accelerator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# Episode and step statuses.  Only OK and TRUNCATED episodes carry a reward; every other status is an
# infrastructure failure and is masked out of every mean.
OK = "ok"
TRUNCATED = "truncated"  # ran out of context, steps or time: a real loss, scored as such
ENV_ERROR = "env_error"  # malformed game, worker crash that could not be replayed, exception
TIMEOUT = (
    "timeout"  # the environment did not answer in time, or a rollout ended before it could count
)
SCORED = (OK, TRUNCATED)

# ROLE_SOURCE: the solver in a source episode, where these are trained on too.
ROLE_NONE, ROLE_SOLVER, ROLE_EXTRACTOR, ROLE_SOURCE = -1, 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of one environment.

    Attributes:
      id: unique and stable, e.g. ``"maple-3/mug/pick_heat_then_place_in_recep-0"``.
      env: name understood by ``envs.make``.
      split: ``train``, ``valid_seen``, ``valid_unseen``, ...
      task_type: e.g. ``pick_and_place_simple``.
      text: the instruction, also what retrieval compares.
      path: absolute folder of the game.
      content_hash: sha256 hex of what defines the task, for exclusion of disguised duplicates.
      group: what tasks share experience (the household, the web site); empty when unknown.
      step_limit: most environment steps of an episode.
      meta: further facts for experts, oracles and reports; never shown to the policy.
    """

    id: str
    env: str
    split: str
    task_type: str
    text: str
    path: str
    content_hash: str
    group: str = ""
    step_limit: int = 50
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


class Observation(NamedTuple):
    """What an environment shows at reset: its text and the admissible actions (sorted)."""

    text: str
    actions: tuple[str, ...]
    status: str = OK


class StepResult(NamedTuple):
    """What one action did.  ``status`` other than OK means that the environment failed, not the agent.

    ``reward`` is any score that the step adds; an episode is worth their sum (`Episode.reward`).
    ``info`` has the scores of the step where an environment gives any (``envs.mind2web``).
    """

    text: str
    actions: tuple[str, ...]
    reward: float
    done: bool
    won: bool
    status: str = OK
    info: dict[str, Any] | None = None


@dataclasses.dataclass
class Turn:
    """One exchange: what the agent read, what it wrote, and what was executed."""

    observation: str
    output: str
    action: str
    valid: bool


@dataclasses.dataclass
class Sample:
    """One training sequence: token ids with a mask of those that the policy itself sampled.

    ``logprobs`` are under the full softmax at the temperature of sampling;
    ``sampling_logprobs`` are under the distribution that was sampled from.  ``floor_logprobs`` are
    the border between the tokens that it kept and those that top-p and top-k left out, in the
    full softmax (-inf: none), or None where nobody recorded it.  All are 0 where ``loss_mask`` is 0
    and have shape [T].  ``step`` is the turn whose tokens are trained, where a sequence trains one
    turn only; 0 where it holds a whole episode or an extraction.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    logprobs: np.ndarray
    sampling_logprobs: np.ndarray
    step: int = 0
    floor_logprobs: np.ndarray | None = None


@dataclasses.dataclass
class Episode:
    """A finished (or failed) episode of the solver.

    ``samples`` are its training sequences: one of the whole episode, or one for every turn (see
    ``config.rollout.context``); none where it sampled nothing.  ``last_observation`` answers the last
    action.  ``rewards`` and ``infos``
    are those of the steps that were answered (`StepResult`).  ``began`` and ``ended`` are seconds of one
    clock: of its first answer and of its end.  ``cut``: a stop of the rollout ended it.
    ``without_skill`` are its sequences as they read without the skill, where the driver keeps them.
    ``credit``: what each turn is worth beside the episode's advantage (`rollout.step_credit`), weighted.
    """

    task: Task
    turns: list[Turn]
    won: bool
    status: str
    samples: list[Sample]
    reward: float = 0.0
    skill_text: str = ""
    last_observation: str = ""
    error: str = ""
    rewards: list[float] = dataclasses.field(default_factory=list)
    infos: list[dict[str, Any] | None] = dataclasses.field(default_factory=list)
    began: float = dataclasses.field(default=0.0, compare=False)
    ended: float = dataclasses.field(default=0.0, compare=False)
    cut: bool = False
    without_skill: list[Sample] = dataclasses.field(default_factory=list)
    credit: list[float] = dataclasses.field(default_factory=list)

    @property
    def scored(self) -> bool:
        """Whether the episode counts (it is not an infrastructure failure)."""
        return self.status in SCORED

    @property
    def score(self) -> float:
        """How far the task was done: the share of its steps that were right, where the environment
        says so of each; else 1 for a win."""
        said = [info for info in self.infos if info and "correct" in info]
        if not said:
            return float(self.won)
        total = max(1, said[0].get("num_steps", self.task.step_limit))
        return sum(bool(info["correct"]) for info in said) / total

    @property
    def observations(self) -> list[str]:
        """Everything that the episode read, the answer to its last action included."""
        return [t.observation for t in self.turns] + [self.last_observation]


def worth(rewards: Sequence[float], won: bool) -> float:
    """What an episode is worth: the sum of its rewards; where it had none, 1 for a win."""
    return float(sum(rewards)) if any(rewards) else float(won)


class TokenBatch(NamedTuple):
    """The only training data that crosses from host to device.  Shapes follow from the config alone,
    but for B, which has one of a few sizes (`rollout.batch.Batcher`).

    Several sequences may share a row; ``segment_ids`` tells them apart inside the row (0 = padding,
    1.. = sequence) and ``sequence_ids`` globally (-1 = padding).  ``loss_mask[b, t] = 1`` when
    ``tokens[b, t]`` was sampled by the policy, ``rollout_logprobs[b, t]`` is its log-probability then:
    under the full softmax, or where ``floor_logprobs`` are there under what top-p and top-k kept.
    """

    tokens: Any  # [B, T] int32
    positions: Any  # [B, T] int32, from 0 in each sequence
    segment_ids: Any  # [B, T] int32
    sequence_ids: Any  # [B, T] int32 in [0, M), -1 = padding
    loss_mask: Any  # [B, T] float32
    rollout_logprobs: Any  # [B, T] float32
    wins: Any  # [G, K, N, R] float32
    episode_mask: Any  # [G, K, N, R] float32, 0 = infrastructure failure or never played
    skill_valid: Any  # [G, N] float32
    role: Any  # [M] int32: ROLE_SOLVER, ROLE_EXTRACTOR, ROLE_SOURCE or ROLE_NONE (unused)
    # [M] int32: flat index into [G, K, N, R] (solver), [G, N] (extractor) or [G, E] (source); many to one
    index: Any
    step: Any  # [M] int32: the turn that a sequence trains, see Sample.step
    num_rows: Any  # [] int32: rows in use
    # Of environments that score every step, else None.  S here: config.rollout.max_steps.
    scores: Any = None  # [G, K, N, R] float32: what an episode counts for the reward of its skill
    step_rewards: Any = None  # [G, K, N, R, S] float32: > 0 = a correct step
    step_mask: Any = None  # [G, K, N, R, S] float32: 1 = the step was taken
    # [B, T] float32 where an iteration makes several updates: the log-probabilities before the first
    # of them (`update.step.make_scoring`), nan = those before the update that takes this batch.
    old_logprobs: Any = None
    # [B, T] float32 with config.algorithm.sampling_mask replay, see Sample.floor_logprobs.
    floor_logprobs: Any = None
    # With config.rollout.train_sources, E source episodes of each task, a group of their own: else None.
    source_wins: Any = None  # [G, E] float32
    source_mask: Any = None  # [G, E] float32, 0 = infrastructure failure
    source_step_rewards: Any = None  # [G, E, S] float32, with step_rewards
    source_step_mask: Any = None  # [G, E, S] float32
    # Where the host gives advantages of its own (`rollout.extra`), else None for both:
    given: Any = None  # [M] float32: the advantage of a sequence; nan = it follows from the wins
    detached: Any = None  # [M] float32: 1 = learned from as if written now, see `update.given`
    # [B, T] float32 with config.algorithm.step_credit: what a token's advantage has beside its sequence's.
    step_credit: Any = None


# The fields of a TokenBatch that hold rows [B, T]; all others are small.
ROW_FIELDS = (
    "tokens", "positions", "segment_ids", "sequence_ids", "loss_mask", "rollout_logprobs",
    "old_logprobs", "floor_logprobs", "step_credit",
)  # fmt: skip
