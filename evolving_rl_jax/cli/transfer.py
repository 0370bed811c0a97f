"""``evolving-rl transfer``."""

from __future__ import annotations

import os
import urllib.parse

from evolving_rl_jax.cli.options import at_least, names, panel_options, temperatures
from evolving_rl_jax.config import ConfigError

# Of an endpoint: {option: (default, least, help)}; the type is the default's.
ENDPOINT = {
    "top_p": (1.0, 0.0, "nucleus sampling"),
    "timeout": (60.0, 0.0, "seconds for one answer"),
    "requests_per_minute": (0.0, 0.0, "rate limit, retries counted; 0 = none"),
    "price_in": (0.0, 0.0, "of a million tokens read"),
    "price_out": (0.0, 0.0, "of a million tokens written"),
    "max_cost": (0.0, 0.0, "this command stops before it could cost more; 0 = no cap"),
    "max_tokens": (512, 1, "of an answer"),
    "attempts": (5, 1, "of one request"),
    "concurrency": (8, 1, "requests at a time"),
}


def add(commands) -> None:
    """The options."""
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
    p.add_argument(
        "--games", type=int, default=0, metavar="N",
        help="of each split (default: the run's eval.num_games)",
    )  # fmt: skip
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
    for name, (default, _, text) in ENDPOINT.items():
        kind = type(default)
        g.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=default,
            metavar="N" if kind is int else "X", help=f"{text} ({default:g})",
        )  # fmt: skip


def run(args, overrides: dict[str, str]) -> None:
    """Plays what the options ask for."""
    _check(args)
    from evolving_rl_jax.eval.transfer.run import TransferOptions, transfer

    options = TransferOptions(
        skills=args.skills,
        policy=args.policy,
        workdir=args.workdir,
        other_skills=args.other_skills,
        out=args.out,
        splits=names(args.split),
        num_games=args.games,
        num_seeds=args.seeds,
        temperature=args.temperature,
        top=args.top,
        endpoint=_endpoint(args) if args.policy.startswith(("http://", "https://")) else None,
    )
    with panel_options(args.split):
        transfer(options, overrides)


def _check(args) -> None:
    if "@" in urllib.parse.urlsplit(args.policy).netloc:
        raise ConfigError(
            "--policy must be an address without a name or password, which would be in file names and logs, "
            "got one with; --api-key-env names the variable that holds a key"
        )
    temperatures(str(args.temperature))
    at_least(args.games, 0, "--games")
    at_least(args.seeds, 1, "--seeds")
    at_least(args.top, 1, "--top")
    for name, (_, least, _) in ENDPOINT.items():
        at_least(getattr(args, name), least, f"--{name.replace('_', '-')}")
    if not args.timeout > 0 or not 0 < args.top_p <= 1:
        raise ConfigError(
            f"--timeout must be > 0 and --top-p in (0, 1], got {args.timeout} and {args.top_p}"
        )


def _endpoint(args):
    """The settings of the endpoint."""
    from evolving_rl_jax.eval.transfer.client import EndpointSettings

    if not args.model:
        raise ConfigError("--model must name the endpoint's model, got none")
    if args.max_cost and not (args.price_in or args.price_out):
        raise ConfigError("--max-cost must come with --price-in and --price-out, got no price")
    key = os.environ.get(args.api_key_env, "").strip()  # files of secrets end in a line break
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"--api-key-env must name a key of printable ASCII, got other characters in {args.api_key_env}"
        )
    values = {name: getattr(args, name) for name in ENDPOINT}
    return EndpointSettings(
        base_url=args.policy,
        model=args.model,
        api_key=key,
        temperature=args.temperature,
        timeout_s=values.pop("timeout"),
        **values,
    )
