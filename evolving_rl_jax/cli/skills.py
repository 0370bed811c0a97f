"""``evolving-rl skills``."""

from __future__ import annotations

import math

from evolving_rl_jax.cli.options import at_least
from evolving_rl_jax.config import ConfigError


def add(commands) -> None:
    """The options."""
    p = commands.add_parser(
        "skills",
        help="import folders into a bank, merge banks, retire skills",
        description="import: folders with SKILL.md (from `export --what=skills`, or of other tools) into a bank.  "
        "merge: several banks into a new one.  tidy: retire duplicates and skills that were measured to harm.",
        epilog="evolving-rl skills import --folders=DIR --bank=bank.jsonl",
    )
    p.add_argument("action", choices=("import", "merge", "tidy"))
    p.add_argument("--bank", required=True, metavar="FILE", help="the bank that is written")
    p.add_argument("--folders", default="", metavar="DIR", help="import: where the folders are")
    p.add_argument("--banks", nargs="+", default=[], metavar="FILE", help="merge: the banks")
    p.add_argument(
        "--duplicates", type=float, default=0.95, metavar="COSINE",
        help="tidy: texts this alike are duplicates; 0 = leave them (default: 0.95)",
    )  # fmt: skip
    p.add_argument(
        "--embedder", default="tfidf", metavar="NAME",
        help="tidy: as config.skills.embedder (default: tfidf)",
    )  # fmt: skip
    p.add_argument(
        "--min-utility", type=float, default=0.0, metavar="X",
        help="tidy: retire skills whose whole 95 %% interval is below this difference of success rates "
        "(default: 0)",
    )  # fmt: skip
    p.add_argument(
        "--min-pairs", type=int, default=8, metavar="N",
        help="tidy: paired episodes that it takes to judge a skill (default: 8)",
    )  # fmt: skip


def run(args, _overrides) -> None:
    """Does one of the actions."""
    from evolving_rl_jax.run import banks

    if args.action == "import":
        banks.import_skills(args.folders, args.bank)
    elif args.action == "merge":
        banks.merge(args.banks, args.bank)
    else:
        at_least(args.min_pairs, 1, "--min-pairs")
        if not 0 <= args.duplicates <= 1:
            raise ConfigError(f"--duplicates must be in [0, 1], got {args.duplicates}")
        if not math.isfinite(args.min_utility):
            raise ConfigError(f"--min-utility must be a number, got {args.min_utility}")
        banks.tidy(
            args.bank, args.embedder, duplicates=args.duplicates, min_pairs=args.min_pairs,
            min_utility=args.min_utility,
        )  # fmt: skip
