"""Where ALFRED's records lie: the published folder ``json_2.1.0``, or JSON lines, one file a split.

Records are given one by one and as text, so that memory stays flat and other processes can decode
them.  What cannot be read is a record too: it says where it lies and why.
"""

from __future__ import annotations

import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from evolving_rl_jax.envs.alfworld.alfred.trial import RecordError, Trial, parse_trial
from evolving_rl_jax.envs.alfworld.folder import SPLITS
from evolving_rl_jax.envs.base import TaskError

__all__ = ["Raw", "find_files", "parse", "read_records"]

RELEASE = "json_2.1.0"
_FILE = "traj_data.json"
_SUFFIXES = (".jsonl", ".jsonl.gz")
_WANTED = (
    f"the folder {RELEASE} of ALFRED (SPLIT/TASK/TRIAL/{_FILE}), or JSON lines of its records in "
    f"files named after their split ({', '.join(SPLITS)} with {' or '.join(_SUFFIXES)})"
)


class Raw(NamedTuple):
    """A record that is not decoded yet.

    Attributes:
      split: of ALFRED.
      name: ``TASK/TRIAL`` where its folder says it, otherwise "".
      where: file, and line of it, for messages.
      text: its JSON; None = ``where`` is the file to read.
      error: why there is nothing to decode, or "".
    """

    split: str
    name: str
    where: str
    text: str | None
    error: str = ""


def find_files(sources: Sequence[str]) -> list[tuple[str, pathlib.Path]]:
    """(split, file or folder of a split) of the sources, training first.

    Raises:
      TaskError: a source holds no records of ALFRED, or a split is given twice.
    """
    if not sources:
        raise TaskError(f"--source must be {_WANTED}; found none")
    found = [pair for source in sources for pair in _of_source(pathlib.Path(source))]
    for split in SPLITS:
        paths = [str(path) for name, path in found if name == split]
        if len(paths) > 1:
            raise TaskError(f"--source must give each split once, found {split} in {paths}")
    return sorted(found, key=lambda pair: SPLITS.index(pair[0]))


def _of_source(source: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    if source.is_file():
        found = [_of_file(source)]
    else:
        root = source / RELEASE if (source / RELEASE).is_dir() else source
        found = [(split, root / split) for split in SPLITS if (root / split).is_dir()]
        files = sorted(source.glob("*.jsonl*")) if source.is_dir() and not found else []
        found = found or [_of_file(path) for path in files]
    if not any(found):
        inside = sorted(p.name for p in source.iterdir())[:10] if source.is_dir() else "no such"
        raise TaskError(f"--source must be {_WANTED}; found {inside} at {source}")
    for _, path in filter(None, found):
        _refuse_alfworld(path)
    return [pair for pair in found if pair]


def _of_file(path: pathlib.Path) -> tuple[str, pathlib.Path] | None:
    split, _, suffix = path.name.partition(".")
    return (split, path) if split in SPLITS and f".{suffix}" in _SUFFIXES else None


def _refuse_alfworld(folder: pathlib.Path) -> None:
    """ALFWorld's release has files of the same name in folders of the same names."""
    first = next(folder.glob(f"*/*/{_FILE}"), None) if folder.is_dir() else None
    alfworld = first is not None and any(
        (first.parent / name).exists() for name in ("game.tw-pddl", "initial_state.pddl")
    )
    if alfworld:
        raise TaskError(
            f"--source must be ALFRED's {RELEASE}, {folder} holds ALFWorld's games ({first.parent} "
            f"has game.tw-pddl or initial_state.pddl): index them with 'evolving-rl data alfworld'"
        )


def read_records(files: Sequence[tuple[str, pathlib.Path]]) -> Iterator[Raw]:
    """All records, in the order of the files and of their lines or names."""
    for split, path in files:
        yield from _of_folder(split, path) if path.is_dir() else _lines(split, path)


def _of_folder(split: str, folder: pathlib.Path) -> Iterator[Raw]:
    for task in sorted(p for p in folder.iterdir() if p.is_dir()):
        for trial in sorted(p for p in task.iterdir() if p.is_dir()):
            error = "" if (trial / _FILE).is_file() else f"must have {_FILE}, found none"
            yield Raw(split, f"{task.name}/{trial.name}", str(trial / _FILE), None, error)


def _lines(split: str, path: pathlib.Path) -> Iterator[Raw]:
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    text = line.decode("utf-8", errors="replace")
                    yield Raw(split, "", f"{path}:{number}", text)
    except (EOFError, OSError, zlib.error) as error:
        reason = f"must be readable to its end, {error}"
        yield Raw(split, "", f"{path}:{number + 1}", "", reason)


def parse(raw: Raw) -> Trial:
    """Decodes a record.

    Raises:
      RecordError: it is no record of ALFRED's; the message says why.
    """
    if raw.error:
        raise RecordError(raw.error)
    try:
        text = pathlib.Path(raw.where).read_text("utf-8") if raw.text is None else raw.text
        record: Any = json.loads(text)
    except (OSError, ValueError) as error:
        raise RecordError(f"must be whole JSON, {' '.join(str(error).split())}") from error
    return parse_trial(record, raw.split, raw.name)
