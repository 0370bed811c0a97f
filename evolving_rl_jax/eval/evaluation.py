"""`evolving-rl eval`: a checkpoint on the fixed panel, with several seeds, or on a stream of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evolving_rl_jax import envs
from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.data.tasks import list_hash, source_split
from evolving_rl_jax.eval.fingerprint import fingerprint
from evolving_rl_jax.eval.growth import stream_result, stream_table
from evolving_rl_jax.eval.journal import Journal, play_settings
from evolving_rl_jax.eval.play import make_panel, play_panel
from evolving_rl_jax.eval.results import batching_note, success_table, versions
from evolving_rl_jax.eval.stream import (
    STREAM_ITERATION,
    StreamSettings,
    play_streams,
)
from evolving_rl_jax.files import write_json
from evolving_rl_jax.run import skills as skill_parts
from evolving_rl_jax.run.console import user_errors
from evolving_rl_jax.run.engine import evaluating, make_driver, make_engine
from evolving_rl_jax.run.parts import Parts
from evolving_rl_jax.run.policy import load_policy
from evolving_rl_jax.skills.bank import new_bank
from evolving_rl_jax.types import Task


def play(
    parts: Parts,
    mode: str,
    which: str,
    temperatures: Sequence[float],
    num_seeds: int,
    *,
    splits: Sequence[str],
    num_games: int,
    conditions: Sequence[str] = (),
    top: int,
) -> None:
    """Plays the panel of ``parts``, or streams; the rest as in `evaluate` and `stream`.

    Raises:
      ConfigError: as they, or this run cannot play such streams.
    """
    chosen = ("+".join(splits), str(num_games or ""), "+".join(conditions))
    suffix = "".join(f"-{part}" for part in chosen if part)
    if mode == "panel":
        with user_errors((ValueError,), "eval"):
            evaluate(parts, which, temperatures, num_seeds, suffix)
        return
    if parts.hosts.count > 1:
        raise ConfigError(
            f"--mode=stream must run on one process (its tasks follow each other), got "
            f"{parts.hosts.count}"
        )
    known = sorted({t.split for t in parts.tasks})
    for name in splits:
        if name not in known:
            raise ConfigError(f"--split must be one of {', '.join(known)}, got {name!r}")
    suffix += (f"-top{top}" if top > 1 else "") + _of_seeds(num_seeds)
    for temperature in temperatures:
        stream(
            parts, which, temperature, num_seeds, splits=splits, num_games=num_games, top=top,
            suffix=suffix,
        )  # fmt: skip


def evaluate(
    parts: Parts,
    which: str,
    temperatures: Sequence[float],
    num_seeds: int,
    suffix: str = "",
) -> list[dict]:
    """Plays the panel of ``parts`` with a checkpoint, once per temperature and seed.

    Writes ``eval/NAME-tT.json`` (``eval/NAME-6seeds-tT.json`` of six) and the skills that the checkpoint wrote, with
    their measured utility, ``eval/NAME-tT.skills.jsonl``.  A temperature of 0 is greedy: one seed says it all.

    Args:
      parts: of the run; its config says which splits and conditions.
      which: ``latest``, ``best``, ``warmstart`` or an iteration.
      temperatures: of sampling.
      num_seeds: seeds from ``config.eval.seed`` on.
      suffix: of the files' names.

    Returns:
      What was written.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    params, _, iteration = load_policy(parts.folder, which, parts.hosts)
    name = policy_name(which, iteration) + suffix
    engine, panel = make_engine(parts, params), make_panel(parts, parts.config.eval.num_games)
    parts.preemption.defer()  # what has been played is kept
    results = []
    for temperature in temperatures:
        seeds = seeds_of(parts.config, num_seeds, temperature)
        # Beside the run's own panel, whose two policies are compared in the report seed by seed.
        full = name + _of_seeds(len(seeds))
        result = play_panel(
            parts, engine, panel, name=full, iteration=iteration, temperature=temperature,
            conditions=parts.config.eval.conditions, data=data_facts(parts), seeds=seeds,
        )  # fmt: skip
        results.append(result)
        if parts.hosts.first:
            print(success_table(result))
            print(f"written: {parts.folder.eval_file(full, temperature)}")
    return results


def stream(
    parts: Parts,
    which: str,
    temperature: float,
    num_seeds: int,
    *,
    splits: Sequence[str] = (),
    num_games: int = 0,
    top: int = 1,
    suffix: str = "",
) -> dict[str, Any]:
    """Test-time evolution with a checkpoint; see `eval.stream`.

    Writes ``eval/stream-NAME-tT.json`` and, for each seed, the bank that grew,
    ``eval/stream-NAME-tT-sSEED.skills.jsonl``.  While it plays, ``eval/stream-NAME-tT.plays.jsonl``
    holds what has been played, from which the same call goes on.

    Args:
      parts: of the run.
      which: ``latest``, ``best``, ``warmstart`` or an iteration.
      temperature: of sampling.
      num_seeds: streams, each with an order and draws of its own.
      splits: whose tasks arrive; empty = the panels' and their source pools'.
      num_games: the first so many tasks of each stream; 0 = all.
      top: skills in a prompt, at most.
      suffix: of the files' names.

    Returns:
      What was written.

    Raises:
      ConfigError: there is no such checkpoint, or a stream of other settings was stopped there.
    """
    params, _, iteration = load_policy(parts.folder, which, parts.hosts)
    config = parts.config
    name = policy_name(which, iteration) + suffix
    seeds = seeds_of(config, num_seeds, temperature, greedy_once=False)
    tasks = stream_tasks(parts, splits)
    path = parts.folder.eval_file(f"stream-{name}", temperature)
    settings = StreamSettings(
        prompts=parts.prompts,
        max_chars=config.rollout.max_skill_chars,
        make_retriever=lambda: skill_parts.make_skill_retriever(config, parts.folder),
        top=top,
        rules=skill_parts.audit_rules(config),
        fit=skill_parts.fit_to_prompt(config, parts.tokenizer),
        policy_step=iteration * config.train.minibatches,
        iteration=iteration,
        name=f"stream-{name}",
        num_tasks=num_games or len(tasks),
    )
    facts = {
        "mode": "stream",
        "name": name,
        "iteration": iteration,
        "temperature": temperature,
        "seeds": seeds,
        "top": top,
        "embedder": config.skills.embedder,
        "game_list_hash": list_hash(tasks),
    }
    engine = make_engine(parts, params)
    same = facts | {"num_tasks": settings.num_tasks, "weights": fingerprint(engine.params)}
    same |= play_settings(config)
    with user_errors((ValueError, OSError), "--mode=stream"):
        journal = Journal(path.with_suffix(".plays.jsonl"), same)
    banks = {s: new_bank(path.with_name(f"{path.stem}-s{s}.skills.jsonl")) for s in seeds}
    if journal.plays:
        parts.say(f"{len(journal.plays)} plays are in {journal.path}: going on from there")
    driver = make_driver(parts, engine, STREAM_ITERATION, temperature)
    total = 2 * len(seeds) * min(settings.num_tasks, len(tasks))
    title = f"stream {name}, temperature {temperature:g}"
    with parts.progress(title, total) as bar, evaluating(config, engine) as batching:
        plays = play_streams(driver, tasks, banks, settings, journal, bar)
    facts |= {"dataset": data_facts(parts), "versions": versions(), "batching": batching}
    result = facts | stream_result(plays, seeds[0])
    write_json(path, result)
    journal.path.unlink()
    print(stream_table(result))
    print(batching_note(batching))
    print(f"written: {path}")
    return result


def stream_tasks(parts: Parts, splits: Sequence[str]) -> list[Task]:
    """The tasks of a stream, in the order of their ids.

    Args:
      parts: of the run.
      splits: whose tasks; empty = the panels' and those of their sources, but no training split.
    """
    panels, known = parts.config.eval.splits, {t.split for t in parts.tasks}
    train = parts.config.data.train_split
    sources = {source_split(name, known, train) for name in panels} - {train}
    names = splits or sorted({*panels, *sources})
    tasks = sorted((t for name in names for t in parts.split(name)), key=lambda t: t.id)
    sealed = [t.id for t in tasks if t.meta.get("sealed")]
    if sealed:
        raise ConfigError(
            "--split must be splits without tasks of the password-protected archive (a stream writes "
            f"down skills made from its tasks), got {sealed[0]}"
        )
    return tasks


def policy_name(which: str, iteration: int) -> str:
    """How files name a policy."""
    return "warmstart" if which == "warmstart" else f"checkpoint_{iteration:05d}"


def _of_seeds(num: int) -> str:
    """What the name of a result of several seeds ends in."""
    return f"-{num}seeds" if num > 1 else ""


def seeds_of(config, num: int, temperature: float, *, greedy_once: bool = True) -> list[int]:
    """Seeds from ``config.eval.seed`` on; one where every seed would give the same."""
    first = config.eval.seed
    return [first] if temperature == 0 and greedy_once else list(range(first, first + num))


def data_facts(parts: Parts) -> dict[str, Any]:
    """What the games are: where from, how many of all, and the hash of all of them."""
    env = parts.config.env
    return {
        "environment": f"{env.name}/{envs.benchmark(env.name).variant(env)}",
        "from": "a folder" if parts.config.data.games else "generated",
        "all_games": len(parts.tasks),
        "all_games_hash": list_hash(parts.tasks),
    }
