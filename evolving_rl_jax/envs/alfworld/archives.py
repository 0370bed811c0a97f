"""Downloading and unpacking: resumable, and never a file outside the target folder."""

from __future__ import annotations

import base64
import hashlib
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

    What is there already is kept only while the server says that its file is still the same one
    (``If-Range``, RFC 9110 13.1.5); otherwise the download starts anew.  A checksum that the server
    states is compared.

    Args:
      url: http, https or file address.
      folder: made when missing.
      progress: called with the bytes fetched so far and the whole size, if known.

    Returns:
      The path of the file.

    Raises:
      DownloadError: the address cannot be reached, ends before the whole file is there, or gives a
        file that differs from its checksum.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / url.rsplit("/", 1)[1]
    if target.is_file():
        return target
    partial = target.with_name(target.name + ".partial")
    version = target.with_name(target.name + ".version")  # of the file that the partial one is of
    try:
        size, checksums = _fetch(url, partial, version, progress)
    except (OSError, urllib.error.URLError, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise DownloadError(f"{url} must be reachable, found: {reason}") from error
    got = partial.stat().st_size
    if size is not None and got < size:
        raise DownloadError(f"{url} must give {size} bytes, got {got}: the same command goes on")
    wrong = _wrong_checksum(partial, checksums)
    if wrong or (size is not None and got > size):
        partial.unlink()
        version.unlink(missing_ok=True)
        found = wrong or f"{got} bytes and not {size}"
        raise DownloadError(
            f"{url} must give the file that it describes, got {found}: the same command starts anew"
        )
    put(partial, target)
    version.unlink(missing_ok=True)
    return target


def _fetch(url: str, partial: pathlib.Path, version: pathlib.Path, progress):
    """Appends what is missing; returns the size of the whole file (None when it is not told) and the
    checksums that the server states."""
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
        if version.is_file():
            request.add_header("If-Range", version.read_text(encoding="latin-1"))
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range") or "")
        if error.code == 416 and whole and int(whole[1]) == have:
            return have, _checksums(error.headers)  # nothing was missing but the last rename
        if error.code == 416 and have:  # of a file that was longer
            partial.unlink()
            return _fetch(url, partial, version, progress)
        raise
    with response:
        if have and response.status != 206:  # another file by now, or a server without ranges
            have = 0
        elif have and not _is_from(response.headers, have):
            raise OSError(f"a part that does not begin at byte {have}")
        _note_version(version, response.headers)
        length = response.headers.get("Content-Length")
        size = have + int(length) if length else None
        with partial.open("ab" if have else "wb") as sink:
            while chunk := response.read(_CHUNK):
                sink.write(chunk)
                have += len(chunk)
                if progress:
                    progress(have, size)
    return size, _checksums(response.headers)


def _is_from(headers, start: int) -> bool:
    """Whether a part of a file begins where it was asked to; servers that do not say are believed."""
    stated = re.match(r"bytes (\d+)-", headers.get("Content-Range") or "")
    return stated is None or int(stated[1]) == start


def _note_version(version: pathlib.Path, headers) -> None:
    """Keeps what names the server's version of the file: a strong ETag, else its date."""
    tag = headers.get("ETag") or ""
    name = tag if tag.startswith('"') else headers.get("Last-Modified")
    if name:
        version.write_text(name, encoding="latin-1")
    else:
        version.unlink(missing_ok=True)


def _checksums(headers) -> dict[str, str]:
    """Algorithm of ``hashlib`` -> digest of the whole file in base64, as far as the server states it."""
    names = ("Repr-Digest", "Digest", "x-goog-hash")
    stated = ",".join(value for name in names for value in headers.get_all(name) or ())
    found = {}
    for name, value in re.findall(r"([\w-]+)=:?([A-Za-z0-9+/]+=*)", stated):
        if (algorithm := name.replace("-", "").lower()) in ("md5", "sha256", "sha512"):
            found[algorithm] = value
    md5 = headers.get("x-ms-blob-content-md5")
    if "Content-Range" not in headers:  # else it is the checksum of the part that was sent
        md5 = md5 or headers.get("Content-MD5")
    return found | ({"md5": md5.strip()} if md5 else {})


def _wrong_checksum(path: pathlib.Path, checksums: dict[str, str]) -> str:
    """The first checksum of a file that is not the stated one; empty where there is none."""
    for algorithm, stated in checksums.items():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, algorithm).digest()
        found = base64.b64encode(digest).decode()
        if found != stated:
            return f"{algorithm} {found} and not {stated}"
    return ""
