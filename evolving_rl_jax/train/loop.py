"""The training loop: rollout -> batch -> step -> log -> save -> evaluate."""

from __future__ import annotations

import json
import pathlib
import time

import jax

from evolving_rl_jax.eval.evaluate import (
    PANEL_ITERATION,
    observations,
    success_table,
    write_result,
)
from evolving_rl_jax.eval.report import before_after_table, write_report
from evolving_rl_jax.models.lora import Merger
from evolving_rl_jax.parallel import host_local_to_global
from evolving_rl_jax.rollout import facts
from evolving_rl_jax.rollout.batch import BatchShape, make_batch, split_experience
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.rollout.evolve import Evolver, Experience
from evolving_rl_jax.skills.bank import Bank, SkillRecord
from evolving_rl_jax.skills.retrieval import Retriever, TfidfEmbedder
from evolving_rl_jax.train.build import Parts
from evolving_rl_jax.train.checkpoint import Checkpoints
from evolving_rl_jax.train.export import load_policy
from evolving_rl_jax.train.metrics import MetricsLogger
from evolving_rl_jax.train.optimizer import DivergedError, SkipLimit, make_optimizer
from evolving_rl_jax.train.state import abstract_state, kept, state_from_params
from evolving_rl_jax.train.step import make_train_step
from evolving_rl_jax.train.warmstart import initial_params


def train(parts: Parts) -> None:
    """Runs (or goes on with) the training described by ``parts.config`` in ``parts.folder``."""
    trainer = Trainer(parts)
    trainer.evaluate("warmstart", trainer.reference_params(), 0)
    for iteration in range(trainer.start, parts.config.train.num_iterations):
        trainer.iterate(iteration)
    trainer.finish()


def evaluate_checkpoint(parts: Parts, which: str, temperature: float) -> dict:
    """Plays the fixed panel with a checkpoint, writes ``eval/NAME-tT.json`` and prints the success.

    Args:
      parts: of the run.
      which: ``latest``, ``best``, ``warmstart`` or an iteration.
      temperature: of sampling; 0 is greedy.

    Returns:
      What was written.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    params, _, iteration = load_policy(parts.folder, which)
    name = "warmstart" if which == "warmstart" else f"checkpoint_{iteration:05d}"
    panel = parts.make_panel(parts.config.eval.num_games)
    result = play_panel(
        parts, parts.make_engine(params), panel, name=name, iteration=iteration,
        temperature=temperature, conditions=parts.config.eval.conditions,
    )  # fmt: skip
    print(success_table(result))
    print(f"written: {parts.folder.eval_file(name, temperature)}")
    return result


def play_panel(
    parts: Parts, engine, panel, *, name: str, iteration: int, temperature: float, conditions
) -> dict:
    """Plays ``panel`` with the parameters that ``engine`` holds; writes and returns the result."""
    seed = parts.config.eval.seed
    driver = make_driver(parts, engine, PANEL_ITERATION + seed, temperature)
    with parts.progress(f"panel {name}, temperature {temperature:g}") as bar:
        games, figures = panel.play(driver, conditions, bar)
    return write_result(
        parts.folder.eval_file(name, temperature), panel, games, name=name, iteration=iteration,
        temperature=temperature, seed=seed, conditions=conditions, figures=figures,
    )  # fmt: skip


def make_driver(parts: Parts, engine, iteration: int, temperature: float) -> Driver:
    """A driver with the settings of ``config.rollout``."""
    settings = PlaySettings.from_config(parts.config.rollout, temperature=temperature)
    return Driver(engine, parts.pool, parts.prompts, settings, iteration=iteration)


class Trainer:
    """Holds what an iteration needs; :func:`train` is the loop."""

    def __init__(self, parts: Parts):
        self.parts, config = parts, parts.config
        num_updates = config.train.num_iterations * config.train.minibatches
        self.optimizer = make_optimizer(config, num_updates)
        self.skip_limit = SkipLimit(config.optimizer.max_skipped)
        self.merger = Merger(parts.lora) if parts.lora else None
        self.checkpoints = Checkpoints(parts.folder.path / "checkpoints", config.checkpoint)
        self.state, self.start = self._initial_state()
        self.train_step = make_train_step(
            config, parts.model_cfg, self.optimizer, parts.mesh, lora=parts.lora
        )
        self.engine = parts.make_engine(self.policy_params())
        self.bank = Bank(parts.folder.bank_file)
        self.bank.truncate_to(self.start)
        self.retriever = Retriever(parts.train_tasks, TfidfEmbedder())
        self.metrics = MetricsLogger(
            parts.folder.path, total=config.train.num_iterations, resume_from=self.start
        )
        self.shape = BatchShape.from_config(config)

    def _initial_state(self):
        parts = self.parts
        abstract = abstract_state(parts.model_cfg, self.optimizer, parts.mesh, lora=parts.lora)
        restored = self.checkpoints.restore(kept(abstract, parts.lora))
        if restored is None:
            return self._new_state(), 0
        state, extra = restored
        parts.say(f"going on from the checkpoint after iteration {extra['iteration']}")
        if parts.lora:  # the frozen base is in no checkpoint
            state = state._replace(ref_params=self._new_state().ref_params)
        return state, extra["iteration"]

    def _new_state(self):
        parts, key = self.parts, jax.random.key(self.parts.config.seed)
        return state_from_params(
            initial_params(parts), parts.model_cfg, self.optimizer, parts.mesh,
            lora=parts.lora, key=key,
        )  # fmt: skip

    def reference_params(self):
        """The warm-started policy that the KL term compares with."""
        return self.state.ref_params

    def policy_params(self):
        """The whole weights of the policy; with LoRA valid until the next call, see `lora.Merger`."""
        state = self.state
        return self.merger(state.ref_params, state.params) if self.merger else state.params

    # -- one iteration ---------------------------------------------------------------------------

    def iterate(self, iteration: int) -> None:
        """Collects experience, makes the optimizer steps, and writes everything down."""
        clock = time.perf_counter
        start = clock()
        self.engine.warmup()
        self.engine.set_params(self.policy_params(), iteration)
        self.engine.reset_stats()
        temperature = self.parts.config.rollout.temperature
        driver = make_driver(self.parts, self.engine, iteration, temperature)
        experience = self.collect(driver, iteration)
        collected = clock()
        figures = self.update(experience)
        trained = clock()
        self._bank_skills(experience, iteration)
        self._write_episodes(experience, iteration)
        times = self._times(driver, start, collected, trained, clock())
        self.metrics.log(iteration, {**rollout_figures(experience), **figures, **times})
        # Last: a run that is killed repeats whatever its newest checkpoint does not stand for.
        self._save(iteration, experience)
        self._small_panel(iteration)

    def collect(self, driver: Driver, iteration: int) -> Experience:
        """The four stages for this iteration's G source tasks (or G x K groups in the grpo arm)."""
        config = self.parts.config
        evolver = Evolver(driver, self.retriever, self.parts.prompts, config.rollout)
        num = config.rollout.num_sources
        if config.algorithm.arm == "grpo":
            num *= config.rollout.num_retrieved
            return evolver.collect_groups(self.parts.order.take(iteration, num))
        return evolver.collect(self.parts.order.take(iteration, num))

    def update(self, experience: Experience) -> dict[str, float]:
        """One optimizer step for each share of the sources; returns the mean of the step's metrics.

        The gap between the log-probabilities of trainer and engine is the first step's: before it,
        both hold the same weights.
        """
        parts_metrics = []
        for share in split_experience(experience, self.parts.config.train.minibatches):
            batch = host_local_to_global(make_batch(share, self.shape), self.parts.mesh)
            self.state, metrics = self.train_step(self.state, batch)
            parts_metrics.append(metrics)
        fetched = jax.device_get(parts_metrics)
        self._stop_if_diverged([m["grad_norm"] for m in fetched])
        figures = {n: float(sum(m[n] for m in fetched) / len(fetched)) for n in fetched[0]}
        figures.update((n, float(v)) for n, v in fetched[0].items() if n.startswith("logprob_gap"))
        return {f"train/{name}": value for name, value in figures.items()}

    def _stop_if_diverged(self, grad_norms) -> None:
        try:
            self.skip_limit.check(grad_norms)
        except DivergedError:
            self.checkpoints.wait()  # the newest one may still be on its way to the disk
            raise

    def _times(self, driver, start, collected, trained, end) -> dict[str, float]:
        stats = self.engine.stats
        times = {
            "time/environment": driver.environment_seconds,
            "time/prefill": stats.seconds_prefill,
            "time/decode": stats.seconds_decode,
            "time/train": trained - collected,
        }
        total = end - start
        times |= {"time/other": total - sum(times.values()), "time/total": total}
        counts = {
            "rollout/episodes": driver.finished,
            "rollout/prefilled_tokens": stats.prefilled_tokens,
            "rollout/reused_tokens": stats.turn_reused_tokens + stats.prefix_reused_tokens,
            "rollout/decoded_tokens": stats.decoded_tokens,
            "rollout/evictions": stats.evictions,
        }
        return {**times, **counts}

    # -- what is kept ----------------------------------------------------------------------------

    def _bank_skills(self, experience: Experience, iteration: int) -> None:
        records = []
        for g, source in enumerate(experience.sources):
            for n, candidate in enumerate(source.candidates):
                played = [
                    e for (_, m, _), e in sorted(source.episodes.items()) if m == n and e.scored
                ]
                wins = sum(float(e.won) for e in played)
                records.append(
                    SkillRecord(
                        id=f"it{iteration:05d}-g{g:03d}-n{n}",
                        iteration=iteration,
                        source_task_id=source.task.id,
                        source_task_hash=source.task.content_hash,
                        episode_id=f"it{iteration:05d}-g{g:03d}",
                        policy_step=iteration * self.parts.config.train.minibatches,
                        reward=_skill_reward(candidate, wins, len(played)),
                        skill=candidate.skill.to_dict() if candidate.skill else None,
                        reason=candidate.reason,
                        audit=candidate.audit._asdict() if candidate.audit else None,
                        uses=len(played),
                        wins=wins,
                    )
                )
        self.bank.append(records)

    def _write_episodes(self, experience: Experience, iteration: int) -> None:
        sources = [s for s in experience.sources if s.episode is not None]
        kept = sources[: self.parts.config.train.log_episodes]
        if kept:
            records = [source_record(s, iteration) for s in kept]
            self.parts.folder.write_episodes(iteration, records)

    def _save(self, iteration: int, experience: Experience) -> None:
        done = iteration + 1
        every, total = self.parts.config.checkpoint.every, self.parts.config.train.num_iterations
        if done % every == 0 or done == total:
            extra = {"iteration": done, "bank_records": len(self.bank)}
            score = rollout_figures(experience)["rollout/win_rate"]
            self.checkpoints.save(done, kept(self.state, self.parts.lora), extra, score=score)

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
        for temperature in temperatures or config.eval.temperatures:
            if played_at(self.parts.folder.eval_file(name, temperature)) == iteration:
                continue
            panel = self.parts.make_panel(num_games)
            self.engine.warmup()
            self.engine.set_params(params, f"{name}-{iteration}")
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
        parts.say(before_after_table(parts.folder.path))
        parts.say(f"report: {write_report(parts.folder.path)}")


def played_at(path: pathlib.Path) -> int | None:
    """The iteration of an evaluation file; None when there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["iteration"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _skill_reward(candidate, wins: float, played: int) -> float | None:
    """The extractor's reward: 0 for an invalid skill, None when no episode could be scored."""
    if not candidate.valid:
        return 0.0
    return wins / played if played else None


def rollout_figures(experience: Experience) -> dict[str, float]:
    """The rollout's own figures; see docs/metrics.md."""
    sources = [s for s in experience.sources if s.episode is not None]
    candidates = [c for s in sources for c in s.candidates]
    scored = experience.episode_mask.sum()
    figures = {
        "rollout/win_rate": float(
            (experience.wins * experience.episode_mask).sum() / max(scored, 1)
        ),
        "rollout/scored_episodes": float(scored),
    }
    episodes = [e for s in experience.sources for e in s.episodes.values()]
    if episodes:
        turns = [t for e in episodes for t in e.turns]
        figures["rollout/failed_episodes"] = float(sum(not e.scored for e in episodes))
        figures["rollout/turns"] = len(turns) / len(episodes)
        figures["rollout/valid_actions"] = sum(t.valid for t in turns) / max(len(turns), 1)
    if sources:
        figures["rollout/source_success"] = sum(s.episode.won for s in sources) / len(sources)
    if candidates:
        figures["rollout/skill_valid"] = sum(c.valid for c in candidates) / len(candidates)
        lengths = [int(c.sample.loss_mask.sum()) for c in candidates]
        figures["rollout/skill_tokens"] = sum(lengths) / len(lengths)
        figures.update(_fact_figures(sources))
    return figures


def _fact_figures(sources) -> dict[str, float]:
    known = [s for s in sources if "place" in s.task.meta]
    if not known:
        return {}
    seen = [s for s in known if facts.fact_seen(s.task, observations(s.episode))]
    stated = [c.valid and facts.fact_stated(s.task, c.text) for s in seen for c in s.candidates]
    return {
        "rollout/fact_seen": len(seen) / len(known),
        "rollout/fact_stated_when_seen": sum(stated) / max(len(stated), 1),
    }


def source_record(source, iteration: int) -> dict:
    """One source with its skills and their episodes, as written to episodes/*.jsonl.gz."""

    def turns(episode):
        return [vars(t) for t in episode.turns]

    skills = []
    for n, c in enumerate(source.candidates):
        played = [e for (_, m, _), e in sorted(source.episodes.items()) if m == n]
        scored = [e for e in played if e.scored]
        skills.append(
            {
                "raw": c.raw,
                "name": c.skill.name if c.skill else "",
                "description": c.skill.description if c.skill else "",
                "valid": c.valid,
                "reason": c.reason,
                "reward": sum(e.won for e in scored) / len(scored) if scored else None,
                "episodes": [
                    {
                        "task": e.task.id,
                        "text": e.task.text,
                        "won": e.won,
                        "status": e.status,
                        "turns": turns(e),
                    }
                    for e in played
                ],
            }
        )
    episode = source.episode
    head = {
        "task": source.task.id,
        "text": source.task.text,
        "won": episode.won,
        "turns": turns(episode),
        "last_observation": episode.last_observation,
    }
    return {"iteration": iteration, "source": head, "skills": skills}
