"""What of a training run is kept: where it begins, what it saves, and the best that it returns to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from evolving_rl_jax.models.lora import LoraConfig
from evolving_rl_jax.run.parts import Parts, read_adapter
from evolving_rl_jax.train.checkpoint import Checkpoints
from evolving_rl_jax.train.cloning import initial_params
from evolving_rl_jax.train.collapse import CollapseRule
from evolving_rl_jax.train.memory import Memory
from evolving_rl_jax.update.state import TrainState, abstract_state, kept, state_from_params


class Saves:
    """The checkpoints of a run, and what is in them beside the state.

    Args:
      parts: of the run; all its hosts make the same calls.
      optimizer: of the updates.
      mesh: that states are laid out on.
      lora: the adapters that are trained, or None.
      memory: what is saved with the state; None = nothing.

    Attributes:
      rule: the collapse rule, whose memory is saved with the state.
    """

    def __init__(
        self,
        parts: Parts,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        lora: LoraConfig | None,
        memory: Memory | None = None,
    ):
        self._parts, self._optimizer, self._mesh, self._lora = parts, optimizer, mesh, lora
        self._config, self._memory = parts.config.checkpoint, memory
        folder = parts.folder.path / "checkpoints"
        self._checkpoints = Checkpoints(folder, self._config, parts.hosts)
        self.rule = CollapseRule(parts.config.collapse)

    def begin(self) -> tuple[TrainState, int]:
        """The state of the newest checkpoint, or a new one, and the iterations it was trained for."""
        state, extra = self._restore("latest") or (self._new_state(), {"iteration": 0})
        self.rule = CollapseRule(self._parts.config.collapse, extra.get("collapse"))
        self._remember(extra)
        if extra["iteration"]:
            self._parts.say(f"going on from the checkpoint after iteration {extra['iteration']}")
        return state, extra["iteration"]

    def due(self, done: int) -> bool:
        """Whether there is a checkpoint after ``done`` iterations by schedule."""
        return done % self._config.every == 0 or done == self._parts.config.train.num_iterations

    def score(self, version: int, figures: Mapping[str, float]) -> None:
        """Takes what weights have played, after the rule has seen the figures of that iteration.

        ``best`` is chosen by their win rate, by their mean reward where the environment gives more than
        won and lost, or on web tasks by the right actions an episode; it is 0 where they wrote no skill
        to be played with.  While
        a limit is broken, or where the infrastructure failed everything, they are never the best.

        Args:
          version: iterations that the weights were trained for.
          figures: of the iteration that they played.
        """
        win_rate = figures.get("rollout/win_rate")
        if win_rate is None and not figures["rollout/failed_episodes"]:
            win_rate = 0.0 if figures.get("rollout/extractions") else None
        # Where parts are scored, whole tasks are won too rarely to tell weights apart.
        finer = (figures[n] for n in ("rollout/correct_steps", "rollout/reward") if n in figures)
        found = win_rate if win_rate is None else next(finer, win_rate)
        self._checkpoints.score(version, found if self.rule.trusted else None)

    def save(self, done: int, state: TrainState, *, at_once: bool) -> None:
        """Starts to write a checkpoint where one is due.

        Args:
          done: iterations that ``state`` was trained for.
          state: copied before this returns.
          at_once: write it whatever the schedule says, and return when it is on the disk.

        Raises:
          CollapsedError: the rule has ended the run, which is saved.
        """
        if self.due(done) or at_once:
            self._save(done, state)
        if at_once:
            self.save_now(done, state)
        self.rule.raise_if_stopped()

    def save_now(self, done: int, state: TrainState) -> None:
        """Makes sure that the present state is on the disk, whatever the schedule says.

        Raises:
          SaveFailed: it could not be written.
        """
        self._checkpoints.settle()
        if done and done not in self._checkpoints.steps():
            self._save(done, state)
        self.wait()
        self._parts.say(f"saved after iteration {done}")

    def save_last(self, done: int, state: TrainState) -> None:
        """As `save_now`, for a run that ends for another reason: a failure is told, not raised."""
        try:
            self.save_now(done, state)
        except OSError as e:
            there = self._checkpoints.steps()
            newest = f"that after iteration {there[-1]}" if there else "none"
            self._parts.say(
                f"iteration {done} is not saved: {e}; the newest checkpoint is {newest}"
            )

    def wait(self) -> None:
        """Returns when what was saved last is on the disk; raises SaveFailed if it could not be."""
        self._checkpoints.wait()

    def return_to_best(self, done: int, state: TrainState) -> tuple[TrainState, int]:
        """Puts the state aside; the best checkpoint's and its iteration, or that of the start and 0.

        Args:
          done: iterations that ``state`` was trained for.
          state: cannot be used afterwards: there may not be room for two.
        """
        parts = self._parts
        keep = ConfigDict({"keep_last": 1, "keep_best": 0})
        aside = Checkpoints(parts.folder.path / "collapsed", keep, parts.hosts)
        aside.prepare(self._abstract())
        aside.save(done, kept(state, self._lora), self._extra(done))
        aside.close()
        jax.tree.map(lambda x: x.delete(), state)
        restored = None if self._start_is_best() else self._restore("best")
        state, extra = restored or (self._new_state(), {"iteration": 0})
        best = extra["iteration"]
        self._remember(extra)
        parts.say(f"back to the policy of iteration {best}; the collapsed one is in {aside.folder}")
        return state, best

    def _start_is_best(self) -> bool:
        """Whether no checkpoint was scored, or none as high as the policy that the run began with."""
        best, scores = self._checkpoints.best(), self._checkpoints.scores
        start = scores.get(0)
        return best is None or (start is not None and start > scores[best])

    def _save(self, done: int, state: TrainState) -> None:
        remembered = self._memory.save(done, self._checkpoints.steps()) if self._memory else {}
        extra = self._extra(done) | ({"memory": remembered} if remembered else {})
        self._checkpoints.save(done, kept(state, self._lora), extra)

    def _remember(self, extra: dict[str, Any]) -> None:
        if self._memory:
            self._memory.restore(extra["iteration"], extra.get("memory"))

    def _extra(self, done: int) -> dict[str, Any]:
        """Everything but the state and the memory that a run needs to go on."""
        return {"iteration": done, "collapse": self.rule.state}

    def _restore(self, which: str) -> tuple[TrainState, dict[str, Any]] | None:
        """A checkpoint, or None when there is none at all."""
        restored = self._checkpoints.restore(self._abstract(), which)
        if restored and self._lora:  # the frozen base is in no checkpoint
            state, extra = restored
            return state._replace(ref_params=self._new_state().ref_params), extra
        return restored

    def _abstract(self) -> TrainState:
        """What a checkpoint holds, as shapes and shardings."""
        model_cfg = self._parts.model_cfg
        return kept(
            abstract_state(model_cfg, self._optimizer, self._mesh, lora=self._lora), self._lora
        )

    def _new_state(self) -> TrainState:
        model_cfg = self._parts.model_cfg
        dtype = model_cfg.dtype if self._lora else "float32"  # in which it will be kept
        return state_from_params(
            initial_params(self._parts, self._mesh, dtype=dtype), model_cfg, self._optimizer,
            self._mesh, lora=self._lora, key=jax.random.key(self._parts.config.seed),
            adapters=read_adapter(self._parts.config, model_cfg),
        )  # fmt: skip
