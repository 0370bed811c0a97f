"""``evolving-rl doctor``."""

from __future__ import annotations

import pathlib

from evolving_rl_jax.cli.options import add_hosts, joined_hosts
from evolving_rl_jax.config import ConfigError, default_config, load_config


def add(commands) -> None:
    """The options."""
    p = commands.add_parser(
        "doctor",
        help="is this machine, or are all hosts of a run, ready to train",
        description="Checks versions, devices, mesh, folders, data, tokens and engines, and sums over all "
        "devices for two seconds.  Exit code 1 when something is wrong.",
        epilog="Any key can be overridden: --config.mesh.tensor=4",
    )
    p.add_argument("--config", metavar="FILE", help="also check what this configuration needs")
    p.add_argument(
        "--workdir", metavar="DIR", help="also check this run folder; nothing stays in it"
    )
    add_hosts(p)


def run(args, overrides: dict[str, str]) -> int:
    """Prints what was checked."""
    if overrides and not args.config:
        raise ConfigError("--config must be given with --config.KEY=VALUE, got none")
    config = load_config(args.config, overrides) if args.config else None
    workdir = pathlib.Path(args.workdir).absolute() if args.workdir else None
    with joined_hosts(args, config or default_config()) as hosts:
        from evolving_rl_jax.run.doctor import Subject, check_all

        return 0 if check_all(Subject(hosts, config, workdir)) else 1
