"""Skills as folders with a ``SKILL.md``, as agent tools read them, and back into a bank.

``SKILL.md`` has a YAML front matter (``name`` equal to the folder's, ``description``, ``metadata``
of texts) and the skill as Markdown; see the Agent Skills format, agentskills.io/specification.
Beside it, ``record.json`` holds the whole record.  Reading takes the record where it still says
what ``SKILL.md`` says, and otherwise ``SKILL.md``, so both hand-edited folders and those of other
tools can be read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from evolving_rl_jax.files import write_atomic
from evolving_rl_jax.skills.audit import AuditRules
from evolving_rl_jax.skills.curate import best_first
from evolving_rl_jax.skills.records import SkillRecord, decode, encode
from evolving_rl_jax.skills.schema import Skill, render_skill, text_to_audit
from evolving_rl_jax.types import Task

NAME_LIMIT, DESCRIPTION_LIMIT = 64, 1024  # of the format
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)---[ \t]*(?:\n|\Z)(.*)\Z", re.DOTALL)
_BULLET = re.compile(r"^(?:[-*]|\d+[.)])\s+")
_SECTIONS = {  # heading -> field
    "when to use": "when_to_use",
    "workflow": "workflow",
    "decision rules": "decision_rules",
    "error handling": "error_handling",
}


def export_folders(
    records: Iterable[SkillRecord], out: str | os.PathLike[str], *, top: int | None = None
) -> list[Path]:
    """Writes the usable records below ``out``, one folder each; the best first.

    Of records with one skill only the best is written.

    Args:
      records: of a bank.
      out: folder, made where needed.
      top: at most how many.

    Returns:
      The folders.
    """
    distinct: dict[bytes, SkillRecord] = {}
    for record in best_first(records):
        distinct.setdefault(encode_skill(record), record)
    folders, taken = [], set()
    for record in list(distinct.values())[:top]:
        name = _free_name(_slug(record.as_skill().name), taken)
        taken.add(name)
        folder = Path(out) / name
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "SKILL.md", skill_md(record, name).encode())
        write_atomic(folder / "record.json", encode(record))
        folders.append(folder)
    return folders


def encode_skill(record: SkillRecord) -> bytes:
    """The skill of a record alone, as bytes that are equal for equal skills."""
    return encode(SkillRecord("", 0, "", "", skill=record.skill))


def skill_md(record: SkillRecord, name: str) -> str:
    """The text of ``SKILL.md`` for a folder of that name."""
    import yaml

    skill = record.as_skill()
    facts = {
        "id": record.id,
        "source_task_id": record.source_task_id,
        "source_task_hash": record.source_task_hash,
        "policy_step": record.policy_step,
        "reward": record.reward,
        "uses": record.uses,
        "utility": record.utility,
        "utility_interval": record.utility_interval,
        "steps_saved": record.mean_steps_saved,
    }
    front = {
        "name": name,
        "description": " ".join(skill.description.split())[:DESCRIPTION_LIMIT],
        "metadata": {key: _fact(value) for key, value in facts.items() if value is not None},
    }
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{header}---\n\n{render_skill(skill)}\n"


def import_folders(
    root: str | os.PathLike[str], rules: AuditRules | None = None
) -> tuple[list[SkillRecord], dict[str, str]]:
    """Reads every folder below ``root`` that has a ``SKILL.md``.

    Args:
      root: such a folder, or one with many of them.
      rules: audits that the texts must pass to be usable; those of the language by default.

    Returns:
      (records, sorted by folder; what was refused: file -> reason).

    Raises:
      ValueError: there is no ``SKILL.md`` at or below ``root``.
    """
    root = Path(root)
    files = sorted(root.rglob("SKILL.md"))
    if not files:
        raise ValueError(f"{root} must hold folders with SKILL.md, found none")
    records: dict[str, SkillRecord] = {}
    refused: dict[str, str] = {}
    for file in files:
        try:
            record = _read_folder(file, rules or AuditRules())
        except (ValueError, OSError) as error:
            refused[str(file)] = " ".join(str(error).split())
            continue
        if record.id in records:
            refused[str(file)] = f"id {record.id!r} was read before"
        else:
            records[record.id] = record
    return list(records.values()), refused


def _read_folder(file: Path, rules: AuditRules) -> SkillRecord:
    text = file.read_bytes().decode("utf-8").replace("\r\n", "\n")
    stored = file.with_name("record.json")
    if stored.is_file():
        record = decode(stored.read_bytes())
        if record.skill is not None and skill_md(record, file.parent.name) == text:
            return record
        skill = parse_skill_md(text)
        record = dataclasses.replace(record, skill=skill.to_dict(), **_UNMEASURED)
        record = dataclasses.replace(record, id=_new_id(text, record.id))
    else:
        skill = parse_skill_md(text)
        record = SkillRecord(_new_id(text, file.parent.name), 0, "", "", skill=skill.to_dict())
    verdict = rules.apply(text_to_audit(skill), _NO_TASK)
    return dataclasses.replace(record, audit=verdict._asdict(), reason="; ".join(verdict.reasons))


def parse_skill_md(text: str) -> Skill:
    """The skill of a ``SKILL.md``.

    Lists under the headings of this project's own form become the fields of the same names; all
    other text is kept, in order, under ``instructions``.

    Raises:
      ValueError: there is no front matter with a name and a description.
    """
    import yaml

    match = _FRONT_MATTER.match(text)
    if match is None:
        raise ValueError("SKILL.md must begin with a front matter between two lines '---'")
    try:
        front = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(f"the front matter must be YAML, got: {error}") from None
    if not isinstance(front, dict):
        raise ValueError(f"the front matter must be a mapping, got {type(front).__name__}")
    description = " ".join(str(front.get("description") or "").split())
    title, opening, fields, rest = _sections(match[2])
    said = " ".join(" ".join(opening).split())
    if said[:DESCRIPTION_LIMIT] == description:
        description = said
    else:
        rest = opening + rest
    data = {"name": title or front.get("name"), "description": description, **fields}
    return Skill.from_dict(data | ({"instructions": rest} if rest else {}))


def _sections(body: str) -> tuple[str, list[str], dict[str, list[str]], list[str]]:
    """(title, lines before the first heading, lines of the known sections, all other lines)."""
    fields: dict[str, list[str]] = {field: [] for field in _SECTIONS.values()}
    title, opening, rest = "", [], []
    target = opening
    for line in filter(None, map(str.strip, body.splitlines())):
        if line.startswith("# ") and not title:
            title = line.removeprefix("# ").removeprefix("Skill:").strip()
        elif line.startswith("#"):
            heading = line.lstrip("#").strip()
            field = _SECTIONS.get(heading.lower())
            target = rest if field is None else fields[field]
            rest += [] if field else [heading]
        else:
            target.append(_BULLET.sub("", line))
    return title, opening, fields, rest


_NO_TASK = Task(id="", env="", split="", task_type="", text="", path="", content_hash="")
_UNMEASURED = {
    "reward": None, "uses": 0, "wins": 0.0, "baseline_uses": 0, "baseline_wins": 0.0,
    "gained": 0, "lost": 0, "both_won": 0, "steps_saved": 0.0, "score_gained": 0.0, "retired": "",
    "version": 0,
}  # fmt: skip


def _new_id(text: str, name: str) -> str:
    """An id that changes with the text, so that an edited skill is a skill of its own."""
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _slug(name: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return slug[: NAME_LIMIT - 6].strip("-") or "skill"


def _free_name(name: str, taken: set[str]) -> str:
    number, free = 2, name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def _fact(value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return " to ".join(f"{v:.4g}" for v in value)
    return str(value)
