"""What several subcommands share: one-line usage errors, the options of several processes, checks."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Iterator

from evolving_rl_jax.config import ConfigError, flat


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others of the command.

    Options are written out: ``--seed`` must not be taken for ``--seeds``, which is something else.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str):
        """Says what is wrong and where the options are listed; leaves with exit code 2."""
        self.exit(2, f"evolving-rl: {' '.join(message.split())} (see {self.prog} --help)\n")


# -- values ----------------------------------------------------------------------------------------


def at_least(value: float, least: float, flag: str) -> None:
    """Raises ConfigError where a number is smaller, or no number at all."""
    if not least <= value < math.inf:
        raise ConfigError(f"{flag} must be >= {least}, got {value}")


def only_with(mode: str, chosen: bool, **options) -> None:
    """Raises ConfigError for an option that was given, and has no effect but with ``mode``.

    Args:
      mode: as a user writes it.
      chosen: whether it was.
      options: name -> value, false where it was left out.
    """
    for name, value in options.items():
        if value and not chosen:
            raise ConfigError(f"--{name} must be left out without {mode}, got {value}")


@contextlib.contextmanager
def panel_options(splits: str, conditions: str = "") -> Iterator[None]:
    """Keys of the panel are set by options here: errors name these, and so does what helps.

    Args:
      splits, conditions: what the options say, empty where they were left out.
    """
    try:
        yield
    except ConfigError as e:
        text = str(e)
        for key, option, given in (
            ("conditions", "--conditions", conditions),
            ("splits", "--split", splits),
        ):
            text = text.replace(f"--config.eval.{key}=", f"{option}=")
            text = text.replace(f"config.eval.{key} ", f"{option} ") if given else text
        raise e if text == str(e) else ConfigError(text) from e


@contextlib.contextmanager
def writable(flag: str) -> Iterator[None]:
    """Says that an output cannot be written in place of what the system says of it."""
    try:
        yield
    except OSError as e:
        raise ConfigError(f"{flag} must be a folder that can be written, got {e}") from e


def names(text: str) -> tuple[str, ...]:
    """Words with commas between them, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def temperatures(text: str) -> list[float]:
    """The temperatures of an option such as ``1,0``."""
    found = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise ConfigError(f"--temperature must be >= 0, got {part or 'nothing'}")
        found.append(value)
    return list(dict.fromkeys(found))


# -- several processes -----------------------------------------------------------------------------


def add_hosts(p: argparse.ArgumentParser) -> None:
    """The options by which processes of one run find each other."""
    group = p.add_argument_group(
        "several processes",
        "Start the same command on every worker.  Cloud TPU and SLURM need none of these; elsewhere give "
        "all three, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num-processes", type=int, metavar="N", help="of the whole run")
    group.add_argument("--process-id", type=int, metavar="I", help="of this process, from 0")


def joined_hosts(args: argparse.Namespace, config):
    """The processes of the run, as options and environment say; a context manager."""
    from evolving_rl_jax.run import hosts
    from evolving_rl_jax.run.compiled import keep_programs

    keep_programs()  # before anything is compiled
    address = hosts.find(
        os.environ,
        coordinator=args.coordinator,
        num_processes=args.num_processes,
        process_id=args.process_id,
    )
    return hosts.joined(address, **config.hosts)


def check_alike(hosts, config, folder) -> None:
    """All processes of a run must do the same thing in the same folder."""
    facts = {f"config.{key}": value for key, value in flat(config).items()}
    hosts.check_alike(facts | {"--workdir": str(folder.path)})
