"""``evolving-rl players``."""

from __future__ import annotations

import pathlib

from evolving_rl_jax.cli.options import at_least


def add(commands) -> None:
    """The options."""
    p = commands.add_parser(
        "players",
        help="what knowing where things are kept is worth, to scripted players",
        description="Plays every game of a split with the searching player, which knows nothing, the kind of "
        "place where another game had the object, the exact place, and more, and prints the share of "
        "games won within some numbers of steps.  No policy takes part.",
        epilog="evolving-rl players --games=runs/objects --split=valid_seen",
    )
    p.add_argument(
        "--games", required=True, metavar="DIR", help="what `evolving-rl data objects` wrote"
    )
    p.add_argument(
        "--split",
        default="valid_seen",
        help="valid_seen, valid_unseen, or a split of the folder (default: %(default)s)",
    )
    p.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="plays of each game (default: 3)"
    )


def run(args, _overrides) -> None:
    """Plays and prints the table."""
    from evolving_rl_jax.envs.alfworld.objects.table import players_table, table_lines
    from evolving_rl_jax.run.console import progress

    at_least(args.seeds, 1, "--seeds")
    with progress("playing games") as bar:
        rows = players_table(pathlib.Path(args.games), args.split, seeds=args.seeds, progress=bar)
    print("\n".join(table_lines(rows)))
