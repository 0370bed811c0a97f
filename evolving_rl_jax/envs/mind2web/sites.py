"""Small web sites with tasks on them, generated in Mind2Web's JSON layout.

A **site** has a name and two hidden, stable habits: on two of its pages the same button stands in two
places (header and footer, left and right, top and bottom), and only one of them is the annotated one.
Nothing on the page tells which; it is the same in all tasks of the site.  A task has four steps on three
pages: fill in a form, press a button of the first habit, choose a row among equal labels, and press a
button of the second habit.  Without knowledge of the site a task succeeds in one of four tries.

An episode reveals a habit whichever of the two buttons it presses: the right one by going on, the wrong
one by ending.  So a failed source says where the first button is, and a source that got past it says
both, and all other tasks of the site need just that.

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

from evolving_rl_jax.envs.mind2web.site_markup import Markup

__all__ = ["PlannedTask", "SitesSpec", "generate_sites", "plan_sites"]

_FIRST = (
    "amber birch cedar coral dawn elm fern gold hazel iris jade lake maple nova oak olive pearl pine "
    "quartz river rose silver sky spruce star stone sun teal violet willow"
).split()
_SECOND = (
    "barn bay bridge corner cove creek dale depot field forge gate grove harbor hill house lane loft mill "
    "nest park place point port ridge row shed spring square terrace yard"
).split()
MAX_SITES = len(_FIRST) * len(_SECOND)

PLACES = (("header", "footer"), ("left", "right"), ("top", "bottom"))
_COLORS = "red blue green black white".split()
_THINGS = "mug lamp chair jacket clock bag tent bowl scarf desk".split()
_CITIES = "oslo lima cairo dublin kyoto quito riga perth lyon porto".split()
_NAMES = "anna boris chen dara emil fatima goran hana ivan julia".split()
_TOPICS = "tax refund visa parking library school permit water".split()
_ROOMS = "single double family garden".split()
_LINKS = "help news about contact login stores jobs careers".split()
_FIELDS = "email coupon zip phone".split()


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the sites of a domain are like.

    ``first`` fills in the form, ``row`` is the choice among equal labels; ``slots`` are the two buttons
    whose places are habits.
    """

    domain: str
    subdomain: str
    field: str
    op: str
    fill_from: tuple[str, ...]
    row_label: str
    rows_from: tuple[str, ...]
    slots: tuple[str, str]
    sentence: str

    def text(self, fill: str, row: str) -> str:
        """The instruction."""
        return self.sentence.format(fill=fill, row=row)


KINDS = (
    Kind("Shopping", "Shop", "find", "TYPE", tuple(_THINGS), "add", tuple(_COLORS),
         ("search", "checkout"), "find {fill} and add the {row} one"),
    Kind("Travel", "Hotel", "city", "SELECT", tuple(_CITIES), "book", tuple(_ROOMS),
         ("rooms", "reserve"), "go to {fill} and book a {row} room"),
    Kind("Service", "Form", "name", "TYPE", tuple(_NAMES), "choose", tuple(_TOPICS),
         ("next", "send"), "write as {fill} and choose {row}"),
    Kind("Info", "Search", "topic", "SELECT", tuple(_TOPICS), "open", tuple(_COLORS),
         ("show", "save"), "look up {fill} and open the {row} page"),
)  # fmt: skip
TRAIN_KINDS, TEST_KINDS = KINDS[:2], KINDS[2:]
NUM_ROWS = 3


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
    """A site: its kind, and for each slot the place that is right and the other one."""

    name: str
    kind: Kind
    habits: dict[str, tuple[str, str]]

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

    The files have the official layout; beside it every task has ``generated``: kind, habits (slot ->
    right place, other place), the slot of each step, the solution, and the id of its source task.
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
    pairs = rng.sample(PLACES, len(kind.slots))
    return Site(
        name, kind, {s: tuple(rng.sample(p, 2)) for s, p in zip(kind.slots, pairs, strict=True)}
    )


def make_task(
    site: Site, fill: str, row: str, rng: random.Random, source: dict | None = None
) -> dict:
    """One task in the official layout."""
    kind, (first, second) = site.kind, site.kind.slots
    field = ("textbox" if kind.op == "TYPE" else "combobox", kind.field, "")
    options = rng.sample([f for f in kind.fill_from if f != fill], 3)
    form = _form_page(site, rng, fill, options)
    others = rng.sample([r for r in kind.rows_from if r != row], NUM_ROWS - 1)
    steps = [
        (form, field, kind.op, fill, ""),
        (form, ("button", first, site.habits[first][0]), "CLICK", "", first),
        (_rows_page(site, rng, [row, *others]), ("button", kind.row_label, row), "CLICK", "", ""),
        (_last_page(site, rng), ("button", second, site.habits[second][0]), "CLICK", "", second),
    ]
    actions, reprs, solution = [], [], []
    for i, (page, (role, label, context), op, value, slot) in enumerate(steps):
        actions.append(_action(i, page, page.ids[role, label, context], op, value))
        reprs.append(f"[{role}]  {label} -> {op}" + (f": {value}" if value else ""))
        solution.append(
            {
                "role": role,
                "label": label,
                "context": context,
                "op": op,
                "value": value,
                "slot": slot,
            }
        )
    generated = {
        "kind": kind.subdomain.lower(),
        "habits": {slot: list(places) for slot, places in site.habits.items()},
        "solution": solution,
        "source": source["annotation_id"] if source else "",
    }
    task_id = f"{site.name}/{fill}/{row}".replace(" ", "-")
    return {
        "annotation_id": task_id,
        "confirmed_task": kind.text(fill, row),
        "website": site.name,
        "domain": kind.domain,
        "subdomain": kind.subdomain,
        "action_reprs": reprs,
        "actions": actions,
        "generated": generated,
    }


def _action(i: int, page: Markup, node: str, op: str, value: str) -> dict:
    markup = page.html
    right = {"is_original_target": True, "is_top_level_target": True}
    return {
        "action_uid": str(i),
        "raw_html": markup,
        "cleaned_html": markup,
        "operation": {"op": op, "original_op": op, "value": value},
        "pos_candidates": [{**right, **c} for c in page.candidates if c["backend_node_id"] == node],
        "neg_candidates": [c for c in page.candidates if c["backend_node_id"] != node],
    }


def _spread(rng: random.Random, pair: list[str], others: list[str]) -> list[str]:
    """The pieces in a random order, the pair in its own."""
    parts = [*others, *pair]
    rng.shuffle(parts)
    order = iter(pair)
    return [next(order) if p in pair else p for p in parts]


def _form_page(site: Site, rng: random.Random, fill: str, options: list[str]) -> Markup:
    kind, markup = site.kind, Markup(rng)
    if kind.op == "TYPE":
        field = markup.textbox(kind.field)
    else:
        field = markup.combobox(kind.field, rng.sample([fill, *options], len(options) + 1))
    others = [field, markup.textbox(rng.choice(_FIELDS)), markup.icon(rng.choice(_LINKS))]
    return markup.page(_spread(rng, markup.pair(kind.slots[0], site.habits[kind.slots[0]]), others))


def _rows_page(site: Site, rng: random.Random, rows: list[str]) -> Markup:
    markup = Markup(rng)
    items = [markup.row(row, site.kind.row_label) for row in rng.sample(rows, len(rows))]
    return markup.page([markup.link(rng.choice(_LINKS)), *items])


def _last_page(site: Site, rng: random.Random) -> Markup:
    markup = Markup(rng)
    first, second = rng.sample(_LINKS, 2)
    others = [markup.link(first), markup.icon(second)]
    slot = site.kind.slots[1]
    return markup.page(_spread(rng, markup.pair(slot, site.habits[slot]), others))
