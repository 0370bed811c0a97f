"""What lies outside a run folder and decides its numbers: where it is, and a hash of what it held.

``inputs.json`` in the run folder has both for every folder that the configuration names.  A folder
may move (an override says where to); other content is another run.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from evolving_rl_jax.config import FOLDERS, ConfigError, flat, from_json
from evolving_rl_jax.files import write_json
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.types import Task

__all__ = ["check_inputs", "folder_hash", "keep_inputs", "tasks_hash"]

FILE = "inputs.json"
_OWN = "env.name"
_WHOLE_BYTES = 64 << 20  # of a file that is hashed from end to end
_HEAD_BYTES, _BLOCKS, _BLOCK_BYTES = 4 << 20, 256, 1 << 14  # of a larger one

Inputs = dict[str, dict[str, str]]


def check_inputs(config, folder: RunFolder, tasks: Sequence[Task]) -> Inputs:
    """Compares what the folders of a configuration hold with what they held when the run began.

    Args:
      config: of the run.
      folder: the run folder.  Where nothing is going to be trained, the tasks alone are compared: a
        policy of another folder may be measured on them.
      tasks: those of ``config.data.games``, or generated ones, which are no input.

    Returns:
      What `keep_inputs` writes.

    Raises:
      ConfigError: one holds something else.
    """
    found = {}
    for key, path in _given(config).items():
        if key == "data.games":
            found[key] = {"path": path, "hash": tasks_hash(tasks)}
        elif folder.trains:
            found[key] = {"path": path, "hash": folder_hash(pathlib.Path(path))}
    known = _read(folder.path / FILE)
    for key, now in found.items():
        before = known.get(key) or _unhashed(folder, key)
        if before and before["path"] != now["path"] and "hash" not in before:
            raise ConfigError(
                f"--workdir must be a run of this config, got {str(folder.path)!r} where {key} is "
                f"{before['path']!r} and not {now['path']!r}; use another folder"
            )
        if before and before.get("hash", now["hash"]) != now["hash"]:
            raise ConfigError(
                f"config.{key} must hold what it held when the run {str(folder.path)!r} began (in "
                f"{before['path']!r}), got something else in {now['path']!r}; where that has moved, "
                f"--config.{key}=DIR finds it"
            )
    if ":" in config.env.name:  # an environment of one's own: its tasks are in no folder
        found[_OWN] = now = {"path": config.env.name, "hash": tasks_hash(tasks)}
        if known.get(_OWN, now)["hash"] != now["hash"]:
            raise ConfigError(
                f"config.env.name must have the tasks that it had when the run {str(folder.path)!r} began, "
                f"got others (by id, split or content) from {config.env.name!r}; use another folder"
            )
    return found


def keep_inputs(folder: RunFolder, inputs: Inputs) -> None:
    """Writes what `check_inputs` found, once the run folder is made; readers write nothing."""
    if inputs and folder.trains and folder.writes:
        write_json(folder.path / FILE, inputs, indent=1)


def tasks_hash(tasks: Sequence[Task]) -> str:
    """Hash of tasks by id, split and content, wherever they lie and however they are indexed."""
    lines = sorted(f"{t.id}\t{t.split}\t{t.content_hash}" for t in tasks)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def folder_hash(folder: pathlib.Path) -> str:
    """Hash of the files of a model folder: names, sizes and bytes; hidden files and notes left out.

    A model that is one file is hashed without its name.

    Of files above 64 MiB the first 4 MiB and 256 blocks spread over the whole are read: weights that
    were trained differ everywhere, and tens of gigabytes need not be read at every start.
    """
    digest = hashlib.sha256()
    if folder.is_file():
        _add(digest, folder, "")
        return digest.hexdigest()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and _counts(p, folder)):
        _add(digest, path, path.relative_to(folder).as_posix())
    return digest.hexdigest()


def _add(digest, path: pathlib.Path, name: str) -> None:
    size = path.stat().st_size
    digest.update(f"{name}\0{size}\0".encode())
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
            return
        digest.update(file.read(_HEAD_BYTES))
        for block in range(_BLOCKS):
            file.seek(size * block // _BLOCKS)
            digest.update(file.read(_BLOCK_BYTES))


def _counts(path: pathlib.Path, folder: pathlib.Path) -> bool:
    parts = path.relative_to(folder).parts
    return path.suffix != ".md" and not any(part.startswith(".") for part in parts)


def _given(config) -> dict[str, str]:
    """Key -> path of the folders (or files) that a configuration names; any other name is a hub id."""
    values = flat(config)
    return {key: values[key] for key in FOLDERS if values[key] and os.path.exists(values[key])}


def _read(path: pathlib.Path) -> Inputs:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ConfigError(f"{path} must be what a run has written, got {error}") from error


def _unhashed(folder: RunFolder, key: str) -> dict[str, Any]:
    """Where a folder was in a run of an earlier version, which kept no hashes."""
    if not folder.config_file.is_file():
        return {}
    path = flat(from_json(folder.config_file))[key]
    return {"path": os.path.abspath(path)} if path else {}
