"""Reads a folder that ``evolving-rl data mind2web`` wrote: its index, and single tasks at random."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections import Counter
from typing import Any

from evolving_rl_jax.envs.base import TaskError, one_line
from evolving_rl_jax.envs.mind2web.records import WebTask, steps_from_json
from evolving_rl_jax.types import Task

__all__ = ["INDEX", "load_web_tasks", "read_task"]

INDEX = "index.json"
RECORDS = "mind2web/1.0.0"  # where TFDS puts name and version of the data set
_KEYS = ("id", "split", "number", "text", "website", "domain", "content_hash", "num_steps")


def load_web_tasks(folder: str | os.PathLike[str], split: str | None = None) -> list[Task]:
    """The tasks of a folder as nouns, sorted by id; pages are left on disk.

    Args:
      folder: holds ``index.json`` and the records.
      split: only this split; None = all.

    Returns:
      Tasks: ``task_type`` is the domain, ``group`` the site, ``step_limit`` the number of annotated
      steps.  ``meta`` has what a generated task says of its site, ``kin``: its subdomain and domain,
      ``sealed``: whether the task came
      from the password-protected archive, so that its text must not be written into a run folder, and
      ``answers``: what gives it away (see ``WebTask.answers``; none of a sealed task).

    Raises:
      TaskError: the index is missing or malformed, or has no such split, or files of records are gone.
    """
    root = pathlib.Path(folder).absolute()
    path = root / INDEX
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["tasks"]
        tasks = [_task(root, entry) for entry in entries]
    except FileNotFoundError:
        raise TaskError(
            f"{path}: must exist (evolving-rl data mind2web writes it), found no such file"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise TaskError(f"{path}: must be an index of web tasks, found {reason}") from error
    _check_records(root, Counter(task.split for task in tasks))
    known = sorted({task.split for task in tasks})
    if split is not None and split not in known:
        raise TaskError(f"{path}: split must be one of {', '.join(known)}, got {split!r}")
    return sorted((t for t in tasks if split in (None, t.split)), key=lambda t: t.id)


def _check_records(root: pathlib.Path, sizes: Counter[str]) -> None:
    """Looks for the files of the records, by what TFDS wrote of them; opens none.

    Raises:
      TaskError: one is missing or empty, or they are of another index; names it.
    """
    about = root / RECORDS / "dataset_info.json"
    try:
        splits = json.loads(about.read_text(encoding="utf-8"))["splits"]
        shards = {s["name"]: [int(n) for n in s["shardLengths"]] for s in splits}
    except FileNotFoundError:
        raise TaskError(f"{about}: must exist, found no such file") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskError(f"{about}: must be what TFDS wrote, found {one_line(error)}") from error
    for split, size in sizes.items():
        lengths = shards.get(split, [])
        if sum(lengths) != size:
            raise TaskError(f"{about}: must have {size} records of {split}, found {sum(lengths)}")
        for i in range(len(lengths)):
            name = f"mind2web-{split}.array_record-{i:05d}-of-{len(lengths):05d}"
            path = about.with_name(name)
            if not path.is_file() or not path.stat().st_size:
                raise TaskError(
                    f"{path}: must hold records of {split}, found no such file or nothing"
                )


def _task(root: pathlib.Path, entry: dict[str, Any]) -> Task:
    missing = [key for key in _KEYS if key not in entry]
    if missing:
        raise KeyError(f"every task must have {', '.join(_KEYS)}, one has no {missing[0]}")
    return Task(
        id=entry["id"],
        env="mind2web",
        split=entry["split"],
        task_type=entry["domain"],
        text=entry["text"],
        path=str(root / entry["split"] / str(entry["number"])),
        content_hash=entry["content_hash"],
        group=entry["website"],
        step_limit=entry["num_steps"],
        meta={
            **entry.get("meta", {}),
            "kin": [entry[k] for k in ("subdomain", "domain") if entry.get(k)],
            "sealed": bool(entry.get("sealed")),
            "answers": list(entry.get("answers", ())),
        },
    )


def read_task(path: str) -> WebTask:
    """Reads one task with its pages; ``path`` is ``Task.path``: folder, split and number.

    Raises:
      TaskError: there is no such record.
    """
    folder, split, number = path.rsplit(os.sep, 2)
    source = _source(folder, split)
    if not number.isdigit() or int(number) >= len(source):
        raise TaskError(f"{path}: must be a record below {len(source)}, got {number!r}")
    return decode(source[int(number)])


def decode(record: dict[str, Any]) -> WebTask:
    """A task from the fields of its record."""
    texts = {k: v.decode() if isinstance(v, bytes) else str(v) for k, v in record.items()}
    return WebTask(
        texts["id"],
        texts["text"],
        texts["website"],
        texts["domain"],
        texts["subdomain"],
        steps_from_json(texts["steps"]),
        json.loads(texts["meta"]),
    )


def encode(task: WebTask) -> dict[str, str]:
    """The fields of a task's record."""
    return {
        "id": task.id,
        "text": task.text,
        "website": task.website,
        "domain": task.domain,
        "subdomain": task.subdomain,
        "content_hash": task.content_hash,
        "meta": json.dumps(task.meta),
        "steps": task.steps_json(),
    }


@functools.lru_cache(16)
def _source(folder: str, split: str) -> Any:
    """Random access to the records of a split."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise TaskError(
            f"{folder}: web tasks need the package tensorflow-datasets (extra train): {error}"
        ) from error
    try:
        builder = tfds.builder_from_directory(os.path.join(folder, RECORDS))
        return builder.as_data_source(split=split)
    except Exception as error:  # TFDS raises its own and ValueError, KeyError, AssertionError
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise TaskError(
            f"{folder}: must hold records of the split {split!r}, found {reason}"
        ) from error
