"""Notices that a run must end soon, so that it can save itself in time.

A notice is SIGTERM (SLURM, Kubernetes, a spot machine that shuts down), Ctrl-C, or, on Google Cloud, a
preemption, which the metadata server tells before the signal comes.  Maintenance is announced there up to
an hour ahead, and stands as long: that is a reason to save, not to end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

log = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h, "try again later": the launchers start the same command again.
EXIT_AGAIN = 75
# What a shell gives a program that Ctrl-C has ended: the launchers start nothing again.
EXIT_INTERRUPTED = 130

# Path below computeMetadata/v1/instance -> value that says nothing.
_MAINTENANCE = "maintenance-event"
_METADATA = {_MAINTENANCE: "NONE", "preempted": "FALSE"}
_RETRY_S = 5.0


class Preempted(BaseException):
    """The run was saved, or had nothing to save, and should be started again.

    Not an `Exception`: nothing that recovers from errors must swallow it.

    Args:
      reason: what the notice was.
      agreed: all processes of the run raise it now.
    """

    def __init__(self, reason: str, *, agreed: bool = False):
        super().__init__(reason)
        self.agreed = agreed

    @property
    def exit_code(self) -> int:
        """Of the program: start it again, or do not where a person has ended it."""
        return EXIT_INTERRUPTED if str(self) == signal.SIGINT.name else EXIT_AGAIN


class Preemption:
    """Whether a notice has come.

    Until `defer` is called a signal raises `Preempted` where it arrives, which is right while there
    is nothing to save: every file is written whole or not at all.  Afterwards it only sets
    ``reason``, and the run saves itself at the next place where it can; a second Ctrl-C ends it where
    it is all the same.

    Attributes:
      reason: what the notice was; empty = none.
      announced: maintenance that is to come; empty = none, or `take_announced` has told it.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.announced = ""
        self._deferred = False
        self._stopped = threading.Event()
        self._interrupts = 0
        self._old_handlers: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.reason)

    def install(self) -> Preemption:
        """Takes both signals over (main thread only); on Google Cloud watches the metadata server."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old_handlers[number] = signal.signal(number, self._on_signal)
        host = metadata_host(os.environ)
        for path, nothing in _METADATA.items() if host else ():
            url = f"http://{host}/computeMetadata/v1/instance/{path}"
            watch = threading.Thread(target=self._watch, args=(url, nothing), daemon=True)
            watch.start()
        return self

    def close(self) -> None:
        """Gives the signals back and ends the watching."""
        self._stopped.set()
        while self._old_handlers:
            signal.signal(*self._old_handlers.popitem())

    def __enter__(self) -> Preemption:
        return self.install()

    def __exit__(self, *_exc) -> None:
        self.close()

    def defer(self) -> None:
        """From here on there is something to save."""
        self._deferred = True
        self.check()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """`defer` for a while; what saves itself meanwhile asks `raise_if_preempted` where it can."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def check(self) -> None:
        """Raises `Preempted` when a notice has come; for places with nothing to save."""
        if self.reason:
            raise Preempted(self.reason)

    def notice(self, reason: str) -> None:
        """Records the first notice."""
        self.reason = self.reason or reason

    def take_announced(self) -> str:
        """What has been announced since this was last asked."""
        announced, self.announced = self.announced, ""
        return announced

    def _on_signal(self, number: int, _frame) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.notice(signal.Signals(number).name)
        if not self._deferred:
            raise Preempted(self.reason)
        if (
            self._interrupts
        ):  # not by way of a buffer, which the signal may have come in the middle of
            os.write(2, b"\nending in good order; Ctrl-C again ends at once\n")

    def _watch(self, url: str, nothing: str) -> None:
        """Takes what the value at ``url`` becomes; the server answers on a change."""
        wait, last = "", nothing
        while not self._stopped.is_set():
            try:
                request = urllib.request.Request(url + wait, headers={"Metadata-Flavor": "Google"})
                with urllib.request.urlopen(request, timeout=90) as reply:
                    value = reply.read().decode().strip()
            except (OSError, ValueError) as e:
                log.debug("metadata server: %s", e)
                self._stopped.wait(_RETRY_S)
                continue
            name, changed = url.rsplit("/", 1)[1], value.upper() not in (nothing, last)
            if changed and name != _MAINTENANCE:
                self.notice(f"{name} {value}")
                return
            if changed:
                self.announced = f"{name} {value}"
            wait, last = "?wait_for_change=true&timeout_sec=60", value.upper()


def raise_if_preempted(hosts, preemption: Preemption) -> None:
    """Raises `Preempted` on every host when a notice has come to any; all hosts must call it."""
    reasons = [reason for reason in hosts.gather(preemption.reason) if reason]
    if reasons:
        raise Preempted(reasons[0], agreed=True)


def announced(hosts, preemption: Preemption) -> str:
    """What has been announced to any host since the last call; all hosts must call it."""
    return next(filter(None, hosts.gather(preemption.take_announced())), "")


def metadata_host(environ, product_file: str = "/sys/class/dmi/id/product_name") -> str:
    """Where the metadata server of Google Cloud answers; empty on other machines."""
    if "GCE_METADATA_HOST" in environ:  # the name that Google's own libraries read
        return environ["GCE_METADATA_HOST"]
    try:
        with open(product_file, encoding="utf-8") as file:
            on_google = "Google" in file.read()
    except OSError:
        return ""
    return "metadata.google.internal" if on_google else ""
