"""The command ``evolving-rl data alfworld``: from the official release to a folder to train on."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from evolving_rl_jax.envs.alfworld.archives import ArchiveError, download, extract
from evolving_rl_jax.envs.alfworld.folder import GAME_FILES, SPLITS
from evolving_rl_jax.envs.alfworld.index import (
    RELEASE,
    IndexReport,
    find_root,
    game_folders,
    index_games,
)
from evolving_rl_jax.envs.alfworld.tasks import INDEX, index_row
from evolving_rl_jax.envs.base import TaskError
from evolving_rl_jax.files import write_json

__all__ = ["CountsError", "prepare", "release_urls"]

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

    ``out`` then holds ``games.json`` (the index, written last: all that a task is, so that training
    reads no game folder for it) and, unless the source was a folder, ``games/`` (the unpacked games).

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
    if (out / INDEX).exists():
        raise FileExistsError(f"{out}: must not hold an index already, found {INDEX}")
    out = out.absolute()
    root = _root(sources, out, progress).absolute()
    with progress("reading games", len(game_folders(root))) as bar:
        tasks, report = index_games(root, bar)
    if report.differences and not allow_counts:
        raise CountsError(report)
    inside = root.is_relative_to(out)
    index = {
        "format": 2,
        "source": "alfworld",
        "root": str(root.relative_to(out) if inside else root),
        "report": dataclasses.asdict(report),
        "games": [index_row(task, root) for task in tasks],
    }
    write_json(out / INDEX, index, indent=1)
    if list(sources) == ["download"]:
        _drop_downloads(out / "downloads")
    return report


def _drop_downloads(folder: pathlib.Path) -> None:
    """Removes the archives that were fetched, and their folder where it holds nothing else."""
    for url in release_urls():
        (folder / url.rsplit("/", 1)[1]).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _root(sources: Sequence[str], out: pathlib.Path, progress: Progress) -> pathlib.Path:
    if not sources:
        value = os.environ.get("ALFWORLD_DATA")
        if not value:
            raise TaskError("--source must be given, or ALFWORLD_DATA be set; found neither")
        return find_root(pathlib.Path(value), "ALFWORLD_DATA")
    paths = [pathlib.Path(s) for s in sources]
    is_download = list(sources) == ["download"]
    if is_download:
        paths = [_downloaded(url, out / "downloads", progress) for url in release_urls()]
    elif len(paths) == 1 and not paths[0].is_file():
        return find_root(paths[0])
    for path in paths:
        if not path.is_file():
            raise TaskError(f"--source must be one folder, zip files or 'download', got {path}")
    for path in paths:
        try:
            unpack(path, out / _GAMES, progress)
        except ArchiveError as error:
            if not is_download:
                raise
            path.unlink()
            raise ArchiveError(f"{error}; the same command fetches it again") from error
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
        if at is None or parts[-1] not in GAME_FILES:
            return None
        return str(pathlib.PurePosixPath(*parts[at:]))

    if not zipfile.is_zipfile(archive):
        raise ArchiveError(f"{archive}: must be a whole zip file, found something else")
    with progress(f"unpacking {archive.name}") as bar:
        if not extract(archive, out, place, bar):
            raise ArchiveError(
                f"{archive}: must hold {' or '.join(GAME_FILES)} below {', '.join(SPLITS)}, found none"
            )
