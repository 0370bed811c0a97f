"""The ``evolving-rl`` command.  Each subcommand imports what it needs, so ``--help`` is instant."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys

from evolving_rl_jax import __version__
from evolving_rl_jax.config import ConfigError

EXIT_USAGE = 2


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; a mistake of the user is one line on standard error and exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        overrides = _take_overrides(argv)
        args = _parser().parse_args(argv)
        if overrides and args.command not in ("train", "compile"):
            raise ConfigError(
                f"--config.KEY=VALUE must be given to train or compile only, got {args.command}"
            )
        return COMMANDS[args.command](args, overrides) or 0
    except ConfigError as e:
        print(f"evolving-rl: {' '.join(str(e).split())}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(
            "evolving-rl: interrupted; the same training command goes on from the last checkpoint",
            file=sys.stderr,
        )
        return 130


def _take_overrides(argv: list[str]) -> dict[str, str]:
    """Removes ``--config.a.b=value`` (or ``--config.a.b value``) from argv and returns {"a.b": value}."""
    found: dict[str, str] = {}
    i = 0
    while i < len(argv):
        if not argv[i].startswith("--config."):
            i += 1
            continue
        key, equals, value = argv[i].removeprefix("--config.").partition("=")
        del argv[i]
        if not equals:
            if i >= len(argv):
                raise ConfigError(f"--config.{key} must be followed by a value, got none")
            value = argv.pop(i)
        found[key] = value
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evolving-rl",
        description="Evolving-RL in JAX: one policy solves tasks and writes the skills it solves them with.",
    )
    parser.add_argument("--version", action="version", version=f"evolving-rl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_eval(commands)
    _add_report(commands)
    _add_games(commands)
    _add_export(commands)
    _add_compile(commands)
    return parser


def _add_train(commands) -> None:
    p = commands.add_parser(
        "train",
        help="train a policy; goes on by itself when the run folder holds a checkpoint",
        description="Trains the policy of a config file in a run folder.  Started again with the same "
        "folder, it goes on from the last checkpoint.",
        epilog="Any key can be overridden: --config.train.num_iterations=20 --config.algorithm.arm=grpo",
    )
    p.add_argument("--config", required=True, metavar="FILE", help="Python file with get_config()")
    p.add_argument(
        "--workdir", required=True, metavar="DIR", help="run folder; made if it is not there"
    )


def _add_eval(commands) -> None:
    p = commands.add_parser(
        "eval",
        help="play the fixed panel with and without skills",
        description="Plays every game of the panel once under each condition and writes WORKDIR/eval/*.json.",
    )
    p.add_argument("--workdir", required=True, metavar="DIR", help="run folder of a training run")
    p.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help="latest, warmstart or an iteration (default: latest)",
    )
    p.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="sampling temperature; 0 is greedy (default: 1)",
    )


def _add_report(commands) -> None:
    p = commands.add_parser(
        "report",
        help="write report.html of a run",
        description="Writes WORKDIR/report.html, one file that needs no network, and prints the before/after table.",
    )
    p.add_argument("--workdir", required=True, metavar="DIR", help="run folder")


def _add_games(commands) -> None:
    p = commands.add_parser(
        "games",
        help="generate ALFWorld-format household games",
        description="Generates games that the alfworld package plays: households with stable habits, all six "
        "task types, each won by the walkthrough that it carries.",
    )
    p.add_argument(
        "--out", required=True, metavar="DIR", help="folder for the games; must be new or empty"
    )
    p.add_argument("--num", type=int, required=True, metavar="N", help="how many games")
    p.add_argument(
        "--seed", type=int, default=0, metavar="S", help="same seed, same games (default: 0)"
    )
    p.add_argument(
        "--split", default="train", help="split name written into the index (default: train)"
    )


def _add_export(commands) -> None:
    p = commands.add_parser(
        "export",
        help="write the policy as a Hugging Face folder",
        description="Writes a checkpoint of a run as config.json, safetensors and tokenizer files, or, of a "
        "run that trains adapters, these alone in the format of the peft package.",
    )
    p.add_argument("--workdir", required=True, metavar="DIR", help="run folder")
    p.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    p.add_argument(
        "--what",
        choices=("policy", "adapter"),
        default="policy",
        help="whole weights, adapters merged into them, or the adapters (default: policy)",
    )
    p.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help="latest or an iteration (default: latest)",
    )


def _add_compile(commands) -> None:
    p = commands.add_parser(
        "compile",
        help="does a configuration fit a TPU slice; needs no TPU",
        description="Compiles the train step and the generation functions for a TPU slice and prints the "
        "memory, arithmetic and traffic of a device.  Exit code 1 when it does not fit.",
        epilog="Any key can be overridden: --config.mesh.tensor=4 --config.rollout.num_slots=8",
    )
    p.add_argument("--config", required=True, metavar="FILE", help="Python file with get_config()")
    p.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:SIDES",
        help="v4:2x2x2, v5e:4x4, v5p:2x2x4, v6e:2x4, ...",
    )


def _train(args, overrides: dict[str, str]) -> None:
    from evolving_rl_jax.config import load_config
    from evolving_rl_jax.train.build import open_parts
    from evolving_rl_jax.train.run_folder import RunFolder

    config = load_config(args.config, overrides)
    with open_parts(config, RunFolder(args.workdir, config)) as parts:
        from evolving_rl_jax.train.loop import train

        train(parts)


def _eval(args, _overrides) -> None:
    from evolving_rl_jax.train.build import open_parts
    from evolving_rl_jax.train.run_folder import RunFolder

    if not 0 <= args.temperature < float("inf"):
        raise ConfigError(f"--temperature must be >= 0, got {args.temperature}")
    folder = RunFolder(args.workdir)
    with open_parts(folder.load_config(), folder) as parts:
        from evolving_rl_jax.train.loop import evaluate_checkpoint

        evaluate_checkpoint(parts, args.checkpoint, args.temperature)


def _report(args, _overrides) -> None:
    from evolving_rl_jax.eval.report import before_after_table, write_report
    from evolving_rl_jax.train.run_folder import RunFolder

    folder = RunFolder(args.workdir)
    folder.load_config()
    print(before_after_table(folder.path))
    print(f"report: {write_report(folder.path)}")


def _games(args, _overrides) -> None:
    from evolving_rl_jax.envs.households import generate_even
    from evolving_rl_jax.train.build import progress

    out = pathlib.Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out must be a new or empty folder, got {args.out!r}")
    try:
        with progress("generating games", args.num) as bar:
            generate_even(out, num=args.num, seed=args.seed, split=args.split, progress=bar)
    except ValueError as e:
        raise ConfigError(f"--{e}") from e
    except OSError as e:
        raise ConfigError(f"--out must be a folder that can be written, got {e}") from e
    print(f"{args.num} games in {out}")


def _export(args, _overrides) -> None:
    from evolving_rl_jax.train.export import export_adapter, export_policy
    from evolving_rl_jax.train.run_folder import RunFolder

    export = {"policy": export_policy, "adapter": export_adapter}[args.what]
    export(RunFolder(args.workdir), pathlib.Path(args.out), args.checkpoint)
    print(f"{args.what} in {args.out}")


def _compile(args, overrides: dict[str, str]) -> int:
    from evolving_rl_jax.config import load_config

    config = load_config(args.config, overrides)
    # Read by jax and libtpu when they start: this process compiles only, next to others perhaps, and
    # must not look for devices.
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    # Of no consequence for a program that is only compiled; unset, libtpu complains.
    quiet = {"TPU_ACCELERATOR_TYPE": "v5p-32", "TPU_WORKER_HOSTNAMES": "localhost"}
    for name, value in (quiet | {"TPU_MIN_LOG_LEVEL": "3"}).items():
        os.environ.setdefault(name, value)
    from evolving_rl_jax.train.compile_check import check
    from evolving_rl_jax.train.compile_report import render

    report = check(config, args.config, args.topology)
    print(render(report))
    return 0 if report.fits else 1


COMMANDS = {
    "train": _train,
    "eval": _eval,
    "report": _report,
    "games": _games,
    "export": _export,
    "compile": _compile,
}
