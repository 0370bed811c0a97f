"""The skill bank: durability, torn lines, resume, two writers, utility, and what it refuses."""

import dataclasses
import json
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from evolving_rl_jax.skills import (
    Bank,
    Outcome,
    SkillRecord,
    TfidfEmbedder,
    audit,
    parse_skill,
)
from evolving_rl_jax.skills.curate import (
    duplicates,
    merge_banks,
    retire_duplicates,
    retire_harmful,
)
from evolving_rl_jax.skills.records import matched_interval

ROOT = pathlib.Path(__file__).parents[1]


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


@pytest.mark.parametrize("torn", [b'{"schema_ver', b"\x00\x00\x00", b"\x00\n", b"\xff\xfe{"])
def test_torn_line_is_dropped_with_a_warning(tmp_path, torn):
    path = tmp_path / "bank.jsonl"
    whole = b"".join([_filled(path).path.read_bytes()])
    path.write_bytes(whole + torn)
    with pytest.warns(UserWarning, match=f"{len(torn)} bytes"):
        bank = Bank(path)
    bank.append([_record(7)])
    assert path.read_bytes().startswith(whole) and len(Bank(path)) == 13


@pytest.mark.parametrize("line", [b"[]", b'{"schema_version": 2}', b"a note\n", b'{"games": []}\n'])
def test_a_whole_last_line_that_is_no_record_is_nobodys_to_cut(tmp_path, line):
    path = tmp_path / "bank.jsonl"
    whole = _filled(path).path.read_bytes() + line
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="line 13"):
        Bank(path)
    assert path.read_bytes() == whole


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
    assert bank.revise_all([changed])[0].version == 1
    again = Bank(path)
    assert len(again) == 6 and again["it00000-n0"].utility == pytest.approx(0.5)
    assert again.records[0].id == "it00000-n0"  # order of first appearance
    assert len(path.read_text().splitlines()) == 7
    assert again.truncate_to(5) == 1 and again["it00000-n0"] == first
    with pytest.raises(KeyError):
        bank.revise_all([_record(99)])


def test_a_record_without_a_skill_says_why():
    with pytest.raises(ValueError, match="no JSON object found"):
        _record(1, skill=None, reason="no JSON object found").as_skill()


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


# -- processes that write ------------------------------------------------------------------------

WRITER = """
import sys, time
from evolving_rl_jax.skills import Bank, SkillRecord
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
bank = Bank(path)
print("ready", flush=True)
sys.stdin.readline()
for i in range(count):
    record = SkillRecord(f"{name}-{i}", i, "t", "h", meta={"filler": "x" * 20_000})
    while True:
        try:
            bank.append([record])
            break
        except ValueError as error:
            assert "another process" in str(error), error
            bank.load()
    print(record.id, flush=True)
"""


def _writer(path, name, count):
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WRITER, str(path), name, str(count)],
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_write_at_once_and_nothing_is_lost(tmp_path):
    path = tmp_path / "bank.jsonl"
    writers = [_writer(path, name, 60) for name in "ab"]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    said = [line for writer in writers for line in writer.communicate(timeout=60)[0].split()]
    assert all(writer.returncode == 0 for writer in writers)
    assert len(said) == 120 and sorted(said) == sorted(r.id for r in Bank(path).records)


def test_a_writer_killed_at_any_moment_loses_nothing_that_it_reported(tmp_path):
    rng = random.Random(4)
    for n in range(4):
        path = tmp_path / f"bank{n}.jsonl"
        writer = _writer(path, "a", 100_000)
        writer.stdin.write("go\n")
        writer.stdin.flush()
        time.sleep(rng.uniform(0.01, 0.12))
        writer.send_signal(signal.SIGKILL)
        said = writer.communicate(timeout=60)[0].split()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *args, **kwargs: None)
            bank = Bank(path)
        found = [record.id for record in bank.records]
        assert found[: len(said)] == said and len(found) <= len(said) + 1
        bank.append([_record(1)])
        assert len(Bank(path)) == len(found) + 1


# -- utility -------------------------------------------------------------------------------------


def test_utility_counts_pairs():
    outcomes = [(1, 0, 4, 9), (1, 1, 4, 7), (0, 1, 9, 5), (0, 0, 9, 9), (1, 1, 6, 5), (1, 0, 3, 9)]
    record = _record(0).measured([Outcome(*o) for o in outcomes[:2]])
    record = record.measured([Outcome(*o) for o in outcomes[2:]])
    assert (record.uses, record.wins, record.baseline_uses, record.baseline_wins) == (6, 4, 6, 3)
    assert (record.gained, record.lost, record.both_won) == (2, 1, 2)
    assert record.utility == pytest.approx(1 / 6) and record.mean_steps_saved == 1.0
    low, high = record.utility_interval
    assert low < record.utility < high
    assert _record(0).utility_interval is None and _record(0).mean_steps_saved is None
    assert _record(0, uses=3, wins=2).utility_interval is None


def test_interval_of_matched_pairs_is_the_closed_form_and_covers():
    # Agresti and Min (2005), with half a pair added to each cell
    n, b, c = 42.0, 12.5, 4.5
    half = 1.959963984540054 * math.sqrt((b + c) - (b - c) ** 2 / n) / n
    assert matched_interval(40, 12, 4) == pytest.approx(((b - c) / n - half, (b - c) / n + half))
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        gained, lost, _ = rng.multinomial(20, [0.3, 0.1, 0.6])
        low, high = matched_interval(20, gained, lost)
        covered += low <= 0.2 <= high
    assert 0.93 < covered / 2000 < 0.99


def _measured(record, gained, lost, same):
    pairs = [(1, 0)] * gained + [(0, 1)] * lost + [(1, 1)] * same
    return record.measured([Outcome(bool(a), bool(b), 5, 5) for a, b in pairs])


def test_skills_that_harm_are_retired_with_the_reason(tmp_path):
    bank = Bank(tmp_path / "bank.jsonl")
    bank.append(
        [
            _measured(_record(0, 0), 0, 12, 4),
            _measured(_record(0, 1), 12, 0, 4),
            _measured(_record(0, 2), 2, 4, 4),
            _measured(_record(0, 3), 0, 5, 0),
            _record(0, 4),
        ]
    )
    (retired,) = retire_harmful(bank, min_pairs=8)
    assert retired.id == "it00000-n0" and not retired.usable and retired.version == 1
    assert "over 16 pairs is below +0" in retired.retired
    assert [r.id[-1] for r in Bank(bank.path).records if r.usable] == ["1", "2", "3", "4"]
    assert retire_harmful(bank, min_pairs=8) == []  # it is retired once
    assert len(retire_harmful(bank, min_pairs=4)) == 1


def test_duplicates_are_retired_and_the_best_is_kept(tmp_path):
    def said(text, **changes):
        return {"skill": {"name": "mugs", "description": text}, **changes}

    bank = Bank(tmp_path / "bank.jsonl")
    bank.append(
        [
            _record(1, 0, **said("the mug is in cabinet 3", reward=0.2)),
            _measured(_record(1, 1, **said("the mug is in cabinet 3", reward=0.1)), 6, 0, 2),
            _record(1, 2, **said("the mug is in cabinet 4", reward=0.9)),
            _record(1, 3, **said("heat the egg with the microwave", reward=0.0)),
            _record(1, 4, **said("the mug is in cabinet 3", reward=1.0, retired="by hand")),
        ]
    )
    found = duplicates(bank.records, TfidfEmbedder(), 0.999)
    assert {i: kept for i, (kept, _) in found.items()} == {"it00001-n0": "it00001-n1"}
    (retired,) = retire_duplicates(bank, TfidfEmbedder(), 0.999)
    assert retired.retired.startswith("duplicate of it00001-n1 (cosine 1.000")
    assert retire_duplicates(bank, TfidfEmbedder(), 0.999) == []
    assert [r.id[-2:] for r in bank.records if r.usable] == ["n1", "n2", "n3"]
    with pytest.raises(ValueError, match="threshold must be in"):
        duplicates(bank.records, TfidfEmbedder(), 0)


def test_merge_keeps_both_sides_of_a_clash(tmp_path):
    a, b = Bank(tmp_path / "a.jsonl"), Bank(tmp_path / "b.jsonl")
    a.append([_record(0), _record(1)])
    b.append([_record(0), _record(1, skill={"name": "other", "description": "d"}), _record(2)])
    b.revise_all([_measured(b["it00000-n0"], 3, 0, 1)])
    merged = merge_banks(tmp_path / "m" / "bank.jsonl", [("a", a), ("b", b)])
    assert [r.id for r in merged.records] == [
        "it00000-n0",
        "it00001-n0",
        "b:it00001-n0",
        "it00002-n0",
    ]
    assert merged["it00000-n0"].uses == 4  # the newer measurement of the same skill
    assert all(r.version == 0 for r in Bank(merged.path).records)
    with pytest.raises(ValueError, match="must be a new bank, got one with 4 records"):
        merge_banks(merged.path, [("a", a)])


def test_values_of_the_wrong_type_are_refused(tmp_path):
    path = _filled(tmp_path / "bank.jsonl", iterations=1, per_iteration=2).path
    for field, value in (("reward", "high"), ("uses", 1.5), ("skill", [1]), ("id", 3)):
        first, second = (json.loads(line) for line in path.read_text().splitlines())
        bad = path.with_name("bad.jsonl")
        bad.write_text("\n".join([json.dumps(first | {field: value}), json.dumps(second), ""]))
        with pytest.raises(ValueError, match=f"bad.jsonl: line 1: {field} of a record must be"):
            Bank(bad)
