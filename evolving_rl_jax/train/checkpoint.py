"""Checkpoints of training: written in the background, complete or absent, the best of them kept."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp

from evolving_rl_jax.files import SaveFailed
from evolving_rl_jax.run.hosts import ALONE, Hosts
from evolving_rl_jax.run.weights import (
    CHECKSUMS,
    FACTS,
    SCORES,
    CheckpointReader,
    compiled_checksums,
    facts_hash,
    ranking,
)
from evolving_rl_jax.update.state import TrainState

log = logging.getLogger(__name__)


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
        self._pending: int | None = None  # the step of the save that nobody has waited for
        self._failed = ""  # why the last one is not there
        self._swept = False

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

        A save that failed in the background is reported here at the latest, and this one is made all
        the same: there may be room again.

        Raises:
          SaveFailed: it could not even be begun.
        """
        self.settle()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        self._set_damaged_aside()
        if step in self._manager.all_steps():
            self._manager.delete(step)
        self._forget_scores(step)
        # Through text: what is written later is then what the caller has now.
        extra = json.loads(json.dumps(extra))
        extra |= {SCORES: dict(self.scores), CHECKSUMS: self.checksums(state._asdict())}
        extra = json.loads(json.dumps(extra))  # as it will be read
        extra[FACTS] = facts_hash(extra)
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state._asdict()), extra=ocp.args.JsonSave(extra)
        )
        self._pending, self._failed = step, ""
        with self._noticing():
            self._manager.save(step, args=args, force=True)

    def settle(self) -> None:
        """Returns when nothing is being written any more; what could not be written is reported.

        A checkpoint that failed is none from here on, for whoever reads and for whatever is deleted.
        """
        if self._pending is None:
            return
        with self._noticing():
            self._manager.wait_until_finished()
        reasons = [reason for reason in self._hosts.gather(self._failed) if reason]
        step, self._pending = self._pending, None
        if reasons:
            self._failed, self._swept = reasons[0], False
            self.scores.pop(step, None)
            self._manager.reload()
            log.warning("%s could not be written: %s", self.folder / str(step), self._failed)

    def wait(self) -> None:
        """Returns when what was saved last is on the disk.

        Raises:
          SaveFailed: it could not be written.
        """
        self.settle()
        if self._failed:
            failed, self._failed = self._failed, ""
            raise SaveFailed(f"a checkpoint in {self.folder} could not be written: {failed}")

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        """Keeps why a save failed: what writes has no error in common."""
        try:
            yield
        except Exception as e:
            self._failed = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"

    def _sweep(self) -> None:
        """Removes what saves that were killed, or failed, have left; nothing is being written now."""
        if self._swept:
            return
        if self._hosts.first:
            for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)
        # What failed may still be ending its other files: then the next save looks again.
        left = any(self.folder.glob("*.orbax-checkpoint-tmp*"))
        self._swept = not self._hosts.from_first(left)

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
