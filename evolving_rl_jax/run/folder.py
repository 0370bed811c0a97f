"""The run folder: what is in it, and whether it belongs to this configuration.

``config.json  inputs.json  metrics.jsonl  checkpoints/  warmstart/  skills/bank.jsonl  episodes/*.jsonl.gz  eval/*.json
report.html``, plus ``games/`` and ``tokenizer/`` when the run made its own, and ``train.lock``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import json
import os
import pathlib
import socket
from collections.abc import Iterator, Mapping
from typing import TextIO

from evolving_rl_jax import config as config_lib
from evolving_rl_jax.files import write_atomic
from evolving_rl_jax.run.console import say

LOCK = "train.lock"


class RunFolder:
    """A run folder.  Opening it changes nothing; :meth:`begin` makes it the folder of ``config``.

    Args:
      workdir: the folder.
      config: of the run that will write to it; None to read a run that is there.
      writes: False in all processes of a run but one: they leave the writing to it.
      moved: where folders that the configuration names lie now, {key of it: path}, to read a run.

    Raises:
      ConfigError: the folder holds a run of another configuration, or something else.
    """

    def __init__(
        self,
        workdir: str,
        config=None,
        *,
        writes: bool = True,
        moved: Mapping[str, str] | None = None,
    ):
        if not workdir:
            raise config_lib.ConfigError("--workdir must be a folder, got ''")
        self.writes = writes
        self.path = pathlib.Path(workdir).absolute()
        self.config_file = self.path / "config.json"
        self._config, self._moved = config, dict(moved or {})
        self._held = False
        if config is None:
            return
        if self.path.exists() and not self.path.is_dir():
            raise config_lib.ConfigError(f"--workdir must be a folder, got the file {workdir!r}")
        if self.config_file.exists():
            self._check(config)
        elif self.path.exists() and any(p.name != LOCK for p in self.path.iterdir()):
            raise config_lib.ConfigError(
                f"--workdir must be new, empty or a run folder, got {workdir!r} with files but no "
                "config.json"
            )

    def _check(self, config) -> None:
        saved = config_lib.from_json(self.config_file)
        difference = config_lib.first_difference(saved, config)
        if difference:
            key, old, new = difference
            raise config_lib.ConfigError(
                f"--workdir must be a run of this config, got {str(self.path)!r} where {key} is "
                f"{old!r} and not {new!r}; use another folder"
            )
        change = config_lib.schedule_change(saved, config)
        if change:
            raise config_lib.ConfigError(
                f"config.train.num_iterations must keep the schedule of {str(self.path)!r}: {change}"
            )

    @property
    def trains(self) -> bool:
        """Whether the folder was opened to train in it, and not to read a run."""
        return self._config is not None

    @property
    def has_weights(self) -> bool:
        """Whether something in it was trained."""
        folders = self.path / "checkpoints", self.path / "warmstart"
        return any(f.is_dir() and any(f.iterdir()) for f in folders)

    def begin(self) -> None:
        """Makes the folder and writes the configuration, once everything else has been checked.

        Raises:
          ConfigError: the folder cannot be written.
        """
        if self._config is None or not self.writes:
            return
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.config_file, config_lib.to_json(self._config))

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keeps other processes from training in the folder at the same time; makes it if need be.

        The lock ends with this process, however it ends; ``train.lock`` stays and says who holds it.
        Where the file system has no locks, that is said and nothing is kept.  A folder that was made
        for the lock and holds nothing else in the end is gone again.  Who holds it may hold it again.

        By hand and not by the filelock package: its releases differ in whether they empty the file,
        which must tell the holder's name, and it falls back to a mark that outlives its process.

        Raises:
          ConfigError: another process trains in the folder, or the folder cannot be written.
        """
        if not self.writes or self._held:
            yield
            return
        missing = [p for p in (self.path, *self.path.parents) if not p.exists()]
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / LOCK, "a+", encoding="utf-8")
        try:
            with file, self._locked(file):
                yield
        finally:
            if missing and [p.name for p in self.path.iterdir()] == [LOCK]:
                (self.path / LOCK).unlink()
                with contextlib.suppress(OSError):  # others have put something there
                    for folder in missing:
                        folder.rmdir()

    @contextlib.contextmanager
    def _locked(self, file: TextIO) -> Iterator[None]:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise config_lib.ConfigError(
                    f"--workdir must be a folder that nothing else trains in, got "
                    f"{str(self.path)!r}, where {holder} does"
                ) from None
            say(f"{self.path} cannot be locked ({e.strerror}): start nothing else in it")
            yield
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._held = True
        try:
            yield
        finally:
            self._held = False
            file.truncate(0)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise config_lib.ConfigError(
                f"--workdir must be a folder that can be written, got {str(self.path)!r} "
                f"({e.strerror})"
            ) from e

    def load_config(self):
        """The configuration that the run was started with.

        Raises:
          ConfigError: there is no readable config.json.
        """
        if not self.config_file.is_file():
            raise config_lib.ConfigError(
                f"--workdir must be a run folder with config.json, got {str(self.path)!r}"
            )
        return config_lib.with_moved(config_lib.from_json(self.config_file), self._moved)

    def eval_file(self, name: str, temperature: float) -> pathlib.Path:
        """Where the panel of a policy at a temperature is written."""
        return self.path / "eval" / f"{name}-t{temperature:g}.json"

    @property
    def bank_file(self) -> pathlib.Path:
        return self.path / "skills" / "bank.jsonl"

    def write_episodes(self, iteration: int, records: list[dict]) -> None:
        """Writes ``episodes/iteration_XXXXX.jsonl.gz``, one source a line."""
        if not self.writes:
            return
        text = "".join(json.dumps(r) + "\n" for r in records)
        path = self.path / "episodes" / f"iteration_{iteration:05d}.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        # mtime=0: the same episodes give the same bytes.  Level 9 takes nine times as long as 6 for
        # 4 % fewer bytes.
        write_atomic(path, gzip.compress(text.encode("utf-8"), compresslevel=6, mtime=0))


def check_unused(out: pathlib.Path) -> None:
    """Raises ConfigError unless the option ``--out`` names a new or empty folder that can be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise config_lib.ConfigError(f"--out must be a new or empty folder, got {str(out)!r}")
    above = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise config_lib.ConfigError(
            f"--out must be a folder that can be written, got {str(out)!r} below {str(above)!r}"
        )
