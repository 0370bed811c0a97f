"""The command ``evolving-rl data alfworld``: from the official release to a folder to train on."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from evolving_rl_jax.envs.alfworld.archives import ArchiveError, download, extract
from evolving_rl_jax.envs.alfworld.folder import SPLITS, TaskError
from evolving_rl_jax.envs.alfworld.index import RELEASE, IndexReport, find_root, index_games
from evolving_rl_jax.files import write_json
from evolving_rl_jax.types import Task

__all__ = ["CountsError", "prepare", "release_urls"]

_FILES = ("traj_data.json", "game.tw-pddl")
_URLS = ("JSON_FILES_URL", "TW_PDDL_FILES_URL")  # names in the package's download script
_GAMES = "games"  # folder of unpacked games

# A bar: title and size -> context of a function of the number done so far.
Progress = Callable[..., AbstractContextManager[Callable[[int], None]]]


class CountsError(ValueError):
    """The games differ from the official release in number; the report is in ``report``."""

    def __init__(self, report: IndexReport):
        super().__init__("; ".join(report.differences))
        self.report = report


def prepare(
    sources: Sequence[str], out: pathlib.Path, *, progress: Progress, allow_counts: bool = False
) -> IndexReport:
    """Indexes the official games and writes what training reads.

    ``out`` then holds ``games.json`` (the index, written last), ``tfds/`` (the data set of the
    splits) and, unless the source was a folder, ``games/`` (the unpacked games).

    Args:
      sources: one folder, or zip files, or ``download``; none = the folder ``$ALFWORLD_DATA``.
      out: folder to write.
      progress: makes progress bars.
      allow_counts: write although the numbers of games are not those of the release.

    Raises:
      TaskError, ArchiveError, DownloadError, FileExistsError: see where they are defined; nothing
        but unpacked games has been written.
      CountsError: the numbers differ and that is not allowed; the same holds.
    """
    if (out / "games.json").exists():
        raise FileExistsError(f"{out}: must not hold an index already, found games.json")
    root = _root(sources, out, progress)
    folders = sum(1 for split in SPLITS for _ in (root / split).rglob("traj_data.json"))
    with progress("reading games", folders) as bar:
        splits, sizes, report = index_games(root, bar)
    if report.differences and not allow_counts:
        raise CountsError(report)
    out.mkdir(parents=True, exist_ok=True)
    dataset = write_dataset(splits, out)
    _write_index(out, root, dataset, splits, sizes, report)
    shutil.rmtree(out / "downloads", ignore_errors=True)
    return report


def _root(sources: Sequence[str], out: pathlib.Path, progress: Progress) -> pathlib.Path:
    if not sources:
        value = os.environ.get("ALFWORLD_DATA")
        if not value:
            raise TaskError("--source must be given, or ALFWORLD_DATA be set; found neither")
        return find_root(pathlib.Path(value), "ALFWORLD_DATA")
    paths = [pathlib.Path(s) for s in sources]
    if list(sources) == ["download"]:
        paths = [_downloaded(url, out / "downloads", progress) for url in release_urls()]
    elif len(paths) == 1 and not paths[0].is_file():
        return find_root(paths[0])
    for path in paths:
        if not path.is_file():
            raise TaskError(f"--source must be one folder, zip files or 'download', got {path}")
    for path in paths:
        unpack(path, out / _GAMES, progress)
    return find_root(out / _GAMES, f"--source {', '.join(map(str, sources))}")


def release_urls() -> list[str]:
    """Addresses of the release, as the download script of the installed package names them.

    Raises:
      TaskError: the package is not installed, or its script names none.
    """
    try:
        files = importlib.metadata.files("alfworld") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    script = next((f for f in files if f.name == "alfworld-download"), None)
    text = pathlib.Path(script.locate()).read_text(encoding="utf-8") if script else ""
    urls = [re.search(rf'^{name} = "(.+)"$', text, re.M) for name in _URLS]
    if None in urls:
        raise TaskError(
            f"--source=download needs the script alfworld-download of the alfworld package, which "
            f"must name {' and '.join(_URLS)}; found {'it without them' if text else 'none'}"
        )
    return [match[1] for match in urls]


def _downloaded(url: str, folder: pathlib.Path, progress: Progress) -> pathlib.Path:
    name = url.rsplit("/", 1)[1]
    with progress(f"downloading {name} (MB)") as bar:
        return download(url, folder, lambda done, _size: bar(done // 1_000_000))


def unpack(archive: pathlib.Path, out: pathlib.Path, progress: Progress) -> None:
    """Unpacks the game files of an official zip into ``out/SPLIT/...``.

    Raises:
      ArchiveError: see ``archives.extract``; also a zip of another release or without games.
    """

    def place(name: str) -> str | None:
        parts = pathlib.PurePosixPath(name).parts
        release = next((p for p in parts if re.match(r"json_(feat_)?\d", p)), RELEASE)
        if not re.match(r"json_2\.1\.", release):
            raise ArchiveError(f"{archive}: members must be of {RELEASE}, found {name!r}")
        at = next((i for i, part in enumerate(parts) if part in SPLITS), None)
        if at is None or parts[-1] not in _FILES:
            return None
        return str(pathlib.PurePosixPath(*parts[at:]))

    if not zipfile.is_zipfile(archive):
        raise ArchiveError(f"{archive}: must be a whole zip file, found something else")
    with progress(f"unpacking {archive.name}") as bar:
        if not extract(archive, out, place, bar):
            raise ArchiveError(
                f"{archive}: must hold {' or '.join(_FILES)} below {', '.join(SPLITS)}, found none"
            )


def write_dataset(splits: Mapping[str, Sequence[Task]], out: pathlib.Path) -> pathlib.Path:
    """Prepares the TFDS data set of the splits below ``out/tfds``; returns its folder."""
    import tensorflow_datasets as tfds

    from evolving_rl_jax.envs.alfworld.tfds.alfworld_games import Builder

    folder = out / "tfds"
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that did not end
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(None):
        builder = Builder(tasks=splits, data_dir=str(folder), file_format="array_record")
        builder.download_and_prepare()
    shutil.rmtree(folder / "downloads", ignore_errors=True)  # empty: TFDS makes it all the same
    return pathlib.Path(builder.data_dir)


def _write_index(
    out: pathlib.Path,
    root: pathlib.Path,
    dataset: pathlib.Path,
    splits: Mapping[str, Sequence[Task]],
    sizes: Mapping[str, int],
    report: IndexReport,
) -> None:
    inside = root.is_relative_to(out)
    index: dict[str, Any] = {
        "format": 1,
        "source": "alfworld",
        "root": str(root.relative_to(out) if inside else root.absolute()),
        "dataset": str(dataset.relative_to(out)),
        "report": dataclasses.asdict(report),
        "games": [
            {
                "id": task.id,
                "split": split,
                "task_type": task.task_type,
                "path": task.path,
                "content_hash": task.content_hash,
                "size": sizes[task.path],
            }
            for split, tasks in splits.items()
            for task in tasks
        ],
    }
    write_json(out / "games.json", index, indent=1)
