"""Skill folders: what agent tools can read, and the way back into a bank."""

import json
import re

import pytest
import yaml

from evolving_rl_jax.skills import Bank, Outcome, SkillRecord, audit, parse_skill
from evolving_rl_jax.skills.folders import export_folders, import_folders
from evolving_rl_jax.skills.records import decode, encode

FULL = {
    "name": "Find & place: a MUG!",
    "description": "Find an object\nand place it: 'quotes', \"more\", # no comment, --- no end",
    "when_to_use": ["one object, one target"],
    "workflow": [{"goal": "Locate", "action": "look", "completion_condition": "seen"}, "take it"],
    "decision_rules": ["If closed, open it"],
    "error_handling": [{"error": "Nothing happens", "cause": "far", "response": "go there"}],
    "metadata": {"level": 3},
    "when_not_to_use": ["two objects"],
}


def record(i, data=None, **changes):
    skill, reason = parse_skill(json.dumps(data or {"name": f"s {i}", "description": f"does {i}"}))
    values = {
        "id": f"it00000-g{i:03d}-n0",
        "iteration": 0,
        "source_task_id": f"task-{i}",
        "source_task_hash": f"hash-{i}",
        "source_text": f"find mug {i}",
        "reward": i / 10,
        "skill": skill.to_dict(),
        "audit": audit("fine")._asdict(),
        "meta": {"note": "é"},
    }
    return decode(encode(SkillRecord(**{**values, **changes})))  # tuples as JSON has them


def test_export_and_import_give_the_same_records(tmp_path):
    records = [record(0, FULL), record(1), record(2)]
    records[1] = records[1].measured([Outcome(True, False, 3, 9), Outcome(True, True, 3, 5)])
    folders = export_folders(records, tmp_path / "out")
    assert len(folders) == 3 and folders[0].name == "s-1"  # measured utility comes first
    back, refused = import_folders(tmp_path / "out")
    assert not refused
    assert sorted(back, key=lambda r: r.id) == records
    bank = Bank(tmp_path / "bank.jsonl")
    assert bank.append(back) == 3
    assert sorted(Bank(bank.path).records, key=lambda r: r.id) == records


def test_front_matter_is_what_agent_tools_ask_for(tmp_path):
    (folder,) = export_folders([record(0, FULL)], tmp_path)
    text = (folder / "SKILL.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    front = yaml.safe_load(header)
    assert front["name"] == folder.name == "find-place-a-mug"
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", front["name"]) and len(front["name"]) <= 64
    assert front["description"] == " ".join(FULL["description"].split())
    assert all(isinstance(v, str) for v in front["metadata"].values())
    assert front["metadata"]["source_task_id"] == "task-0"
    assert body.strip().startswith("# Skill: Find & place: a MUG!") and "## Workflow" in body


def test_only_usable_and_distinct_skills_are_written(tmp_path):
    same = record(5).skill
    records = [
        record(1, skill=None, reason="none"),
        record(2, audit=audit("\u200b")._asdict()),
        record(3, retired="duplicate of x"),
        record(4, skill=same),
        record(5),
        record(6, {"name": "S: 5", "description": "other"}),
        record(7, {"name": "!!", "description": "no letters"}),
    ]
    names = {f.name for f in export_folders(records, tmp_path / "a")}
    assert names == {"s-5", "s-5-2", "skill"}
    assert [f.name for f in export_folders(records, tmp_path / "b", top=1)] == ["skill"]


def test_a_duplicate_takes_nobodys_place(tmp_path):
    best, copy, middle = record(9), record(1, skill=record(9).skill), record(5)
    folders = export_folders([copy, middle, best], tmp_path / "all")
    kept = [json.loads((f / "record.json").read_text())["id"] for f in folders]
    assert kept == [best.id, middle.id]
    assert [f.name for f in export_folders([copy, middle, best], tmp_path / "one", top=1)] == [
        "s-9"
    ]


def test_a_hand_edited_skill_is_a_skill_of_its_own(tmp_path):
    original = record(0, FULL).measured([Outcome(True, False, 3, 9, 0.7)])
    (folder,) = export_folders([original], tmp_path)
    file = folder / "SKILL.md"
    text = file.read_text(encoding="utf-8").replace("If closed, open it", "Never open it")
    file.write_text(text, encoding="utf-8")
    ((edited,), refused) = import_folders(tmp_path)
    assert not refused and edited.id != original.id and edited.uses == 0
    assert original.score_gained == 0.7 and edited.score_gained == 0.0
    skill = edited.as_skill()
    assert skill.decision_rules == ("Never open it",)
    assert skill.when_to_use == ("one object, one target",) and skill.name == FULL["name"]
    assert len(skill.workflow) == 2 and edited.source_task_hash == "hash-0"
    assert edited.usable


def test_folders_of_other_tools_are_read(tmp_path):
    file = tmp_path / "pdf-tools" / "SKILL.md"
    file.parent.mkdir()
    file.write_text(
        "---\r\nname: pdf-tools\r\ndescription: Fill in forms.\r\n---\r\nUse the library.\r\n\r\n"
        "## Workflow\r\n1. open\r\n* save\r\n\r\n## Notes\r\n- never print\r\n"
    )
    ((found,), refused) = import_folders(file.parent)
    skill = found.as_skill()
    assert not refused and (skill.name, skill.description) == ("pdf-tools", "Fill in forms.")
    assert skill.workflow == ({"action": "open"}, {"action": "save"})
    assert skill.extra == {"instructions": ["Use the library.", "Notes", "never print"]}
    assert import_folders(tmp_path)[0][0].id == found.id  # and the id is reproducible


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no front matter", "must begin with a front matter"),
        ("---\nname: [\n---\n", "must be YAML"),
        ("---\n- a\n---\n", "must be a mapping, got list"),
        ("---\nname: a\n---\nbody", "description must be a non-empty text"),
        ("---\ndescription: a\n---\nbody", "name must be a non-empty text"),
        (
            "---\nname: !!python/object/apply:os.system [true]\ndescription: a\n---\n",
            "must be YAML",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(tmp_path, text, reason):
    good = export_folders([record(1)], tmp_path)[0]
    bad = tmp_path / "bad" / "SKILL.md"
    bad.parent.mkdir()
    bad.write_text(text)
    records, refused = import_folders(tmp_path)
    assert [r.id for r in records] == [record(1).id] and list(refused) == [str(bad)]
    assert reason in refused[str(bad)] and good.is_dir()


def test_audit_on_import(tmp_path):
    file = tmp_path / "x" / "SKILL.md"
    file.parent.mkdir()
    file.write_text("---\nname: a\ndescription: go go go go go go go go\n---\n")
    ((found,), _) = import_folders(tmp_path)
    assert not found.usable and "'go' 8 times" in found.reason


def test_nothing_to_import(tmp_path):
    with pytest.raises(ValueError, match="must hold folders with SKILL.md, found none"):
        import_folders(tmp_path)
