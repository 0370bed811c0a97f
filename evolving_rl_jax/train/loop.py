"""The training loop: rollout -> batch -> step -> log -> save -> evaluate."""

from __future__ import annotations

import time

import jax
from ml_collections import ConfigDict

from evolving_rl_jax.eval.play import make_panel, play_panel, played_at
from evolving_rl_jax.models.lora import Merger
from evolving_rl_jax.models.lora import from_config as lora_from_config
from evolving_rl_jax.parallel import in_order
from evolving_rl_jax.record.episodes import episode_records
from evolving_rl_jax.record.figures import bank_records, cost_figures, rollout_figures
from evolving_rl_jax.record.metrics import MetricsLogger
from evolving_rl_jax.record.tracking import WandbRun
from evolving_rl_jax.report.page import before_after_table, write_report
from evolving_rl_jax.rollout.batch import BatchShape, make_batch, split_experience
from evolving_rl_jax.rollout.evolve import Experience, StepScoring
from evolving_rl_jax.run.engine import make_driver, make_engine, on_this_host
from evolving_rl_jax.run.parts import Parts, training_mesh
from evolving_rl_jax.run.preemption import Preempted, raise_if_preempted
from evolving_rl_jax.skills.bank import Bank
from evolving_rl_jax.train.checkpoint import Checkpoints
from evolving_rl_jax.train.cloning import initial_params
from evolving_rl_jax.train.collapse import RESTORE_BEST, STOP, Collapse, CollapseLog, CollapseRule
from evolving_rl_jax.train.collect import Collector
from evolving_rl_jax.train.global_batch import (
    global_batch,
    host_shape,
    source_numbers,
    whole_counts,
    whole_experience,
)
from evolving_rl_jax.train.limits import DivergedError, SkipLimit
from evolving_rl_jax.train.stages import Stages
from evolving_rl_jax.update.optimizer import make_optimizer
from evolving_rl_jax.update.state import abstract_state, kept, state_from_params
from evolving_rl_jax.update.step import make_train_step


def train(parts: Parts) -> None:
    """Runs (or goes on with) the training described by ``parts.config`` in ``parts.folder``.

    Raises:
      ConfigError: another process trains in the folder.
      Preempted: this machine is about to be taken away; the run has been saved.
      CollapsedError: the collapse rule ended the run, now or before; it has been saved.
    """
    with parts.folder.hold():
        _train(parts)


def _train(parts: Parts) -> None:
    trainer = Trainer(parts)
    trainer.rule.raise_if_stopped()
    parts.preemption.defer()
    try:
        trainer.evaluate("warmstart", trainer.reference_params(), 0)
        for iteration in range(trainer.start, parts.config.train.num_iterations):
            trainer.iterate(iteration)
        trainer.finish()
    except Preempted:
        trainer.collector.close()
        trainer.save_now()
        raise
    finally:
        trainer.collector.close()


class Trainer:
    """Holds what an iteration needs; :func:`train` is the loop."""

    def __init__(self, parts: Parts):
        self.parts, config = parts, parts.config
        self.mesh, self.lora = training_mesh(config), lora_from_config(config.model.lora)
        num_updates = config.train.num_iterations * config.train.minibatches
        self.optimizer = make_optimizer(config, num_updates)
        self.skip_limit = SkipLimit(config.optimizer.max_skipped)
        self.merger = Merger(self.lora) if self.lora else None
        self.checkpoints = Checkpoints(
            parts.folder.path / "checkpoints", config.checkpoint, parts.hosts
        )
        self.state, extra = self._restore("latest") or (self._new_state(), {"iteration": 0})
        self.start = extra["iteration"]
        if self.start:
            parts.say(f"going on from the checkpoint after iteration {self.start}")
        self.rule = CollapseRule(config.collapse, extra.get("collapse"))
        self.done = self.start  # iterations that `state` was trained for
        self.train_step = in_order(
            make_train_step(
                config, parts.model_cfg, self.optimizer, self.mesh,
                lora=self.lora, attention=config.model.attention,
            )
        )  # fmt: skip
        self.engine = make_engine(parts, self.policy_params())
        self.bank = Bank(parts.folder.bank_file)
        if parts.hosts.first:
            self.bank.truncate_to(self.start)
        self.metrics = MetricsLogger(
            parts.folder.path, total=config.train.num_iterations, resume_from=self.start,
            write=parts.hosts.first, wandb=self._wandb(),
        )  # fmt: skip
        self.collapses = CollapseLog(
            parts.folder.path, resume_from=self.start, write=parts.hosts.first
        )
        self.shape = host_shape(BatchShape.from_config(config), parts.hosts)
        self.sources = source_numbers(
            config.rollout.num_sources, config.train.minibatches, parts.hosts
        )
        stages, temperature = Stages(parts, self.sources), config.rollout.temperature
        self.collector = Collector(
            self.engine,
            lambda iteration: make_driver(parts, self.engine, iteration, temperature),
            stages.collect,
            stages.coming,
        )

    def _wandb(self) -> WandbRun | None:
        config, folder = self.parts.config, self.parts.folder.path
        wanted = config.train.wandb and self.parts.hosts.first
        return WandbRun(config.train.wandb, folder, config.to_dict()) if wanted else None

    def _restore(self, which: str):
        """(state, facts) of a checkpoint, or None when there is none at all."""
        restored = self.checkpoints.restore(self._abstract(), which)
        if restored and self.lora:  # the frozen base is in no checkpoint
            state, extra = restored
            return state._replace(ref_params=self._new_state().ref_params), extra
        return restored

    def _abstract(self):
        """What a checkpoint holds, as shapes and shardings."""
        parts = self.parts
        abstract = abstract_state(parts.model_cfg, self.optimizer, self.mesh, lora=self.lora)
        return kept(abstract, self.lora)

    def _new_state(self):
        parts, key = self.parts, jax.random.key(self.parts.config.seed)
        dtype = parts.model_cfg.dtype if self.lora else "float32"  # in which it will be kept
        return state_from_params(
            initial_params(parts, self.mesh, dtype=dtype), parts.model_cfg, self.optimizer, self.mesh,
            lora=self.lora, key=key,
        )  # fmt: skip

    def reference_params(self):
        """The warm-started policy that the KL term compares with."""
        return self.state.ref_params

    def policy_params(self):
        """The whole weights of the policy; with LoRA valid until the next call, see `lora.Merger`."""
        state = self.state
        return self.merger(state.ref_params, state.params) if self.merger else state.params

    def host_params(self):
        """`policy_params`, whole on this host."""
        return on_this_host(self.parts, self.policy_params())

    # -- one iteration ---------------------------------------------------------------------------

    def iterate(self, iteration: int) -> None:
        """Collects experience, makes the optimizer steps, and writes everything down."""
        clock, config = time.perf_counter, self.parts.config
        start = clock()
        rollout = self.collector.take(iteration, self.host_params)
        self._meet()
        if config.rollout.overlap and not self._saves(iteration):
            self.collector.start(iteration + 1, iteration, self.host_params())
        before = clock()
        figures = self.update(rollout.experience)
        trained = clock() - before
        self.done, minibatches = iteration + 1, config.train.minibatches
        experience = whole_experience(
            rollout.experience, self.sources, self.parts.hosts,
            whole_sources=config.train.log_episodes,
        )  # fmt: skip
        if self.parts.hosts.first:
            scoring = StepScoring.from_config(config)
            self.bank.append(
                bank_records(experience, iteration, rollout.version * minibatches, scoring)
            )
        records = episode_records(experience, iteration, config, self.parts.tokenizer)
        if records:
            self.parts.folder.write_episodes(iteration, records)
        costs = cost_figures(
            rollout.driver, rollout.stats, lag=rollout.lag * minibatches,
            overlapped=rollout.overlapped, trained=trained, total=clock() - start,
        )  # fmt: skip
        costs = whole_counts(costs, self.parts.hosts)
        figures = {**rollout_figures(experience), **figures}
        self.metrics.log(iteration, {**figures, **costs})
        collapse = self._watch(iteration, figures)
        # Last: a run that is killed repeats whatever its newest checkpoint does not stand for.
        self._save(iteration, figures["rollout/win_rate"], collapse)
        self._small_panel(iteration)

    def _meet(self) -> None:
        """All hosts have their experience, or the run ends: one that hangs is not waited for."""
        config = self.parts.config
        slack = config.env.deadline_s + config.hosts.heartbeat_timeout_s
        self.parts.hosts.meet("rollouts", config.rollout.deadline_s + slack)
        raise_if_preempted(self.parts.hosts, self.parts.preemption)

    def update(self, experience: Experience) -> dict[str, float]:
        """One optimizer step for each share of the sources; returns the mean of the step's metrics.

        How the log-probabilities of trainer and engine agree is the first step's: before it, both
        hold the same weights.
        """
        parts_metrics = []
        for share in split_experience(experience, self.parts.config.train.minibatches):
            own = make_batch(share, self.shape)
            batch = global_batch(own, self.shape, self.parts.hosts, self.mesh)
            self.state, metrics = self.train_step(self.state, batch)
            parts_metrics.append(metrics)
        fetched = jax.device_get(parts_metrics)
        self._stop_if_diverged([m["grad_norm"] for m in fetched])
        figures = {n: float(sum(m[n] for m in fetched) / len(fetched)) for n in fetched[0]}
        figures.update((n, float(v)) for n, v in fetched[0].items() if n.startswith("logprob_"))
        return {f"train/{name}": value for name, value in figures.items()}

    def _stop_if_diverged(self, grad_norms) -> None:
        try:
            self.skip_limit.check(grad_norms)
        except DivergedError:
            self.checkpoints.wait()  # the newest one may still be on its way to the disk
            raise

    # -- collapse --------------------------------------------------------------------------------

    def _watch(self, iteration: int, figures: dict[str, float]) -> Collapse | None:
        """What the collapse rule found; where it says so, the state is then the best one so far."""
        found = self.rule.observe(iteration, self.parts.hosts.from_first(figures))
        if found is None:
            return None
        self.parts.say(f"warning: training may have collapsed at {found}")
        ahead = self.parts.config.rollout.overlap and not self._saves(iteration)
        if ahead and found.action != STOP:
            # Dropped: what follows a checkpoint is played by the weights that it holds.
            self.collector.take(iteration + 1, self.host_params)
        restored = self._return_to_best() if found.action == RESTORE_BEST else None
        self.collapses.append(found, restored)
        return found

    def _return_to_best(self) -> int:
        """Puts the state aside and takes the best checkpoint's, or (iteration 0) that of the start."""
        parts = self.parts
        keep = ConfigDict({"keep_last": 1, "keep_best": 0})
        aside = Checkpoints(parts.folder.path / "collapsed", keep, parts.hosts)
        aside.prepare(self._abstract())
        aside.save(self.done, kept(self.state, self.lora), self._extra())
        aside.close()
        self.state = None  # there may not be room for two
        restored = self._restore("best") if self.checkpoints.best() is not None else None
        self.state, extra = restored or (self._new_state(), {"iteration": 0})
        best = extra["iteration"]
        parts.say(f"back to the policy of iteration {best}; the collapsed one is in {aside.folder}")
        return best

    # -- what is kept ----------------------------------------------------------------------------

    def _saves(self, iteration: int) -> bool:
        done, total = iteration + 1, self.parts.config.train.num_iterations
        return done % self.parts.config.checkpoint.every == 0 or done == total

    def _extra(self) -> dict:
        """Everything but the state that a run needs to go on."""
        facts = {"iteration": self.done, "bank_records": len(self.bank)}
        return facts | {"collapse": self.rule.state}

    def _save(self, iteration: int, win_rate: float, collapse: Collapse | None) -> None:
        if self._saves(iteration) or collapse:
            score = win_rate if self.rule.trusted else None
            state = kept(self.state, self.lora)
            self.checkpoints.save(self.done, state, self._extra(), score=score)
        if collapse:
            self.save_now()
            self.rule.raise_if_stopped()

    def save_now(self) -> None:
        """Makes sure that the present state is on the disk, whatever the schedule says."""
        if self.done and self.done not in self.checkpoints.steps():
            self.checkpoints.save(self.done, kept(self.state, self.lora), self._extra())
        self.checkpoints.wait()
        self.parts.say(f"saved after iteration {self.done}")

    # -- evaluation ------------------------------------------------------------------------------

    def _small_panel(self, iteration: int) -> None:
        config = self.parts.config.eval
        if config.every and (iteration + 1) % config.every == 0:
            self.evaluate(
                f"iteration_{iteration + 1:05d}",
                self.policy_params(),
                iteration + 1,
                num_games=config.every_games,
                temperatures=config.temperatures[:1],
                conditions=("none", "own"),
            )

    def evaluate(
        self, name, params, iteration, *, num_games=None, temperatures=None, conditions=None
    ) -> None:
        """Plays the fixed panel, unless its result for this iteration is already there."""
        config = self.parts.config
        conditions = conditions or config.eval.conditions
        num_games = config.eval.num_games if num_games is None else num_games
        panel = None  # made once: its retriever is fitted then
        for temperature in temperatures or config.eval.temperatures:
            played = played_at(self.parts.folder.eval_file(name, temperature))
            if self.parts.hosts.from_first(played) == iteration:
                continue
            panel = panel or make_panel(self.parts, num_games)
            self.collector.wait()  # engine and environments are in use until then
            self.engine.warmup()
            self.engine.set_params(on_this_host(self.parts, params), f"{name}-{iteration}")
            play_panel(
                self.parts, self.engine, panel, name=name, iteration=iteration,
                temperature=temperature, conditions=conditions,
            )  # fmt: skip

    def finish(self) -> None:
        """The panel after training, the table and the report."""
        parts = self.parts
        done = max(self.start, parts.config.train.num_iterations)
        self.evaluate("final", self.policy_params(), done)
        self.checkpoints.wait()
        if parts.hosts.first:
            parts.say(before_after_table(parts.folder.path))
            parts.say(f"report: {write_report(parts.folder.path)}")
        self.metrics.close()
        parts.hosts.meet("end")
