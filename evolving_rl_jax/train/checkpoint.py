"""Checkpoints of training: written in the background, complete or absent, the best of them kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp

from evolving_rl_jax.run.hosts import ALONE, Hosts
from evolving_rl_jax.run.weights import (
    CHECKSUMS,
    SCORES,
    CheckpointReader,
    compiled_checksums,
    ranking,
)
from evolving_rl_jax.update.state import TrainState


class _Keep:
    """Which checkpoints stay: the newest ``last``, the ``best`` highest scores, and the unscored."""

    def __init__(self, last: int, best: int):
        self.last, self.best = last, best
        self.scores: Mapping[int, float | None] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any = None) -> list[bool]:
        """Called by Orbax with its checkpoints in the order of their steps."""
        steps = [c.step for c in checkpoints]
        kept = set(steps[-max(self.last, 1) :]) | set(ranking(self.scores, steps)[: self.best])
        kept |= set(steps) - set(self.scores)  # one of these may turn out to be the best
        return [s in kept for s in steps]


class Checkpoints(CheckpointReader):
    """The checkpoints of one run, to be read and written.

    Saving copies the state and returns; files are written in the background and count only once they
    are complete, so a kill at any moment leaves nothing half-written that could be read.  Nothing is
    created or changed before the first `save`.

    On several hosts each process writes its own shards in a folder that all see.

    Args:
      folder: the checkpoint folder.
      config: the group ``config.checkpoint``: ``keep_last`` newest and ``keep_best`` of the highest
        score are kept, and those that have no score yet.
      hosts: the processes of the run.
    """

    def __init__(self, folder: str | os.PathLike, config: Any, hosts: Hosts = ALONE):
        keep = _Keep(config.keep_last, config.keep_best)
        super().__init__(folder, hosts, keep=keep)
        keep.scores = self.scores

    def prepare(self, abstract: TrainState) -> None:
        """Compiles what a save needs, at the start of a run, so that no save compiles anything.

        Args:
          abstract: as in `restore`, which does the same.
        """
        self.checksums = compiled_checksums(abstract._asdict())

    def restore(
        self, abstract: TrainState, which: str | int = "latest"
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """As `CheckpointReader.read`; a damaged checkpoint is moved aside by the next `save`."""
        restored = self.read(abstract, which)
        if restored is None:
            self.prepare(abstract)
        return restored

    def score(self, step: int, score: float | None) -> None:
        """What ``best`` is chosen by; kept with the next checkpoint.  The first that comes counts.

        Args:
          step: iterations that the weights were trained for that the score is of, whether or not there
            is a checkpoint of them; 0 for the policy that training began with.
          score: higher is better; None = never the best.
        """
        self.scores.setdefault(step, None if score is None else float(score))

    def save(self, step: int, state: TrainState, extra: dict[str, Any]) -> None:
        """Starts writing a checkpoint; waits only for an earlier one that is still being written.

        Args:
          step: the iteration; an existing checkpoint of it is replaced.
          state: copied before this returns, so it may be donated at once.
          extra: JSON-serialisable facts (iteration, task cursor, bank length, config hash, ...).
        """
        self.wait()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._set_damaged_aside()
        if step in self._manager.all_steps():
            self._manager.delete(step)
        self._forget_scores(step)
        # Through text: what is written later is then what the caller has now.
        extra = json.loads(json.dumps(extra))
        extra |= {SCORES: dict(self.scores), CHECKSUMS: self.checksums(state._asdict())}
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state._asdict()), extra=ocp.args.JsonSave(extra)
        )
        self._manager.save(step, args=args, force=True)

    def _forget_scores(self, step: int) -> None:
        """Keeps those of the start and of the other checkpoints."""
        there = [s for s in self.steps() if s != step]
        for other in set(self.scores) - {0, *there}:
            del self.scores[other]
        for other in there[:-1]:  # whatever weights play from now on, they are newer
            self.scores.setdefault(other, None)

    def _set_damaged_aside(self) -> None:
        """Renames damaged checkpoints: they may be of use to a person, but not to this run."""
        if not self._damaged:
            return
        for step in self._damaged:
            if self._hosts.first and (self.folder / str(step)).exists():
                target = self.folder / f"damaged_{step}"
                count = sum(p.name.startswith(target.name) for p in self.folder.iterdir())
                (self.folder / str(step)).rename(f"{target}.{count}")
        self._hosts.meet("damaged checkpoints set aside")
        self._damaged.clear()
        self._manager.reload()
