"""Reads Mind2Web's own JSON files: folders, or the password-protected archive of the test splits.

The files are large (hundreds of megabytes), so they are streamed: one task is in memory at a time, and
an archive is read in place, never unpacked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

__all__ = ["DataError", "SourceFile", "download", "find_files"]

SPLITS = ("train", "test_task", "test_website", "test_domain")
# Splits that generated data has besides: demonstrations, and past experience on the sites of the tests.
OTHER_SPLITS = ("warmstart", "test_website_sources", "test_domain_sources")
# Tasks of each split, in the first release and in the one that was cleaned later.
COUNTS = {
    "train": (1009,),
    "test_task": (252, 177),
    "test_website": (177, 142),
    "test_domain": (912, 694),
}
REPOSITORY = "osunlp/Mind2Web"
PASSWORD_VARIABLE = "MIND2WEB_PASSWORD"
_AES = 99  # compression method of the zip extension that the standard library cannot read


class DataError(ValueError):
    """A data file that cannot be used; the message names the file."""


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One JSON file of one split, perhaps inside an archive."""

    split: str
    path: pathlib.Path
    member: str = ""

    @property
    def name(self) -> str:
        """Path, and member of an archive."""
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @contextlib.contextmanager
    def open(self, password: str) -> Iterator[IO[bytes]]:
        """The file's bytes."""
        if not self.member:
            with self.path.open("rb") as stream:
                yield stream
            return
        with zipfile.ZipFile(self.path) as archive:
            try:
                stream = archive.open(self.member, pwd=password.encode() or None)
            except (RuntimeError, NotImplementedError) as error:
                raise DataError(f"{self.name}: {self._reason(archive, password)}") from error
            with stream:
                yield stream

    def _reason(self, archive: zipfile.ZipFile, password: str) -> str:
        if archive.getinfo(self.member).compress_type == _AES:
            return "is encrypted with AES; unpack it first and give the folder as --source"
        if password:
            return "the password must be the archive's, got another one"
        return f"needs the archive's password: give --password or set {PASSWORD_VARIABLE}"

    def tasks(self, password: str = "") -> Iterator[Any]:
        """The objects of the file, one after the other.

        Raises:
          DataError: the file is no JSON list, is broken or ends early; names file and position.
        """
        import ijson

        count = 0
        try:
            with self.open(password) as stream:
                parser = ijson.parse(stream, use_float=True)
                first = next(parser, ("", "nothing", None))
                if first[1] != "start_array":
                    raise DataError(f"{self.name}: must be a JSON list of tasks, found {first[1]}")
                for task in _elements(parser):
                    yield task
                    count += 1
        except ijson.JSONError as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{self.name}: must be JSON to its end, found after {count} tasks: {reason}"
            ) from error
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{self.name}: cannot be read after {count} tasks: {reason}") from error


def _elements(events: Iterator[tuple[str, str, Any]]) -> Iterator[Any]:
    """The values of a list whose opening event is already taken."""
    from ijson.common import ObjectBuilder

    depth, builder = 0, None
    for _prefix, event, value in events:
        if depth == 0 and event == "end_array":
            return
        builder = builder or ObjectBuilder()
        builder.event(event, value)
        depth += event in ("start_map", "start_array")
        depth -= event in ("end_map", "end_array")
        if depth == 0:
            yield builder.value
            builder = None


_NO_TASKS = ("dataset_info.json", "dataset_dict.json", "state.json")


def find_files(source: str | pathlib.Path) -> list[SourceFile]:
    """The JSON files of all splits below a folder or inside a zip archive, in a fixed order.

    A file belongs to the split that a folder on its path, or the beginning of its own name, is named
    after (``train/train_3.json``).  Archives inside a folder are looked into.

    Raises:
      DataError: nothing is found, or an archive cannot be read.
    """
    root = pathlib.Path(source)
    if not root.exists():
        raise DataError(f"{root}: must be a folder or a zip file of Mind2Web, found nothing there")
    paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    files = []
    for path in paths:
        if path.suffix == ".zip":
            files += _archive_files(path)
        elif path.suffix == ".json":
            relative = path.relative_to(root) if path != root else pathlib.Path(path.name)
            split = _split_of(relative.parts)
            files += [SourceFile(split, path)] if split else []
    unpacked = {f.split for f in files if not f.member}
    files = [f for f in files if not f.member or f.split not in unpacked]
    if not files:
        raise DataError(
            f"{root}: must hold JSON files of {', '.join(SPLITS)} (train/train_0.json, ...), found none"
        )
    return sorted(files, key=lambda f: (f.split, _natural(f.name)))


def _archive_files(path: pathlib.Path) -> list[SourceFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: must be a zip archive, found {error}") from error
    members = [(_split_of(pathlib.PurePosixPath(n).parts), n) for n in names if n.endswith(".json")]
    return [SourceFile(split, path, name) for split, name in members if split]


def _split_of(parts: tuple[str, ...]) -> str:
    # What macOS and the library `datasets` put beside the data.
    if parts[-1].startswith(".") or "__MACOSX" in parts or parts[-1] in _NO_TASKS:
        return ""
    known = sorted((*SPLITS, *OTHER_SPLITS), key=len, reverse=True)
    for part in (*parts[-2::-1], parts[-1].removesuffix(".json").rstrip("0123456789").rstrip("_")):
        if part in known:
            return part
    return ""


def _natural(name: str) -> list:
    """Sorts ``train_10`` after ``train_9``."""
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return ["".join(c for c in name if not c.isdigit()), [int(d) for d in digits]]


def download() -> pathlib.Path:
    """Fetches the data set from the Hugging Face hub into its cache.

    Raises:
      DataError: the hub cannot be reached, or its package is not installed.
    """
    start = f"--source=download fetches {REPOSITORY} from the Hugging Face hub"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise DataError(
            f"{start}, which needs the package huggingface_hub: not installed"
        ) from None
    try:
        patterns = ["data/*", "*.zip", "*.json"]
        return pathlib.Path(
            snapshot_download(REPOSITORY, repo_type="dataset", allow_patterns=patterns)
        )
    except Exception as error:  # no network, no permission, no space: each is its own class
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(
            f"{start}, which failed ({reason}); with the files at hand give their folder as --source"
        ) from error
