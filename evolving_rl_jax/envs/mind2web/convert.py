"""From official files to records, each with its entry of the index and its recall; files side by side.

A worker process reads a file and gives back what is small: compacted records, not pages of HTML.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from evolving_rl_jax.envs.mind2web.official import SourceFile
from evolving_rl_jax.envs.mind2web.recall import GoldRecall
from evolving_rl_jax.envs.mind2web.records import RecordError, WebTask, from_official
from evolving_rl_jax.envs.mind2web.store import encode

__all__ = ["Converted", "convert_files"]


class Converted(NamedTuple):
    """One task of a file; without a record it was left out, and ``problem`` says why."""

    name: str
    problem: str
    record: dict[str, str] | None = None
    entry: dict[str, Any] | None = None
    recall: GoldRecall | None = None


def convert_files(
    files: Sequence[SourceFile], password: str, budgets: tuple[int, ...], num_workers: int
) -> Iterator[tuple[SourceFile, Converted]]:
    """The tasks of ``files`` in their order, several files at once where there are workers for it.

    Raises:
      DataError: a file cannot be read.
    """
    workers = min(num_workers, len(files))
    if workers < 2:
        for file in files:
            yield from ((file, found) for found in _tasks(file, password, budgets))
        return
    context = multiprocessing.get_context("forkserver")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = [pool.submit(_file, file, password, budgets) for file in files]
        try:
            for file, future in zip(files, waiting, strict=True):
                yield from ((file, found) for found in future.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _file(file: SourceFile, password: str, budgets: tuple[int, ...]) -> list[Converted]:
    return list(_tasks(file, password, budgets))


def _tasks(file: SourceFile, password: str, budgets: tuple[int, ...]) -> Iterator[Converted]:
    for number, data in enumerate(file.tasks(password)):
        found = data.get("annotation_id") if isinstance(data, dict) else None
        name = found if isinstance(found, str) and found else f"number {number}"
        try:
            task = from_official(data)
        except RecordError as error:
            yield Converted(name, str(error))
            continue
        recall = GoldRecall(budgets)
        recall.add(task)
        yield Converted(name, "", encode(task), _entry(task, file), recall)


def _entry(task: WebTask, file: SourceFile) -> dict[str, Any]:
    """What the index says of a task, but for its number."""
    # The test splits are published in the protected archive alone, whoever has unpacked it; what is
    # generated says how in its meta.
    sealed = bool(file.member) or (file.split.startswith("test_") and not task.meta)
    return {
        "id": task.id,
        "split": file.split,
        "text": task.text,
        "website": task.website,
        "domain": task.domain,
        "subdomain": task.subdomain,
        "content_hash": task.content_hash,
        "num_steps": len(task.steps),
        "sealed": sealed,
        "meta": task.meta,
        "answers": [] if sealed else task.answers,
    }
