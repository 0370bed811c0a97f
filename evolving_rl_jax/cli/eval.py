"""``evolving-rl eval``."""

from __future__ import annotations

from evolving_rl_jax.cli.options import (
    add_hosts,
    at_least,
    check_alike,
    joined_hosts,
    names,
    only_with,
    panel_options,
    temperatures,
)
from evolving_rl_jax.config import ConfigError


def add(commands) -> None:
    """The options."""
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
        help="of each split (default: the run's eval.num_games), of a stream (default: all)",
    )
    p.add_argument(
        "--conditions", default="", metavar="C[,C]", help="of a panel (default: the run's)"
    )
    p.add_argument("--mode", choices=("panel", "stream"), default="panel", help="(default: panel)")
    p.add_argument(
        "--top",
        type=int,
        default=0,
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
    add_hosts(p)


def run(args, overrides: dict[str, str]) -> None:
    """Plays what the options ask for, or compares what was played."""
    if args.compare:
        from evolving_rl_jax.eval.compare import print_comparison

        print_comparison(args.compare, args.workdir, args.out)
        return
    _check(args)
    from evolving_rl_jax.eval.transfer.run import run_config
    from evolving_rl_jax.run.folder import RunFolder
    from evolving_rl_jax.run.hosts import shared_notices
    from evolving_rl_jax.run.parts import open_parts
    from evolving_rl_jax.run.preemption import Preemption

    folder, splits = RunFolder(args.workdir, moved=overrides), names(args.split)
    panel = (splits, args.games, names(args.conditions)) if args.mode == "panel" else ()
    with panel_options(args.split, args.conditions):
        config = run_config(folder, *panel)
        with (
            Preemption() as preemption,
            joined_hosts(args, config) as hosts,
            shared_notices(hosts, preemption),
        ):
            check_alike(hosts, config, folder)
            with open_parts(config, folder, hosts, preemption) as parts:
                from evolving_rl_jax.eval.evaluation import play

                play(
                    parts, args.mode, args.checkpoint, temperatures(args.temperature), args.seeds,
                    splits=splits, num_games=args.games, conditions=names(args.conditions),
                    top=args.top or 1,
                )  # fmt: skip


def _check(args) -> None:
    if not args.workdir:
        raise ConfigError("--workdir must be given (or --compare), got none")
    temperatures(args.temperature)
    at_least(args.seeds, 1, "--seeds")
    at_least(args.games, 0, "--games")
    at_least(args.top, 0, "--top")
    only_with("--mode=stream", args.mode == "stream", top=args.top)
    only_with("--compare", False, out=args.out)
    if args.conditions and args.mode != "panel":
        raise ConfigError(
            f"--conditions must be left out with --mode={args.mode}, got {args.conditions}"
        )
