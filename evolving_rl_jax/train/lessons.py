"""What the warm start teaches, as sequences of tokens, and in which rows they come."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from evolving_rl_jax import envs
from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.rollout.batch import fill_rows, pack_rows
from evolving_rl_jax.rollout.demonstrations import Demonstrator
from evolving_rl_jax.run.lessons import Lesson, given_lessons
from evolving_rl_jax.run.skills import fit_to_prompt
from evolving_rl_jax.types import Sample, Task

FIELDS = ("tokens", "positions", "segment_ids", "loss_mask")  # of a batch to clone


class Lessons(NamedTuple):
    """What is trained on, and what only tells how well it was learned (perhaps nothing)."""

    taught: list[Sample]
    held_out: list[Sample]


def make_lessons(parts) -> Lessons:
    """The sequences of ``config.warmstart``.

    Every host makes all of them: they are the same everywhere, so nothing has to be exchanged.

    Raises:
      ConfigError: there are none, or none that fits a row.
    """
    w = parts.config.warmstart
    if w.source != "demonstrations":
        found = given_lessons(parts.config, parts.prompts, parts.say)
        taught, others = split_groups(found, lambda x: x.group, w.held_out, parts.config.seed)
        return Lessons(_fitting(parts, taught), _fitting(parts, others) if others else [])
    tasks = [task for name in w.splits for task in parts.split(name)]
    taught, held_out = split_groups(
        tasks, lambda t: envs.benchmark(t.env).lesson_group(t), w.held_out, parts.config.seed
    )
    samples = demonstrations(parts, taught, w.episodes)
    samples += _more_extractions(parts, taught, samples)
    others = []
    if held_out:
        count = _share_of(w.episodes, w.held_out)
        others = demonstrations(parts, held_out, count, first=w.episodes)
    return Lessons(_fitting(parts, samples), _fitting(parts, others) if others else [])


def _more_extractions(parts, tasks: Sequence[Task], samples: list[Lesson]) -> list[Lesson]:
    """As many extractions as ``warmstart.extraction_share`` asks for beside those that are there."""
    w = parts.config.warmstart
    there = sum(s.extraction for s in samples)
    wanted = math.ceil(w.extraction_share / (1 - w.extraction_share) * (len(samples) - there))
    if wanted <= there:
        return []
    return demonstrations(parts, tasks, wanted - there, first=2 * w.episodes, extracted=True)


def split_groups(items: Sequence, group_of, share: float, seed: int) -> tuple[list, list]:
    """(what is taught, what is held out): whole groups, at least one of each where ``share`` > 0.

    Raises:
      ConfigError: there are not two groups to divide.
    """
    if not share:
        return list(items), []
    groups = sorted({group_of(item) for item in items})
    count = min(_share_of(len(groups), share), len(groups) - 1)
    if count < 1:
        raise ConfigError(
            "config.warmstart.held_out must be 0 where there are not two groups of demonstrations to "
            f"divide (households, sites, conversations), got {share:g} and {len(groups)}"
        )
    order = np.random.default_rng([seed, len(groups)]).permutation(len(groups))
    held = {groups[i] for i in order[:count]}
    return (
        [x for x in items if group_of(x) not in held],
        [x for x in items if group_of(x) in held],
    )


def _share_of(count: int, share: float) -> int:
    return max(1, round(count * share))


def demonstrations(
    parts, tasks: Sequence[Task], count: int, *, first: int = 0, extracted: bool = False
) -> list[Lesson]:
    """The sequences of scripted episodes, and of the extraction after those without a skill.

    Args:
      parts: of the run.
      tasks: that are played, again and again where there are fewer of them.
      count: episodes.
      first: number of the first; each draws from a generator of its own number.
      extracted: extractions alone, one of every episode.
    """
    config = parts.config
    demonstrator = Demonstrator(
        parts.pool,
        parts.prompts,
        config.rollout,
        config.warmstart,
        config.seed,
        fit_to_prompt(config, parts.tokenizer),
    )
    # Where there are more tasks than episodes, those at equal distances: ids are sorted by type.
    apart = max(1.0, len(tasks) / count)
    chosen = [tasks[int(i * apart) % len(tasks)] for i in range(count)]
    start = time.perf_counter()
    with parts.progress("warm start: demonstrations", count) as bar:
        played = demonstrator.play(chosen, first=first, extracted=extracted, progress=bar)
    won = sum(d.won for d in played)
    parts.say(
        f"warm start: {len(played)} demonstrations ({won / max(len(played), 1):.0%} won) in "
        f"{time.perf_counter() - start:.0f} s"
    )
    if failures := demonstrator.failures:
        task, said = failures[0]
        why = f"{len(failures)} of {count} demonstrations failed, the first of {task}: {said}"
        if not played:
            raise ConfigError(
                f"config.warmstart must have demonstrations that can be played; {why}"
            )
        parts.say(f"warm start: {why}")
    lessons = []
    for demonstration in played:
        episode = [] if extracted else demonstration.episode
        lessons += [Lesson(sample, False, demonstration.task.id) for sample in episode]
        if demonstration.extraction is not None:
            lessons.append(Lesson(demonstration.extraction, True, demonstration.task.id))
    return lessons


def _fitting(parts, lessons: list[Lesson]) -> list[Sample]:
    """The sequences that a row can hold."""
    length = parts.config.train.row_length
    samples = [lesson.sample for lesson in lessons]
    fitting = [s for s in samples if len(s.tokens) <= length]
    if not fitting:
        longest = max((len(s.tokens) for s in samples), default=0)
        raise ConfigError(
            f"config.train.row_length must be >= the length of demonstrations, got {length} and "
            f"{len(samples)} sequences of at most {longest} tokens"
        )
    if len(fitting) < len(samples):
        parts.say(f"warm start: {len(samples) - len(fitting)} sequences are too long and left out")
    return fitting


def row_batches(samples: list[Sample], config, *, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of packed rows, every sequence once an epoch in a new order."""
    rng = np.random.default_rng(seed)
    rows, length = config.warmstart.batch_rows, config.train.row_length
    weight = config.warmstart.observation_weight
    # Short sequences first fill up rows well when a batch draws from the whole set.
    per_batch = max(1, int(rows * length / np.mean([len(s.tokens) for s in samples])))
    queue: list[int] = []
    while True:
        while len(queue) < per_batch:
            queue += rng.permutation(len(samples)).tolist()
        drawn = [samples[i] for i in queue[:per_batch]]
        chosen, left = pack_rows([len(s.tokens) for s in drawn], length, rows)
        filled = fill_rows(drawn, chosen, rows, length)
        batch = {name: filled[name] for name in FIELDS}
        if weight:  # of what is only read
            read = (batch["segment_ids"] > 0) & (batch["loss_mask"] == 0)
            batch["loss_mask"] = np.where(read, np.float32(weight), batch["loss_mask"])
        yield batch
        queue = [queue[m] for m in left] + queue[per_batch:]


def all_batches(samples: list[Sample], config) -> list[dict[str, np.ndarray]]:
    """Batches of packed rows that hold every sequence once."""
    size, length = config.warmstart.batch_rows, config.train.row_length
    rows, _ = pack_rows([len(s.tokens) for s in samples], length)
    filled = [
        fill_rows(samples, rows[start : start + size], size, length)
        for start in range(0, len(rows), size)
    ]
    return [{name: batch[name] for name in FIELDS} for batch in filled]
