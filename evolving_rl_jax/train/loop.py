"""The training loop: rollout -> batch -> step -> log -> save -> evaluate."""

from __future__ import annotations

import time
from typing import Any

import jax

from evolving_rl_jax.record.figures import cost_figures, rollout_figures, update_figures
from evolving_rl_jax.report.page import before_after_table, write_report
from evolving_rl_jax.rollout.batch import split_experience
from evolving_rl_jax.run.parts import Parts, read_adapter
from evolving_rl_jax.run.preemption import Preempted, announced, raise_if_preempted
from evolving_rl_jax.train.collapse import RESTORE_BEST, STOP, Collapse
from evolving_rl_jax.train.global_batch import global_batch, whole_counts, whole_experience
from evolving_rl_jax.train.limits import NothingLearned
from evolving_rl_jax.train.setup import Run, set_up
from evolving_rl_jax.update.state import TrainState


def train(parts: Parts) -> None:
    """Runs (or goes on with) the training described by ``parts.config`` in ``parts.folder``.

    Raises:
      ConfigError: another process trains in the folder.
      Preempted: this machine is about to be taken away; the run has been saved.
      CollapsedError: the collapse rule ended the run, now or before; it has been saved.
      NothingLearned: for too long no episode could be scored, or no gradient used.
      SaveFailed: the last checkpoint, or one that had to be there at once, could not be written.
    """
    with parts.folder.hold():
        run, state, done = set_up(parts)
        with parts.preemption.deferred():
            parts.preemption.check()
            _train(parts, run, state, done)


def _train(parts: Parts, run: Run, state: TrainState, done: int) -> None:
    """Goes on after ``done`` iterations, with something to save whatever happens."""
    config, hosts, clock = parts.config, parts.hosts, time.perf_counter
    try:
        run.panels.play("warmstart", _start(parts, run, state, done), 0)
        if done and run.panels.due(done):  # a run that was ended in it, or just before it
            run.panels.play_small(run.weights(state), done)
        for iteration in range(done, config.train.num_iterations):
            began = clock()

            # Play: source episodes, skills, and episodes with them; perhaps done ahead of time.
            rollout = run.collector.take(iteration, state)
            save_now = _meet(parts)
            if config.rollout.overlap and not save_now and not run.saves.due(iteration + 1):
                run.collector.start(iteration + 1, iteration, state)

            # Learn: an optimizer step for each share of the sources.
            before, steps = clock(), []
            shares = split_experience(rollout.experience, config.train.minibatches)
            batches = run.batches(shares, run.memory.extras(iteration, rollout.experience))
            batches = [global_batch(b, run.shape, hosts, run.mesh) for b in batches]
            for batch in run.with_old_logprobs(state, batches):
                state, metrics = run.train_step(state, batch)
                steps.append(metrics)
            steps, done = jax.device_get(steps), iteration + 1
            trained = clock() - before

            # Write down: skills, a few whole episodes, figures.
            experience = whole_experience(
                rollout.experience, run.sources, hosts, whole_sources=config.train.log_episodes
            )
            run.record.keep(iteration, experience, rollout.version)
            costs = cost_figures(
                rollout.driver, rollout.stats, lag=rollout.lag * config.train.minibatches,
                overlapped=rollout.overlapped, trained=trained, total=clock() - began,
            )  # fmt: skip
            figures = rollout_figures(experience) | update_figures(steps)
            run.memory.learn(iteration, experience)
            figures |= run.memory.figures(iteration)
            figures = hosts.from_first(figures)
            run.record.log(iteration, figures | whole_counts(costs, hosts))

            # Watch: does it still learn, and has it collapsed?
            run.limits.check(experience, steps)
            found = run.saves.rule.observe(iteration, figures)
            run.saves.score(rollout.version, figures)
            if found:
                state = _after_collapse(parts, run, state, done, found)

            # Save, last: a run that is killed repeats what its newest checkpoint does not hold.
            run.saves.save(done, state, at_once=bool(found or save_now))
            if run.panels.due(done):
                run.panels.play_small(run.weights(state), done)
        run.panels.play("final", run.weights(state), done)
        _finish(parts, run)
    except Preempted:
        run.collector.close()
        run.saves.save_last(done, state)
        raise
    except NothingLearned:
        run.saves.wait()  # the newest checkpoint may still be on its way to the disk
        raise
    finally:
        run.collector.close()


def _start(parts: Parts, run: Run, state: TrainState, done: int) -> Any:
    """The weights that training starts from: the reference's, but for adapters that were given."""
    if not parts.config.model.lora_adapter:
        return state.ref_params
    given = read_adapter(parts.config, parts.model_cfg) if done else state.params
    return run.weights(state._replace(params=given))


def _meet(parts: Parts) -> bool:
    """All hosts have their experience, or the run ends: one that hangs is not waited for.

    Returns:
      Whether maintenance has been announced, so that this iteration is to be saved at once.
    """
    config = parts.config
    slack = config.env.deadline_s + config.hosts.heartbeat_timeout_s
    parts.hosts.meet("rollouts", config.rollout.deadline_s + slack)
    raise_if_preempted(parts.hosts, parts.preemption)
    coming = announced(parts.hosts, parts.preemption)
    if coming:
        parts.say(f"{coming}: saving after this iteration, and training on")
    return bool(coming)


def _after_collapse(
    parts: Parts, run: Run, state: TrainState, done: int, found: Collapse
) -> TrainState:
    """Says and writes down what the rule found; the state to go on with, perhaps the best so far."""
    parts.say(f"warning: training may have collapsed at {found}")
    restored = None
    if found.action != STOP:
        run.collector.drop()  # what follows a checkpoint is played by the weights that it holds
    if found.action == RESTORE_BEST:
        state, restored = run.saves.return_to_best(done, state)
    run.collapses.append(found, restored)
    return state


def _finish(parts: Parts, run: Run) -> None:
    """The table and the report."""
    run.saves.wait()
    if parts.hosts.first:
        parts.say(before_after_table(parts.folder.path))
        parts.say(f"report: {write_report(parts.folder.path)}")
    run.record.close()
    parts.hosts.meet("end")
