"""Which Chromium and driver there are, whether they fit together, and how one is started."""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess

__all__ = ["BROWSERS", "DRIVERS", "driver", "executable", "flags", "html_folder", "missing"]
__all__ += ["versions"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DRIVERS = ("chromedriver",)
_VERSION = re.compile(r"(\d+)(?:\.\d+)+")
_ASK_S = 60.0
_INSTALL = "apt-get install chromium chromium-driver, or Chrome and the chromedriver of its version"

_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers often have 64 MB of it
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--mute-audio",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing has an address, so nothing is fetched
    "--allow-file-access-from-files",  # a page in a frame belongs to the page around it
    "--window-size=640,480",
)


def executable() -> str | None:
    """The path of Chromium, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def driver() -> str | None:
    """The path of its driver, or None."""
    return next(filter(None, map(shutil.which, DRIVERS)), None)


def missing() -> str:
    """What this machine lacks to play in a browser, in one line; empty for nothing."""
    absent = [n for n in ("miniwob", "selenium") if importlib.util.find_spec(n) is None]
    if absent:
        names = " and ".join(absent)
        return f"{names} must be installed: pip install -e '.[miniwob]'"
    if executable() is None:
        return f"Chromium must be installed for miniwob, found none of {', '.join(BROWSERS)} on PATH ({_INSTALL})"
    if driver() is None:
        return f"Chromium's driver must be installed for miniwob, found no chromedriver on PATH ({_INSTALL})"
    return ""


def versions() -> tuple[str, str]:
    """The versions of Chromium and of its driver.

    Raises:
      ValueError: something is missing, does not answer, or the two do not fit; one line.
    """
    lack = missing()
    if lack:
        raise ValueError(lack)
    browser, driven = _version(executable()), _version(driver())
    if browser.partition(".")[0] != driven.partition(".")[0]:
        raise ValueError(
            f"the driver must be of Chromium's version {browser}, {driver()} is {driven} ({_INSTALL})"
        )
    return browser, driven


@functools.lru_cache
def _version(path: str) -> str:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_ASK_S)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ValueError(f"{path} --version must answer, it does not ({type(e).__name__})") from e
    found = _VERSION.search(done.stdout)
    if found is None:
        said = " ".join((done.stdout + done.stderr).split())
        raise ValueError(f"{path} --version must name a version, it says {said[:120]!r}")
    return found[0]


def flags(profile: str) -> list[str]:
    """The command line of Chromium: without a network, without a display, without a past.

    Its sandbox is switched off only for root, for whom it does not start.

    Args:
      profile: a new folder for what it writes.
    """
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return [*_FLAGS, f"--user-data-dir={profile}", *(["--no-sandbox"] if as_root else [])]


def html_folder() -> pathlib.Path:
    """The folder of the package's pages, without importing it.

    Raises:
      ValueError: it is not installed.
    """
    found = importlib.util.find_spec("miniwob")
    if found is None or not found.origin:
        raise ValueError(missing())
    return pathlib.Path(found.origin).parent / "html" / "miniwob"
