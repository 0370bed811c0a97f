"""Checkpoints: written in the background, complete or absent, restored straight into shards."""

from __future__ import annotations

import gc
import json
import logging
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.run.hosts import ALONE, Hosts
from evolving_rl_jax.update.state import TrainState

log = logging.getLogger(__name__)

# Entries of the JSON part that belong to this file.
_SCORE, _CHECKSUMS = "checkpoint_score", "checkpoint_checksums"


class CheckpointError(ConfigError):
    """No usable checkpoint; the message names the folder, what was found and what is accepted."""


class _Damaged(Exception):
    """A checkpoint that cannot be read."""


class _Keep:
    """Which checkpoints stay: the newest ``last`` and the ``best`` highest scores."""

    def __init__(self, last: int, best: int):
        self.last, self.best = last, best
        self.scores: dict[int, float | None] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any = None) -> list[bool]:
        """Called by Orbax with its checkpoints in the order of their steps."""
        steps = [c.step for c in checkpoints]
        kept = set(steps[-max(self.last, 1) :]) | set(self.ranking(steps)[: self.best])
        return [s in kept for s in steps]

    def ranking(self, steps: Sequence[int]) -> list[int]:
        """Steps that have a score, highest first, the newer of equals first."""
        scored = [s for s in steps if self.scores.get(s) is not None]
        return sorted(scored, key=lambda s: (-self.scores[s], -s))


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint is the whole `TrainState` and a JSON dict of everything else that the run needs to
    go on.  Saving copies the state and returns; files are written in the background and count only
    once they are complete, so a kill at any moment leaves nothing half-written that could be read.
    Nothing is created or changed before the first `save`.

    On several hosts every process makes the same calls: each writes and reads its own shards in a
    folder that all see.  What is damaged for one is damaged for all.

    Args:
      folder: the checkpoint folder.
      config: the group ``config.checkpoint``: ``keep_last`` newest and ``keep_best`` of the highest
        score are kept.
      hosts: the processes of the run.
    """

    def __init__(self, folder: str | os.PathLike, config: Any, hosts: Hosts = ALONE):
        self.folder = pathlib.Path(os.path.abspath(folder))
        self._hosts = hosts
        _silence_orbax()
        self._keep = _Keep(config.keep_last, config.keep_best)
        self._damaged: set[int] = set()
        self._checksums = jax.jit(_checksums)
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "extra": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(create=False, preservation_policy=self._keep),
        )
        for step in self.steps():
            self._keep.scores[step] = self._read_score(step)

    def steps(self) -> list[int]:
        """Iterations that have a checkpoint, in order, without those found damaged."""
        return [s for s in sorted(self._manager.all_steps()) if s not in self._damaged]

    def save(
        self, step: int, state: TrainState, extra: dict[str, Any], score: float | None = None
    ) -> None:
        """Starts writing a checkpoint; waits only for an earlier one that is still being written.

        Args:
          step: the iteration; an existing checkpoint of it is replaced.
          state: copied before this returns, so it may be donated at once.
          extra: JSON-serialisable facts (iteration, task cursor, bank length, config hash, ...).
          score: what ``best`` is chosen by, higher is better; None = never the best.
        """
        self.wait()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._set_damaged_aside()
        if step in self._manager.all_steps():
            self._manager.delete(step)
        self._keep.scores[step] = None if score is None else float(score)
        checksums = _fetch(self._checksums, state)
        # Through text: what is written later is then what the caller has now.
        extra = json.loads(json.dumps(extra))
        extra |= {_SCORE: self._keep.scores[step], _CHECKSUMS: checksums}
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state._asdict()), extra=ocp.args.JsonSave(extra)
        )
        self._manager.save(step, args=args, force=True)

    def restore(
        self, abstract: TrainState, which: str | int = "latest"
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest, the best, or one particular checkpoint.

        A checkpoint that cannot be read is reported and the one before it (of ``best``: the next
        best) is taken instead; the damaged one is moved aside by the next `save`.

        Args:
          abstract: the state's shapes, dtypes and shardings, see `state.abstract_state`; every
            device reads only its own shards.
          which: ``latest``, ``best`` or an iteration.

        Returns:
          ``(state, extra)``, or None when the folder holds no checkpoint at all.

        Raises:
          CheckpointError: no checkpoint fits ``which``, none is readable, or the state has another
            structure than this configuration gives.
        """
        self.wait()
        self.prepare(abstract)
        if not self._hosts.from_first(self._manager.all_steps()):
            return None
        wanted = self._hosts.from_first(self._candidates(which))
        failures = []
        for step in wanted:
            try:
                restored = self._read(step, abstract)
            except _Damaged as e:
                failures.append(f"{step} ({e})")
                self._damaged.add(step)
                log.warning("checkpoint %s is damaged: %s", self.folder / str(step), e)
                continue
            if failures:
                log.warning("going on from the checkpoint of iteration %d instead", step)
            return restored
        raise CheckpointError(
            f"{self.folder} must hold a readable checkpoint for {which!r}, got only damaged ones: "
            f"{', '.join(failures)}; move the folder away to start anew"
        )

    def prepare(self, abstract: TrainState) -> None:
        """Compiles what a save needs, at the start of a run, so that no save compiles anything.

        Args:
          abstract: as in `restore`, which calls this itself.
        """
        mesh = jax.tree.leaves(abstract)[0].sharding.mesh
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._checksums = jax.jit(_checksums, out_shardings=whole).lower(abstract).compile()

    def best(self) -> int | None:
        """The iteration of the checkpoint with the highest score; None when none was scored."""
        self.wait()
        ranking = self._keep.ranking(self.steps())
        return self._hosts.from_first(ranking[0] if ranking else None)

    def read_extra(self, which: str | int = "latest") -> dict[str, Any] | None:
        """The JSON part alone, to check before restoring; None when nothing readable is there."""
        self.wait()
        for step in self._candidates(which) if self._manager.all_steps() else ():
            try:
                return _without_own(self._read_json(step))
            except _Damaged as e:
                log.warning("checkpoint %s is damaged: %s", self.folder / str(step), e)
        return None

    def wait(self) -> None:
        """Returns when everything saved so far is on disk; raises if that failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees the background threads."""
        self.wait()
        self._manager.close()

    # -- which checkpoint ------------------------------------------------------------------------

    def _candidates(self, which: str | int) -> list[int]:
        steps = self.steps() or sorted(self._manager.all_steps())
        if which == "latest":
            return steps[::-1]
        if which == "best":
            ranking = self._keep.ranking(steps)
            if not ranking:
                raise CheckpointError(
                    f"--checkpoint must be latest or one of {steps} in {self.folder}, got 'best': "
                    f"none of them was scored"
                )
            return ranking
        if not re.fullmatch(r"\d+", str(which)) or int(which) not in steps:
            raise CheckpointError(
                f"--checkpoint must be latest, best or one of {steps} in {self.folder}, "
                f"got {which!r}"
            )
        return [int(which)]

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

    # -- reading ---------------------------------------------------------------------------------

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        state, extra, failure = None, {}, ""
        try:
            extra = self._read_json(step)
            state = self._read_state(step, abstract)
        except _Damaged as e:
            failure = str(e)
        # Each process read its own shards; the checksum below needs all of them.
        failures = self._hosts.gather(failure)
        if any(failures):
            raise _Damaged(next(f for f in failures if f))
        if _fetch(self._checksums, state) != extra[_CHECKSUMS]:
            raise _Damaged("its arrays are not those that were saved")
        return state, _without_own(extra)

    def _read_state(self, step: int, abstract: TrainState) -> TrainState:
        target = abstract._asdict()
        self._check_structure(step, target)
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        args = ocp.args.PyTreeRestore(target, restore_args=restore_args)

        def read():
            restored = self._manager.restore(step, args=ocp.args.Composite(state=args))
            return jax.block_until_ready(TrainState(**restored["state"]))

        return _attempt(read)

    def _read_json(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(extra=ocp.args.JsonRestore())
        found = _attempt(lambda: self._manager.restore(step, args=args)["extra"])
        return {_CHECKSUMS: None, **found}

    def _read_score(self, step: int) -> float | None:
        try:
            return self._read_json(step).get(_SCORE)
        except _Damaged:  # noticed again, and reported, when it is asked for
            return None

    def _check_structure(self, step: int, target: dict[str, Any]) -> None:
        """A checkpoint of another model or optimizer is no damage: it is an error of its own."""
        found = _attempt(lambda: _shapes(self._manager.item_metadata(step)["state"].tree))
        wanted = _shapes(target)
        # Parameters first: of all differences theirs says most about the cause.
        for name in sorted(wanted.keys() | found.keys(), key=lambda n: (n[:6] != "params", n)):
            expected, got = wanted.get(name, "absent"), found.get(name, "absent")
            if expected != got:
                raise CheckpointError(
                    f"checkpoint {self.folder / str(step)} must have {name} {expected} to fit the "
                    f"configuration, got {got}"
                )


def _checksums(state: Any) -> jax.Array:
    """One number per array, uint32; it changes whenever a single element does.

    The file format keeps no checksum of the data, so a flipped bit would be read without an error.
    Integer sums wrap and do not depend on their order, so any sharding gives the same numbers.
    """

    def checksum(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        weight = jnp.ones(x.shape, jnp.uint32)
        for axis in range(x.ndim):
            # Odd weights are invertible modulo 2^32: a change of one element is never lost.
            step = jnp.uint32(0x9E3779B0 + 2 * axis)
            weight += step * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return jnp.sum(bits.astype(jnp.uint32) * weight, dtype=jnp.uint32)

    return jnp.stack([checksum(x) for x in jax.tree.leaves(state)])


def _fetch(checksums: Callable, state: Any) -> list[int]:
    return jax.device_get(checksums(state)).tolist()


def _without_own(extra: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in extra.items() if k not in (_SCORE, _CHECKSUMS)}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Slash-separated names and shapes of the arrays of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape)
        for path, x in leaves
        if hasattr(x, "shape")
    }


def _attempt(read: Callable[[], Any]) -> Any:
    """``read()``; whatever it raises becomes one `_Damaged` with a short text."""
    loop, hook = logging.getLogger("asyncio"), sys.unraisablehook
    # Where one array cannot be read, mostly others cannot either, and asyncio prints pages about
    # each of them when it is collected: let them end here, while nobody listens.
    loop.disabled, sys.unraisablehook = True, lambda _: None
    try:
        value, failure = _outcome(read)
        if failure:
            time.sleep(0.2)
            gc.collect()
    finally:
        loop.disabled, sys.unraisablehook = False, hook
    if failure:
        raise _Damaged(failure)
    return value


def _outcome(read: Callable[[], Any]) -> tuple[Any, str]:
    try:
        return read(), ""
    except Exception as e:  # tensorstore, json and file errors have no common base
        while e.__cause__ is not None:
            e = e.__cause__
        return None, f"{type(e).__name__}: {' '.join(str(e).split())[:160]}"


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _silence_orbax() -> None:
    """Hides what Orbax logs through absl, every phase of every save; errors are raised anyway."""
    logging.getLogger("absl").addFilter(_not_orbax)  # adding the same filter again changes nothing
