"""The skill bank: durability, torn lines, resume, and what it refuses."""

import dataclasses
import json
import os
import random

import numpy as np
import pytest

from evolving_rl_jax.skills import Bank, SkillRecord, audit, parse_skill


def _record(iteration, index=0, **changes):
    skill = parse_skill(f'{{"name": "s{iteration}-{index}", "description": "é \\u4e2d"}}')[0]
    values = {
        "id": f"it{iteration:05d}-n{index}",
        "iteration": iteration,
        "source_task_id": "maple/mug",
        "source_task_hash": "ab",
        "episode_id": f"e{iteration}",
        "policy_step": 2 * iteration,
        "reward": iteration / 10,
        "skill": skill.to_dict(),
        "audit": audit("fine")._asdict(),
    }
    return SkillRecord(**{**values, **changes})


def _filled(path, iterations=4, per_iteration=3):
    bank = Bank(path)
    for i in range(iterations):
        bank.append([_record(i, n) for n in range(per_iteration)])
    return bank


def test_round_trip(tmp_path):
    path = tmp_path / "skills" / "bank.jsonl"
    bank = _filled(path)
    again = Bank(path)
    assert again.records == bank.records and len(again) == 12
    assert "it00002-n1" in again and again["it00002-n1"].as_skill().name == "s2-1"
    assert again["it00002-n1"].as_skill() == bank["it00002-n1"].as_skill()
    assert all(json.loads(line)["schema_version"] == 1 for line in path.read_text().splitlines())


def test_empty_bank_writes_nothing(tmp_path):
    bank = Bank(tmp_path / "x" / "bank.jsonl")
    assert bank.append([]) == 0 and bank.truncate_to(0) == 0 and bank.records == []
    assert not (tmp_path / "x").exists()


def test_appending_the_same_id_again_changes_nothing(tmp_path):
    path = tmp_path / "bank.jsonl"
    bank = _filled(path)
    before = path.read_bytes()
    assert bank.append([_record(1, 0), _record(2, 1, reward=9.0)]) == 0
    assert Bank(path).append([_record(3, 2)]) == 0
    assert path.read_bytes() == before
    assert bank.append([_record(9), _record(9), _record(1)]) == 1


def test_kill_at_every_byte_of_a_write(tmp_path):
    path = tmp_path / "bank.jsonl"
    _filled(path, iterations=1)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends)
        if cut in (0, *ends):
            bank = Bank(path)
        elif cut + 1 in ends:  # all but the newline: the record is whole
            bank, complete = Bank(path), complete + 1
        else:
            with pytest.warns(UserWarning, match="torn last line"):
                bank = Bank(path)
        assert path.read_bytes() == whole[:cut]  # reading leaves the file alone
        assert [record.id for record in bank.records] == [f"it00000-n{n}" for n in range(complete)]
        bank.append([_record(0, n) for n in range(3)])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("torn", [b'{"schema_ver', b"\x00\x00\x00", b"\x00\n", b"\xff\xfe{", b"[]"])
def test_torn_line_is_dropped_with_a_warning(tmp_path, torn):
    path = tmp_path / "bank.jsonl"
    whole = b"".join([_filled(path).path.read_bytes()])
    path.write_bytes(whole + torn)
    with pytest.warns(UserWarning, match=f"{len(torn)} bytes"):
        bank = Bank(path)
    bank.append([_record(7)])
    assert path.read_bytes().startswith(whole) and len(Bank(path)) == 13


def test_newline_missing_after_a_whole_last_line(tmp_path):
    path = tmp_path / "bank.jsonl"
    whole = _filled(path).path.read_bytes()
    path.write_bytes(whole[:-1])
    bank = Bank(path)
    assert len(bank) == 12
    bank.append([_record(7)])
    assert len(Bank(path)) == 13 and path.read_bytes().startswith(whole)


def test_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "bank.jsonl"
    bank = _filled(path)
    before, write = path.read_bytes(), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[: len(data) // 2], at))
    with pytest.raises(OSError, match="disk full"):
        bank.append([_record(8)])
    monkeypatch.undo()
    assert path.read_bytes() == before and len(bank) == 12
    assert bank.append([_record(8)]) == 1 and len(Bank(path)) == 13


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = _filled(tmp_path / "a.jsonl", iterations=6).path.read_bytes()
    rng = random.Random(0)
    for _ in range(20):
        path = tmp_path / "b.jsonl"
        done = rng.randrange(1, 7)
        _filled(path, iterations=done)
        path.write_bytes(path.read_bytes() + b'{"id"'[: rng.randrange(6)])  # killed while writing
        checkpoint = rng.randrange(done + 1)  # the first iteration that the resumed run plays
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *args, **kwargs: None)
            bank = Bank(path)
        assert bank.truncate_to(checkpoint) == 3 * (done - checkpoint)
        for i in range(checkpoint, 6):
            bank.append([_record(i, n) for n in range(3)])
        assert path.read_bytes() == whole
        path.unlink()


def test_revision_keeps_history_and_is_undone_by_truncation(tmp_path):
    path = tmp_path / "bank.jsonl"
    bank = _filled(path, iterations=2)
    first = bank["it00000-n0"]
    assert first.utility is None
    changed = dataclasses.replace(
        first, iteration=5, uses=4, wins=3, baseline_uses=4, baseline_wins=1
    )
    assert bank.revise(changed).version == 1
    again = Bank(path)
    assert len(again) == 6 and again["it00000-n0"].utility == pytest.approx(0.5)
    assert again.records[0].id == "it00000-n0"  # order of first appearance
    assert len(path.read_text().splitlines()) == 7
    assert again.truncate_to(5) == 1 and again["it00000-n0"] == first
    with pytest.raises(KeyError):
        bank.revise(_record(99))


def test_top(tmp_path):
    bank = Bank(tmp_path / "bank.jsonl")
    bank.append(
        [
            _record(1, 0, reward=0.5),
            _record(1, 1, reward=0.75),
            _record(1, 2, reward=0.75),
            _record(1, 3, reward=None),
            _record(1, 4, reward=1.0, skill=None, reason="no JSON object found"),
            _record(1, 5, reward=1.0, audit=audit("\u200b")._asdict()),
            _record(1, 6, reward=0.25, skill=_record(1, 0).skill),
        ]
    )
    assert [r.id[-2:] for r in bank.top(9)] == ["n1", "n2", "n0"]
    assert [r.id[-2:] for r in bank.top(9, distinct=False)] == ["n1", "n2", "n0", "n6"]
    assert [r.id[-2:] for r in bank.top(1, key=lambda r: -r.iteration)] == ["n0"]
    assert bank.top(0) == []
    with pytest.raises(ValueError, match="no JSON object found"):
        bank["it00001-n4"].as_skill()


def test_numpy_numbers_are_stored_as_numbers(tmp_path):
    bank = Bank(tmp_path / "bank.jsonl")
    bank.append([_record(0, reward=np.float32(0.5), wins=np.int64(2), uses=np.int32(3))])
    assert Bank(bank.path).records == bank.records
    assert type(bank.records[0].reward) is float and type(bank.records[0].uses) is int


@pytest.mark.parametrize("bad", [{"reward": float("nan")}, {"meta": {"x": object()}}])
def test_what_is_not_json_is_refused_before_writing(tmp_path, bad):
    bank = _filled(tmp_path / "bank.jsonl")
    before = bank.path.read_bytes()
    with pytest.raises(ValueError, match="record 'it00007-n0' must be JSON"):
        bank.append([_record(6), _record(7, **bad)])
    assert bank.path.read_bytes() == before and len(bank) == 12


def test_second_writer_is_detected(tmp_path):
    first = _filled(tmp_path / "bank.jsonl")
    second = Bank(first.path)
    second.append([_record(7)])
    with pytest.raises(ValueError, match="another process"):
        first.append([_record(8)])
    first.load()
    assert first.append([_record(8)]) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "Expecting value"),
        ('{"schema_version": 2}', "schema_version must be 1, got 2"),
        ('{"schema_version": 1, "id": "a", "colour": 1}', r"unknown \['colour'\], missing"),
    ],
)
def test_damage_before_the_last_line_is_an_error(tmp_path, line, message):
    path = _filled(tmp_path / "bank.jsonl").path
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    with pytest.raises(ValueError, match=f"bank.jsonl: line 2: .*{message}"):
        Bank(path)
