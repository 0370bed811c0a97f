"""Starting a worker process: from a server that never imported jax, without the main script."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

__all__ = ["CONTEXT", "spawn"]

CONTEXT = multiprocessing.get_context("forkserver")

_LONGEST_SOCKET = 100  # bytes of a path that every system takes (104 with the end on macOS)


def spawn(
    target: Callable[..., None], arguments: Sequence[Any], preload: Sequence[str]
) -> BaseProcess:
    """Starts a process that ends with this one.

    Args:
      target: what it runs.
      arguments: of that.
      preload: modules that the server imports once for all of them; the first call decides.
    """
    _keep_sockets_short()
    CONTEXT.set_forkserver_preload(list(preload))
    process = CONTEXT.Process(target=target, args=tuple(arguments), daemon=True)
    with _main_module_hidden():
        process.start()
    return process


def _keep_sockets_short() -> None:
    """Has multiprocessing put its sockets into /tmp where $TMPDIR is too long a name for them."""
    longest = os.path.join(tempfile.gettempdir(), "pymp-xxxxxxxx", "listener-xxxxxxxx")
    if len(os.fsencode(longest)) <= _LONGEST_SOCKET:
        return
    chosen, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        multiprocessing.util.get_temp_dir()  # made once, used from then on, removed at the end
    finally:
        tempfile.tempdir = chosen


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keeps a new process from importing the main script, which may import jax."""
    main = sys.modules["__main__"]
    saved = {name: main.__dict__.get(name) for name in ("__file__", "__spec__")}
    try:
        main.__spec__ = None
        main.__dict__.pop("__file__", None)
        yield
    finally:
        main.__spec__ = saved["__spec__"]
        if saved["__file__"] is not None:
            main.__file__ = saved["__file__"]
