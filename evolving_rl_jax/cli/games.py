"""``evolving-rl games``."""

from __future__ import annotations

import pathlib

from evolving_rl_jax.cli.options import writable
from evolving_rl_jax.config import ConfigError


def add(commands) -> None:
    """The options."""
    p = commands.add_parser(
        "games",
        help="generate ALFWorld-format household games",
        description="Generates games that the alfworld package plays: households with stable habits, all six "
        "task types, each won by the walkthrough that it carries.",
        epilog="evolving-rl games --out=games --num=1000 --rooms=scenes --split=all",
    )
    p.add_argument(
        "--out", required=True, metavar="DIR", help="folder for the games; must be new or empty"
    )
    p.add_argument("--num", type=int, required=True, metavar="N", help="how many games")
    p.add_argument(
        "--seed", type=int, default=0, metavar="S", help="same seed, same games (default: 0)"
    )
    p.add_argument(
        "--split",
        default="train",
        help="split name written into the index, or 'all': the num games are divided over training, "
        "seen, unseen and warm-start households and held-out task types (default: train)",
    )
    p.add_argument(
        "--rooms",
        choices=("compact", "scenes"),
        default="compact",
        help="one small room, or the scene layouts of the alfworld package (default: compact)",
    )
    p.add_argument(
        "--slack",
        type=int,
        metavar="STEPS",
        help="steps that the limit allows beyond the shortest solution (default: 3 in a compact room, else "
        "enough to try a third of the places where the object could be)",
    )


def run(args, _overrides) -> None:
    """Writes the games."""
    from evolving_rl_jax.envs.alfworld.households.plan import spread_spec
    from evolving_rl_jax.envs.alfworld.households.write import generate_even, generate_games
    from evolving_rl_jax.run.console import progress
    from evolving_rl_jax.run.folder import check_unused

    out = pathlib.Path(args.out)
    options = {"rooms": args.rooms, "slack": args.slack}
    check_unused(out)
    with writable("--out"), progress("generating games", args.num) as bar:
        try:
            if args.split == "all":
                spec = spread_spec(args.num, **options)
                generate_games(out, seed=args.seed, spec=spec, progress=bar)
            else:
                where = {"seed": args.seed, "split": args.split}
                generate_even(out, num=args.num, **where, **options, progress=bar)
        except ValueError as e:
            raise ConfigError(f"--{e}") from e
    print(f"{args.num} games in {out}")
