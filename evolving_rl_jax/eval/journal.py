"""What a long evaluation has played so far, so that the same command goes on where it was stopped."""

from __future__ import annotations

import json
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

from evolving_rl_jax.config import RESUMABLE, flat
from evolving_rl_jax.types import SCORED, Task


def play_settings(config) -> dict[str, Any]:
    """What of a configuration decides how a task is played, for `Journal`; not where and how fast.

    Returns:
      ``config.KEY`` -> value.
    """
    groups = "env", "rollout", "skills"
    chosen = {
        k: v for k, v in flat(config).items() if k.split(".")[0] in groups and k not in RESUMABLE
    }
    if config.eval.independent_rows:
        chosen["eval.independent_rows"] = config.eval.independent_rows
    return {f"config.{key}": value for key, value in sorted(chosen.items())}


class Journal:
    """Finished plays, one JSON line each, after a line with their settings.

    A play is a dict with at least ``id`` (of the task), ``seed``, ``condition`` and ``status``.

    Args:
      path: of the file; made with its folder.
      settings: what must be the same for plays to belong together, JSON values.
      durable: every play survives a power loss; else only the end of this process.

    Raises:
      ValueError: the file holds plays of other settings, or is no such file.
    """

    def __init__(
        self, path: str | os.PathLike[str], settings: Mapping[str, Any], *, durable: bool = True
    ):
        self.path, self._durable = pathlib.Path(path), durable
        self._settings = json.loads(json.dumps(settings))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = self.path.read_bytes() if self.path.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            warnings.warn(f"{self.path}: left out a torn last line", stacklevel=2)
            os.truncate(self.path, len(whole))
        found, self.plays = _parse(self.path, whole)
        if self.plays:
            self._check(found)
        elif found != self._settings:
            self.path.unlink(missing_ok=True)
            self._append({"settings": self._settings})

    def _check(self, found) -> None:
        for key in sorted({*found, *self._settings}):
            if found.get(key) != self._settings.get(key):
                raise ValueError(
                    f"{self.path} must hold plays of the same {key}, got {found.get(key)!r} and not "
                    f"{self._settings.get(key)!r}; use another folder or remove the file"
                )

    def read_along(self, path: pathlib.Path) -> None:
        """Takes the plays of another journal, which is left as it is; those of other settings are not."""
        try:
            data = path.read_bytes()
            found, plays = _parse(path, data[: data.rfind(b"\n") + 1])
        except (FileNotFoundError, ValueError):
            return
        if found == self._settings:
            self.plays = plays | self.plays

    def add(self, play: Mapping[str, Any]) -> None:
        """Keeps a play."""
        self._append(play)
        self.plays[play["id"], play["seed"], play["condition"]] = dict(play)

    def done(self, task: Task, seed: int, condition: str) -> bool:
        """Whether that game is there and counts."""
        play = self.plays.get((task.id, seed, condition))
        return play is not None and play["status"] in SCORED

    def _append(self, record) -> None:
        with open(self.path, "ab") as file:
            file.write(json.dumps(record, default=_plain).encode() + b"\n")
            file.flush()
            if self._durable:
                os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # a numpy scalar
        return value.item()
    raise TypeError(f"a value of type {type(value).__name__}")


def _parse(path: pathlib.Path, whole: bytes) -> tuple[Any, dict[tuple[str, int, str], dict]]:
    """(settings, plays) of whole lines; ValueError when they are something else."""
    found, plays = None, {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            if number == 1:
                found = record["settings"]
            else:
                plays[record["id"], record["seed"], record["condition"]] = record
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__} in line {number}"
            raise ValueError(f"{path} must hold plays, got {reason}") from error
    return found, plays
