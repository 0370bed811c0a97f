"""``evolving-rl check-env``."""

from __future__ import annotations

import json
import pathlib
import sys

from evolving_rl_jax.cli.options import at_least
from evolving_rl_jax.config import ConfigError


def add(commands) -> None:
    """The options."""
    p = commands.add_parser(
        "check-env",
        help="does an environment of one's own keep what a run relies on",
        description="Plays some tasks of an environment and compares: determinism, replay, invalid actions, "
        "closing, worker processes that are killed or hang.  Exit code 1 when something fails.",
        epilog="evolving-rl check-env --env=my_package.my_env:ENV --options='{\"size\": 4}'",
    )
    p.add_argument(
        "--env",
        required=True,
        metavar="NAME",
        help="package.module:attribute, or an environment of the package",
    )
    p.add_argument("--options", default="{}", metavar="JSON", help="keywords of its make()")
    p.add_argument(
        "--source", metavar="DIR", help="folder of the tasks of an environment of the package"
    )
    p.add_argument("--split", help="of the tasks that are played (default: the first one)")
    p.add_argument("--tasks", type=int, default=3, metavar="N", help="how many (default: 3)")
    p.add_argument("--steps", type=int, default=12, metavar="N", help="most actions (default: 12)")


def run(args, overrides: dict[str, str]) -> int:
    """Prints a line for each check."""
    from evolving_rl_jax import envs
    from evolving_rl_jax.envs.conformance import checks

    try:
        options = json.loads(args.options)
        if not isinstance(options, dict):
            raise ValueError(f"got {args.options!r}")
    except ValueError as e:
        raise ConfigError(f"--options must be a JSON object: {e}") from None
    for name in ("tasks", "steps"):
        at_least(getattr(args, name), 1, f"--{name}")
    try:
        benchmark = envs.benchmark(args.env)
        envs.validate(args.env, **options)
    except ValueError as e:
        raise ConfigError(f"--env: {e}") from e
    if ":" not in args.env and not args.source:
        raise ConfigError(f"--source must name the folder of the tasks of {args.env}, got none")
    tasks = benchmark.load(pathlib.Path(args.source) if args.source else pathlib.Path())
    there = sorted({t.split for t in tasks})
    known = [name for name in benchmark.splits if name in there] or there
    split = args.split or (known[0] if known else "")
    chosen = [t for t in tasks if t.split == split]
    if not chosen:
        raise ConfigError(f"--split must be a split with tasks ({', '.join(there)}), got {split!r}")
    step = max(1, len(chosen) // args.tasks)
    print(
        f"{args.env}: {len(tasks)} tasks; playing {len(chosen[::step][: args.tasks])} of {split!r}"
    )
    failed = 0
    for finding in checks(args.env, chosen[::step][: args.tasks], options, steps=args.steps):
        failed += not finding.ok
        print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.name}: {finding.said}", flush=True)
    print("keeps the contract" if not failed else f"{failed} checks failed", file=sys.stderr)
    return int(failed > 0)
