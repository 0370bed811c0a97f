"""What a folder of tasks gives a run before anything is trained: panels, retrieval, streams, prompts.

The command ``evolving-rl data survey`` prints it.  All of it is computed by what a run itself uses, with
the defaults of the configuration beside what is given here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evolving_rl_jax import envs
from evolving_rl_jax.data.shares import retrieved_shares
from evolving_rl_jax.data.tasks import TaskOrder, panel_sample, select
from evolving_rl_jax.envs.base import EnvError
from evolving_rl_jax.eval import tables
from evolving_rl_jax.eval.stream import arrival_order
from evolving_rl_jax.run.parts import training_tasks
from evolving_rl_jax.skills.retrieval import PREFERENCES, Retriever, shortage
from evolving_rl_jax.skills.rotation import Lots, Rotation
from evolving_rl_jax.types import Task

__all__ = ["lines", "survey"]

MANY = 4  # earlier tasks of a group that let a stream use what it learned there
BY_ID = "text, ties by id"


def survey(
    config,
    tasks: Sequence[Task],
    *,
    panel: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """The figures, as JSON values.

    Args:
      config: of a run on these tasks; ``env``, ``data``, ``rollout.num_retrieved``, ``eval.seed`` and
        ``seed`` are read.
      tasks: all of them.
      panel: games of a small panel.
      progress: called with the number of tasks whose first observation has been read.

    Returns:
      ``splits`` (tasks of each), ``panels`` (split -> `panel_types`), ``retrieval`` (how -> `epoch`, or
      why not), ``streams`` (split -> `group_coverage`) and ``prompts`` (split -> `openings`).
    """
    sizes = Counter(task.split for task in tasks)
    panels = [name for name in sorted(sizes) if name != config.data.train_split]
    train = training_tasks(config, tasks, [t for t in tasks if t.split in panels])
    return {
        "splits": dict(sorted(sizes.items())),
        "panels": {n: panel_types(select(tasks, split=n), panel) for n in panels},
        "training": len(train),
        "retrieval": _retrieval(train, config.rollout.num_retrieved, config.seed),
        "streams": {
            n: group_coverage(arrival_order(select(tasks, split=n), config.eval.seed))
            for n in sorted(sizes)
        },
        "prompts": openings(config, tasks, progress),
    }


def panel_types(tasks: Sequence[Task], num: int) -> dict[str, dict[str, int]]:
    """Task type -> games: of all, of the first ``num`` by id, and of the sample that a panel plays."""
    by_id = sorted(tasks, key=lambda task: task.id)
    chosen = {"all": by_id, "first": by_id[:num], "sample": panel_sample(tasks, num)}
    types = sorted({task.task_type for task in tasks})
    counts = {name: Counter(t.task_type for t in some) for name, some in chosen.items()}
    return {name: {kind: found[kind] for kind in types} for name, found in counts.items()}


def epoch(
    tasks: Sequence[Task], k: int, seed: int, prefer: str = "text", *, drawn: bool = True
) -> dict[str, float]:
    """What the sources of the first epoch of training retrieve.

    Args:
      tasks: of training.
      k: tasks that a source is evaluated on.
      seed: of the run.
      prefer: see `skills.retrieval.Retriever`.
      drawn: whether ties are, as in training; else those with the first ids are taken.

    Returns:
      The shares of `retrieved_shares`; ``played``, the share of the tasks that are retrieved at all;
      ``most``, how often the most frequent one is.
    """
    retriever, order = Retriever(tasks, prefer=prefer), TaskOrder(tasks, seed=seed)

    def retrieve(task: Task, lots: Lots) -> list[Task]:
        return retriever.retrieve(task, k, lots=lots if drawn else None)

    rotation = Rotation(retrieve, lambda i: order.take(i, 1)[0], epoch=len(tasks), seed=seed)
    sources = order.take(0, len(tasks))
    found = [rotation.at(i) for i in range(len(tasks))]
    plays = Counter(task.id for chosen in found for task in chosen)
    pairs = ((s, task) for s, chosen in zip(sources, found, strict=True) for task in chosen)
    shares = retrieved_shares(pairs)
    return {**shares, "played": len(plays) / len(tasks), "most": max(plays.values())}


def group_coverage(tasks: Sequence[Task]) -> dict[str, float]:
    """How much of what a stream has met before is of the group of its present task.

    Args:
      tasks: in the order of their arrival.

    Returns:
      ``tasks``, ``known`` (tasks that say their group), ``groups``, and of all tasks how many had ``one``
      or ``many`` (`MANY`) earlier tasks of their group.
    """
    seen: Counter[str] = Counter()
    before = []
    for task in tasks:
        before.append(seen[task.group] if task.group else 0)
        seen[task.group] += 1
    return {
        "tasks": len(tasks),
        "known": sum(bool(task.group) for task in tasks),
        "groups": len(set(seen) - {""}),
        "one": sum(n >= 1 for n in before),
        "many": sum(n >= MANY for n in before),
    }


def openings(config, tasks: Sequence[Task], progress: Callable[[int], None]) -> dict[str, Any]:
    """Split -> what short prompts say of first observations.

    ``tasks`` that could be opened, ``failed`` ones, how many prompts say ``nothing`` of what is seen
    first, and the mean number of ``words`` of it that they show and that ``there`` are.
    """
    benchmark = envs.benchmark(config.env.name)
    env = envs.make(config.env.name, **benchmark.worker_options(config.env))
    found: dict[str, Counter[str]] = {}
    try:
        for done, task in enumerate(tasks, start=1):
            row = found.setdefault(task.split, Counter())
            progress(done)
            try:
                seen = env.reset(task)
            except EnvError:
                row["failed"] += 1
                continue
            shown = " ".join(benchmark.texts.compact.opening(seen.text))
            row["tasks"] += 1
            row["nothing"] += not shown
            row["words"] += len(shown.split())
            row["there"] += len(seen.text.split())
    finally:
        env.close()
    return {split: _means(row) for split, row in sorted(found.items())}


def _means(row: Mapping[str, int]) -> dict[str, float | None]:
    counts = {name: row[name] for name in ("tasks", "failed", "nothing")}
    n = row["tasks"]
    return counts | {name: row[name] / n if n else None for name in ("words", "there")}


def _retrieval(train: Sequence[Task], k: int, seed: int) -> dict[str, Any]:
    """How -> the figures of an epoch, or a sentence that says why there is none."""
    found: dict[str, Any] = {}
    for prefer in PREFERENCES:
        unknown = sum(not task.group for task in train)
        why = "no tasks to train on" if not train else ""
        if prefer != "text" and unknown:
            why = why or f"{unknown} tasks say no group"
        why = why or shortage(train, train, k, same_text=False, same_group=prefer == "other")
        found[prefer] = why or epoch(train, k, seed, prefer)
        if prefer == "text":
            found[BY_ID] = why or epoch(train, k, seed, drawn=False)
    return found


# -- as text ---------------------------------------------------------------------------------------


def lines(found: Mapping[str, Any], num_retrieved: int, panel: int) -> list[str]:
    """The figures of `survey` as tables."""
    sizes = ", ".join(f"{name} {n}" for name, n in found["splits"].items())
    return [
        f"tasks: {sizes}",
        "",
        *_panel_lines(found["panels"], panel),
        f"tasks retrieved for the {found['training']} training tasks in an epoch (K = {num_retrieved}), "
        "shares in %",
        *_retrieval_lines(found["retrieval"]),
        "",
        "streams: tasks with earlier ones of their group (room, household, site)",
        *_table(found["streams"], ("tasks", "known", "groups", "one", "many")),
        "",
        "short prompts: what they show of the first observation",
        *_table(found["prompts"], ("tasks", "failed", "nothing", "words", "there")),
    ]


_HEADS = {
    "known": "group known",
    "one": "1 or more before",
    "many": f"{MANY} or more before",
    "nothing": "show nothing",
    "words": "words shown",
    "there": "words there are",
}


def _panel_lines(panels: Mapping[str, Any], panel: int) -> list[str]:
    if not panels:
        return []
    rows = [("split", "task type", "all", f"first {panel} by id", f"sample of {panel}")]
    for split, found in panels.items():
        for kind in found["all"]:
            counts = (str(found[name][kind]) for name in ("all", "first", "sample"))
            rows.append((split, kind, *counts))
    return ["panels: games of each task type", tables.align(rows), ""]


def _retrieval_lines(found: Mapping[str, Any]) -> list[str]:
    names = ("same_type", "same_subject", "same_group", "played")
    rows = [("prefer", *(n.replace("_", " ") for n in names), "most plays of one")]
    for how, row in found.items():
        if isinstance(row, str):
            rows.append((how, *[tables.NOTHING] * 4, row))
        else:
            rows.append((how, *(tables.percent(row.get(n)) for n in names), str(row["most"])))
    return [tables.align(rows)]


def _table(found: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    rows = [("split", *(_HEADS.get(name, name) for name in names))]
    rows += [(split, *(_number(row[name]) for name in names)) for split, row in found.items()]
    return [tables.align(rows)]


def _number(value: float | None) -> str:
    if value is None:
        return tables.NOTHING
    return str(value) if isinstance(value, int) else f"{value:.1f}"
