"""The fixed panel of a run: made from its parts, played with a policy, written down."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from evolving_rl_jax.envs.mind2web.env import PROTOCOLS
from evolving_rl_jax.eval.panel import PANEL_ITERATION, Panel
from evolving_rl_jax.eval.results import skill_records, write_result
from evolving_rl_jax.generate import Engine
from evolving_rl_jax.run.engine import make_driver
from evolving_rl_jax.run.preemption import raise_if_preempted
from evolving_rl_jax.run.skills import audit_rules, fit_to_prompt, make_retriever
from evolving_rl_jax.skills.bank import write_bank
from evolving_rl_jax.types import Task


def make_panel(parts, num_games: int = 0) -> Panel:
    """The fixed panel of ``config.eval.splits``.

    Args:
      parts: of the run.
      num_games: the first so many games of each split by id; 0 = all.
    """
    config, games = parts.config, []
    pool: dict[str, Task] = {}
    for name in config.eval.splits:
        members = parts.split(name)
        games += members[:num_games] if num_games else members
        pool.update((t.id, t) for t in parts.source_tasks(name))
    return Panel(
        games,
        make_retriever(parts, [pool[i] for i in sorted(pool)]),
        parts.prompts,
        config.rollout.max_skill_chars,
        rules=audit_rules(config),
        fit=fit_to_prompt(config, parts.tokenizer),
        training_tasks=parts.split(config.data.train_split) if parts.panel_tasks else [],
        protocols=protocols(config),
    )


def protocols(config) -> tuple[str, ...]:
    """How web tasks are played in a panel: as in training, then the other way; () elsewhere."""
    if config.env.name != "mind2web":
        return ()
    return config.env.protocol, *(p for p in PROTOCOLS if p != config.env.protocol)


def play_panel(
    parts,
    engine: Engine,
    panel: Panel,
    *,
    name: str,
    iteration: int,
    temperature: float,
    conditions,
) -> dict[str, Any]:
    """Plays ``panel`` with the parameters that ``engine`` holds; writes and returns the result.

    Next to it goes a bank of the skills that the policy wrote for its games, with their measured
    utility.  On several hosts each plays its share of the games.

    Raises:
      Preempted: a notice came to one of the hosts; nothing is written.
    """
    seed = parts.config.eval.seed
    driver = make_driver(parts, engine, PANEL_ITERATION + seed, temperature)
    with parts.progress(f"panel {name}, temperature {temperature:g}") as bar:
        stop = lambda: parts.preemption.reason  # noqa: E731
        games, figures = panel.play(driver, conditions, bar, hosts=parts.hosts, stop=stop)
    raise_if_preempted(parts.hosts, parts.preemption)
    path = parts.folder.eval_file(name, temperature)
    if parts.hosts.first:
        steps = iteration * parts.config.train.minibatches
        write_bank(path.with_suffix(".skills.jsonl"), skill_records(games, name, iteration, steps))
    return write_result(
        path, panel, games, name=name, iteration=iteration,
        temperature=temperature, seed=seed, conditions=conditions, figures=figures,
        writes=parts.hosts.first,
    )  # fmt: skip


def played_at(path: pathlib.Path) -> int | None:
    """The iteration of an evaluation file; None when there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["iteration"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
