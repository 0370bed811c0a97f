"""What a command tells a person: messages, progress bars, and errors that name a key."""

from __future__ import annotations

import contextlib
import sys

from tqdm import tqdm

from evolving_rl_jax.config import ConfigError


def say(text: str) -> None:
    """One message for a person, on standard error so that standard output stays data."""
    tqdm.write(text, file=sys.stderr)


@contextlib.contextmanager
def progress(title: str, total: int | None = None, *, shown: bool = True, delay_s: float = 0.5):
    """A progress bar of what takes a while; yields a function of the number done so far.

    The bar comes after ``delay_s``, which must be 0 where something else is said meanwhile: tqdm
    does not end the line of a bar that such a message, and not its own time, has brought up.
    """
    interval = 1.0 if sys.stderr.isatty() else 10.0  # a log file wants few lines
    with tqdm(
        total=total,
        desc=title,
        unit="",
        dynamic_ncols=True,
        mininterval=interval,
        delay=delay_s,
        disable=not shown,
    ) as bar:

        def update(done: int) -> None:
            bar.update(done - bar.n)

        yield update


@contextlib.contextmanager
def user_errors(kinds: tuple[type[Exception], ...], key: str = ""):
    """Turns what a value of the user's caused into a ConfigError that names the key."""
    try:
        yield
    except ConfigError:
        raise
    except kinds as e:
        raise ConfigError(f"{key}: {e}" if key else str(e)) from e
