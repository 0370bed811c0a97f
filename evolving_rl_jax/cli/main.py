"""The ``evolving-rl`` command: the table of its subcommands, and what their errors end in."""

from __future__ import annotations

import argparse
import os
import select
import sys

from evolving_rl_jax import __version__
from evolving_rl_jax.cli import (
    ablation,
    check_env,
    data,
    doctor,
    export,
    games,
    import_,
    players,
    report,
    skills,
    train,
    transfer,
)
from evolving_rl_jax.cli import compile as compile_
from evolving_rl_jax.cli import eval as eval_
from evolving_rl_jax.cli.options import Parser
from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.run.endings import EXIT_FAILED, ending
from evolving_rl_jax.train.ablation.side_by_side import PieceFailed

COMMANDS = {
    "train": train,
    "eval": eval_,
    "transfer": transfer,
    "ablation": ablation,
    "report": report,
    "games": games,
    "check-env": check_env,
    "players": players,
    "data": data,
    "export": export,
    "import": import_,
    "skills": skills,
    "compile": compile_,
    "doctor": doctor,
}
# Take --config.KEY=VALUE; eval and export only where a folder of the run has moved.
OVERRIDDEN = ("train", "ablation", "compile", "transfer", "doctor", "eval", "export")

_OF_ABLATIONS = {PieceFailed: (EXIT_FAILED, "")}


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code.

    A mistake of the user is one line on standard error and exit code 2; an engine that plays a game
    wrongly, or a process of several that failed, is one line and exit code 1.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        check_encoding(argv)
        overrides = take_overrides(argv)
        args = parser().parse_args(argv)
        if overrides and args.command not in OVERRIDDEN:
            raise ConfigError(
                f"--config.KEY=VALUE must be given to {', '.join(OVERRIDDEN)}, got {args.command}"
            )
        code = COMMANDS[args.command].run(args, overrides) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if _is_read():
            raise
        return EXIT_FAILED
    except BaseException as e:
        if (found := ending(e, _OF_ABLATIONS)) is None:
            raise
        code, text = found
        print(f"evolving-rl: {text}", file=sys.stderr)
        return code


def _is_read() -> bool:
    """Whether anybody still reads the output; who did, such as head, may have seen enough."""
    out = sys.stdout.fileno()
    poll = select.poll()
    poll.register(out, 0)
    if not poll.poll(0):  # nothing is wrong with it
        return True
    os.dup2(os.open(os.devnull, os.O_WRONLY), out)  # what is left is written at the end
    return False


def check_encoding(argv: list[str]) -> None:
    """Raises ConfigError for names that Python and the libraries under it would read differently."""
    encoding = sys.getfilesystemencoding()
    for word in [*argv, os.getcwd()]:
        if encoding != "utf-8" and not word.isascii():
            raise ConfigError(
                f"arguments and the present folder must be ASCII where the locale's encoding is "
                f"{encoding}, got {word!a}; with PYTHONUTF8=1 they need not be"
            )


def take_overrides(argv: list[str]) -> dict[str, str]:
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


def parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    whole = Parser(
        prog="evolving-rl",
        description="Evolving-RL in JAX: one policy solves tasks and writes the skills it solves them with.",
    )
    whole.add_argument("--version", action="version", version=f"evolving-rl {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        command.add(commands)
    return whole
