"""``evolving-rl ablation``."""

from __future__ import annotations

import sys

from evolving_rl_jax.cli.options import names
from evolving_rl_jax.config import ARMS, ConfigError, load_config


def add(commands) -> None:
    """The options."""
    p = commands.add_parser(
        "ablation",
        help="train every arm (or each of several configs) with every seed, and write one table",
        description="Trains the arms of the paper's ablation from one warm start a seed on the same games, "
        "evaluates all on the same panel, lets every solver play with every extractor's skills, and writes "
        "ablation.md, ablation.json and report.html.  Finished runs are kept; the same command goes on, and "
        "more seeds or arms can be added later.  With --configs, whole configurations are compared instead of arms: "
        "the same warm start, games, panel and number of episodes, no crossings, and each against the first.",
        epilog="evolving-rl ablation --config=configs/alfworld_quickstart.py --workdir=runs/ablation --seeds=3 --jobs=2; "
        "any key can be overridden: --config.train.num_iterations=40",
    )
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", metavar="FILE", help="Python file with get_config()")
    which.add_argument(
        "--configs",
        default="",
        metavar="FILE,FILE",
        help="several such files, with commas; train.num_iterations of each is what gives it as many "
        "episodes as the first",
    )
    p.add_argument("--workdir", required=True, metavar="DIR", help="folder of all runs")
    p.add_argument(
        "--arms",
        default=None,
        metavar="A[,A]",
        help=f"with --config (default: {','.join(ARMS)})",
    )
    p.add_argument(
        "--seeds",
        default="3",
        metavar="N|S,S",
        help="how many seeds, from 0 on, or which ones, with commas (default: %(default)s)",
    )
    group = p.add_mutually_exclusive_group()
    group.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="runs at a time, each in a process of its own on its share of the processor's cores; their output "
        "goes to WORKDIR/logs (default: %(default)s, with the output here)",
    )
    group.add_argument(
        "--only",
        default="",
        metavar="PIECE",
        help="do one piece, a run such as joint-0 or a crossing such as cross-0, and write no table",
    )


def run(args, overrides: dict[str, str]) -> None:
    """Trains, crosses and writes the table, here or in processes side by side."""
    seeds, configs = parse_seeds(args.seeds), None
    from evolving_rl_jax.run.folder import RunFolder
    from evolving_rl_jax.train.ablation.methods import read_methods
    from evolving_rl_jax.train.ablation.run import Ablation, run_ablation, run_ablation_side_by_side

    if args.configs:
        if args.arms is not None:
            raise ConfigError(
                f"--arms must be left out with --configs (each says its own arm), got {args.arms!r}"
            )
        configs = read_methods(names(args.configs), overrides)
        arms, config = tuple(configs), next(iter(configs.values()))
        given = [f"--configs={args.configs}"]
    else:
        arms = parse_arms(",".join(ARMS) if args.arms is None else args.arms)
        config = load_config(args.config, overrides)
        given = [f"--config={args.config}", f"--arms={','.join(arms)}"]
    what = Ablation(RunFolder(args.workdir, config), arms, seeds, configs)
    if args.jobs == 1:
        run_ablation(config, what, only=args.only)
        return
    command = [
        *(sys.executable, "-m", "evolving_rl_jax", "ablation"),
        *(*given, f"--workdir={args.workdir}", f"--seeds={','.join(map(str, seeds))},"),
        *(f"--config.{key}={value}" for key, value in overrides.items()),
    ]
    run_ablation_side_by_side(config, what, args.jobs, command)


def parse_seeds(text: str) -> tuple[int, ...]:
    """``3`` is the seeds 0, 1 and 2; ``0,4`` and ``4,`` are what they say.

    Raises:
      ConfigError: it is neither.
    """
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    seeds = tuple(dict.fromkeys(numbers)) if "," in text else tuple(range(sum(numbers)))
    if not seeds or min(seeds) < 0:
        raise ConfigError(f"--seeds must be a number >= 1, or seeds >= 0 with commas, got {text!r}")
    return seeds


def parse_arms(text: str) -> tuple[str, ...]:
    """Arms with commas between them.

    Raises:
      ConfigError: one of them is unknown, or there is none.
    """
    arms = names(text)
    for arm in arms or ("",):
        if arm not in ARMS:
            raise ConfigError(f"--arms must be of {', '.join(ARMS)}, got {arm!r}")
    return arms
