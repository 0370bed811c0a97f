"""One web task as it is replayed: pages as elements, and the annotated action of every step."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from evolving_rl_jax.envs.mind2web.actions import ANNOTATED_OPS, Gold
from evolving_rl_jax.envs.web.page import NODE_ID, Element, Page, parse_page
from evolving_rl_jax.files import encodable

__all__ = ["RecordError", "WebStep", "WebTask", "from_official"]

HTML_FIELDS = ("cleaned_html", "raw_html")
# Attributes of a candidate that say where it is; style is not among those of the published files.
_PLACEMENT = frozenset((NODE_ID, "bounding_box_rect", "data_pw_testid_buckeye_candidate", "style"))


class RecordError(ValueError):
    """A task that cannot be used; the message names the field and what was found."""


@dataclasses.dataclass(frozen=True)
class WebStep:
    """A page, the annotated action on it, and how the data set words that action."""

    page: Page
    gold: Gold
    repr: str = ""


@dataclasses.dataclass(frozen=True)
class WebTask:
    """One annotated task.

    Attributes:
      id: ``annotation_id``.
      text: ``confirmed_task``.
      website, domain, subdomain: where it was done.
      steps: at least one.
      meta: what a generated task says of its site; never shown to the policy.
    """

    id: str
    text: str
    website: str
    domain: str
    subdomain: str
    steps: tuple[WebStep, ...]
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def content_hash(self) -> str:
        """sha256 (hex) of site, instruction and actions, whatever the ids."""
        actions = [[s.gold.op, s.gold.value, s.repr] for s in self.steps]
        words = " ".join(self.text.lower().split())
        text = json.dumps([self.website.lower(), words, actions], ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def answers(self) -> list[str]:
        """What gives the task away: the values of its annotated steps, then their wording.

        Values that name nothing ("2", "M") are left out.
        """
        values = [s.gold.value for s in self.steps if sum(map(str.isalpha, s.gold.value)) > 2]
        return list(dict.fromkeys([*values, *(s.repr for s in self.steps if s.repr)]))

    def steps_json(self) -> str:
        """Steps as JSON; ``steps_from_json`` gives them back."""
        steps = [
            {
                "elements": [e.to_json() for e in s.page.elements],
                "gold": list(s.gold.node_ids),
                "op": s.gold.op,
                "value": s.gold.value,
                "repr": s.repr,
            }
            for s in self.steps
        ]
        return json.dumps(steps, ensure_ascii=False, separators=(",", ":"))


def steps_from_json(text: str) -> tuple[WebStep, ...]:
    """Inverse of ``WebTask.steps_json``."""
    return tuple(
        WebStep(
            Page(tuple(map(Element.from_json, step["elements"]))),
            Gold(tuple(step["gold"]), step["op"], step["value"]),
            step["repr"],
        )
        for step in json.loads(text)
    )


def from_official(data: Any) -> WebTask:
    """Builds a task from one object of the official JSON.

    The page of a step is its ``cleaned_html``, or its ``raw_html`` where that is empty or missing: a
    choice that never depends on the action.  A blank page has no elements.

    Raises:
      RecordError: a field is missing or of the wrong type; names the field.
    """
    if not isinstance(data, dict):
        raise RecordError(f"a task must be a JSON object, found {_kind(data)}")
    texts = {
        key: _text(data, key, key)
        for key in ("annotation_id", "confirmed_task", "website", "domain", "subdomain")
    }
    for key in ("annotation_id", "confirmed_task"):
        if not texts[key].strip():
            raise RecordError(f"{key} must be a non-empty text, found {texts[key]!r}")
    actions, reprs = _list(data, "actions"), _list(data, "action_reprs")
    if not actions:
        raise RecordError("actions must hold at least one step, found none")
    if len(reprs) != len(actions):
        raise RecordError(
            f"action_reprs must be as many as actions ({len(actions)}), found {len(reprs)}"
        )
    meta = data.get("generated", {})
    if not isinstance(meta, dict):
        raise RecordError(f"generated must be a JSON object, found {_kind(meta)}")
    return WebTask(
        texts["annotation_id"],
        texts["confirmed_task"],
        texts["website"],
        texts["domain"],
        texts["subdomain"],
        tuple(_step(a, r, i) for i, (a, r) in enumerate(zip(actions, reprs, strict=True))),
        meta,
    )


def _step(action: Any, action_repr: Any, i: int) -> WebStep:
    where = f"actions[{i}]"
    if not isinstance(action, dict):
        raise RecordError(f"{where} must be a JSON object, found {_kind(action)}")
    if not isinstance(action_repr, str):
        raise RecordError(f"action_reprs[{i}] must be a text, found {_kind(action_repr)}")
    operation = action.get("operation")
    if not isinstance(operation, dict):
        raise RecordError(f"{where}.operation must be a JSON object, found {_kind(operation)}")
    op = _text(operation, "op", f"{where}.operation.op").strip().upper()
    if op not in ANNOTATED_OPS:
        raise RecordError(
            f"{where}.operation.op must be one of {', '.join(ANNOTATED_OPS)}, found {op!r}"
        )
    given = {k: v for k, v in operation.items() if v is not None}
    value = _text({"value": "", **given}, "value", f"{where}.operation.value")
    right = _candidates(action, "pos_candidates", where)
    wrong = _candidates(action, "neg_candidates", where) if action.get("neg_candidates") else {}
    page = _page(action, where, right | wrong, keep_all=not wrong)
    return WebStep(page, Gold(tuple(right), op, value), action_repr)


def _page(action: dict[str, Any], where: str, candidates, *, keep_all: bool) -> Page:
    """The page of a step.  Positive and negative candidates together say nothing of the gold action;
    positive ones alone would, so without negative ones every node is kept."""
    found = []
    for field in HTML_FIELDS:
        html = action.get(field)
        if html is not None and not isinstance(html, str):
            raise RecordError(f"{where}.{field} must be a text, found {_kind(html)}")
        if html and html.strip():
            page = parse_page(html, {} if keep_all else candidates, keep_all=keep_all)
            if page.elements:
                return page
            found.append(f"{field} of {len(html)} characters without elements")
        else:
            found.append(f"{'empty' if html is not None else 'no'} {field}")
    if not any(isinstance(action.get(field), str) for field in HTML_FIELDS):
        raise RecordError(
            f"{where}.cleaned_html must be a page with {NODE_ID} attributes, found {', '.join(found)}"
        )
    return Page(())  # a step of the test set all the same, which nobody can get right


def _candidates(action: dict[str, Any], key: str, where: str) -> dict[str, dict[str, Any]]:
    """Node id -> attributes of the candidates of one kind."""
    where = f"{where}.{key}"
    listed = action.get(key)
    if not isinstance(listed, list):
        raise RecordError(f"{where} must be a list, found {_kind(listed)}")
    found: dict[str, dict[str, Any]] = {}
    for i, candidate in enumerate(listed):
        if isinstance(candidate, str):  # some copies of the data keep them as JSON text
            try:
                candidate = json.loads(candidate)
            except ValueError as error:
                raise RecordError(f"{where}[{i}] must be JSON, found {error}") from None
        node_id = candidate.get(NODE_ID) if isinstance(candidate, dict) else None
        if not isinstance(node_id, str | int) or isinstance(node_id, bool):
            raise RecordError(f"{where}[{i}].{NODE_ID} must be a text, found {_kind(node_id)}")
        found.setdefault(str(node_id), _attributes(candidate.get("attributes"), f"{where}[{i}]"))
    return found


def _attributes(told: Any, where: str) -> dict[str, str]:
    """A candidate's attributes: an object, or its JSON text as in the published files."""
    if told is None or told == "":
        return {}
    if isinstance(told, str):
        try:
            told = json.loads(told)
        except ValueError as error:
            raise RecordError(f"{where}.attributes must be JSON, found {error}") from None
    if not isinstance(told, dict):
        raise RecordError(f"{where}.attributes must be a JSON object, found {_kind(told)}")
    return {k: v for k, v in told.items() if isinstance(v, str) and k not in _PLACEMENT}


def _text(data: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(data.get(key), str):
        raise RecordError(f"{where} must be a text, found {_kind(data.get(key))}")
    return encodable(data[key])


def _list(data: dict[str, Any], key: str) -> list:
    if not isinstance(data.get(key), list):
        raise RecordError(f"{key} must be a list, found {_kind(data.get(key))}")
    return data[key]


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
