"""The fixed panel of a run: made from its parts, played with a policy, written down."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evolving_rl_jax import envs
from evolving_rl_jax.data.tasks import panel_sample
from evolving_rl_jax.eval.panel import PANEL_ITERATION, Panel
from evolving_rl_jax.eval.results import skill_records, write_result
from evolving_rl_jax.eval.resume import KeptDriver, forget, panel_journal
from evolving_rl_jax.generate import Engine
from evolving_rl_jax.record.figures import pooled
from evolving_rl_jax.run.engine import evaluating, make_driver, on_this_host
from evolving_rl_jax.run.preemption import raise_if_preempted
from evolving_rl_jax.run.skills import audit_rules, fit_to_prompt, make_retriever
from evolving_rl_jax.skills.bank import write_bank
from evolving_rl_jax.types import Task


def make_panel(parts, num_games: int = 0) -> Panel:
    """The fixed panel of ``config.eval.splits``.

    Args:
      parts: of the run.
      num_games: a fixed sample of so many games of each split, see `panel_sample`; 0 = all.
    """
    config, games, split_games = parts.config, [], 0
    pool: dict[str, Task] = {}
    for name in config.eval.splits:
        members = parts.split(name)
        games += panel_sample(members, num_games)
        split_games += len(members)
        pool.update((t.id, t) for t in parts.source_tasks(name))
    return Panel(
        games,
        make_retriever(parts, [pool[i] for i in sorted(pool)]),
        parts.prompts,
        config.rollout.max_skill_chars,
        rules=audit_rules(config),
        fit=fit_to_prompt(config, parts.tokenizer),
        attempts=config.rollout.num_source_episodes,
        training_tasks=parts.split(config.data.train_split) if parts.panel_tasks else [],
        protocols=protocols(config),
        split_games=split_games,
    )


def protocols(config) -> tuple[str, ...]:
    """How tasks are played in a panel: as in training, then in other ways; () = one way only."""
    return envs.benchmark(config.env.name).protocols(config.env)


def play_panel(
    parts,
    engine: Engine,
    panel: Panel,
    *,
    name: str,
    iteration: int,
    temperature: float,
    conditions,
    seeds: Sequence[int] = (),
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Plays ``panel`` with the parameters that ``engine`` holds; writes and returns the result.

    Next to it goes a bank of the skills that the policy wrote for its games, with their measured
    utility.  On several hosts each plays its share of the games.  What was played before a stop is not
    played again, see `resume`.

    Args:
      parts: of the run.
      engine: with the policy.
      panel: the games.
      name, iteration: of the policy.
      temperature: of sampling.
      conditions: under which every game is played.
      seeds: every game is played with each; that of ``config.eval`` by default.
      data: as for `results.write_result`.

    Raises:
      Preempted: a notice came to one of the hosts; what was played is kept.
    """
    path, seeds = parts.folder.eval_file(name, temperature), list(seeds) or [parts.config.eval.seed]
    facts = {"name": name, "iteration": iteration, "temperature": temperature}
    journal = panel_journal(parts, engine, panel, path, facts)
    games, figures = [], []
    for seed in seeds:
        driver = make_driver(parts, engine, PANEL_ITERATION + seed, temperature)
        title = f"panel {name}, temperature {temperature:g}"
        title += f", seed {seed}" if len(seeds) > 1 else ""
        with parts.progress(title) as bar, evaluating(parts.config, engine) as batching:
            played, found = panel.play(
                KeptDriver(driver, journal, seed), conditions, bar, seed, hosts=parts.hosts,
                stop=lambda: parts.preemption.reason,
            )  # fmt: skip
        raise_if_preempted(parts.hosts, parts.preemption)
        games += played
        figures.append(found)
    if parts.hosts.first:
        steps = iteration * parts.config.train.minibatches
        write_bank(path.with_suffix(".skills.jsonl"), skill_records(games, name, iteration, steps))
    result = write_result(
        path, panel, games, name=name, iteration=iteration, temperature=temperature,
        seed=seeds[0], conditions=conditions, figures=pooled(figures), data=data,
        writes=parts.hosts.first, batching=batching,
    )  # fmt: skip
    if parts.hosts.first:
        forget(path)
    return result


class Panels:
    """The panels of a run while it trains: each is made once, and played once for an iteration.

    Args:
      parts: of the run; all its hosts make the same calls.
      engine: plays them, and has other weights afterwards.
      wait: returns when nothing else uses the engine and the environments.
    """

    def __init__(self, parts, engine: Engine, wait: Callable[[], None]):
        self._parts, self._engine, self._wait = parts, engine, wait
        self._make = functools.cache(functools.partial(make_panel, parts))

    def play(self, name: str, params: Any, iteration: int) -> None:
        """The panel of ``config.eval``, unless its result for this iteration is already there.

        Args:
          name: of the policy.
          params: its whole weights.
          iteration: that they were trained for.
        """
        config = self._parts.config.eval
        self._play(
            name, params, iteration, config.num_games, config.temperatures, config.conditions
        )

    def due(self, iteration: int) -> bool:
        """Whether ``config.eval.every`` asks for a small panel after so many iterations."""
        every = self._parts.config.eval.every
        return bool(every) and iteration % every == 0

    def play_small(self, params: Any, iteration: int) -> None:
        """The panel of ``config.eval.every``, as `play`."""
        config = self._parts.config.eval
        name, first = f"iteration_{iteration:05d}", config.temperatures[:1]
        self._play(name, params, iteration, config.every_games, first, ("none", "own"))

    def _play(self, name, params, iteration, num_games, temperatures, conditions) -> None:
        parts = self._parts
        for temperature in temperatures:
            played = played_at(parts.folder.eval_file(name, temperature))
            if parts.hosts.from_first(played) == iteration:
                continue
            panel = self._make(num_games)
            self._wait()
            self._engine.warmup()
            self._engine.set_params(on_this_host(parts, params), f"{name}-{iteration}")
            play_panel(
                parts, self._engine, panel, name=name, iteration=iteration,
                temperature=temperature, conditions=conditions,
            )  # fmt: skip


def played_at(path: pathlib.Path) -> int | None:
    """The iteration of an evaluation file; None when there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["iteration"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
