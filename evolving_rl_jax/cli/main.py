"""The ``evolving-rl`` command.  Each subcommand imports what it needs, so ``--help`` is instant."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys

from evolving_rl_jax import __version__
from evolving_rl_jax.cli import ablation as ablation_command
from evolving_rl_jax.cli import eval as eval_commands
from evolving_rl_jax.cli import report as report_command
from evolving_rl_jax.cli import skills as skill_commands
from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.envs.base import EngineMismatch
from evolving_rl_jax.run.preemption import EXIT_AGAIN, Preempted
from evolving_rl_jax.train.ablation.side_by_side import PieceFailed

EXIT_FAILED, EXIT_USAGE = 1, 2
OVERRIDDEN = ("train", "ablation", "compile", "transfer", "doctor")  # take --config.KEY=VALUE


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand.

    A mistake of the user is one line on standard error and exit code 2; an engine that plays a game
    wrongly, or a process of several that failed, is one line and exit code 1.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        overrides = _take_overrides(argv)
        args = _parser().parse_args(argv)
        if overrides and args.command not in OVERRIDDEN:
            raise ConfigError(
                f"--config.KEY=VALUE must be given to {', '.join(OVERRIDDEN)}, got {args.command}"
            )
        return COMMANDS[args.command](args, overrides) or 0
    except ConfigError as e:
        print(f"evolving-rl: {' '.join(str(e).split())}", file=sys.stderr)
        return EXIT_USAGE
    except (EngineMismatch, PieceFailed) as e:
        print(f"evolving-rl: {' '.join(str(e).split())}", file=sys.stderr)
        return EXIT_FAILED
    except Preempted as e:
        print(f"evolving-rl: {e}: the same command goes on from here", file=sys.stderr)
        return EXIT_AGAIN
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
    _add_hosts(eval_commands.add_eval(commands))
    eval_commands.add_transfer(commands)
    ablation_command.add_ablation(commands)
    report_command.add_report(commands)
    _add_games(commands)
    _add_data(commands)
    skill_commands.add_export(commands)
    skill_commands.add_skills(commands)
    _add_compile(commands)
    _add_doctor(commands)
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
    _add_hosts(p)


def _add_hosts(p) -> None:
    group = p.add_argument_group(
        "several processes",
        "Start the same command on every worker.  Cloud TPU and SLURM need none of these; elsewhere give "
        "all three, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num-processes", type=int, metavar="N", help="of the whole run")
    group.add_argument("--process-id", type=int, metavar="I", help="of this process, from 0")


def _add_games(commands) -> None:
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
        help="steps that the limit allows beyond the shortest solution (default: enough to try a third of "
        "the places where the object could be)",
    )


def _add_data(commands) -> None:
    p = commands.add_parser(
        "data",
        help="index a downloaded data set for training",
        description="Checks the official ALFWorld games and writes an index that config.data.games takes: "
        "the splits of the paper, content hashes and a TFDS data set.  Exit code 1, and no index, when the "
        "numbers of games are not those of the release.  Mind2Web: compacts the official JSON files, the "
        "protected test archive too, into a TFDS data set of page elements, and reports counts, duplicates "
        "and how often the right element is shown.",
        epilog="evolving-rl data alfworld --source=download --out=alfworld",
    )
    p.add_argument("name", choices=("alfworld", "mind2web"), help="which data set")
    p.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="DIR|ZIP|download",
        help="folder that holds json_2.1.1, or zip files of the release (give the option once for each), or "
        "'download' (default: the folder $ALFWORLD_DATA)",
    )
    p.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder to write; an interrupted command goes on in it",
    )
    p.add_argument(
        "--allow-counts",
        action="store_true",
        help="write the index although the numbers of games differ",
    )
    p.add_argument(
        "--password",
        default="",
        help="mind2web: of the archive of the test splits (default: $MIND2WEB_PASSWORD)",
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


def _add_doctor(commands) -> None:
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
    _add_hosts(p)


def _train(args, overrides: dict[str, str]) -> None:
    from evolving_rl_jax.config import load_config
    from evolving_rl_jax.record.tracking import check_wandb
    from evolving_rl_jax.run.folder import RunFolder
    from evolving_rl_jax.run.parts import open_parts
    from evolving_rl_jax.run.preemption import Preemption

    config = load_config(args.config, overrides)
    check_wandb(config.train.wandb)
    with Preemption() as preemption, _hosts(args, config) as hosts:
        folder = RunFolder(args.workdir, config, writes=hosts.first)
        _check_alike(hosts, config, folder)
        with open_parts(config, folder, hosts, preemption) as parts:
            from evolving_rl_jax.train.loop import train

            train(parts)


def _doctor(args, overrides: dict[str, str]) -> int:
    from evolving_rl_jax.config import default_config, load_config

    if overrides and not args.config:
        raise ConfigError("--config must be given with --config.KEY=VALUE, got none")
    config = load_config(args.config, overrides) if args.config else None
    workdir = pathlib.Path(args.workdir).absolute() if args.workdir else None
    with _hosts(args, config or default_config()) as hosts:
        from evolving_rl_jax.run.doctor import Subject, check_all

        return 0 if check_all(Subject(hosts, config, workdir)) else 1


def _hosts(args, config):
    """The processes of the run, as flags and environment say."""
    from evolving_rl_jax.run import hosts as distributed

    address = distributed.find(
        os.environ,
        coordinator=args.coordinator,
        num_processes=args.num_processes,
        process_id=args.process_id,
    )
    return distributed.joined(address, **config.hosts)


def _check_alike(hosts, config, folder) -> None:
    """All processes of a run must do the same thing in the same folder."""
    from evolving_rl_jax.config import flat

    facts = {f"config.{key}": value for key, value in flat(config).items()}
    hosts.check_alike(facts | {"--workdir": str(folder.path)})


def _eval(args, _overrides) -> None:
    from evolving_rl_jax.run.parts import open_parts

    if args.compare:
        eval_commands.compare(args)
        return
    folder, config = eval_commands.eval_config(args)
    with _hosts(args, config) as hosts:
        _check_alike(hosts, config, folder)
        with open_parts(config, folder, hosts) as parts:
            eval_commands.run_eval(args, parts)


def _games(args, _overrides) -> None:
    from evolving_rl_jax.envs.alfworld.households.plan import spread_spec
    from evolving_rl_jax.envs.alfworld.households.write import generate_even, generate_games
    from evolving_rl_jax.run.parts import progress

    out = pathlib.Path(args.out)
    options = {"rooms": args.rooms, "slack": args.slack}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out must be a new or empty folder, got {args.out!r}")
    try:
        with progress("generating games", args.num) as bar:
            if args.split == "all":
                spec = spread_spec(args.num, **options)
                generate_games(out, seed=args.seed, spec=spec, progress=bar)
            else:
                where = {"seed": args.seed, "split": args.split}
                generate_even(out, num=args.num, **where, **options, progress=bar)
    except ValueError as e:
        raise ConfigError(f"--{e}") from e
    except OSError as e:
        raise ConfigError(f"--out must be a folder that can be written, got {e}") from e
    print(f"{args.num} games in {out}")


def _data_mind2web(args) -> int:
    from evolving_rl_jax.envs.mind2web.index import build_index
    from evolving_rl_jax.envs.mind2web.official import PASSWORD_VARIABLE, DataError
    from evolving_rl_jax.run.parts import progress

    password = args.password or os.environ.get(PASSWORD_VARIABLE, "")
    try:
        with progress("reading tasks") as bar:
            report = build_index(args.source, args.out, password=password, progress=bar)
    except DataError as e:
        raise ConfigError(str(e)) from e
    print(report.text())
    print(f"{sum(report.counts.values())} tasks indexed in {args.out}")
    return 0


def _data(args, _overrides) -> int:
    if args.name == "mind2web":
        return _data_mind2web(args)
    from evolving_rl_jax.envs.alfworld import official as alfworld
    from evolving_rl_jax.envs.alfworld.archives import ArchiveError, DownloadError
    from evolving_rl_jax.envs.alfworld.folder import TaskError
    from evolving_rl_jax.run.parts import progress

    options = {"progress": progress, "allow_counts": args.allow_counts}
    try:
        report = alfworld.prepare(args.source, pathlib.Path(args.out), **options)
    except alfworld.CountsError as e:
        print("\n".join(e.report.lines()))
        print(
            "evolving-rl: no index written; --allow-counts writes it all the same", file=sys.stderr
        )
        return 1
    except DownloadError as e:
        raise ConfigError(
            f"{e}; without a network, fetch the zip files elsewhere and give --source=ZIP for each"
        ) from e
    except (TaskError, ArchiveError, FileExistsError) as e:
        raise ConfigError(str(e)) from e
    except OSError as e:
        raise ConfigError(f"--out must be a folder that can be written, got {e}") from e
    print("\n".join(report.lines()))
    print(f"{sum(report.counts.values())} games indexed in {args.out}")
    return 0


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
    from evolving_rl_jax.aot.check import check
    from evolving_rl_jax.aot.report import render

    report = check(config, args.config, args.topology)
    print(render(report))
    return 0 if report.fits else 1


COMMANDS = {
    "train": _train,
    "eval": _eval,
    "transfer": eval_commands.transfer,
    "ablation": ablation_command.ablation,
    "report": report_command.report,
    "games": _games,
    "data": _data,
    "export": skill_commands.export,
    "skills": skill_commands.skills,
    "compile": _compile,
    "doctor": _doctor,
}
