"""The command ``evolving-rl data alfred``: from ALFRED's records to a folder of games to train on.

Twice through the records: first for what they tell of the scenes, then for the games, which other
processes make, play and write.  Neither pass holds more than a few records.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import pathlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from evolving_rl_jax.envs.alfworld.alfred.game import ALFWORLD, GOALS, make_game
from evolving_rl_jax.envs.alfworld.alfred.habits import add_habits
from evolving_rl_jax.envs.alfworld.alfred.placement import left_one_out
from evolving_rl_jax.envs.alfworld.alfred.records import Raw, find_files, parse, read_records
from evolving_rl_jax.envs.alfworld.alfred.report import AlfredReport, Outcome
from evolving_rl_jax.envs.alfworld.alfred.scene import KnownScene, make_scene
from evolving_rl_jax.envs.alfworld.alfred.survey import Survey
from evolving_rl_jax.envs.alfworld.alfred.trial import LeftOut, RecordError
from evolving_rl_jax.envs.alfworld.folder import task_of
from evolving_rl_jax.envs.alfworld.households.write import write_game
from evolving_rl_jax.envs.alfworld.tasks import INDEX, index_row
from evolving_rl_jax.envs.base import TaskError, cores
from evolving_rl_jax.envs.pool.spawn import CONTEXT
from evolving_rl_jax.files import write_json

__all__ = ["convert"]

GAMES = "games"  # folder of the games, by split
_CHUNK = 16  # records of one message to a process
_WAITING = 4  # messages that wait for each process

# A bar: title and size -> context of a function of the number done so far.
Progress = Callable[..., AbstractContextManager[Callable[[int], None]]]


def convert(
    sources: Sequence[str],
    out: pathlib.Path,
    *,
    progress: Progress,
    goals: str = ALFWORLD,
    jobs: int | None = None,
) -> AlfredReport:
    """Makes the games and writes the index ``games.json``, which comes last.

    Args:
      sources: the folder ``json_2.1.0`` of ALFRED, or JSON lines, one file a split.
      out: folder to write.
      progress: makes progress bars.
      goals: whose words the tasks are given in: ``alfworld`` or ``human``.
      jobs: processes; None = as many as there are cores for this one.

    Raises:
      TaskError: the sources hold no records of ALFRED, or none that a game can be made from.
      FileExistsError: ``out`` holds an index already.
    """
    if goals not in GOALS:
        raise ValueError(f"goals must be one of {', '.join(GOALS)}, got {goals!r}")
    if (out / INDEX).exists():
        raise FileExistsError(f"{out}: must not hold an index already, found {INDEX}")
    files = find_files(sources)
    with progress("looking at the scenes") as bar:
        survey, unread = _look(read_records(files), bar)
    maker = _Maker(survey, out / GAMES, goals)
    skipped = {outcome.where for outcome in unread}
    records = (raw for raw in read_records(files) if raw.where not in skipped)
    outcomes = list(unread)
    with progress("making games") as bar:
        for done, outcome in enumerate(_made(maker, records, jobs or cores()), start=1):
            outcomes.append(outcome)
            bar(done)
    scenes = [maker.scene(number) for number in survey.train_scenes() if maker.knows(number)]
    report = AlfredReport.of(outcomes, left_one_out(scenes), scenes)
    rows = sorted((o.row for o in outcomes if o.row), key=lambda row: row["id"])
    floors = {row["meta"]["scene"] for row in rows}
    add_habits(rows, {floor: sorted(maker.scene(_number(floor)).points) for floor in floors})
    if not rows:
        raise TaskError(
            "; ".join(["--source has no record that a game can be made of", *report.lines()])
        )
    index = {
        "format": 2,
        "source": "alfred",
        "goals": goals,
        "root": GAMES,
        "report": dataclasses.asdict(report),
        "games": rows,
    }
    write_json(out / INDEX, index, indent=1)
    return report


def _look(records: Iterator[Raw], bar: Callable[[int], None]) -> tuple[Survey, list[Outcome]]:
    """What the records tell of the scenes, and those that cannot be read or come again."""
    survey, unread = Survey(), []
    seen: dict[str, str] = {}
    for done, raw in enumerate(records, start=1):
        try:
            trial = parse(raw)
        except RecordError as error:
            unread.append(Outcome(raw.split, raw.where, "damaged record", str(error), raw.where))
        else:
            first = seen.setdefault(f"{trial.split}/{trial.name}", raw.where)
            if first == raw.where:
                survey.add(trial)
            else:
                detail = f"the first one is at {first}"
                unread.append(Outcome(raw.split, trial.name, "duplicate", detail, raw.where))
        bar(done)
    return survey, unread


def _number(floor_plan: str) -> int:
    return int(floor_plan.removeprefix("FloorPlan"))


class _Maker:
    """Makes the games of records, in whatever process it is called."""

    def __init__(self, survey: Survey, root: pathlib.Path, goals: str):
        self._survey, self._root, self._goals = survey, root.absolute(), goals
        self.scene = functools.cache(self._scene)

    def __reduce__(self):
        return _Maker, (self._survey, self._root, self._goals)

    def _scene(self, number: int) -> KnownScene:
        return make_scene(number, self._survey.scene(number))

    def knows(self, number: int) -> bool:
        """Whether there is a layout of a scene."""
        with contextlib.suppress(LeftOut):
            return self.scene(number) is not None
        return False

    def make(self, raw: Raw) -> Outcome:
        """Writes the game of a record, or says why there is none."""
        trial = parse(raw)
        outcome = functools.partial(Outcome, trial.split, trial.name, where=raw.where)
        try:
            trial.check_played()
            traj, data = make_game(trial, self.scene(trial.scene), self._goals)
        except LeftOut as error:
            return outcome(str(error), error.detail)
        folder = self._root / trial.split / trial.name
        write_game(folder, traj, data)
        row: dict[str, Any] = index_row(task_of(folder, traj, data), self._root)
        return outcome("", "", row=row)


_maker: _Maker  # of a worker process


def _start(maker: _Maker) -> None:
    global _maker
    _maker = maker


def _make_chunk(chunk: Sequence[Raw]) -> list[Outcome]:
    return [_maker.make(raw) for raw in chunk]


def _made(maker: _Maker, records: Iterator[Raw], jobs: int) -> Iterator[Outcome]:
    """The outcomes in the order of the records; as few records wait as keep the processes busy."""
    if jobs == 1:
        yield from map(maker.make, records)
        return
    chunks = iter(lambda: list(itertools.islice(records, _CHUNK)), [])
    with concurrent.futures.ProcessPoolExecutor(jobs, CONTEXT, _start, (maker,)) as pool:
        waiting: deque[concurrent.futures.Future] = deque()
        for chunk in itertools.chain(chunks, [None]):
            if chunk is not None:
                waiting.append(pool.submit(_make_chunk, chunk))
            while waiting and (chunk is None or len(waiting) >= jobs * _WAITING):
                yield from waiting.popleft().result()
