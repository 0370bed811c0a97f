"""One task on a generated site in the official layout: its pages, and what each choice at a habit would do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from evolving_rl_jax.envs.mind2web.site_kinds import Date, Kind
from evolving_rl_jax.envs.mind2web.site_markup import Markup

__all__ = ["NUM_ROWS", "make_task"]

NUM_ROWS = 3
_LINKS = "help news about contact login stores jobs careers".split()
_FIELDS = "email coupon zip phone".split()


class _Action(NamedTuple):
    """An action by what names its element."""

    role: str
    label: str
    context: str = ""
    op: str = "CLICK"
    value: str = ""


class _Step(NamedTuple):
    """The annotated action of a step on its page; at a habit what every choice would do, the right one too."""

    page: Markup
    action: _Action
    slot: str = ""
    choices: dict[str, _Action] = {}


def make_task(site, fill: str, row: str, rng: random.Random, source: dict | None = None) -> dict:
    """One task in the official layout.

    Args:
      site: a `sites.Site`.
      fill: what is filled in.
      row: which row is chosen.
      rng: of all that does not matter: the date, other elements, their order.
      source: the task that experience with the site comes from, if the task has one.
    """
    kind, date = site.kind, Date.drawn(rng)
    steps = list(_steps(site, fill, row, date, rng))
    actions, reprs, solution = [], [], []
    for i, step in enumerate(steps):
        role, label, context, op, value = step.action
        actions.append(_annotated(i, step.page, step.page.ids[role, label, context], op, value))
        reprs.append(f"[{role}]  {label} -> {op}" + (f": {value}" if value else ""))
        choices = {name: action._asdict() for name, action in step.choices.items()}
        solution.append({**step.action._asdict(), "slot": step.slot, "choices": choices})
    generated = {
        "kind": kind.subdomain.lower(),
        "habits": {slot: list(choices) for slot, choices in site.habits.items()},
        "solution": solution,
        "source": source["annotation_id"] if source else "",
    }
    return {
        "annotation_id": f"{site.name}/{fill}/{row}".replace(" ", "-"),
        "confirmed_task": kind.text(fill, row, date),
        "website": site.name,
        "domain": kind.domain,
        "subdomain": kind.subdomain,
        "action_reprs": reprs,
        "actions": actions,
        "generated": generated,
    }


def _annotated(i: int, page: Markup, node: str, op: str, value: str) -> dict:
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


# -- the steps of a task ---------------------------------------------------------------------------


def _steps(site, fill: str, row: str, date: Date, rng: random.Random) -> Iterator[_Step]:
    """Fill in the form, perhaps with a date, choose a row; a button comes before or after that."""
    kind = site.kind
    presses = [slot for slot, verb in kind.slots.items() if verb == "press"]
    # Of two habits the first is met in the form: a button that sends it, where it has no other.
    in_form = [slot for slot in presses if slot == next(iter(kind.slots))]
    form = _form_page(site, rng, fill, in_form)
    yield _filled(site, form, fill)
    if kind.date_field:
        slot = kind.date_field
        choices = {
            name: _Action("textbox", slot, "", "TYPE", date.written(name))
            for name in site.habits[slot]
        }
        yield _at_habit(site, form, slot, choices)
    for slot in in_form:
        yield _at_habit(site, form, slot, _in_places(site, slot, _Action("button", slot)))
    yield from _row_steps(site, rng, row)
    for slot in presses:
        if slot not in in_form:
            last = _last_page(site, rng, slot)
            yield _at_habit(site, last, slot, _in_places(site, slot, _Action("button", slot)))


def _filled(site, form: Markup, fill: str) -> _Step:
    kind: Kind = site.kind
    role = "textbox" if kind.op == "TYPE" else "combobox"
    action = _Action(role, kind.field, "", kind.op, fill)
    if kind.slots.get(kind.field) != "use":
        return _Step(form, action)
    return _at_habit(site, form, kind.field, _in_places(site, kind.field, action))


def _row_steps(site, rng: random.Random, row: str) -> Iterator[_Step]:
    kind: Kind = site.kind
    others = rng.sample([r for r in kind.rows_from if r != row], NUM_ROWS - 1)
    page = _rows_page(site, rng, [row, *others])
    chosen = _Action("button", kind.row_label, row)
    slot = next((slot for slot, verb in kind.slots.items() if verb == "set"), "")
    if not slot:
        yield _Step(page, chosen)
        return
    choices = {
        name: chosen if name == "none" else _Action("checkbox", name) for name in site.habits[slot]
    }
    yield _at_habit(site, page, slot, choices)
    if site.habits[slot][0] != "none":
        yield _Step(page, chosen)


def _in_places(site, slot: str, action: _Action) -> dict[str, _Action]:
    return {place: action._replace(context=place) for place in site.habits[slot]}


def _at_habit(site, page: Markup, slot: str, choices: dict[str, _Action]) -> _Step:
    return _Step(page, choices[site.habits[slot][0]], slot, choices)


# -- its pages -------------------------------------------------------------------------------------


def _form_page(site, rng: random.Random, fill: str, buttons: list[str]) -> Markup:
    kind, markup = site.kind, Markup(rng)
    others = rng.sample([f for f in kind.fill_from if f != fill], 3)
    parts = [markup.icon(rng.choice(_LINKS))]
    if kind.slots.get(kind.field) == "use":
        parts += markup.in_places(site.habits[kind.field], lambda p: markup.textbox(kind.field, p))
    elif kind.op == "TYPE":
        parts.append(markup.textbox(kind.field))
    else:
        options = rng.sample([fill, *others], len(others) + 1)
        parts.append(markup.combobox(kind.field, options))
    parts.append(markup.textbox(kind.date_field or rng.choice(_FIELDS)))
    for slot in buttons:
        parts += markup.in_places(site.habits[slot], lambda p, slot=slot: markup.button(slot, p))
    return markup.page(rng.sample(parts, len(parts)))


def _rows_page(site, rng: random.Random, rows: list[str]) -> Markup:
    kind, markup = site.kind, Markup(rng)
    parts = [markup.link(rng.choice(_LINKS))]
    for slot, verb in kind.slots.items():
        if verb == "set":
            names = [name for name in site.habits[slot] if name != "none"]
            parts += [markup.checkbox(name) for name in rng.sample(names, len(names))]
    parts += [markup.row(row, kind.row_label) for row in rng.sample(rows, len(rows))]
    return markup.page(parts)


def _last_page(site, rng: random.Random, slot: str) -> Markup:
    markup = Markup(rng)
    first, second = rng.sample(_LINKS, 2)
    parts = [markup.link(first), markup.icon(second)]
    parts += markup.in_places(site.habits[slot], lambda place: markup.button(slot, place))
    return markup.page(rng.sample(parts, len(parts)))
