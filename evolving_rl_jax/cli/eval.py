"""The options of `eval`, `transfer`, `export` and `skills`, and what these commands do.

Imports what a command needs when it runs, as the command line does.
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib

from evolving_rl_jax.config import ConfigError

# -- eval ------------------------------------------------------------------------------------------


def add_eval(commands) -> argparse.ArgumentParser:
    """The parser of `eval`."""
    p = commands.add_parser(
        "eval",
        help="play the fixed panel with and without skills",
        description="Plays every game of the panel once per seed under each condition and writes "
        "WORKDIR/eval/*.json.  --mode=stream plays test-time evolution instead: tasks arrive in order, the "
        "frozen policy plays them, writes skills and uses those of earlier tasks.",
    )
    p.add_argument("--workdir", default="", metavar="DIR", help="run folder of a training run")
    p.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help="latest, best, warmstart or an iteration (default: latest)",
    )
    p.add_argument(
        "--temperature",
        default="1,0",
        metavar="T[,T]",
        help="sampling temperatures; 0 is greedy (default: 1,0)",
    )
    p.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="play everything with so many seeds (default: 1); greedy panels need one",
    )
    p.add_argument(
        "--split", default="", metavar="S[,S]", help="other splits than those of the run's config"
    )
    p.add_argument(
        "--games",
        type=int,
        default=0,
        metavar="N",
        help="of each split, of a stream (default: all)",
    )
    p.add_argument("--mode", choices=("panel", "stream"), default="panel", help="(default: panel)")
    p.add_argument(
        "--top",
        type=int,
        default=1,
        metavar="K",
        help="skills in a prompt of a stream (default: 1)",
    )
    p.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="play nothing; the paired difference of two results: files, run folders, or, with --workdir, "
        "warmstart, final or an iteration",
    )
    p.add_argument("--out", default="", metavar="FILE", help="write --compare as JSON too")
    return p


def temperatures(text: str) -> list[float]:
    """The temperatures of an option such as ``1,0``."""
    found = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise ConfigError(f"--temperature must be >= 0, got {part}")
        found.append(value)
    return list(dict.fromkeys(found))


def _splits(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _at_least(value: int, least: int, flag: str) -> None:
    if value < least:
        raise ConfigError(f"{flag} must be >= {least}, got {value}")


def eval_config(args):
    """(run folder, its configuration with the panel that the options ask for)."""
    from evolving_rl_jax.eval.transfer.run import run_config
    from evolving_rl_jax.run.folder import RunFolder

    if not args.workdir:
        raise ConfigError("--workdir must be given (or --compare), got none")
    temperatures(args.temperature)
    _at_least(args.seeds, 1, "--seeds")
    _at_least(args.games, 0, "--games")
    _at_least(args.top, 1, "--top")
    folder = RunFolder(args.workdir)
    splits = () if args.mode == "stream" else _splits(args.split)
    return folder, run_config(folder, splits, args.games if args.mode == "panel" else 0)


def run_eval(args, parts) -> None:
    """Plays what the options ask for."""
    from evolving_rl_jax.eval.evaluation import evaluate, stream
    from evolving_rl_jax.run.parts import user_errors

    names = "+".join(_splits(args.split))
    suffix = (f"-{names}" if names else "") + (f"-{args.games}" if args.games else "")
    if args.mode == "panel":
        with user_errors((ValueError,), "eval"):
            evaluate(parts, args.checkpoint, temperatures(args.temperature), args.seeds, suffix)
        return
    if parts.hosts.count > 1:
        raise ConfigError(
            f"--mode=stream must run on one process (its tasks follow each other), got "
            f"{parts.hosts.count}"
        )
    known = sorted({t.split for t in parts.tasks})
    for name in _splits(args.split):
        if name not in known:
            raise ConfigError(f"--split must be one of {', '.join(known)}, got {name!r}")
    for temperature in temperatures(args.temperature):
        stream(
            parts, args.checkpoint, temperature, args.seeds, splits=_splits(args.split),
            num_games=args.games, top=args.top, suffix=suffix,
        )  # fmt: skip


def compare(args) -> None:
    """The paired difference of two results."""
    from evolving_rl_jax.eval.compare import compare as compare_results
    from evolving_rl_jax.eval.compare import compare_table, find_results
    from evolving_rl_jax.eval.results import write_json

    sides = [find_results(name, args.workdir) for name in args.compare]
    result = compare_results(*sides, tuple(args.compare))
    print(compare_table(result))
    if args.out:
        try:
            write_json(pathlib.Path(args.out), result)
        except OSError as error:
            raise ConfigError(f"--out must be a file that can be written, got {error}") from error
        print(f"written: {args.out}")


# -- transfer --------------------------------------------------------------------------------------


def add_transfer(commands) -> None:
    """The parser of `transfer`."""
    p = commands.add_parser(
        "transfer",
        help="another policy plays the panel with these skills, and without",
        description="Plays the fixed panel of a run with another policy: without skills, with those of a bank, "
        "and with those of another run's bank.  Finished games are kept; the same command goes on.",
        epilog="evolving-rl transfer --skills=runs/a/eval/final-t1.skills.jsonl --policy=runs/b/warmstart",
    )
    p.add_argument("--skills", required=True, metavar="FILE", help="the bank")
    p.add_argument("--other-skills", default="", metavar="FILE", help="the bank of another run")
    p.add_argument(
        "--policy",
        required=True,
        metavar="DIR|URL",
        help="Hugging Face folder or hub id, or http(s)://HOST/v1 of an OpenAI-compatible endpoint",
    )
    p.add_argument(
        "--workdir", default="", metavar="DIR",
        help="run whose panel is played (default: the run folder that --skills lies in)",
    )  # fmt: skip
    p.add_argument("--out", default="", metavar="DIR", help="(default: WORKDIR/transfer/POLICY)")
    p.add_argument(
        "--split", default="", metavar="S[,S]", help="other splits than the run's panels"
    )
    p.add_argument("--games", type=int, default=0, metavar="N", help="of each split (default: all)")
    p.add_argument("--seeds", type=int, default=1, metavar="N", help="plays of a game (default: 1)")
    p.add_argument("--temperature", type=float, default=1.0, help="(default: 1)")
    p.add_argument(
        "--top", type=int, default=1, metavar="K", help="skills in a prompt (default: 1)"
    )
    g = p.add_argument_group("endpoint")
    g.add_argument("--model", default="", metavar="NAME", help="name that the endpoint knows it by")
    g.add_argument(
        "--api-key-env", default="OPENAI_API_KEY", metavar="VAR",
        help="environment variable with the key (default: OPENAI_API_KEY; unset = no key)",
    )  # fmt: skip
    for flag, default, text in (
        ("--top-p", 1.0, "nucleus sampling"),
        ("--timeout", 60.0, "seconds for one answer"),
        ("--requests-per-minute", 0.0, "rate limit, retries counted; 0 = none"),
        ("--price-in", 0.0, "of a million tokens read"),
        ("--price-out", 0.0, "of a million tokens written"),
        ("--max-cost", 0.0, "this command stops before it could cost more; 0 = no cap"),
    ):
        g.add_argument(flag, type=float, default=default, metavar="X", help=f"{text} ({default:g})")
    for flag, default, text in (
        ("--max-tokens", 512, "of an answer"),
        ("--attempts", 5, "of one request"),
        ("--concurrency", 8, "requests at a time"),
    ):
        g.add_argument(flag, type=int, default=default, metavar="N", help=f"{text} ({default})")


def transfer(args, overrides: dict[str, str]) -> None:
    """Plays what the options ask for."""
    from evolving_rl_jax.eval.transfer.run import TransferOptions
    from evolving_rl_jax.eval.transfer.run import transfer as run_transfer

    if len(temperatures(str(args.temperature))) != 1:
        raise ConfigError(f"--temperature must be one number, got {args.temperature}")
    for value, least, flag in (
        (args.games, 0, "--games"), (args.seeds, 1, "--seeds"), (args.top, 1, "--top"),
        (args.max_tokens, 1, "--max-tokens"), (args.attempts, 1, "--attempts"),
        (args.concurrency, 1, "--concurrency"),
    ):  # fmt: skip
        _at_least(value, least, flag)
    options = TransferOptions(
        skills=args.skills,
        policy=args.policy,
        workdir=args.workdir,
        other_skills=args.other_skills,
        out=args.out,
        splits=_splits(args.split),
        num_games=args.games,
        num_seeds=args.seeds,
        temperature=args.temperature,
        top=args.top,
        endpoint=_endpoint(args),
    )
    run_transfer(options, overrides)


def _endpoint(args):
    """The settings of an endpoint; None when the policy is a folder or a hub id."""
    from evolving_rl_jax.eval.transfer.client import EndpointSettings

    if not args.policy.startswith(("http://", "https://")):
        return None
    if not args.model:
        raise ConfigError("--model must name the endpoint's model, got none")
    for flag in ("requests_per_minute", "price_in", "price_out", "max_cost"):
        if not 0 <= getattr(args, flag) < math.inf:
            raise ConfigError(f"--{flag.replace('_', '-')} must be >= 0, got {getattr(args, flag)}")
    if not 0 < args.timeout < math.inf or not 0 < args.top_p <= 1:
        raise ConfigError(
            f"--timeout must be > 0 and --top-p in (0, 1], got {args.timeout} and {args.top_p}"
        )
    if args.max_cost and not (args.price_in or args.price_out):
        raise ConfigError("--max-cost must come with --price-in and --price-out, got no price")
    return EndpointSettings(
        base_url=args.policy,
        model=args.model,
        api_key=os.environ.get(args.api_key_env, ""),
        temperature=args.temperature,
        top_p=args.top_p,
        max_tokens=args.max_tokens,
        timeout_s=args.timeout,
        attempts=args.attempts,
        requests_per_minute=args.requests_per_minute,
        concurrency=args.concurrency,
        price_in=args.price_in,
        price_out=args.price_out,
        max_cost=args.max_cost,
    )
