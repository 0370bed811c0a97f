"""The command ``evolving-rl data objects``: another index of a folder of games, split by object.

Policies learn where things are usually kept, so what a skill is worth is seen on objects that training
never met.  Half of the classes of objects are trained on; the games of the others are panels, and
where their skills come from.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from evolving_rl_jax.envs.alfworld.folder import (
    HELDOUT_SPLITS,
    SPLITS,
    alfworld_task,
    field,
    read_object,
)
from evolving_rl_jax.envs.alfworld.objects.halves import draw_halves
from evolving_rl_jax.envs.alfworld.objects.renamed import RENAMED, made_up_names, write_renamed
from evolving_rl_jax.envs.alfworld.objects.truth import (
    PLACED_AS_FOUND,
    kind_of,
    truth_of,
    usual_kinds,
)
from evolving_rl_jax.envs.alfworld.tasks import INDEX, index_row, load_tasks
from evolving_rl_jax.envs.base import TaskError
from evolving_rl_jax.files import write_json
from evolving_rl_jax.types import Task

__all__ = ["HELD_OUT", "SEEN", "TYPES", "ObjectsReport", "prepare_objects"]

# Panels of valid_seen; those of valid_unseen have `_unseen` after the name.
SEEN, HELD_OUT = "seen_objects", "heldout_objects"
_SUFFIX = {"valid_seen": "", "valid_unseen": "_unseen"}
_TRAIN, _SOURCES = "train", f"{HELD_OUT}_sources"
# The task types that are about one object; with two, one place is not enough.
TYPES = (
    "pick_and_place_simple",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "look_at_obj_in_light",
)
# Official split of every split that an index of downloaded or converted games has.
_OFFICIAL = {split: split for split in SPLITS} | {own: o for o, own in HELDOUT_SPLITS.items()}


@dataclasses.dataclass
class ObjectsReport:
    """What was made of the games.

    Attributes:
      splits: name -> number of games.
      seen: classes of objects that are trained on -> their games in train.
      held_out: the same of the others.
      kinds: for each half, kind of place -> share of its games in train that have the object there.
      left_out: reason -> games.
    """

    splits: dict[str, int]
    seen: dict[str, int]
    held_out: dict[str, int]
    kinds: dict[str, dict[str, float]]
    left_out: dict[str, int]

    def lines(self) -> list[str]:
        """The report as text."""
        text = []
        for name, half in ((SEEN, self.seen), (HELD_OUT, self.held_out)):
            words = ", ".join(f"{word} {n}" for word, n in half.items())
            text.append(
                f"{name}: {len(half)} classes, {sum(half.values())} games of train ({words})"
            )
            most = sorted(self.kinds[name].items(), key=lambda pair: -pair[1])[:8]
            text.append(f"  kept in: {', '.join(f'{k} {share:.0%}' for k, share in most)}")
        text += [f"{name}: {n} games" for name, n in self.splits.items()]
        return text + [f"left out, {why}: {n}" for why, n in sorted(self.left_out.items())]


def prepare_objects(
    source: pathlib.Path,
    out: pathlib.Path,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> ObjectsReport:
    """Writes ``out/games.json``, which names the games of ``source`` where they are.

    ``out/renamed`` holds the training games once more, each with a made-up name of its object.

    Args:
      source: a folder of games with the official splits, indexed or not.
      out: folder to write.
      seed: of the halves and of the made-up names.
      progress: called with the number of games read so far.

    Raises:
      TaskError: no such games, or too few of them to split.
      FileExistsError: ``out`` has an index.
    """
    if (out / INDEX).exists():
        raise FileExistsError(f"{out}: must not hold an index already, found {INDEX}")
    out = out.absolute()  # as the paths of all tasks
    left_out: Counter[str] = Counter()
    tasks = load_tasks(source)
    _clear(out / "renamed", tasks)
    games = _read(tasks, left_out, progress)
    kinds = _kinds(games)
    if len(kinds) < 2:
        raise TaskError(
            f"{source}: must hold training games about two classes of objects or more, found "
            f"{', '.join(kinds) or 'none'}"
        )
    halves = draw_halves(kinds, seed)
    tasks = _split(games, kinds, halves, left_out)
    train = [task for task in tasks if task.split == _TRAIN]
    renamed = _renamed(train, kinds, out / "renamed", seed, progress)
    report = _report([*tasks, *renamed], kinds, halves, left_out)
    root = pathlib.Path(os.path.commonpath([task.path for task in (*tasks, *renamed)]))
    index = {
        "format": 2,
        "source": "objects",
        "root": str(root),
        "report": dataclasses.asdict(report),
        "games": [index_row(task, root) for task in (*tasks, *renamed)],
    }
    write_json(out / INDEX, index, indent=1)
    return report


def _clear(folder: pathlib.Path, tasks: Sequence[Task]) -> None:
    """Removes what an interrupted command left of renamed games (the index is written last), nothing else.

    Raises:
      FileExistsError: the folder holds something else, or the games themselves.
    """
    if not folder.exists():
        return
    own = folder.is_dir() and all(re.fullmatch(r"\d{5}", p.name) for p in folder.iterdir())
    if not own or any(pathlib.Path(task.path).is_relative_to(folder) for task in tasks):
        raise FileExistsError(f"{folder}: must not exist, renamed games are written there")
    shutil.rmtree(folder)


def _read(
    tasks: Sequence[Task], left_out: Counter[str], progress: Callable[[int], None] | None
) -> list[Task]:
    """The games about one object, each with its truth and its official split."""
    games = []
    for done, task in enumerate(tasks, start=1):
        official = _OFFICIAL.get(task.split)
        if official is None:
            left_out[f"split {task.split!r}, which is none of the release"] += 1
        elif task.task_type not in TYPES:
            left_out["more than one object"] += 1
        elif not re.search(rf"\b{re.escape(task.meta['object'])}\b", task.text):
            left_out["a sentence that does not name the object's class"] += 1
        else:
            games.append(dataclasses.replace(task, split=official, meta=_with_truth(task)))
        if progress:
            progress(done)
    return games


def _with_truth(task: Task) -> dict[str, Any]:
    path = pathlib.Path(task.path) / "game.tw-pddl"
    problem = field(read_object(path), "pddl_problem", str, path)
    truth = truth_of(problem, task.task_type, task.meta["object"], task.meta["target"])
    return {**task.meta, "places": truth.places, "kept": truth.kept}


def _renamed(
    tasks: Sequence[Task],
    words: Iterable[str],
    folder: pathlib.Path,
    seed: int,
    progress: Callable[[int], None] | None,
) -> list[Task]:
    """The same games, each with a made-up name of its own for its object."""
    taken = {word for task in tasks for word in re.findall(r"[a-z]+", task.text)} | set(words)
    taken |= {kind_of(place) for task in tasks for place in task.meta["places"]}
    names = made_up_names(len(tasks), seed, taken)
    renamed = []
    for i, task in enumerate(tasks):
        path = folder / f"{i:05d}"
        write_renamed(pathlib.Path(task.path), path, names[i])
        new = dataclasses.replace(alfworld_task(path), id=f"renamed/{task.id}", split=RENAMED)
        meta = {**_with_truth(new), "usual": task.meta["usual"]}
        renamed.append(dataclasses.replace(new, meta=meta))
        if progress:
            progress(i + 1)
    return renamed


def _kinds(games: Sequence[Task]) -> dict[str, Counter[str]]:
    """Class of objects -> kind of place -> training games that have the object there."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for task in games:
        if task.split == _TRAIN and task.meta["kept"]:
            kinds[task.meta["object"]].update({kind_of(place) for place in task.meta["kept"]})
    return dict(sorted(kinds.items()))


def _split(
    games: Sequence[Task],
    kinds: Mapping[str, Counter[str]],
    halves: Sequence[Sequence[str]],
    left_out: Counter[str],
) -> list[Task]:
    tasks = []
    for task in games:
        word = task.meta["object"]
        if word not in kinds:
            left_out["an object that no training game is about"] += 1
            continue
        if not task.meta["kept"]:
            left_out["an object that lies nowhere"] += 1
            continue
        is_seen = word in halves[0]
        if task.split != _TRAIN:
            split = (SEEN if is_seen else HELD_OUT) + _SUFFIX[task.split]
        elif is_seen:
            split = _TRAIN
        else:
            split = _SOURCES
        usual = _usual(kinds[word], task)
        tasks.append(dataclasses.replace(task, split=split, meta={**task.meta, "usual": usual}))
    return tasks


def _usual(kinds: Mapping[str, int], task: Task) -> list[str]:
    """The commonest kinds of places of training games, where the task's object can be looked for."""
    there = task.meta["target"] if task.task_type in PLACED_AS_FOUND else ""
    return usual_kinds(kinds, there) or usual_kinds(kinds)


def _report(tasks, kinds, halves, left_out) -> ObjectsReport:
    games = Counter(t.meta["object"] for t in tasks if t.split in (_TRAIN, _SOURCES))
    shares = {}
    for name, half in zip((SEEN, HELD_OUT), halves, strict=True):
        total = sum((kinds[word] for word in half), Counter())
        shares[name] = {kind: n / total.total() for kind, n in sorted(total.items())}
    seen, held_out = ({word: games[word] for word in half} for half in halves)
    splits = dict(sorted(Counter(t.split for t in tasks).items()))
    return ObjectsReport(splits, seen, held_out, shares, dict(left_out))
