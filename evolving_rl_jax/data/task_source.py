"""Tasks of an indexed data set: read from its records when they are asked for."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from evolving_rl_jax.envs.alfworld.folder import TaskError, field
from evolving_rl_jax.types import Task

__all__ = ["IndexRow", "TaskSource"]


class IndexRow(NamedTuple):
    """What the index says of one game; the rest is in its record.

    Attributes:
      id: of the task.
      split: the split that it is in, also the split of the TFDS data set.
      task_type: one of ALFWorld's six.
      path: of the game's folder, relative to the root of the index.
      content_hash: see ``game_folder.content_hash``.
      size: bytes of ``game.tw-pddl``.
    """

    id: str
    split: str
    task_type: str
    path: str
    content_hash: str
    size: int


class TaskSource(Sequence[Task]):
    """A sequence of tasks, sorted by id, over a TFDS data set.

    Length, ids, splits and task types come from the index; a task is read from its record when it
    is asked for, and its game file is then looked at: a missing or changed one is a ``TaskError``.

    Args:
      folder: of the index.
      dataset: folder of the prepared TFDS data set.
      root: folder that the paths of the rows are relative to.
      rows: with the position of each in its split of the data set.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        dataset: pathlib.Path,
        root: pathlib.Path,
        rows: Sequence[tuple[IndexRow, int]],
    ):
        self._folder, self._dataset, self._root, self._rows = folder, dataset, root, rows
        self._records = functools.cache(self._open)

    @classmethod
    def open(cls, folder: pathlib.Path, index: dict[str, Any]) -> TaskSource:
        """The tasks of an index (the content of ``games.json``).

        Raises:
          TaskError: the index is malformed, or the games are not where it says.
        """
        path = folder / "games.json"
        dataset, root = (folder / field(index, key, str, path) for key in ("dataset", "root"))
        for place, what in ((dataset, "data set"), (root, "games")):
            if not place.is_dir():
                raise TaskError(f"{path}: the {what} must be in {place}, found no such folder")
        try:
            rows = [IndexRow(*(e[k] for k in IndexRow._fields)) for e in index["games"]]
        except (KeyError, TypeError) as error:
            fields = ", ".join(IndexRow._fields)
            raise TaskError(f"{path}: every game must have {fields}, found one without") from error
        positions: dict[str, int] = {}
        numbered = []
        for row in sorted(rows):
            positions[row.split] = positions.get(row.split, -1) + 1
            numbered.append((row, positions[row.split]))
        return cls(folder, dataset, root, numbered)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have tasks here."""
        return tuple(sorted({row.split for row, _ in self._rows}))

    @property
    def rows(self) -> list[IndexRow]:
        """What the index says of the tasks, in their order."""
        return [row for row, _ in self._rows]

    def select(
        self, *, split: str | None = None, types: Collection[str] | None = None
    ) -> TaskSource:
        """Those of a split and of some task types; reads no record."""
        rows = [
            (row, position)
            for row, position in self._rows
            if split in (None, row.split) and (types is None or row.task_type in types)
        ]
        return self._with(rows)

    def _with(self, rows: Sequence[tuple[IndexRow, int]]) -> TaskSource:
        chosen = TaskSource(self._folder, self._dataset, self._root, rows)
        chosen._records = self._records  # opened once for all
        return chosen

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Task]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i):
        if isinstance(i, slice):
            return self._with(self._rows[i])
        row, position = self._rows[i]
        record = self._record(row.split, position)
        task = Task(
            env="alfworld",
            path=str(self._root / row.path),
            step_limit=int(record["step_limit"]),
            meta=json.loads(record["meta"]),
            **{k: record[k].decode() for k in ("id", "task_type", "text", "content_hash")},
            split=row.split,
        )
        if (task.id, task.content_hash) != (row.id, row.content_hash):
            raise TaskError(
                f"{self._dataset}: record {position} of {row.split} must be {row.id}, "
                f"got {task.id}: index the games again"
            )
        self._check_file(row)
        return task

    def _check_file(self, row: IndexRow) -> None:
        path = self._root / row.path / "game.tw-pddl"
        try:
            size = path.stat().st_size
        except OSError:
            raise TaskError(f"{path}: must exist, it is in {self._folder / 'games.json'}") from None
        if size != row.size:
            raise TaskError(f"{path}: must have {row.size} bytes as when indexed, got {size}")

    def _record(self, split: str, position: int) -> dict[str, Any]:
        try:
            return self._records(split)[position]
        except (OSError, ValueError, RuntimeError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise TaskError(
                f"{self._dataset}: must be a whole TFDS data set, found {reason}"
            ) from error

    def _open(self, split: str):
        """The random-access records of a split."""
        import tensorflow_datasets as tfds  # a third of a second; only data sets need it

        return tfds.builder_from_directory(self._dataset).as_data_source(split=split)
