"""``evolving-rl report``."""

from __future__ import annotations

import pathlib

from evolving_rl_jax.config import ConfigError


def add(commands) -> None:
    """The options."""
    p = commands.add_parser(
        "report",
        help="write report.html of one run or several",
        description="Writes WORKDIR/report.html, one file that needs no network, and prints the before/after "
        "table of each run.  Several run folders are shown side by side; those whose configurations differ "
        "only in the seed become one curve with a band.",
        epilog="evolving-rl report --workdir runs/joint-0 runs/joint-1 runs/grpo-0 --out=arms.html",
    )
    p.add_argument("--workdir", required=True, metavar="DIR", help="run folder")
    p.add_argument("more", nargs="*", metavar="DIR", help="further run folders")
    p.add_argument(
        "--out", metavar="FILE", help="where to write (default: report.html in the first folder)"
    )


def run(args, _overrides) -> None:
    """Writes the page and prints the tables.

    Raises:
      ConfigError: a folder is not a run folder, or the page cannot be written.
    """
    from evolving_rl_jax.report.page import before_after_table, write_report
    from evolving_rl_jax.run.folder import RunFolder

    folders = [pathlib.Path(folder) for folder in (args.workdir, *args.more)]
    for folder in folders:
        RunFolder(str(folder)).load_config()
    try:
        path = write_report(*folders, out=args.out)
    except OSError as e:
        where = args.out or folders[0] / "report.html"
        raise ConfigError(
            f"--out must be a file that can be written, got {str(where)!r} ({e})"
        ) from e
    for folder in folders:
        if len(folders) > 1:
            print(f"{folder}:")
        print(before_after_table(folder))
    print(f"report: {path}")
