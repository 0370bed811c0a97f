"""``evolving-rl data mind2web``: the official files compacted once into a TFDS ArrayRecord data set.

The result holds pages as lists of elements, not as HTML, an index with content hashes, and a report:
counts against the official ones, what was left out and why, duplicates, and how often the right element
is in a snapshot of a given size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from evolving_rl_jax.envs.base import cores
from evolving_rl_jax.envs.mind2web import official
from evolving_rl_jax.envs.mind2web.convert import convert_files
from evolving_rl_jax.envs.mind2web.official import DataError, SourceFile
from evolving_rl_jax.envs.mind2web.recall import BUDGETS, GoldRecall
from evolving_rl_jax.envs.mind2web.store import INDEX
from evolving_rl_jax.files import put

__all__ = ["Report", "build_index"]

_SHOWN_PROBLEMS = 10
_UNREACHABLE = {
    "no_gold": "without a right element",
    "blank_pages": "with a blank page",
    "value_missing": "whose list does not show the value to select",
}


@dataclasses.dataclass
class Report:
    """What was read, and what to know about it.

    Attributes:
      counts: split -> tasks written.
      num_steps: split -> their steps.
      problems: tasks left out, each with file, task and field.
      duplicates: groups of ``split/id`` with the same content, or the same id in several splits.
      recall: split -> budget (0 = the whole page) -> share of the steps with a right element that
        show it.
      unreachable: split -> steps without a right element, with a blank page, and whose list does not
        show the value to select.
    """

    counts: dict[str, int]
    num_steps: dict[str, int]
    problems: list[str]
    duplicates: list[list[str]]
    recall: dict[str, dict[int, float]]
    unreachable: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)

    @property
    def differences(self) -> list[str]:
        """Official splits whose number of tasks is not the published one."""
        return [
            f"{split}: {found} tasks, the published data has "
            + " or ".join(map(str, official.COUNTS[split]))
            for split, found in sorted(self.counts.items())
            if split in official.COUNTS and found not in official.COUNTS[split]
        ]

    def text(self) -> str:
        """The report for a person."""
        lines = [
            f"{split}: {n} tasks, {self.num_steps[split]} steps, gold element shown "
            + ", ".join(
                f"{share:.1%} {'on the page' if budget == 0 else f'at {budget} tokens'}"
                for budget, share in self.recall[split].items()
            )
            for split, n in sorted(self.counts.items())
        ]
        lines += [
            f"{split}: "
            + ", ".join(f"{n} steps {_UNREACHABLE[key]}" for key, n in counts.items() if n)
            for split, counts in sorted(self.unreachable.items())
            if any(counts.values())
        ]
        missing = [s for s in official.SPLITS if s not in self.counts]
        lines += [f"no files of {', '.join(missing)}"] if missing else []
        lines += [f"count differs: {d}" for d in self.differences]
        lines += [f"duplicates: {' = '.join(group)}" for group in self.duplicates]
        if self.problems:
            lines.append(f"left out: {len(self.problems)} tasks")
            lines += [f"  {p}" for p in self.problems[:_SHOWN_PROBLEMS]]
            more = len(self.problems) - _SHOWN_PROBLEMS
            lines += [f"  and {more} more, see {INDEX}"] if more > 0 else []
        return "\n".join(lines)


def build_index(
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    password: str = "",
    budgets: tuple[int, ...] = BUDGETS,
    inside_run: bool = False,
    num_workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Reads the official files of ``sources`` and writes the data set ``out``.

    Args:
      sources: folders and zip files, or ``download``; at least one.
      out: new or empty folder, not inside a run folder.
      password: of the archive of the test splits.
      budgets: of the recall figures, in tokens; () leaves them out.
      inside_run: allow ``out`` in a run folder, for data that the run generated itself.
      num_workers: files that are read at once, each in a process of its own; 0 = one a processor.
      progress: called with the number of tasks read.

    Raises:
      DataError: a source or the output cannot be used; names the file.
    """
    out = pathlib.Path(out).absolute()
    _check_out(out, inside_run)
    if not sources:
        raise DataError("--source must be a folder or zip file of Mind2Web, or download, got none")
    folders = [official.download() if str(s) == "download" else s for s in sources]
    files = [file for folder in folders for file in official.find_files(folder)]
    reader = _Reader(password, budgets, num_workers or cores(), progress)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        report, tasks = _write(files, partial, reader)
        document = {
            "tasks": tasks,
            "counts": report.counts,
            "recall": report.recall,
            "unreachable": report.unreachable,
            "duplicates": report.duplicates,
            "problems": report.problems,
        }
        (partial / INDEX).write_text(json.dumps(document), encoding="utf-8")
        if out.exists():
            out.rmdir()
        put(partial, out)
    except OSError as error:
        raise DataError(f"{out}: must be a folder that can be written, got {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def _check_out(out: pathlib.Path, inside_run: bool) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"--out must be a new or empty folder, got {str(out)!r}")
    for folder in () if inside_run else (out, *out.parents):
        if (folder / "config.json").is_file() and (folder / "checkpoints").is_dir():
            raise DataError(
                f"--out must not be inside a run folder (test data must not be passed on with it), "
                f"got {str(out)!r}"
            )


class _Reader:
    """Turns official files into records, and remembers what is to be said of them."""

    def __init__(self, password, budgets, num_workers, progress: Callable[[int], None] | None):
        self.password, self.budgets, self.num_workers = password, budgets, num_workers
        self.progress = progress
        self.problems: list[str] = []
        self.entries: dict[str, dict[str, dict[str, Any]]] = defaultdict(
            dict
        )  # split -> id -> entry
        self.recall: dict[str, GoldRecall] = {}
        self.count = 0

    def examples(self, files: list[SourceFile]) -> Iterator[dict[str, str]]:
        """The records of one split."""
        split = files[0].split
        known = self.entries[split]
        self.recall[split] = GoldRecall(self.budgets)
        for file, found in convert_files(files, self.password, self.budgets, self.num_workers):
            problem = found.problem
            if not problem and found.entry["id"] in known:
                problem = "annotation_id must be unique in its split, found it twice"
            if problem:
                self.problems.append(f"{file.name}: task {found.name}: {problem}")
            else:
                known[found.entry["id"]] = found.entry
                self.recall[split].merge(found.recall)
                yield found.record
            self.count += 1
            if self.progress is not None:
                self.progress(self.count)
        if not known:
            reason = self.problems[0] if self.problems else "found none in its files"
            raise DataError(f"the split {split} must have a usable task: {reason}")


def _write(files: list[SourceFile], folder: pathlib.Path, reader: _Reader):
    """Writes the records; returns the report and the entries of the index."""
    import tensorflow_datasets as tfds

    from evolving_rl_jax.envs.mind2web.tfds.mind2web.mind2web_dataset_builder import Builder

    by_split: dict[str, list[SourceFile]] = defaultdict(list)
    for file in files:
        by_split[file.split].append(file)
    splits = {
        split: (lambda members=members: reader.examples(members))
        for split, members in by_split.items()
    }
    tfds.disable_progress_bar()
    builder = Builder(splits=splits, data_dir=str(folder), file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints where it writes
        builder.download_and_prepare()
    shutil.rmtree(folder / "downloads", ignore_errors=True)  # TFDS makes it, empty
    tasks: list[dict[str, Any]] = []
    for split in by_split:
        tasks += _numbered(builder.as_data_source(split=split), reader.entries[split])
    recall = {split: reader.recall[split].figures() for split in by_split}
    unreachable = {split: reader.recall[split].counts for split in by_split}
    counts = Counter(t["split"] for t in tasks)
    steps = Counter()
    for t in tasks:
        steps[t["split"]] += t["num_steps"]
    report = Report(
        dict(counts), dict(steps), reader.problems, _duplicates(tasks), recall, unreachable
    )
    return report, tasks


def _numbered(source, entries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of a split, each with the number of its record (records are shuffled)."""
    for number, record in enumerate(source):
        name = record["id"]
        entries[name.decode() if isinstance(name, bytes) else str(name)]["number"] = number
    return sorted(entries.values(), key=lambda e: e["id"])


def _duplicates(tasks: list[dict[str, Any]]) -> list[list[str]]:
    """Tasks that are the same by content or by id, as groups."""
    groups: dict[str, set[str]] = defaultdict(set)
    for task in tasks:
        name = f"{task['split']}/{task['id']}"
        groups[task["content_hash"]].add(name)
        groups[f"id {task['id']}"].add(name)
    repeated = {tuple(sorted(group)) for group in groups.values() if len(group) > 1}
    return [list(group) for group in sorted(repeated)]
