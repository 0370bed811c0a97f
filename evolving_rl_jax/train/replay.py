"""What an update is given beside an iteration's own sequences: replayed wins, guided wins without their skill, proven skills, stored extractions.

Each source of sequences is a switch of ``config.replay``; all are seeded, and equal on any number of
hosts: what an iteration gives is gathered from all of them, and everybody keeps the same buffers.

What differs from the methods that they come from:

1. A weight is that of a sequence beside an advantage of 1; it is not divided by how many there are.
2. Replayed wins (SPEAR, arXiv 2509.22601): ratios are to the policy of the update itself, and the
   covariance clip leaves them alone.
3. Guided wins (context distillation, arXiv 2606.04703): likelihood of what was sampled, not the
   divergence of whole distributions.
4. Proven skills (MEL, arXiv 2602.10224): a skill is proven by the plays of this loop, not by one more
   attempt at the same question.
5. Stored extractions (Complementary RL, arXiv 2603.17621): REINFORCE without a clip.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.files import write_atomic
from evolving_rl_jax.rollout.evolve import Experience
from evolving_rl_jax.rollout.extra import Extra
from evolving_rl_jax.rollout.groups import solver_advantages, solver_rewards
from evolving_rl_jax.types import ROLE_EXTRACTOR, ROLE_SOLVER, Sample

# What `Replay.figures` holds of an iteration, by the kinds that are on.
REPLAY_FIGURES = (
    *("replay/wins", "replay/guided", "replay/skills", "replay/extractions"),
    *("replay/stored_wins", "replay/stored_extractions"),
)
_ARRAYS = ("tokens", "loss_mask", "logprobs", "sampling_logprobs")


@dataclasses.dataclass
class Stored:
    """Sequences that a run keeps to learn from again.

    Attributes:
      samples: one, or one for each turn.
      iteration: that they were sampled in.
      reward: of the episode (1, or its advantage, where it is read without its skill), or of the skill
        from -1 (all plays lost) to 1 (all won).
      trained: how often they were learned from.
      last: iteration in which they were last.
    """

    samples: list[Sample]
    iteration: int
    reward: float
    trained: int = 1
    last: int = 0


@dataclasses.dataclass
class Harvest:
    """What an iteration gives the sources of sequences; keys order it as one host would."""

    wins: list[tuple[tuple, Stored]] = dataclasses.field(default_factory=list)
    guided: list[tuple[tuple, Stored]] = dataclasses.field(default_factory=list)
    skills: list[tuple[tuple, Stored]] = dataclasses.field(default_factory=list)
    extractions: list[tuple[tuple, Stored]] = dataclasses.field(default_factory=list)
    baselines: list[tuple[tuple, float]] = dataclasses.field(default_factory=list)

    @classmethod
    def joined(cls, parts: Sequence[Harvest]) -> Harvest:
        """Those of all hosts as one."""
        names = [f.name for f in dataclasses.fields(cls)]
        kept = {n: [x for part in parts for x in getattr(part, n)] for n in names}
        return cls(**{n: sorted(found, key=lambda x: x[0]) for n, found in kept.items()})


def harvest(experience: Experience, numbers: Sequence[int], iteration: int, replay: Any) -> Harvest:
    """What one host's experience of an iteration gives.

    Args:
      experience: with ``without_skill`` in its episodes where ``replay.guided`` is on.
      numbers: of its sources in the iteration.
      iteration: its number.
      replay: ``config.replay``.
    """
    found = Harvest()
    rewards, mask = solver_rewards(experience), experience.episode_mask
    advantages = solver_advantages(experience)
    for i, (g, source) in enumerate(zip(numbers, experience.sources, strict=True)):
        for k in np.flatnonzero(mask[i].any((1, 2))):
            baseline = float(rewards[i, k][mask[i, k] > 0].mean())
            found.baselines.append(((g, int(k)), baseline))
        for (k, n, r), episode in sorted(source.episodes.items()):
            key, reward = (g, k, n, r), float(rewards[i, k, n, r])
            if not episode.scored or not episode.samples:
                continue
            # Where steps are scored one by one, what was not won ends with the step that was wrong.
            whole = experience.step_rewards is None or episode.won
            if replay.wins.weight and whole and advantages[i, k, n, r] > replay.wins.min_advantage:
                found.wins.append((key, Stored(episode.samples, iteration, reward)))
            if replay.guided.weight and episode.without_skill:
                worth = float(episode.won)
                if replay.guided.signal == "advantage":
                    worth = float(advantages[i, k, n, r])
                if worth:
                    found.guided.append((key, Stored(episode.without_skill, iteration, worth)))
        if replay.skills.weight or replay.extractions.weight:
            _harvest_skills(found, g, i, experience, iteration, replay)
    return found


def _harvest_skills(found: Harvest, g: int, i: int, experience: Experience, iteration, replay):
    source, mask = experience.sources[i], experience.episode_mask[i]
    won = np.array([[[e is not None and e.won for e in row] for row in plane] for plane in
                    _table(source.episodes, mask.shape)])  # fmt: skip
    played = mask > 0
    mixed = played.any() and 0 < won[played].mean() < 1
    for n, candidate in enumerate(source.candidates):
        share = float(won[:, n][played[:, n]].mean()) if played[:, n].any() else None
        if not candidate.sample.loss_mask.any():
            continue
        if replay.skills.weight and candidate.valid and share is not None:
            if mixed and share >= replay.skills.min_reward:
                found.skills.append(((g, n), Stored([candidate.sample], iteration, share)))
        if replay.extractions.weight and (share is not None or not candidate.valid):
            reward = 2 * share - 1 if candidate.valid else -1.0
            stored = Stored([candidate.sample], iteration, reward, last=iteration)
            found.extractions.append(((g, n), stored))


def _table(episodes, shape):
    return [
        [[episodes.get((k, n, r)) for r in range(shape[2])] for n in range(shape[1])]
        for k in range(shape[0])
    ]


class Replay:
    """The buffers of a run, and what it is given of them.

    Args:
      replay: ``config.replay``.
      seed: of the draws.
      longest: tokens of the longest sequence that a batch takes.
    """

    def __init__(self, replay: Any, seed: int, longest: int):
        self._replay, self._seed, self._longest = replay, seed, longest
        self.wins: list[Stored] = []
        self.extractions: list[Stored] = []
        self.baselines: list[float] = []
        self.figures: dict[str, float] = {}

    def take(self, iteration: int, found: Harvest) -> list[Extra]:
        """The sequences that the update of an iteration is given, at most ``replay.sequences``.

        Args:
          iteration: of the update.
          found: what it gave, of all hosts; kept for later ones.
        """
        r = self._replay
        kinds = {
            "wins": self._replayed_wins,
            "guided": lambda now, _rng: [
                _extras(stored, r.guided.weight * stored.reward, ROLE_SOLVER)
                for _, stored in found.guided
            ],
            "skills": lambda now, _rng: [
                _extras(stored, r.skills.weight, ROLE_EXTRACTOR) for _, stored in found.skills
            ],
            "extractions": self._stored_extractions,
        }
        active = [name for name in kinds if r[name].weight]
        extras: list[Extra] = []
        for number, name in enumerate(active):
            rng = np.random.default_rng([self._seed, iteration, 19, list(kinds).index(name)])
            room = r.sequences * (number + 1) // len(active) - r.sequences * number // len(active)
            offered = kinds[name](iteration, rng)
            if name in ("guided", "skills"):
                offered = [offered[j] for j in sorted(rng.permutation(len(offered))[:room])]
            chosen = self._within(offered, room)
            self.figures[f"replay/{name}"] = float(len(chosen))
            extras += chosen
        self._keep(iteration, found)
        return extras

    def _within(self, groups: Sequence[list[Extra]], room: int) -> list[Extra]:
        """The sequences of whole episodes up to ``room``, without those that a batch cannot hold."""
        chosen: list[Extra] = []
        for group in groups:
            fits = all(len(e.sample.tokens) <= self._longest for e in group)
            if fits and len(chosen) + len(group) <= room:
                chosen += group
        return chosen

    def _keep(self, iteration: int, found: Harvest) -> None:
        r = self._replay
        self.baselines = (self.baselines + [b for _, b in found.baselines])[-r.wins.baselines :]
        oldest = iteration - r.wins.max_age
        self.wins = [s for s in self.wins if s.iteration > oldest] + [s for _, s in found.wins]
        self.wins = self.wins[-r.wins.capacity :]
        self.extractions += [s for _, s in found.extractions]
        self.extractions = self.extractions[-r.extractions.capacity :]
        for name in ("wins", "extractions"):
            if r[name].weight:
                self.figures[f"replay/stored_{name}"] = float(len(getattr(self, name)))

    def _replayed_wins(self, iteration: int, rng) -> list[list[Extra]]:
        """In random order, each worth how far it lies above what groups have been worth lately."""
        wins = self._replay.wins
        grown = min(iteration / wins.ramp, 1.0) if wins.ramp else 1.0
        weight = wins.weight * (1 - math.cos(math.pi * grown)) / 2
        median = float(np.median(self.baselines)) if self.baselines else 0.0
        kept = [s for s in self.wins if s.iteration >= iteration - wins.max_age]
        kept = [s for s in kept if weight * (s.reward - median) > 0]
        order = rng.permutation(len(kept))
        return [_extras(kept[i], weight * (kept[i].reward - median), ROLE_SOLVER) for i in order]

    def _stored_extractions(self, iteration: int, rng) -> list[list[Extra]]:
        """Drawn by how seldom they were trained on; their baseline is the mean of those drawn."""
        e = self._replay.extractions
        rested = [s for s in self.extractions if iteration - s.last > e.cooldown]
        rested = [s for s in rested if len(s.samples[0].tokens) <= self._longest]
        weights = np.array([(1.0 + s.trained) ** -e.exponent for s in rested])
        active = sum(bool(self._replay[n].weight) for n in ("wins", "guided", "skills"))
        size = min(len(rested), self._replay.sequences // (active + 1))
        if not size:
            return []
        drawn = rng.choice(len(rested), size, replace=False, p=weights / weights.sum())
        chosen = [rested[i] for i in drawn]
        mean = sum(s.reward for s in chosen) / size
        for stored in chosen:
            stored.trained, stored.last = stored.trained + 1, iteration
        return [_extras(s, e.weight * (s.reward - mean), ROLE_EXTRACTOR) for s in chosen]

    # -- beside the checkpoint ---------------------------------------------------------------------

    def write(self, path: pathlib.Path) -> None:
        """Everything that a run needs to go on, in one file that is there whole or not at all."""
        entries = [*self.wins, *self.extractions]
        samples = [s for entry in entries for s in entry.samples]
        facts = [
            {"iteration": e.iteration, "reward": e.reward, "trained": e.trained, "last": e.last,
             "steps": [s.step for s in e.samples], "lengths": [len(s.tokens) for s in e.samples]}
            for e in entries
        ]  # fmt: skip
        about = {"wins": len(self.wins), "baselines": self.baselines, "entries": facts}
        arrays = {n: _concatenated([getattr(s, n) for s in samples]) for n in _ARRAYS}
        floors = [s.floor_logprobs for s in samples]
        if floors and all(f is not None for f in floors):
            arrays["floor_logprobs"] = np.concatenate(floors)
        data = io.BytesIO()
        np.savez_compressed(data, about=np.array(json.dumps(about)), **arrays)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data.getvalue())

    def read(self, path: pathlib.Path) -> None:
        """Takes what `write` wrote.

        Raises:
          ConfigError: it is not there, or is something else.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                about = json.loads(str(data["about"]))
                arrays = {n: data[n] for n in (*_ARRAYS, "floor_logprobs") if n in data}
        except (OSError, ValueError, KeyError) as e:
            raise ConfigError(
                f"{path} must hold the replay buffer of the checkpoint of that iteration (move or "
                f"copy run folders whole), got {type(e).__name__}: {e}"
            ) from e
        entries, start = [], 0
        for facts in about["entries"]:
            samples = []
            for length, step in zip(facts.pop("lengths"), facts.pop("steps"), strict=True):
                cut = {n: a[start : start + length] for n, a in arrays.items()}
                samples.append(Sample(**cut, step=step))
                start += length
            entries.append(Stored(samples, **facts))
        self.wins, self.extractions = entries[: about["wins"]], entries[about["wins"] :]
        self.baselines = about["baselines"]

    def clear(self) -> None:
        """As at the start of a run."""
        self.wins, self.extractions, self.baselines = [], [], []


def _concatenated(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.float32)


def _extras(stored: Stored, advantage: float, role: int) -> list[Extra]:
    """The sequences of one entry; nothing is left out of what they are compared with."""
    return [Extra(_all_kept(s), float(advantage), role) for s in stored.samples]


def _all_kept(sample: Sample) -> Sample:
    floors = np.full(len(sample.tokens), -np.inf, np.float32)
    return dataclasses.replace(sample, floor_logprobs=floors)
