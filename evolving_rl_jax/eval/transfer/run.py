"""`evolving-rl transfer`: another policy plays the panel of a run with skills of this one.

The run folder gives the games and the way to play; the policy is a Hugging Face folder, played by
this project's engine, or a model behind an OpenAI-compatible endpoint, which needs no jax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from evolving_rl_jax.config import ConfigError, default_config, set_key, validate
from evolving_rl_jax.data.tasks import list_hash, panel_sample, select
from evolving_rl_jax.eval.journal import Journal, play_settings
from evolving_rl_jax.eval.transfer.chat import ChatDriver
from evolving_rl_jax.eval.transfer.client import (
    BudgetSpent,
    ChatClient,
    EndpointError,
    EndpointSettings,
    Usage,
)
from evolving_rl_jax.eval.transfer.play import (
    OTHER,
    OURS,
    BankInPlay,
    bank_in_play,
    measured_skills,
    play_transfer,
    transfer_result,
    transfer_table,
    write_transfer,
)
from evolving_rl_jax.files import write_json
from evolving_rl_jax.rollout.prompts import COMPACT_MARKERS
from evolving_rl_jax.run import skills as skill_parts
from evolving_rl_jax.run.banks import open_bank
from evolving_rl_jax.run.compiled import keep_programs
from evolving_rl_jax.run.console import progress, user_errors
from evolving_rl_jax.run.environments import make_pool, prepare_games
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.run.parts import open_parts
from evolving_rl_jax.skills import Bank, SkillRecord, fit_text, render_skill
from evolving_rl_jax.types import Task

_PIECE = re.compile(r"\w+|[^\w\s]")
# What a chat policy needs and a run of a small policy from scratch does not have.
_CHAT_KEYS = (
    "max_turn_tokens", "max_skill_tokens", "max_length", "prefill_buckets", "row_buckets",
    "column_buckets", "decode_window", "num_slots", "top_p",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TransferOptions:
    """What the command asks for; see its help."""

    skills: str
    policy: str
    workdir: str = ""
    other_skills: str = ""
    out: str = ""
    splits: tuple[str, ...] = ()
    num_games: int = 0
    num_seeds: int = 1
    temperature: float = 1.0
    top: int = 1
    endpoint: EndpointSettings | None = None


def transfer(options: TransferOptions, overrides: dict[str, str]) -> dict[str, Any]:
    """Plays what is missing, writes the result and prints it.

    Raises:
      ConfigError: the options cannot be used, or the endpoint cannot.
    """
    folder = RunFolder(options.workdir or _run_of(options.skills))
    base = run_config(folder, options.splits, options.num_games)
    banks = {OURS: open_bank(options.skills, "--skills")}
    if options.other_skills:
        banks[OTHER] = open_bank(options.other_skills, "--other-skills")
    if options.endpoint:
        return _over_http(options, folder, changed(base, overrides), banks)
    return _with_engine(options, folder, policy_config(base, options.policy, overrides), banks)


def _run_of(bank: str) -> str:
    """The run folder that a bank lies in (RUN/skills/bank.jsonl, RUN/eval/NAME.skills.jsonl)."""
    folder = pathlib.Path(bank).absolute().parent.parent
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"--workdir must be the run folder whose panel is played: {bank!r} does not lie in one"
        )
    return str(folder)


# -- configuration ---------------------------------------------------------------------------------


def run_config(
    folder: RunFolder,
    splits: Sequence[str] = (),
    num_games: int = 0,
    conditions: Sequence[str] = (),
):
    """The configuration of a run with another panel: other splits, fewer games, other conditions."""
    config = ConfigDict(folder.load_config().to_dict())
    config.unlock()
    if splits:
        config.eval.splits = tuple(splits)
    if num_games:
        config.eval.num_games = num_games
    if conditions:
        config.eval.conditions = tuple(conditions)
    return changed(config, {})


def changed(config, overrides: dict[str, str]):
    """A locked copy with ``--config.KEY=VALUE`` applied."""
    config = ConfigDict(config.to_dict())
    config.unlock()
    for key, value in overrides.items():
        set_key(config, key, value)
    validate(config)
    return config.lock()


def policy_config(config, policy: str, overrides: dict[str, str]):
    """The run's configuration, with the policy of a Hugging Face folder or hub id in it."""
    from evolving_rl_jax.models.tokenizer import load_tokenizer

    with user_errors((ValueError, FileNotFoundError), "--policy"):
        tokenizer = load_tokenizer(policy)
    config = ConfigDict(config.to_dict())
    config.unlock()
    config.model.hf_path = str(
        pathlib.Path(policy).absolute() if os.path.exists(policy) else policy
    )
    config.model.lora.rank, config.model.lora_adapter = 0, ""
    config.warmstart.enabled = False
    compact = all(marker in tokenizer.special_ids for marker in COMPACT_MARKERS)
    if not compact and config.rollout.style == "compact":
        config.rollout.style = "chat"
        defaults = default_config()
        for key in _CHAT_KEYS:
            config.rollout[key] = defaults.rollout[key]
        config.train.row_length = max(config.train.row_length, config.rollout.max_length)
    return changed(config, overrides)


# -- the two ways to play --------------------------------------------------------------------------


def _with_engine(options, folder, config, banks) -> dict[str, Any]:
    keep_programs()
    with open_parts(config, folder) as parts:
        from evolving_rl_jax import models
        from evolving_rl_jax.eval.fingerprint import fingerprint
        from evolving_rl_jax.eval.panel import PANEL_ITERATION
        from evolving_rl_jax.eval.results import batching_note
        from evolving_rl_jax.run.engine import evaluating, make_driver, make_engine

        with user_errors((ValueError, FileNotFoundError), "--policy"):
            params, _ = models.load_hf(config.model.hf_path)
        engine = make_engine(parts, params)
        fit = skill_parts.fit_to_prompt(config, parts.tokenizer)

        def driver(seed: int):
            return make_driver(parts, engine, PANEL_ITERATION + seed, options.temperature)

        def render(records: list[SkillRecord]) -> str:
            return fit("\n\n".join(parts.prompts.render_skill(r.as_skill()) for r in records))

        facts = {
            "policy": _name_of(options.policy),
            "weights": fingerprint(params),
            "style": config.rollout.style,
        }
        with evaluating(config, engine) as batching:
            result = _play(options, folder, config, banks, parts.tasks, driver, render, facts)
        print(batching_note(batching))
        return result


def _over_http(options, folder, config, banks) -> dict[str, Any]:
    tasks = prepare_games(config, folder)
    limit = config.skills.prompt_tokens

    def render(records: list[SkillRecord]) -> str:
        text = "\n\n".join(render_skill(r.as_skill()) for r in records)
        # Words and marks stand for tokens: the model's own tokenizer is not known.
        return fit_text(text, limit, lambda t: len(_PIECE.findall(t))) if limit else text

    with make_pool(config, tasks) as pool:
        spent = Usage()

        def driver(_seed: int):
            client = ChatClient(options.endpoint, usage=spent)
            recent = config.rollout.recent_turns if config.rollout.context == "recent" else None
            shown = config.rollout.show_actions
            return ChatDriver(client, pool, config.rollout.max_steps, recent, shown)

        facts = {"policy": options.policy, "model": options.endpoint.model, "style": "chat"}
        facts |= {"top_p": options.endpoint.top_p, "max_tokens": options.endpoint.max_tokens}
        return _play(options, folder, config, banks, tasks, driver, render, facts, spent)


def _play(
    options: TransferOptions,
    folder: RunFolder,
    config,
    banks: dict[str, Bank],
    tasks: Sequence[Task],
    driver: Callable[[int], Any],
    render: Callable[[list[SkillRecord]], str],
    facts: dict[str, Any],
    spent: Usage | None = None,
) -> dict[str, Any]:
    panel = panel_tasks(config, tasks)
    seeds = list(range(config.eval.seed, config.eval.seed + options.num_seeds))
    ready: dict[str, BankInPlay] = {}
    for name, bank in banks.items():
        with user_errors((ValueError,), "--skills" if name == OURS else "--other-skills"):
            retriever = skill_parts.make_skill_retriever(config, folder)
            ready[name] = bank_in_play(bank, panel, tasks, retriever)
    out = pathlib.Path(options.out) if options.out else _default_out(folder, facts)
    settings = _settings(options, config, panel, banks, facts)
    with user_errors((ValueError, OSError), "--out"):
        journal = Journal(out / "plays.jsonl", settings | play_settings(config))
        before = _read_usage(out / "usage.json")

    def keep_usage() -> None:
        if spent is not None:
            write_json(out / "usage.json", dataclasses.asdict(before + spent))

    stopped = ""
    total = len(panel) * len(seeds) * (1 + len(ready))
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(progress(f"transfer to {facts['policy']}", total))
        try:
            play_transfer(
                driver, panel, ready, journal, seeds=seeds, render=render, top=options.top,
                progress=bar, after=keep_usage,
            )  # fmt: skip
        except (BudgetSpent, EndpointError) as error:
            stopped = str(error)
    sizes = {
        "games": len(panel),
        "split_games": sum(task.split in config.eval.splits for task in tasks),
    }
    keep_usage()
    about = {**facts, **settings, "stopped": stopped, "dataset": sizes}
    about |= {"played": play_settings(config)}
    about |= {} if spent is None else {"usage": dataclasses.asdict(before + spent)}
    result = transfer_result(journal, panel, ready, seeds=seeds, facts=about)
    write_transfer(out, result, measured_skills(journal, ready[OURS]))
    print(transfer_table(result))
    print(f"written: {out / 'result.json'}")
    if stopped:
        raise ConfigError(f"--policy: {stopped}; finished games are kept, the same command goes on")
    return result


def _read_usage(path: pathlib.Path) -> Usage:
    """What earlier starts of the command asked of the endpoint."""
    if not path.is_file():
        return Usage()
    try:
        return Usage(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} must hold the usage of earlier starts, got {error}") from error


def panel_tasks(config, tasks: Sequence[Task]) -> list[Task]:
    """The games of ``config.eval.splits``, of each a sample of ``config.eval.num_games``."""
    panel: list[Task] = []
    for name in config.eval.splits:
        panel += panel_sample(select(tasks, split=name), config.eval.num_games)
    return panel


def _settings(options, config, panel, banks, facts) -> dict[str, Any]:
    """What must be the same for kept plays to count."""
    return {
        **facts,
        "game_list_hash": list_hash(panel),
        "banks": {
            name: hashlib.sha256(bank.path.read_bytes()).hexdigest()[:16]
            for name, bank in banks.items()
        },
        "temperature": options.temperature,
        "top": options.top,
        "first_seed": config.eval.seed,
    }


def _name_of(policy: str) -> str:
    """A folder's own name with that above it, for people; its weights tell it from others."""
    path = pathlib.Path(policy)
    return "/".join(path.absolute().parts[-2:]) if path.exists() else policy


def _default_out(folder: RunFolder, facts) -> pathlib.Path:
    text = f"{facts['policy']}-{facts.get('model') or facts['weights'][:8]}"
    name = re.sub(r"[^A-Za-z0-9.]+", "-", text.removeprefix("http://").removeprefix("https://"))
    return folder.path / "transfer" / name.strip("-")
