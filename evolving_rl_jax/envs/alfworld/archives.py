"""Downloading and unpacking: resumable, and never a file outside the target folder."""

from __future__ import annotations

import pathlib
import re
import shutil
import stat
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable

from evolving_rl_jax.files import put, replacing

__all__ = ["ArchiveError", "DownloadError", "download", "extract"]

_CHUNK = 1 << 20
_TIMEOUT_S = 60.0


class ArchiveError(ValueError):
    """An archive that cannot be used; the message names it and the member."""


class DownloadError(OSError):
    """A file that could not be fetched; the message names the address."""


def extract(
    archive: pathlib.Path,
    out: pathlib.Path,
    place: Callable[[str], str | None],
    progress: Callable[[int], None] | None = None,
) -> int:
    """Unpacks the members that ``place`` puts somewhere.

    All names are checked before anything is written.  Files appear whole (written under another
    name, then renamed); those already there with the right size are left alone, so an interrupted
    extraction goes on where it was.

    Args:
      archive: a zip file.
      out: target folder.
      place: name of a member -> where it belongs, relative to ``out``; None leaves it out.
      progress: called with the number of members done so far.

    Returns:
      How many members belong in ``out``.

    Raises:
      ArchiveError: not a whole zip file, or a member that leaves the target folder, is a link, is
        encrypted, or is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            wanted = _checked_members(archive, file, place)
            for done, (member, target) in enumerate(wanted, start=1):
                _extract_one(archive, file, member, out / target)
                if progress:
                    progress(done)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ArchiveError(f"{archive}: must be a whole zip file, found: {error}") from error
    return len(wanted)


def _checked_members(archive, file, place) -> list[tuple[zipfile.ZipInfo, str]]:
    wanted = []
    for member in file.infolist():
        name = member.filename
        parts = re.split(r"[/\\]", name)
        outside = name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name)
        if outside or "\0" in member.orig_filename:
            raise ArchiveError(f"{archive}: members must stay in the target folder, found {name!r}")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ArchiveError(f"{archive}: members must be files, found the link {name!r}")
        if member.flag_bits & 1:
            raise ArchiveError(f"{archive}: members must not be encrypted, found {name!r}")
        target = None if member.is_dir() else place(name)
        if target is not None:
            wanted.append((member, target))
    return wanted


def _extract_one(archive, file, member: zipfile.ZipInfo, target: pathlib.Path) -> None:
    if target.is_file() and target.stat().st_size == member.file_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(target) as partial:
            with file.open(member) as source, partial.open("wb") as sink:
                shutil.copyfileobj(source, sink, _CHUNK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ArchiveError(
            f"{archive}: {member.filename!r} must be whole, found: {error}"
        ) from error


def download(
    url: str, folder: pathlib.Path, progress: Callable[[int, int | None], None] | None = None
) -> pathlib.Path:
    """Fetches a file; an interrupted download goes on where it was.

    Args:
      url: http, https or file address.
      folder: made when missing.
      progress: called with the bytes fetched so far and the whole size, if known.

    Returns:
      The path of the file.

    Raises:
      DownloadError: the address cannot be reached, or ends before the whole file is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / url.rsplit("/", 1)[1]
    partial = target.with_name(target.name + ".partial")
    if target.is_file():
        return target
    have = partial.stat().st_size if partial.is_file() else 0
    try:
        size = _fetch(url, partial, have, progress)
    except (OSError, urllib.error.URLError, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise DownloadError(f"{url} must be reachable, found: {reason}") from error
    got = partial.stat().st_size
    if size is not None and got != size:
        raise DownloadError(f"{url} must give {size} bytes, got {got}: the same command goes on")
    put(partial, target)
    return target


def _fetch(url: str, partial: pathlib.Path, have: int, progress) -> int | None:
    """Appends what is missing; returns the size of the whole file, None when it is not told."""
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range") or "")
        if error.code == 416 and whole and int(whole[1]) == have:
            return have  # nothing was missing but the last rename
        raise
    with response:
        if have and response.status != 206:  # the server sends the whole file again
            have = 0
        length = response.headers.get("Content-Length")
        size = have + int(length) if length else None
        with partial.open("ab" if have else "wb") as sink:
            while chunk := response.read(_CHUNK):
                sink.write(chunk)
                have += len(chunk)
                if progress:
                    progress(have, size)
    return size
