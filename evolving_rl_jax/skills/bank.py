"""The skill bank: every extracted skill with where it came from and what it was worth.

One JSON object a line, only ever appended to.  A record that is measured again is written again
with the next ``version``; the last line of an id counts.  An append is one write followed by fsync,
so a kill leaves at most one torn line at the end, which loading leaves out and the next append
removes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from evolving_rl_jax.skills.schema import Skill

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class SkillRecord:
    """One extracted skill with its provenance and utility.

    Attributes:
      id: unique and reproducible from the run, e.g. ``"it00012-g03-n1"``.
      iteration: training iteration (from 0) in which this version was written.
      source_task_id: task whose episode it was extracted from.
      source_task_hash: content hash of that task.
      episode_id: the parent episode.
      policy_step: optimizer steps of the policy that wrote it.
      reward: extractor reward, None while not evaluated.
      skill: the skill as JSON values (``Skill.to_dict``), None when the text had none.
      reason: why there is no skill; empty when there is one.
      audit: verdict of ``audit`` as JSON values, None when it was not applied.
      uses, wins: scored episodes with the skill in the prompt, and those won.
      baseline_uses, baseline_wins: the paired episodes without it (same tasks, same seeds).
      version: 0 for the first line of an id, then counted up by ``Bank.revise``.
      meta: further facts for reports, JSON values.
    """

    id: str
    iteration: int
    source_task_id: str
    source_task_hash: str
    episode_id: str = ""
    policy_step: int = 0
    reward: float | None = None
    skill: Mapping[str, Any] | None = None
    reason: str = ""
    audit: Mapping[str, Any] | None = None
    uses: int = 0
    wins: float = 0.0
    baseline_uses: int = 0
    baseline_wins: float = 0.0
    version: int = 0
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether there is a skill and it did not fail its audit."""
        return self.skill is not None and (self.audit is None or bool(self.audit.get("passed")))

    @property
    def utility(self) -> float | None:
        """Success rate with the skill minus without it; None when either was not measured."""
        if not self.uses or not self.baseline_uses:
            return None
        return self.wins / self.uses - self.baseline_wins / self.baseline_uses

    def as_skill(self) -> Skill:
        """The skill itself.

        Raises:
          ValueError: the record has none.
        """
        if self.skill is None:
            raise ValueError(f"record {self.id!r} must hold a skill, got none: {self.reason}")
        return Skill.from_dict(self.skill)


_FIELDS = {field.name: field for field in dataclasses.fields(SkillRecord)}
_REQUIRED = {
    name
    for name, field in _FIELDS.items()
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
}


class Bank:
    """All records of one ``bank.jsonl``, in memory, with appends going to the file first.

    Reading never changes the file.  One process writes at a time; a second writer is detected.

    Args:
      path: the file; created with its folder by the first append.

    Raises:
      ValueError: a line other than the last is no valid record.
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
        data = self.path.read_bytes() if self.path.exists() else b""
        lines, self._torn, self._newline_missing = [], 0, False
        offset = 0
        for number, raw in enumerate(data.splitlines(keepends=True), 1):
            try:
                lines.append(_decode(raw))
            except ValueError as error:
                if offset + len(raw) < len(data):
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

    def revise(self, record: SkillRecord) -> SkillRecord:
        """Writes a changed record (say, with new utility counts) as the next version of its id.

        Raises:
          KeyError: the id is not in the bank.
        """
        version = self._latest[record.id].version + 1
        record = dataclasses.replace(record, version=version)
        self._write([record])
        return self._latest[record.id]

    def truncate_to(self, next_iteration: int) -> int:
        """Drops what the iterations from ``next_iteration`` on wrote; the file changes at once.

        A run that goes on from a checkpoint calls it with the first iteration that it will run
        (again), so that the repeated iterations find the bank as it was.

        Returns:
          How many lines were dropped, a torn one not counted.
        """
        kept = [record for record in self._lines if record.iteration < next_iteration]
        dropped = len(self._lines) - len(kept)
        if not dropped:
            return 0
        data = b"".join(map(_encode, kept))
        temporary = self.path.with_name(self.path.name + ".tmp")
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        _sync_folder(self.path.parent)
        self._lines, self._end, self._torn, self._newline_missing = kept, len(data), 0, False
        self._index()
        return dropped

    def top(
        self,
        k: int,
        *,
        key: Callable[[SkillRecord], float | None] = lambda record: record.reward,
        distinct: bool = True,
    ) -> list[SkillRecord]:
        """The ``k`` best usable records by ``key`` (their reward), best first, ties by id.

        Args:
          k: at most how many.
          key: score of a record; None leaves it out.
          distinct: of records with the same skill, only the best one.
        """
        scored = [(key(record), record) for record in self.records if record.usable]
        scored = [(score, record) for score, record in scored if score is not None]
        scored.sort(key=lambda pair: (-pair[0], pair[1].id))
        best: list[SkillRecord] = []
        seen: set[str] = set()
        for _, record in scored:
            content = json.dumps(record.skill, sort_keys=True)
            if len(best) < k and not (distinct and content in seen):
                best.append(record)
                seen.add(content)
        return best

    def _index(self) -> None:
        self._latest = {record.id: record for record in self._lines}

    def _write(self, records: list[SkillRecord]) -> None:
        if not records:
            return
        lines = [_encode(record) for record in records]
        records = [_decode(line) for line in lines]  # memory holds what the file holds
        data = b"".join([b"\n" if self._newline_missing else b"", *lines])
        created = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            size, expected = os.fstat(descriptor).st_size, self._end + self._torn
            if size != expected:
                raise ValueError(
                    f"{self.path} must have {expected} bytes as this process left it, "
                    f"got {size}: another process writes to it"
                )
            os.ftruncate(descriptor, self._end)
            self._torn = 0
            self._put(descriptor, data)
        finally:
            os.close(descriptor)
        if created:
            _sync_folder(self.path.parent)
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


def _encode(record: SkillRecord) -> bytes:
    fields = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(record)}
    try:
        return json.dumps(fields, allow_nan=False, default=_plain).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"record {record.id!r} must be JSON, got: {error}") from error


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # a numpy scalar
        return value.item()
    raise TypeError(f"a value of type {type(value).__name__}")


def _decode(raw: bytes) -> SkillRecord:
    fields = json.loads(raw)  # both of its errors are ValueErrors
    if not isinstance(fields, dict):
        raise ValueError(f"a record must be a JSON object, got {type(fields).__name__}")
    version = fields.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version must be {SCHEMA_VERSION}, got {version!r}")
    unknown, missing = fields.keys() - _FIELDS.keys(), _REQUIRED - fields.keys()
    if unknown or missing:
        raise ValueError(
            f"a record must have the fields of schema {SCHEMA_VERSION}, "
            f"got unknown {sorted(unknown)}, missing {sorted(missing)}"
        )
    return SkillRecord(**fields)


def _sync_folder(folder: Path) -> None:
    """Makes a created or replaced name durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
