"""Small web sites with tasks on them, generated in Mind2Web's JSON layout.

A **site** has a name and two hidden, stable habits (`site_kinds`), each one of three choices: in which of three places the
right one of equal buttons or fields stands, in which format a date is written, which filter must be set first.
Nothing on the page tells; it is the same in all tasks of the site.  Without knowledge of the site a task
succeeds in one of nine tries.

An episode reveals a habit by going on after the right choice; one that ends there only rules a choice out.
Several attempts together reveal what one does not: what all but one were ruled out of, and what the furthest
went past.

Pages are written as real ones are: every text in a ``text`` node, labels beside their fields, rows of ``div``
without a name, icons that are characters of a font, doubles that nobody sees, and every visible node a
candidate.  The sentence of a task does not name its site.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import random
from collections.abc import Iterator
from typing import NamedTuple

from evolving_rl_jax.envs.mind2web.site_kinds import (
    KINDS,
    TEST_KINDS,
    TRAIN_KINDS,
    Kind,
    choices_of,
)
from evolving_rl_jax.envs.mind2web.site_tasks import make_task

__all__ = ["PlannedTask", "SitesSpec", "generate_sites", "plan_sites"]

_FIRST = (
    "amber ash aspen azure basil beech birch bronze cedar cherry clover copper coral crimson crystal daisy dawn delta "
    "elm ember fern flint frost ginger gold garnet granite grey hazel honey indigo iris ivory jade juniper lake lilac "
    "linen maple marble meadow mint misty moss north nova oak olive opal orange pearl pine quartz river rose silver "
    "sky spruce star stone sun teal violet willow"
).split()
_SECOND = (
    "abbey acre alley arch bank barn bay bend bluff bridge brook canyon castle center chapel circle cliff coast court "
    "cove creek crossing dale depot dock edge falls farm field forge gap gate glen grove hall harbor haven hill "
    "hollow house island lane loft mill nest park path place plaza point pond port quay ridge row shed shore spring "
    "square terrace vale village wharf yard"
).split()
MAX_SITES = len(_FIRST) * len(_SECOND)


@dataclasses.dataclass(frozen=True)
class SitesSpec:
    """How much of which split to generate; all sites of a split are split evenly over their kinds.

    Splits: ``train``, ``test_task`` (the same sites, other tasks), ``test_website`` (other sites of the
    same domains), ``test_domain`` (other domains), one ``..._sources`` task for each site of the last
    two (never scored: where experience with the site comes from), and ``warmstart`` (sites of its own,
    all domains).

    Attributes:
      num_train_sites: sites of ``train`` and ``test_task``.
      tasks_per_site: tasks of ``train`` on each.
      num_test_task: tasks of ``test_task``.
      num_test_sites: sites of ``test_website``, and again of ``test_domain``.
      tasks_per_test_site: tasks on each of those.
      num_warmstart_sites: sites of ``warmstart``.
      tasks_per_warmstart_site: tasks on each of those.

    Raises:
      ValueError: a number is negative, or more sites or tasks than can differ.
    """

    num_train_sites: int = 48
    tasks_per_site: int = 10
    num_test_task: int = 96
    num_test_sites: int = 48
    tasks_per_test_site: int = 2
    num_warmstart_sites: int = 128
    tasks_per_warmstart_site: int = 8

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{field.name} must be an integer of at least 0, got {value!r}")
        if self.num_test_task and not self.num_train_sites:
            raise ValueError(f"num_test_task must be 0 without sites, got {self.num_test_task}")
        if self.num_sites > MAX_SITES:
            raise ValueError(f"sites must be at most {MAX_SITES} in all, got {self.num_sites}")
        extra = math.ceil(self.num_test_task / max(self.num_train_sites, 1))
        most = min(len(k.fill_from) * len(k.rows_from) for k in KINDS)
        for name, found in (
            ("tasks_per_site", self.tasks_per_site + extra),
            ("tasks_per_test_site", self.tasks_per_test_site + 1),
            ("tasks_per_warmstart_site", self.tasks_per_warmstart_site),
        ):
            if found > most:
                raise ValueError(f"{name} must leave at most {most} tasks a site, got {found}")

    @property
    def num_sites(self) -> int:
        """Sites of all splits."""
        return self.num_train_sites + 2 * self.num_test_sites + self.num_warmstart_sites


@dataclasses.dataclass(frozen=True)
class Site:
    """A site: its kind, and what each habit is about -> its choices, the right one first."""

    name: str
    kind: Kind
    habits: dict[str, tuple[str, ...]]

    def tasks(self, rng: random.Random, num: int) -> Iterator[tuple[str, str]]:
        """``num`` different tasks: what is filled in, and which row is chosen."""
        pairs = [(f, r) for f in self.kind.fill_from for r in self.kind.rows_from]
        return iter(rng.sample(pairs, num))


class PlannedTask(NamedTuple):
    """A task that would be generated."""

    split: str
    task_type: str


def plan_sites(spec: SitesSpec) -> list[PlannedTask]:
    """The split and the domain of every task of ``spec``, without making any."""
    planned = []
    per_site = math.ceil(spec.num_test_task / max(spec.num_train_sites, 1))
    for split, kinds, sites, tasks in (
        ("train", TRAIN_KINDS, spec.num_train_sites, spec.tasks_per_site),
        ("test_task", TRAIN_KINDS, spec.num_train_sites, per_site),
        ("test_website", TRAIN_KINDS, spec.num_test_sites, spec.tasks_per_test_site),
        ("test_website_sources", TRAIN_KINDS, spec.num_test_sites, 1),
        ("test_domain", TEST_KINDS, spec.num_test_sites, spec.tasks_per_test_site),
        ("test_domain_sources", TEST_KINDS, spec.num_test_sites, 1),
        ("warmstart", KINDS, spec.num_warmstart_sites, spec.tasks_per_warmstart_site),
    ):
        domains = [kinds[i % len(kinds)].domain for i in range(sites) for _ in range(tasks)]
        kept = spec.num_test_task if split == "test_task" else len(domains)
        planned += [PlannedTask(split, domain) for domain in domains[:kept]]
    return planned


def generate_sites(
    folder: str | os.PathLike[str], *, seed: int, spec: SitesSpec | None = None
) -> None:
    """Writes ``folder/SPLIT/SPLIT_0.json`` for every split, the same for the same seed and spec.

    The files have the official layout; beside it every task has ``generated``: kind, habits (slot -> its
    choices, the right one first), the solution with the slot of each step and what its choices would do, and the
    id of its source task.
    """
    spec = spec or SitesSpec()
    rng = random.Random(f"sites/{seed}")
    for split, tasks in _splits(spec, rng).items():
        if tasks:
            path = pathlib.Path(folder) / split / f"{split}_0.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(tasks), encoding="utf-8")


def _splits(spec: SitesSpec, rng: random.Random) -> dict[str, list[dict]]:
    names = _site_names(spec, rng)
    splits: dict[str, list[dict]] = {
        split: []
        for split in ("train", "test_task", "test_website", "test_website_sources")
        + ("test_domain", "test_domain_sources", "warmstart")
    }
    per_site = math.ceil(spec.num_test_task / max(spec.num_train_sites, 1))
    for i in range(spec.num_train_sites):
        site = _site(next(names), TRAIN_KINDS[i % len(TRAIN_KINDS)], rng)
        chosen = list(site.tasks(rng, spec.tasks_per_site + per_site))
        for split, pairs in (
            ("train", chosen[: spec.tasks_per_site]),
            ("test_task", chosen[spec.tasks_per_site :]),
        ):
            splits[split] += [make_task(site, f, r, rng) for f, r in pairs]
    splits["test_task"] = splits["test_task"][: spec.num_test_task]
    for split, kinds in (("test_website", TRAIN_KINDS), ("test_domain", TEST_KINDS)):
        for i in range(spec.num_test_sites):
            site = _site(next(names), kinds[i % len(kinds)], rng)
            (fill, row), *rest = site.tasks(rng, 1 + spec.tasks_per_test_site)
            source = make_task(site, fill, row, rng)
            splits[f"{split}_sources"].append(source)
            splits[split] += [make_task(site, f, r, rng, source) for f, r in rest]
    for i in range(spec.num_warmstart_sites):
        site = _site(next(names), KINDS[i % len(KINDS)], rng)
        pairs = site.tasks(rng, spec.tasks_per_warmstart_site)
        splits["warmstart"] += [make_task(site, f, r, rng) for f, r in pairs]
    return splits


def _site_names(spec: SitesSpec, rng: random.Random) -> Iterator[str]:
    """Different names, of as many words as the warm start, which comes last, can all have."""
    size = min(len(_FIRST), max(4, math.ceil(math.sqrt(1.2 * spec.num_sites))))
    first, second = rng.sample(_FIRST, size), rng.sample(_SECOND, size)
    # Along diagonals every word is used once before any is used twice.
    pairs = [(i % size, (i + i // size) % size) for i in range(size * size)]
    tail = pairs[: spec.num_warmstart_sites]
    head = pairs[spec.num_warmstart_sites :]
    rng.shuffle(head)
    order = head[: spec.num_sites - spec.num_warmstart_sites] + tail
    return iter([f"{first[i]} {second[j]}" for i, j in order])


def _site(name: str, kind: Kind, rng: random.Random) -> Site:
    return Site(name, kind, choices_of(kind, rng))
