"""The warm start: behaviour cloning, of a policy made from scratch or of an imported one.

Kept in ``WORKDIR/warmstart`` as a Hugging Face folder, so it can also be evaluated or transferred alone.
An imported policy with ``model.lora`` is cloned by adapters, which are merged into that folder: the
policy that it holds is what training starts from and is compared with.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import shutil
import time
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from evolving_rl_jax import models, parallel
from evolving_rl_jax.files import write_atomic
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.run.policy import tokenizer_source
from evolving_rl_jax.run.preemption import Preempted, raise_if_preempted
from evolving_rl_jax.train.checkpoint import Checkpoints
from evolving_rl_jax.train.lessons import Lessons, all_batches, make_lessons, row_batches
from evolving_rl_jax.update.state import (
    TrainState,
    abstract_state,
    init_state,
    kept,
    state_from_params,
)
from evolving_rl_jax.update.step import CLONING_SUMS, make_cloning_score, make_cloning_step

DONE, CHECKPOINTS, LOG = "done", "checkpoints", "log.jsonl"
_SHOWN = 20  # steps from one line of the log to the next


def initial_params(parts, mesh: Mesh, *, dtype="float32"):
    """The policy that training starts from: cloned (cached in the run folder), imported, or random.

    Args:
      parts: of the run.
      mesh: that it is trained on; the parameters come in its shards.
      dtype: in which an imported or cloned one is read.
    """
    config = parts.config
    if not config.warmstart.enabled:
        if config.model.hf_path:
            return _load(parts, mesh, dtype, config.model.hf_path)
        return models.init(parts.model_cfg, jax.random.key(config.seed))
    folder = parts.folder.path / "warmstart"
    if not parts.hosts.from_first((folder / DONE).is_file()):
        _keep(clone(parts, mesh), parts, mesh, folder)
    return _load(parts, mesh, dtype, folder)


def _load(parts, mesh, dtype, path):
    """A model folder, read straight into the shards of the mesh and in the dtype it will be kept in."""
    shapes = jax.eval_shape(lambda: models.init(parts.model_cfg, jax.random.key(0)))
    shardings = parallel.shardings(shapes, mesh)
    return models.load_hf(path, dtype=dtype, shardings=shardings)[0]


def _keep(params, parts, mesh, folder: pathlib.Path) -> None:
    """Writes the cloned policy down; every process has everything then, so that one can."""
    if parts.hosts.count > 1:
        params = jax.device_get(jax.device_put(params, NamedSharding(mesh, PartitionSpec())))
    if parts.hosts.first:
        tokenizer = tokenizer_source(parts.config, parts.folder)
        models.save_hf(params, parts.model_cfg, folder, tokenizer_dir=tokenizer)
        write_atomic(folder / DONE, "")
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    parts.hosts.meet("warm start")


def clone(parts, mesh: Mesh):
    """Makes the lessons, then trains on them, from the last checkpoint if there is one.

    Returns:
      The parameters; adapters are merged.

    Raises:
      Preempted: this machine is about to be taken away; the warm start has been saved.
    """
    lessons = make_lessons(parts)
    run = _Cloning(parts, mesh, lessons)
    state, done = run.begin()
    w = parts.config.warmstart
    batches = itertools.islice(row_batches(lessons.taught, parts.config, seed=run.seed), done, None)
    with parts.preemption.deferred(), parts.progress("warm start: cloning", w.steps) as bar:
        bar(done)
        if not done:
            run.log_held_out(0, state)
        for i, batch in zip(range(done, w.steps), batches, strict=False):
            state, metrics = run.step(state, run.place(batch))
            last = i + 1 == w.steps
            run.log(i + 1, batch, metrics, write=last or (i + 1) % _SHOWN == 0)
            due = bool(w.every) and (i + 1) % w.every == 0
            if last or due:
                run.log_held_out(i + 1, state)
            if due and not last:
                run.save(i + 1, state)
            if last or (i + 1) % _SHOWN == 0:
                bar(i + 1)
                run.stop_if_preempted(i + 1, state)
    run.finish()
    if run.lora:
        places = jax.tree.map(lambda x: x.sharding, state.ref_params)
        merge = jax.jit(lora_lib.merge, static_argnums=2, out_shardings=places)
        return merge(state.ref_params, state.params, run.lora)
    return state.params


class _Cloning:
    """What one warm start works with: compiled steps, checkpoints, and its log.

    Args:
      parts: of the run.
      mesh: that it is trained on.
      lessons: what is taught.

    Attributes:
      step: the compiled update, (state, batch) -> (state, metrics).
      lora: the adapters that are trained, or None.
      seed: of everything drawn.
    """

    def __init__(self, parts, mesh: Mesh, lessons: Lessons):
        config = parts.config
        self._parts, self._mesh, self.seed = parts, mesh, config.seed
        self.lora = lora_lib.from_config(config.model.lora) if config.model.hf_path else None
        self._optimizer = _optimizer(config.warmstart)
        given = config, parts.model_cfg, self._optimizer, mesh
        options = {"lora": self.lora, "attention": config.model.attention}
        self.step = make_cloning_step(*given, **options)
        self._held_out = all_batches(lessons.held_out, config) if lessons.held_out else []
        self._score = make_cloning_score(*given, **options) if lessons.held_out else None
        folder = parts.folder.path / "warmstart"
        keep = ConfigDict({"keep_last": 1, "keep_best": 0})
        self._checkpoints = Checkpoints(folder / CHECKPOINTS, keep, parts.hosts)
        self._prepared = False
        self._rows = NamedSharding(mesh, PartitionSpec(parallel.ROWS))
        self._log_file, self._records = folder / LOG, []
        self._metrics: list[dict[str, Any]] = []
        self._tokens, self._sequences = 0, len(lessons.taught)
        self._since = time.perf_counter()

    def begin(self) -> tuple[TrainState, int]:
        """The state of the newest checkpoint and the steps it was trained for, or a new one and 0."""
        abstract = kept(self._abstract(), self.lora)
        found = self._checkpoints.read(abstract)
        state, extra = found or (self._new_state(), {"step": 0, "log": []})
        if found and self.lora:  # the frozen base is in no checkpoint
            state = state._replace(ref_params=self._new_state().ref_params)
        if found:
            self._parts.say(f"warm start: going on from step {extra['step']}")
        self._records = list(extra["log"])
        self._since = time.perf_counter()
        return state, extra["step"]

    def place(self, batch):
        """A batch where the step takes it: as it is on one process, else in global arrays."""
        if self._parts.hosts.count > 1:
            return parallel.whole_to_global(batch, self._rows)
        return batch

    def save(self, done: int, state: TrainState) -> None:
        """Starts to write a checkpoint."""
        if not self._prepared:  # not before: a short warm start never saves
            self._checkpoints.prepare(kept(self._abstract(), self.lora))
            self._prepared = True
        extra = {"step": done, "log": self._records}
        self._checkpoints.save(done, kept(state, self.lora), extra)

    def stop_if_preempted(self, done: int, state: TrainState) -> None:
        """Saves and ends where a notice has come to any host."""
        try:
            raise_if_preempted(self._parts.hosts, self._parts.preemption)
        except Preempted:
            if done not in self._checkpoints.steps():
                self.save(done, state)
            self._checkpoints.wait()
            self._parts.say(f"warm start: saved after step {done}")
            raise

    def log(self, done: int, batch, metrics: dict[str, Any], *, write: bool) -> None:
        """Notes a step; with ``write`` reads what the device has computed and writes a line."""
        self._metrics.append(metrics)
        self._tokens += int(np.count_nonzero(batch["segment_ids"]))
        if not write:  # reading a value waits for the device
            return
        values = jax.device_get(self._metrics)
        seconds = time.perf_counter() - self._since
        record = {"step": done} | {
            name: float(np.mean([m[name] for m in values])) for name in values[0]
        }
        record |= {"tokens_per_second": self._tokens / max(seconds, 1e-9)}
        self._metrics, self._tokens, self._since = [], 0, time.perf_counter()
        self._write(record)

    def log_held_out(self, done: int, state: TrainState) -> None:
        """Writes the loss on what is not trained on, where there is any."""
        if self._score is None:
            return
        sums = [jax.device_get(self._score(state, self.place(b))) for b in self._held_out]
        total = {name: float(sum(s[name] for s in sums)) for name in CLONING_SUMS}
        count = max(total.pop("trained_tokens"), 1.0)
        self._write({"step": done} | {f"held_out_{n}": x / count for n, x in total.items()})
        self._since = time.perf_counter()

    def finish(self) -> None:
        """Waits for the disk, and says in one line what was reached."""
        self._checkpoints.close()
        losses = [r["loss"] for r in self._records if "loss" in r]
        held = [r["held_out_loss"] for r in self._records if "held_out_loss" in r]
        speed = np.median([r["tokens_per_second"] for r in self._records if "loss" in r])
        text = (
            f"warm start: loss {losses[0]:.3f} -> {losses[-1]:.3f} on {self._sequences} sequences"
        )
        if held:
            text += f", held out {held[0]:.3f} -> {held[-1]:.3f}"
        self._parts.say(f"{text}, {speed:.0f} tokens/s")

    def _write(self, record: dict[str, Any]) -> None:
        self._records.append(record)
        if self._parts.hosts.first:
            self._log_file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._log_file, "".join(json.dumps(r) + "\n" for r in self._records))

    def _abstract(self) -> TrainState:
        return abstract_state(
            self._parts.model_cfg, self._optimizer, self._mesh, reference=False, lora=self.lora
        )

    def _new_state(self) -> TrainState:
        parts, model_cfg = self._parts, self._parts.model_cfg
        key, path = jax.random.key(self.seed), parts.config.model.hf_path
        if not path:
            return init_state(model_cfg, self._optimizer, self._mesh, key, reference=False)
        dtype = model_cfg.dtype if self.lora else "float32"  # in which it will be kept
        return state_from_params(
            _load(parts, self._mesh, dtype, path), model_cfg, self._optimizer, self._mesh,
            reference=False, lora=self.lora, key=key,
        )  # fmt: skip


def _optimizer(w) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        w.learning_rate / 20, w.learning_rate, max(1, w.steps // 20), w.steps, w.learning_rate / 20
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01)
    )
