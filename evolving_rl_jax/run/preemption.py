"""Notices that this machine is about to be taken away, so that a run can save itself in time.

A notice is SIGTERM (SLURM, Kubernetes, a spot machine that shuts down) or, on Google Cloud, an
announced maintenance event or preemption, which the metadata server tells before the signal comes.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import urllib.request

log = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h, "try again later": the launchers start the same command again.
EXIT_AGAIN = 75

# Path below computeMetadata/v1/instance -> value that is no notice.
_METADATA = {"maintenance-event": "NONE", "preempted": "FALSE"}
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


class Preemption:
    """Whether a notice has come.

    Until `defer` is called a signal raises `Preempted` where it arrives, which is right while there
    is nothing to save: every file is written whole or not at all.  Afterwards it only sets
    ``reason``, and the run saves itself at the next place where it can.

    Attributes:
      reason: what the notice was; empty = none.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._deferred = False
        self._stopped = threading.Event()
        self._old_handler = None

    def __bool__(self) -> bool:
        return bool(self.reason)

    def install(self) -> Preemption:
        """Takes SIGTERM over (main thread only), and on Google Cloud watches the metadata server."""
        self._old_handler = signal.signal(signal.SIGTERM, self._on_signal)
        host = metadata_host(os.environ)
        for path, nothing in _METADATA.items() if host else ():
            url = f"http://{host}/computeMetadata/v1/instance/{path}"
            watch = threading.Thread(target=self._watch, args=(url, nothing), daemon=True)
            watch.start()
        return self

    def close(self) -> None:
        """Gives SIGTERM back and ends the watching."""
        self._stopped.set()
        if self._old_handler is not None:
            signal.signal(signal.SIGTERM, self._old_handler)
            self._old_handler = None

    def __enter__(self) -> Preemption:
        return self.install()

    def __exit__(self, *_exc) -> None:
        self.close()

    def defer(self) -> None:
        """From here on there is something to save."""
        self._deferred = True
        self.check()

    def check(self) -> None:
        """Raises `Preempted` when a notice has come; for places with nothing to save."""
        if self.reason:
            raise Preempted(self.reason)

    def notice(self, reason: str) -> None:
        """Records the first notice."""
        self.reason = self.reason or reason

    def _on_signal(self, number: int, _frame) -> None:
        self.notice(signal.Signals(number).name)
        if not self._deferred:
            raise Preempted(self.reason)

    def _watch(self, url: str, nothing: str) -> None:
        """Waits for the value at ``url`` to become something else; the server answers on a change."""
        wait = ""
        while not self._stopped.is_set():
            try:
                request = urllib.request.Request(url + wait, headers={"Metadata-Flavor": "Google"})
                with urllib.request.urlopen(request, timeout=90) as reply:
                    value = reply.read().decode().strip()
            except (OSError, ValueError) as e:
                log.debug("metadata server: %s", e)
                self._stopped.wait(_RETRY_S)
                continue
            if value.upper() != nothing:
                self.notice(f"{url.rsplit('/', 1)[1]} {value}")
                return
            wait = "?wait_for_change=true&timeout_sec=60"


def raise_if_preempted(hosts, preemption: Preemption) -> None:
    """Raises `Preempted` on every host when a notice has come to any; all hosts must call it."""
    reasons = [reason for reason in hosts.gather(preemption.reason) if reason]
    if reasons:
        raise Preempted(reasons[0], agreed=True)


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
