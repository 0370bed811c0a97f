"""The skill bank: every extracted skill with where it came from and what it was worth.

One JSON object a line, only ever appended to.  A record that is measured again is written again
with the next ``version``; the last line of an id counts.  An append is one write followed by fsync
under a lock, so a kill leaves at most one torn line at the end, which loading leaves out and the
next append removes, and of two writers the second is told and changes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from evolving_rl_jax import files
from evolving_rl_jax.skills.records import SCHEMA_VERSION, SkillRecord, decode, encode

__all__ = ["SCHEMA_VERSION", "Bank", "SkillRecord", "new_bank", "write_bank"]


class Bank:
    """All records of one ``bank.jsonl``, in memory, with appends going to the file first.

    Reading never changes the file.  One process writes at a time; a second writer is detected.

    Args:
      path: the file; created with its folder by the first append.

    Raises:
      ValueError: a line is no valid record, and not the torn end of a write.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lines: list[SkillRecord] = []
        self._latest: dict[str, SkillRecord] = {}
        self._end = 0  # bytes of complete lines
        self._torn = 0  # bytes of a torn line after them
        self._newline_missing = False
        self.load()

    def __len__(self) -> int:
        return len(self._latest)

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._latest

    def __getitem__(self, record_id: str) -> SkillRecord:
        return self._latest[record_id]

    @property
    def records(self) -> list[SkillRecord]:
        """The newest version of every record, in the order of their first appearance."""
        return list(self._latest.values())

    def load(self) -> list[SkillRecord]:
        """Reads the file again, warning about a torn last line.  Returns ``records``."""
        data = self._read()
        lines, self._torn, self._newline_missing = [], 0, False
        offset = 0
        for number, raw in enumerate(data.splitlines(keepends=True), 1):
            try:
                lines.append(decode(raw))
            except ValueError as error:
                if offset + len(raw) < len(data) or not _is_torn(raw, error):
                    raise ValueError(f"{self.path}: line {number}: {error}") from error
                self._torn = len(raw)
                warnings.warn(
                    f"{self.path}: left out a torn last line of {len(raw)} bytes", stacklevel=2
                )
                break
            offset += len(raw)
        self._end = offset
        self._newline_missing = offset > 0 and not data[:offset].endswith(b"\n")
        self._lines = lines
        self._index()
        return self.records

    def _read(self) -> bytes:
        """What the file holds between two writes, not in the middle of one."""
        while True:
            try:
                file = open(self.path, "rb")
            except FileNotFoundError:
                return b""
            with file:
                fcntl.flock(file, fcntl.LOCK_SH)
                if _is_at(self.path, os.fstat(file.fileno())):  # not replaced meanwhile
                    return file.read()

    def append(self, records: Iterable[SkillRecord]) -> int:
        """Adds records whose id is new, all in one durable write; known ids are left as they are.

        Returns:
          How many were added.

        Raises:
          ValueError: a record is not JSON (NaN included), or another process wrote to the file.
          OSError: the write failed; the file is as before.
        """
        new: dict[str, SkillRecord] = {}
        for record in records:
            if record.id not in self._latest:
                new.setdefault(record.id, record)
        self._write(list(new.values()))
        return len(new)

    def revise_all(self, records: Iterable[SkillRecord]) -> list[SkillRecord]:
        """Writes changed records (say, with new utility counts) as the next versions of their ids.

        Args:
          records: of different ids; one durable write.

        Raises:
          KeyError: an id is not in the bank.
          ValueError: an id comes twice.
        """
        records = list(records)
        ids = [record.id for record in records]
        if len(set(ids)) < len(ids):
            raise ValueError(f"records to revise must have different ids, got {sorted(ids)}")
        self._write(
            [dataclasses.replace(r, version=self._latest[r.id].version + 1) for r in records]
        )
        return [self._latest[i] for i in ids]

    def truncate_to(self, next_iteration: int) -> int:
        """Drops what the iterations from ``next_iteration`` on wrote; the file changes at once.

        A run that goes on from a checkpoint calls it with the first iteration that it will run
        (again), so that the repeated iterations find the bank as it was.

        Returns:
          How many lines were dropped, a torn one not counted.
        """
        kept = [record for record in self._lines if record.iteration < next_iteration]
        dropped = len(self._lines) - len(kept)
        if dropped:
            self._replace(kept)
        return dropped

    def _index(self) -> None:
        self._latest = {record.id: record for record in self._lines}

    def _write(self, records: list[SkillRecord]) -> None:
        if not records and not self._newline_missing:
            return
        lines = [encode(record) for record in records]
        records = [decode(line) for line in lines]  # memory holds what the file holds
        data = b"".join([b"\n" if self._newline_missing else b"", *lines])
        created = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as descriptor:
            os.ftruncate(descriptor, self._end)
            self._torn = 0
            self._put(descriptor, data)
        if created:
            files.sync(self.path.parent)
        self._end += len(data)
        self._newline_missing = False
        self._lines += records
        for record in records:
            self._latest[record.id] = record

    def _put(self, descriptor: int, data: bytes) -> None:
        """Writes and syncs, or cuts the file back to what it was."""
        try:
            written = os.pwrite(descriptor, data, self._end)
            if written != len(data):
                raise OSError(f"{self.path}: wrote {written} of {len(data)} bytes, disk full?")
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, self._end)
            raise

    def _replace(self, records: list[SkillRecord]) -> None:
        """Makes the file hold these lines and no other, all at once."""
        data = b"".join(map(encode, records))
        with self._locked():
            files.write_atomic(self.path, data)
        self._lines, self._end, self._torn = records, len(data), 0
        self._newline_missing = False
        self._index()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The open file, locked against other writers and as this process left it.

        Raises:
          ValueError: another process wrote to it.
        """
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                status = os.fstat(descriptor)
                if not _is_at(self.path, status):  # replaced while this one waited for the lock
                    continue
                expected = self._end + self._torn
                if status.st_size != expected:
                    raise ValueError(
                        f"{self.path} must have {expected} bytes as this process left it, "
                        f"got {status.st_size}: another process writes to it"
                    )
                yield descriptor
                return
            finally:
                os.close(descriptor)  # and unlocks


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), status)
    except FileNotFoundError:
        return False


def _is_torn(raw: bytes, error: ValueError) -> bool:
    """Whether a kill can have left such a last line: no JSON, without an end or never filled by the disk."""
    broken = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
    return broken and (not raw.endswith(b"\n") or b"\0" in raw)


def new_bank(path: str | os.PathLike[str]) -> Bank:
    """An empty bank; what ``path`` held is gone."""
    Path(path).unlink(missing_ok=True)
    return Bank(path)


def write_bank(path: str | os.PathLike[str], records: Iterable[SkillRecord]) -> None:
    """Makes ``path`` a bank of these records; a reader sees the old one or the new one."""
    path = Path(path)
    if records := tuple(records):
        with files.replacing(path) as partial:
            Bank(partial).append(records)
    else:
        path.unlink(missing_ok=True)
