"""`evolving-rl skills` and `export --what=skills`: what they print, write and refuse."""

import json

import pytest

from evolving_rl_jax.cli.main import main
from evolving_rl_jax.config import default_config, to_json
from evolving_rl_jax.skills import Bank, Outcome, SkillRecord, audit
from evolving_rl_jax.skills.records import decode, encode


def record(i, text, **changes):
    skill = {"name": f"skill {i}", "description": text}
    audited = audit(text)._asdict()
    return decode(
        encode(SkillRecord(f"r{i}", 0, f"t{i}", f"h{i}", skill=skill, audit=audited, **changes))
    )


@pytest.fixture
def run(tmp_path):
    """A run folder that holds a config and a bank of four records, one of them no skill."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(to_json(default_config()))
    harmful = [Outcome(False, True, 5, 5)] * 12
    Bank(folder / "skills" / "bank.jsonl").append(
        [
            record(0, "the mug is in cabinet 3", reward=0.5),
            record(1, "the mug is in cabinet 3", reward=0.9),
            record(2, "never look into a drawer").measured(harmful),
            SkillRecord("r3", 0, "t3", "h3", reason="no JSON object found"),
        ]
    )
    return folder


def call(*arguments):
    return main([str(a) for a in arguments])


def test_export_and_import(run, tmp_path, capsys):
    out, bank = tmp_path / "out", tmp_path / "bank.jsonl"
    assert call("export", f"--workdir={run}", "--what=skills", f"--out={out}") == 0
    assert capsys.readouterr().out == f"3 skills of 4 records in {out}\n"
    assert call("skills", "import", f"--folders={out}", f"--bank={bank}") == 0
    assert "3 skills added" in capsys.readouterr().out
    before = Bank(run / "skills" / "bank.jsonl")
    assert {r.id: r for r in Bank(bank).records} == {r.id: r for r in before.records if r.skill}
    (out / "bad").mkdir()
    (out / "bad" / "SKILL.md").write_text("no front matter")
    assert call("skills", "import", f"--folders={out}", f"--bank={bank}") == 0
    text = capsys.readouterr().out
    assert "0 skills added" in text and "3 were there" in text and "refused: " in text
    assert (
        call("export", f"--workdir={run}", "--what=skills", f"--out={tmp_path / 'b'}", "--top=1")
        == 0
    )
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["skill-1"]


def test_a_skill_that_fails_its_audit_is_refused_on_import(tmp_path, capsys):
    for name, text in (("good", "look into every drawer"), ("bad", "go go go go go go go go")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "SKILL.md").write_text(f"---\nname: {name}\ndescription: {text}\n---\n")
    bank = tmp_path / "bank.jsonl"
    assert call("skills", "import", f"--folders={tmp_path}", f"--bank={bank}") == 0
    added, refused = capsys.readouterr().out.splitlines()
    assert added.startswith("1 skills added to") and added.endswith(", 0 were there")
    assert refused.startswith("refused: bad") and "'go' 8 times in a row" in refused
    assert [r.as_skill().name for r in Bank(bank).records] == ["good"]


def test_tidy_and_merge(run, tmp_path, capsys):
    bank = run / "skills" / "bank.jsonl"
    assert call("skills", "tidy", f"--bank={bank}", "--duplicates=0.7") == 0
    text = capsys.readouterr().out
    assert "retired 1 harmful skills and 1 duplicates; 1 usable are left" in text
    assert "r2: utility -1.000" in text and "r0: duplicate of r1" in text
    assert len(bank.read_text().splitlines()) == 6  # appended, nothing rewritten
    other = Bank(tmp_path / "other.jsonl")
    other.append([record(0, "something else"), record(9, "more")])
    out = tmp_path / "merged.jsonl"
    assert call("skills", "merge", f"--bank={out}", "--banks", bank, other.path) == 0
    assert "6 records of 2 banks" in capsys.readouterr().out
    assert "other:r0" in Bank(out)


def test_banks_of_three_evaluations_are_merged_and_other_files_are_left(run, tmp_path, capsys):
    paths = []
    for name in "abc":
        paths.append(tmp_path / name / "eval" / "final-t1.skills.jsonl")
        Bank(paths[-1]).append([record(0, f"of run {name}")])  # ids are of the games, not of runs
    out = tmp_path / "merged.jsonl"
    assert call("skills", "merge", f"--bank={out}", "--banks", *paths) == 0
    assert list(Bank(out)._latest) == ["r0", *(f"{n}/final-t1.skills:r0" for n in "bc")]
    folders = tmp_path / "folders"
    assert call("export", f"--workdir={run}", "--what=skills", f"--out={folders}") == 0
    other = tmp_path / "final-t1.json"
    for text in ('{"games": []}', "a line of notes"):
        other.write_text(text)
        assert call("skills", "import", f"--folders={folders}", f"--bank={other}") == 2
        assert call("skills", "merge", f"--bank={other}", "--banks", *paths) == 2
        assert other.read_text() == text and "--bank" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "--workdir={run}", "--what=skills", "--out={run}"), "--out must be a new or"),
        (("export", "--workdir={run}", "--what=skills", "--out={run}/x", "--bank=/no"), "--bank must be"),
        (("export", "--workdir=/no", "--what=skills", "--out={run}/x"), "--workdir must be a run"),
        (("skills", "import", "--bank={run}/b"), "--folders must be given to import"),
        (("skills", "import", "--bank={run}/b", "--folders=/no"), "--folders: /no must hold folders"),
        (("skills", "merge", "--bank={run}/b", "--banks", "x"), "--banks must be two banks or more"),
        (("skills", "merge", "--bank={run}/b", "--banks", "/x", "/y"), "--banks must be a bank.jsonl"),
        (("skills", "tidy", "--bank=/no"), "--bank must be a bank.jsonl, got '/no'"),
        (("skills", "tidy", "--bank={run}/config.json"), "--bank: "),
        (("skills", "tidy", "--bank={run}/note"), "--bank must be a bank.jsonl, got '{run}/note' without"),
        (("skills", "merge", "--banks", "{bank}", "{bank}", "--bank={run}/note"), "--bank must be a bank.jsonl, got '{run}/note'"),
        (("skills", "tidy", "--bank={bank}", "--duplicates=2"), "--duplicates must be in [0, 1], got 2.0"),
        (("skills", "tidy", "--bank={bank}", "--min-pairs=0"), "--min-pairs must be >= 1, got 0"),
        (("skills", "tidy", "--bank={bank}", "--embedder=/no"), "config.skills.embedder must be tfidf"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_line(run, capsys, arguments, message):
    bank = run / "skills" / "bank.jsonl"
    before = bank.read_bytes()
    (run / "note").write_text("years of work")
    assert call(*(a.format(run=run, bank=bank) for a in arguments)) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert message.format(run=run) in line and not out and bank.read_bytes() == before
    assert not (run / "b").exists() and not (run / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval",), "--workdir must be given (or --compare), got none"),
        (("eval", "--workdir={run}", "--seeds=0"), "--seeds must be >= 1, got 0"),
        (("eval", "--workdir={run}", "--temperature=1,x"), "--temperature must be >= 0, got x"),
        (("eval", "--workdir={run}", "--games=-1"), "--games must be >= 0, got -1"),
        (("eval", "--compare", "a", "b"), "--compare must name results"),
        (("eval", "--workdir={run}", "--compare", "1", "2"), "--compare must name results of"),
    ],
)
def test_wrong_options_of_eval(run, capsys, arguments, message):
    assert call(*(a.format(run=run) for a in arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_compare_is_written_where_asked(run, tmp_path, capsys):
    (run / "eval").mkdir()
    for name, won in (("a", False), ("b", True)):
        game = {"id": "g", "split": "s", "conditions": {"none": {"won": won, "status": "ok"}}}
        facts = {"iteration": 0, "temperature": 1.0, "game_list_hash": "h", "games": [game]}
        (run / "eval" / f"{name}-t1.json").write_text(json.dumps({"name": name, **facts}))
    out = tmp_path / "c.json"
    assert call("eval", f"--workdir={run}", "--compare", "a", "b", f"--out={out}") == 0
    assert "B - A +100.0" in capsys.readouterr().out
    assert json.loads(out.read_text())["comparisons"][0]["rows"][0]["difference"]["value"] == 1.0
