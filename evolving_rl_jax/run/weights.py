"""Reads the checkpoints of a run: which there are, whether they are whole, and into which shards.

Training reads the state whole; whoever only plays with the policy, or writes it elsewhere, reads what was
trained and nothing else, onto whatever devices there are.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from evolving_rl_jax import models, parallel
from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.run.hosts import ALONE, Hosts
from evolving_rl_jax.update.state import TrainState

log = logging.getLogger(__name__)

# Entries of the JSON part that belong to this file and to `train.checkpoint`.
SCORES, CHECKSUMS = "checkpoint_scores", "checkpoint_checksums"
FACTS = "checkpoint_facts"  # hash of all other entries


class CheckpointError(ConfigError):
    """No usable checkpoint; the message names the folder, what was found and what is accepted."""


class _Damaged(Exception):
    """A checkpoint that cannot be read."""


class CheckpointReader:
    """The checkpoints in a folder.

    A checkpoint is the whole `TrainState` and a JSON dict of everything else that the run needs to go
    on.  Reading changes nothing in the folder.  On several hosts every process makes the same calls
    and reads its own shards; what is damaged for one is damaged for all.

    Args:
      folder: the checkpoint folder; need not be there.
      hosts: the processes of the run.
      keep: which ones Orbax deletes, for whoever saves; None = nothing is.

    Attributes:
      scores: iteration -> its score, None = never the best; without those that have none yet.  Each
        checkpoint holds what was known when it was written, so its own is in the next.
    """

    def __init__(self, folder: str | os.PathLike, hosts: Hosts = ALONE, *, keep: Any = None):
        self.folder = pathlib.Path(os.path.abspath(folder))
        self._hosts = hosts
        _silence_orbax()
        self.checksums = checksums  # of the fields that are read or saved
        self._damaged: set[int] = set()
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "extra": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(create=False, preservation_policy=keep),
        )
        self.scores: dict[int, float | None] = self._read_scores()

    def steps(self) -> list[int]:
        """Iterations that have a checkpoint, in order, without those found damaged."""
        return [s for s in sorted(self._manager.all_steps()) if s not in self._damaged]

    def best(self) -> int | None:
        """The iteration of the checkpoint with the highest score; None when none was scored."""
        self.settle()
        return self._hosts.from_first(next(iter(ranking(self.scores, self.steps())), None))

    def read(
        self, abstract: TrainState, which: str | int = "latest"
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest, the best, or one particular checkpoint, whole.

        A checkpoint that cannot be read is reported and the one before it (of ``best``: the next
        best) is taken instead.

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
        found = self._read_first(abstract._asdict(), which)
        return found and (TrainState(**found[0]), found[1])

    def read_params(
        self, abstract: Any, which: str | int = "latest"
    ) -> tuple[Any, dict[str, Any]] | None:
        """As `read`, of ``params`` alone.

        Args:
          abstract: their shapes, dtypes and shardings, see `abstract_params`.
          which: as in `read`.
        """
        found = self._read_first({"params": abstract}, which)
        return found and (found[0]["params"], found[1])

    def settle(self) -> None:
        """Returns when nothing is being written any more."""
        self._manager.wait_until_finished()

    def wait(self) -> None:
        """Returns when everything saved so far is on disk; raises if that failed."""
        self.settle()

    def close(self) -> None:
        """Waits, then frees the background threads."""
        self.wait()
        self._manager.close()

    # -- which checkpoint ------------------------------------------------------------------------

    def _read_first(self, target: dict[str, Any], which: str | int):
        """(fields, facts) of the first candidate that can be read, or None without any checkpoint."""
        self.settle()
        if not self._hosts.from_first(self._manager.all_steps()):
            return None
        wanted = self._hosts.from_first(self._candidates(which))
        self.checksums = compiled_checksums(target)
        failures = []
        for step in wanted:
            try:
                found = self._read(step, target)
            except _Damaged as e:
                failures.append(f"{step} ({e})")
                self._damaged.add(step)
                log.warning("checkpoint %s is damaged: %s", self.folder / str(step), e)
                continue
            if failures:
                log.warning("going on from the checkpoint of iteration %d instead", step)
            return found
        raise CheckpointError(
            f"{self.folder} must hold a readable checkpoint for {which!r}, got only damaged ones: "
            f"{', '.join(failures)}; move the folder away to start anew"
        )

    def _candidates(self, which: str | int) -> list[int]:
        steps = self.steps() or sorted(self._manager.all_steps())
        if which == "latest":
            return steps[::-1]
        if which == "best":
            ranked = ranking(self.scores, steps)
            if not ranked:
                raise CheckpointError(
                    f"--checkpoint must be latest or one of {steps} in {self.folder}, got 'best': "
                    f"none of them was scored (by a rollout of its own weights, which the next "
                    f"checkpoint knows of)"
                )
            return ranked
        if not re.fullmatch(r"\d+", str(which)) or int(which) not in steps:
            raise CheckpointError(
                f"--checkpoint must be latest, best or one of {steps} in {self.folder}, "
                f"got {which!r}"
            )
        return [int(which)]

    # -- reading ---------------------------------------------------------------------------------

    def _read(self, step: int, target: dict[str, Any]):
        fields, extra, failure = None, {}, ""
        try:
            extra = self._read_json(step)
            fields = self._read_fields(step, target)
        except _Damaged as e:
            failure = str(e)
        # Each process read its own shards; the checksum below needs all of them.
        failures = self._hosts.gather(failure)
        if any(failures):
            raise _Damaged(next(f for f in failures if f))
        if self.checksums(fields) != _of_fields(extra[CHECKSUMS], target):
            raise _Damaged("its arrays are not those that were saved")
        return fields, {k: v for k, v in extra.items() if k not in (SCORES, CHECKSUMS)}

    def _read_fields(self, step: int, target: dict[str, Any]) -> dict[str, Any]:
        self._check_structure(step, target)
        args = ocp.args.PyTreeRestore(
            target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )

        def read():
            restored = self._manager.restore(step, args=ocp.args.Composite(state=args))
            return jax.block_until_ready({name: restored["state"][name] for name in target})

        return _attempt(read)

    def _read_json(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(extra=ocp.args.JsonRestore())
        found = dict(_attempt(lambda: self._manager.restore(step, args=args)["extra"]))
        # Checkpoints of earlier versions have no hash of their facts.
        if found.pop(FACTS, None) not in (None, facts_hash(found)):
            raise _Damaged("its facts are not those that were saved")
        return {CHECKSUMS: None, **found}

    def _read_scores(self) -> dict[int, float | None]:
        """What the newest checkpoint says of those before it."""
        for step in reversed(self.steps()):
            try:
                found = self._read_json(step).get(SCORES, {})
            except _Damaged:  # noticed again, and reported, when it is asked for
                continue
            return {int(name): score for name, score in found.items()}
        return {}

    def _check_structure(self, step: int, target: dict[str, Any]) -> None:
        """A checkpoint of another model or optimizer is no damage: it is an error of its own."""
        tree = _attempt(lambda: self._manager.item_metadata(step)["state"].tree)
        found = _shapes({name: tree.get(name) for name in target})
        wanted = _shapes(target)
        # Parameters first: of all differences theirs says most about the cause.
        for name in sorted(wanted.keys() | found.keys(), key=lambda n: (n[:6] != "params", n)):
            expected, got = wanted.get(name, "absent"), found.get(name, "absent")
            if expected != got:
                raise CheckpointError(
                    f"checkpoint {self.folder / str(step)} must have {name} {expected} to fit the "
                    f"configuration, got {got}"
                )


def abstract_params(
    model_cfg: models.ModelConfig, mesh: Mesh, lora: lora_lib.LoraConfig | None = None
) -> Any:
    """What a run trains, the whole policy or its adapters, as ShapeDtypeStructs with shardings."""

    def create():
        key = jax.random.key(0)
        if lora:
            return lora_lib.init(model_cfg, lora, key)
        return jax.tree.map(lambda x: x.astype(jnp.float32), models.init(model_cfg, key))

    shapes = jax.eval_shape(create)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        parallel.shardings(shapes, mesh),
    )


def ranking(scores: Mapping[int, float | None], steps: Sequence[int]) -> list[int]:
    """Steps that have a score, highest first, the newer of equals first."""
    scored = [s for s in steps if scores.get(s) is not None]
    return sorted(scored, key=lambda s: (-scores[s], -s))


def facts_hash(facts: Mapping[str, Any]) -> str:
    """Hash of what the JSON part of a checkpoint says."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# -- checksums -------------------------------------------------------------------------------------


def checksums(fields: Mapping[str, Any]) -> list[int]:
    """One number for each array of some fields of a state, in the order of `TrainState`."""
    return jax.device_get(parallel.in_order(jax.jit(_checksums))(_in_order(fields))).tolist()


def compiled_checksums(abstract: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], list[int]]:
    """`checksums`, compiled for fields of these shapes, dtypes and shardings and no others."""
    leaves = _in_order(abstract)
    whole = NamedSharding(leaves[0].sharding.mesh, PartitionSpec())
    compute = parallel.in_order(jax.jit(_checksums, out_shardings=whole).lower(leaves).compile())
    return lambda fields: jax.device_get(compute(_in_order(fields))).tolist()


def _in_order(fields: Mapping[str, Any]) -> list[Any]:
    return jax.tree.leaves([fields[name] for name in TrainState._fields if name in fields])


def _of_fields(saved: list[int] | None, target: Mapping[str, Any]) -> list[int] | None:
    """Those of the saved checksums that belong to the fields of ``target``: all, or of ``params``."""
    if saved is None or "step" in target:
        return saved
    return saved[1 : 1 + len(_in_order(target))]  # after that of the step, one array


def _checksums(leaves: list[jax.Array]) -> jax.Array:
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

    return jnp.stack([checksum(x) for x in leaves])


# -- Orbax -----------------------------------------------------------------------------------------


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
