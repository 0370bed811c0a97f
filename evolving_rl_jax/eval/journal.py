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
    groups, free = ("env", "rollout", "skills"), (*RESUMABLE, "env.cache_dir")
    chosen = {k: v for k, v in flat(config).items() if k.split(".")[0] in groups and k not in free}
    return {f"config.{key}": value for key, value in sorted(chosen.items())}


class Journal:
    """Finished plays, one JSON line each, after a line with their settings.

    A play is a dict with at least ``id`` (of the task), ``seed``, ``condition`` and ``status``.

    Args:
      path: of the file; made with its folder.
      settings: what must be the same for plays to belong together, JSON values.

    Raises:
      ValueError: the file holds plays of other settings, or is no such file.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]):
        self.path = pathlib.Path(path)
        self.plays: dict[tuple[str, int, str], dict[str, Any]] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        settings, found = json.loads(json.dumps(settings)), None
        for number, line in enumerate(self._whole_lines(), 1):
            try:
                record = json.loads(line)
                if number == 1:
                    found = record["settings"]
                else:
                    self.plays[record["id"], record["seed"], record["condition"]] = record
            except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
                reason = f"{type(error).__name__} in line {number}"
                raise ValueError(f"{self.path} must hold plays, got {reason}") from error
        if self.plays:
            self._check(found, settings)
        elif found != settings:
            self.path.unlink(missing_ok=True)
            self._append({"settings": settings})

    def _whole_lines(self) -> list[bytes]:
        """The lines of the file, which is cut back to them."""
        data = self.path.read_bytes() if self.path.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            warnings.warn(f"{self.path}: left out a torn last line", stacklevel=3)
            os.truncate(self.path, len(whole))
        return whole.splitlines()

    def _check(self, found, settings) -> None:
        for key in sorted({*found, *settings}):
            if found.get(key) != settings.get(key):
                raise ValueError(
                    f"{self.path} must hold plays of the same {key}, got {found.get(key)!r} and not "
                    f"{settings.get(key)!r}; use another folder or remove the file"
                )

    def add(self, play: Mapping[str, Any]) -> None:
        """Keeps a play, durably."""
        self._append(play)
        self.plays[play["id"], play["seed"], play["condition"]] = dict(play)

    def done(self, task: Task, seed: int, condition: str) -> bool:
        """Whether that game is there and counts."""
        play = self.plays.get((task.id, seed, condition))
        return play is not None and play["status"] in SCORED

    def _append(self, record) -> None:
        with open(self.path, "ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
