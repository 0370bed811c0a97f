"""One Chromium for all episodes of a process: a frame for each, replaced when it is killed, hangs or grows.

A watchman holds the reading end of a pipe: when the owner is gone, however it ended, it kills the process
group of driver and browser and removes their files.  The driver names its group in that pipe before it runs,
so there is no moment in which it is not watched.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from typing import Any

from evolving_rl_jax.envs.base import EnvError, one_line
from evolving_rl_jax.envs.miniwob import chromium
from evolving_rl_jax.envs.miniwob.families import LEAVES_TRACES

__all__ = ["Browser", "Frame", "PageError"]

HERE = pathlib.Path(__file__).parent
WIDTH, HEIGHT = 500, 320  # of a frame: the window of the package
_PAGES = 256  # that are kept, in use or not: loading one takes as long as twenty actions
_USES = 50  # episodes of a page: what it holds grows with each
_LOOK_EVERY = 64  # episodes between looks at the memory
_REAPED_S = 10.0
_START_S = 120.0  # for Chromium to start on a machine that is busy
# The watchman, and what turns into the driver: lines of their pipe are its group, then the owner's farewell.
_WATCH = 'read -r group; read -r over || [ -z "$group" ] || kill -s KILL -- "-$group"; rm -rf "$1"'
_DRIVE = 'echo $$ >&0; exec "$1" --port=0 </dev/null'
_PORT = re.compile(rb"successfully on port (\d+)")

log = logging.getLogger(__name__)


class PageError(EnvError):
    """A page raised an error; the browser goes on."""


class Frame:
    """A page of one family in a browser.

    Attributes:
      key: its name in the browser.
      family: whose page it is.
      life: of the browser that it was opened in.
      uses: episodes that it has served.
    """

    def __init__(self, key: str, family: str, life: int):
        self.key, self.family, self.life = key, family, life
        self.uses = 0


class Browser:
    """Starts at the first use.

    Args:
      answer_s: longest time for one call.
      most_mb: a browser that holds more memory is replaced between two episodes.

    Attributes:
      life: how often it was started.
    """

    def __init__(self, answer_s: float, most_mb: float):
        self.life = 0
        self._answer_s, self._most_mb = answer_s, most_mb
        self._running: _Running | None = None
        self._idle: list[Frame] = []
        self._keys = itertools.count()
        self._taken = 0
        self._used = 0  # pages in episodes

    def take(self, family: str) -> Frame:
        """A frame with the page of a family, an idle one or a new one.

        Raises:
          EnvError: no browser, or no such page.
        """
        self._taken += 1
        if self._taken % _LOOK_EVERY == 0 and self._running is not None:
            with contextlib.suppress(Exception):  # the next call says what is wrong
                self._running.collect()
            held = self.memory_mb()
            if held > self._most_mb:
                log.warning(
                    "the browser holds %.0f MB of config.env.browser_mb=%.0f and is replaced; %d episodes "
                    "are played again from their actions", held, self._most_mb, self._used,
                )  # fmt: skip
                self.close()
        running = self._running is not None
        try:
            frame = self._ready(family)
        except EnvError as error:
            if isinstance(error, PageError) or not running:
                raise
            frame = self._ready(family)  # it had died in the meantime; a new one
        self._used += 1
        return frame

    def _ready(self, family: str) -> Frame:
        frame = next((f for f in self._idle if f.family == family), None)
        if frame is None:
            self._start()
            frame = self._load(family)
        else:
            self._idle.remove(frame)
        refused = self._run("ready", f"the page {family}", frame.key)
        if refused:
            raise PageError(f"the page {family} of miniwob cannot be opened: {refused:.200}")
        return frame

    def give(self, frame: Frame) -> None:
        """Takes a frame back after an episode; a page that keeps something of it is loaded anew meanwhile.

        Args:
          frame: may be of a browser that is gone.
        """
        if not self.holds(frame):
            return
        self._used -= 1
        with contextlib.suppress(EnvError):
            frame.uses += 1
            if frame.family in LEAVES_TRACES or frame.uses >= _USES:
                self._run("drop", f"the page {frame.family}", frame.key)
                frame = self._load(frame.family)
            self._idle.append(frame)
            if self._used + len(self._idle) > _PAGES:
                old = self._idle.pop(0)
                self._run("drop", f"the page {old.family}", old.key)

    def _load(self, family: str) -> Frame:
        frame = Frame(f"f{next(self._keys)}", family, self.life)
        url = (chromium.html_folder() / f"{family}.html").as_uri()
        self._run("open", f"the page {family}", frame.key, url, WIDTH, HEIGHT)
        return frame

    def holds(self, frame: Frame) -> bool:
        """Whether the browser that a frame was opened in still runs."""
        return self._running is not None and frame.life == self.life

    def call(self, function: str, frame: Frame, *arguments: Any) -> dict:
        """Calls ``pages.FUNCTION`` of page.js on a frame.

        Raises:
          PageError: the page raised.
          EnvError: the browser failed and was ended.
        """
        if not self.holds(frame):
            raise EnvError(f"the browser of the page {frame.family} is gone")
        uses, frame.uses = frame.uses, _USES  # what fails serves no other episode
        found = self._run(function, f"the page {frame.family}", frame.key, *arguments)
        if found.get("lost"):
            raise PageError(f"the page {frame.family} of miniwob went somewhere else")
        frame.uses = uses
        return found

    def memory_mb(self) -> float:
        """Megabytes of all its processes, what they share counted once (0 where no /proc tells)."""
        return _memory_mb(self._running.group) if self._running else 0.0

    def pids(self) -> list[int]:
        """Its processes, the driver first."""
        return _members(self._running.group) if self._running else []

    def close(self) -> None:
        """Ends it; the next use starts another."""
        running, self._running, self._idle, self._used = self._running, None, [], 0
        if running is not None:
            running.end()

    def _start(self) -> None:
        if self._running is None:
            lack = chromium.missing()
            if lack:
                raise EnvError(lack)
            self._running = _Running(self._answer_s)
            self.life += 1
            weakref.finalize(self, self._running.end)

    def _run(self, function: str, what: str, *arguments: Any) -> Any:
        try:
            return self._running.call(function, arguments)
        except PageError as e:
            raise PageError(f"{what} of miniwob raised: {_first_line(e)}") from e
        except Exception as e:  # of selenium, urllib3, the operating system
            self.close()
            raise EnvError(f"the browser failed at {what} and was ended: {_first_line(e)}") from e


class _Running:
    """A driver and its browser, in one process group.

    Attributes:
      config: of the connection to the driver; its timeout is what ends a page that never returns.
    """

    def __init__(self, answer_s: float):
        self._owner = os.getpid()
        self._profile = tempfile.mkdtemp(prefix="miniwob-")
        self._process = self._watchman = None
        try:
            self._open(answer_s)
        except Exception as e:
            self.end()
            raise EnvError(f"Chromium cannot be started: {_misfit() or _first_line(e)}") from e

    def _open(self, answer_s: float) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.remote_connection import ChromeRemoteConnection
        from selenium.webdriver.common.proxy import Proxy, ProxyType
        from selenium.webdriver.remote.client_config import ClientConfig

        options = webdriver.ChromeOptions()
        options.binary_location = chromium.executable()
        for flag in chromium.flags(self._profile):
            options.add_argument(flag)
        url = f"http://127.0.0.1:{self._start()}"
        self.config = config = ClientConfig(
            url, proxy=Proxy({"proxyType": ProxyType.DIRECT}), timeout=max(answer_s, _START_S)
        )
        connection = ChromeRemoteConnection(url, client_config=config)
        self._driver = driver = webdriver.Remote(command_executor=connection, options=options)
        driver.get((HERE / "shell.html").as_uri())
        source = (HERE / "clock.js").read_text(encoding="utf-8")
        self._devtools("Page.addScriptToEvaluateOnNewDocument", source=source)
        driver.execute_script((HERE / "page.js").read_text(encoding="utf-8"))
        # Behind another tab nothing is painted, which with many frames takes longer than all that the pages do
        # themselves; they are told that they are in front and have the focus.
        self._devtools("Target.createTarget", url="about:blank", background=False)
        self._devtools("Emulation.setFocusEmulationEnabled", enabled=True)
        config.timeout = answer_s

    def _start(self) -> int:
        """Starts watchman and driver; returns the port that the driver took."""
        self._watchman = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", self._profile],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _DRIVE, "sh", chromium.driver()],
            stdin=self._watchman.stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # The clock stands at one day of local time: pages draw their dates from it.
            env={**os.environ, "BREAKPAD_DUMP_LOCATION": self._profile, "TZ": "UTC"},
        )
        said, end = b"", time.monotonic() + _START_S
        while (found := _PORT.search(said)) is None:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise EnvError(f"its driver took no port in {_START_S:.0f} s")
            more = os.read(self._process.stdout.fileno(), 4096)
            if not more:
                raise EnvError(f"its driver {chromium.driver()} ended before it took a port")
            said += more
        return int(found[1])

    @property
    def group(self) -> int:
        """The process group of driver and browser."""
        return self._process.pid

    def call(self, function: str, arguments: tuple) -> Any:
        """Calls ``pages.FUNCTION`` and waits for what it promises.

        By DevTools: before a script of its own the driver asks every frame whether it is still loading, which took
        ten times as long with a hundred of them.

        Raises:
          PageError: it raised.
        """
        said = self._devtools(
            "Runtime.evaluate",
            expression=f"pages.{function}(...{json.dumps(arguments)})",
            returnByValue=True,
            awaitPromise=True,
        )
        raised = said.get("exceptionDetails")
        if raised:
            what = raised.get("exception", {}).get("description") or raised.get("text", "an error")
            raise PageError(what)
        return said["result"].get("value")

    def collect(self) -> None:
        """Lets go of what ended pages held, which the browser does at its leisure."""
        self._devtools("HeapProfiler.collectGarbage")

    def _devtools(self, command: str, **params: Any) -> dict:
        return self._driver.execute("executeCdpCommand", {"cmd": command, "params": params})[
            "value"
        ]

    def end(self) -> None:
        """Kills all of it and removes its files; may be called again, and does nothing in a fork."""
        if os.getpid() != self._owner:
            return
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_REAPED_S)
            process.stdout.close()
        watchman, self._watchman = self._watchman, None
        if watchman is not None:
            with contextlib.suppress(OSError):
                watchman.stdin.write(b"over\n")
                watchman.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                watchman.wait(_REAPED_S)
        shutil.rmtree(self._profile, ignore_errors=True)


def _misfit() -> str:
    """What is wrong with the two programs themselves, or nothing."""
    try:
        chromium.versions()
    except ValueError as e:
        return str(e)
    return ""


def _first_line(error: BaseException) -> str:
    text = str(getattr(error, "msg", "") or error)
    first = (text.strip().splitlines() or [""])[0].strip()
    return f"{first:.200}" if first else one_line(error)[:200]


def _members(group: int) -> list[int]:
    """Processes of a group, as /proc lists them."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in "ZX":
                found.append(int(stat.parent.name))
    return sorted(found, key=lambda pid: (pid != group, pid))  # numbers start again at some time


def _memory_mb(group: int) -> float:
    total = 0
    for pid in _members(group):
        with contextlib.suppress(OSError):
            for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024
