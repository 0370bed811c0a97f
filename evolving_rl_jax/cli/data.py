"""``evolving-rl data``."""

from __future__ import annotations

import os
import pathlib
import sys

from evolving_rl_jax.cli.options import at_least, writable
from evolving_rl_jax.config import ConfigError


def add(commands) -> None:
    """The options."""
    p = commands.add_parser(
        "data",
        help="index a downloaded data set for training",
        description="Checks the official ALFWorld games and writes an index that config.data.games takes: "
        "the splits of the paper, content hashes and all that a task says.  Exit code 1, and no index, when the "
        "numbers of games are not those of the release.  ALFRED: makes ALFWorld games of its trajectories, without "
        "the simulator, plays each to its end, and indexes them likewise.  Mind2Web: compacts the official JSON files, the "
        "protected test archive too, into a TFDS data set of page elements, and reports counts, duplicates "
        "and how often the right element is shown.  Objects: another index of a folder of ALFWorld-format games "
        "(--source), split by what the tasks are about: half of the classes of objects are "
        "trained on, with panels of these and of the others.  survey: what a folder of tasks gives a run: types in "
        "small panels, what training retrieves, groups of streams, what short prompts show.",
        epilog="evolving-rl data alfworld --source=download --out=alfworld",
    )
    p.add_argument(
        "name", choices=(*DATA_SETS, "survey"), help="which data set, or what is to be surveyed"
    )
    p.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="DIR|ZIP|download",
        help="folder that holds json_2.1.1, or zip files of the release (give the option once for each), or "
        "'download' (default: the folder $ALFWORLD_DATA); alfred: the folder json_2.1.0, or JSON lines of its "
        "records in files named train, valid_seen, valid_unseen",
    )
    p.add_argument(
        "--out",
        metavar="DIR",
        help="folder to write; an interrupted command goes on in it (survey: a JSON file of the figures)",
    )
    p.add_argument(
        "--allow-counts",
        action="store_true",
        help="write the index although the numbers of games differ",
    )
    p.add_argument(
        "--goals",
        choices=("alfworld", "human"),
        default="alfworld",
        help="alfred: whose words the tasks are given in (default: %(default)s)",
    )
    p.add_argument(
        "--jobs",
        type=int,
        default=None,
        metavar="N",
        help="alfred: processes that make games (default: one a core)",
    )
    p.add_argument(
        "--password",
        default="",
        help="mind2web: of the archive of the test splits (default: $MIND2WEB_PASSWORD)",
    )
    _add_objects(p)
    _add_survey(p)


def _add_objects(p) -> None:
    """Of another index, split by object."""
    p.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="objects: of the halves of the classes of objects (default: 0)",
    )


def _add_survey(p) -> None:
    """The options of `survey`."""
    p.add_argument(
        "--env", choices=("alfworld", "mind2web"), default="alfworld",
        help="survey: what plays the tasks of --source (default: alfworld)",
    )  # fmt: skip
    p.add_argument(
        "--panel", type=int, default=24, metavar="N",
        help="survey: games of a small panel (default: 24)",
    )  # fmt: skip
    p.add_argument(
        "--retrieved", type=int, default=4, metavar="K",
        help="survey: as config.rollout.num_retrieved (default: 4)",
    )  # fmt: skip


def run(args, _overrides) -> int:
    """Writes the index, or surveys tasks, and prints what was found."""
    if args.name == "survey":
        return _survey(args)
    if not args.out:
        raise ConfigError(f"--out must be given with {args.name}, got none")
    return DATA_SETS[args.name](args)


def _alfworld(args) -> int:
    from evolving_rl_jax.envs.alfworld import official as alfworld
    from evolving_rl_jax.envs.alfworld.archives import ArchiveError, DownloadError
    from evolving_rl_jax.envs.base import TaskError
    from evolving_rl_jax.run.console import progress, user_errors

    options = {"progress": progress, "allow_counts": args.allow_counts}
    with writable("--out"), user_errors((TaskError, ArchiveError, FileExistsError)):
        try:
            report = alfworld.prepare(args.source, pathlib.Path(args.out), **options)
        except alfworld.CountsError as e:
            print("\n".join(e.report.lines()))
            print(
                "evolving-rl: no index written; --allow-counts writes it all the same",
                file=sys.stderr,
            )
            return 1
        except DownloadError as e:
            raise ConfigError(
                f"{e}; without a network, fetch the zip files elsewhere and give --source=ZIP for each"
            ) from e
    return _indexed(report, report.num_games, args)


def _alfred(args) -> int:
    from evolving_rl_jax.envs.alfworld.alfred.convert import convert
    from evolving_rl_jax.envs.base import TaskError
    from evolving_rl_jax.run.console import progress, user_errors

    if args.jobs is not None:
        at_least(args.jobs, 1, "--jobs")
    options = {"progress": progress, "goals": args.goals, "jobs": args.jobs}
    with writable("--out"), user_errors((TaskError, FileExistsError)):
        report = convert(args.source, pathlib.Path(args.out), **options)
    return _indexed(report, report.num_games, args)


def _indexed(report, num_games: int, args) -> int:
    print("\n".join(report.lines()))
    print(f"{num_games} games indexed in {args.out}")
    return 0


def _mind2web(args) -> int:
    from evolving_rl_jax.envs.mind2web.index import build_index
    from evolving_rl_jax.envs.mind2web.official import PASSWORD_VARIABLE, DataError
    from evolving_rl_jax.run.console import progress, user_errors

    password = args.password or os.environ.get(PASSWORD_VARIABLE, "")
    with user_errors((DataError,)), progress("reading tasks") as bar:
        report = build_index(args.source, args.out, password=password, progress=bar)
    print(report.text())
    print(f"{sum(report.counts.values())} tasks indexed in {args.out}")
    return 0


def _survey(args) -> int:
    from evolving_rl_jax import envs
    from evolving_rl_jax.config import default_config
    from evolving_rl_jax.envs.base import TaskError
    from evolving_rl_jax.eval import survey
    from evolving_rl_jax.files import write_json
    from evolving_rl_jax.run.console import progress, user_errors

    at_least(args.panel, 1, "--panel")
    at_least(args.retrieved, 1, "--retrieved")
    if len(args.source) != 1:
        raise ConfigError(
            f"--source must be one folder of tasks with survey, got {len(args.source)}"
        )
    config = default_config()
    config.env.name, config.rollout.num_retrieved = args.env, args.retrieved
    with user_errors((TaskError,), "--source"):
        tasks = envs.benchmark(args.env).load(pathlib.Path(args.source[0]))
    trained = {t.task_type for t in tasks if t.split == config.data.train_split}
    if not trained & set(config.data.train_types):  # not ALFWorld's
        config.data.train_types = tuple(sorted(trained))
    with progress("reading first observations", len(tasks)) as bar:
        found = survey.survey(config, tasks, panel=args.panel, progress=bar)
    print("\n".join(survey.lines(found, args.retrieved, args.panel)))
    if args.out:
        with user_errors((OSError,), "--out"):
            write_json(pathlib.Path(args.out), found, indent=1)
    return 0


def _objects(args) -> int:
    from evolving_rl_jax.envs.alfworld.objects.index import prepare_objects
    from evolving_rl_jax.run.console import progress, user_errors

    if len(args.source) != 1:
        raise ConfigError(f"--source must be one folder of games, got {len(args.source)}")
    with writable("--out"), user_errors((FileExistsError,)), progress("reading games") as bar:
        report = prepare_objects(
            pathlib.Path(args.source[0]), pathlib.Path(args.out), seed=args.seed, progress=bar
        )
    return _indexed(report, sum(report.splits.values()), args)


DATA_SETS = {
    "alfworld": _alfworld,
    "alfred": _alfred,
    "objects": _objects,
    "mind2web": _mind2web,
}
