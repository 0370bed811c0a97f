"""The whole program, shrunk: a run, its folder, kills, arms, and the other commands."""

import gzip
import json
import random
import shutil
import signal
import time

import numpy as np
import pytest
from programs import ARMS, COUNTING, ENDING, NOTICE

from evolving_rl_jax.cli.main import main
from evolving_rl_jax.config import load_config
from evolving_rl_jax.record.metrics import read_metrics

pytest.importorskip("alfworld")


@pytest.fixture(scope="session")
def finished(program, tiny_config, tmp_path_factory):
    """(folder of a run that nobody disturbed, its process, compilations)."""
    folder = tmp_path_factory.mktemp("runs")
    workdir, counts = folder / "run", folder / "compilations.json"
    result = program(counts, workdir, "train", f"--config={tiny_config}", code=COUNTING)
    assert result.returncode == 0, result.stderr[-3000:]
    return workdir, result, json.loads(counts.read_text())


@pytest.fixture(scope="session")
def config(tiny_config):
    return load_config(tiny_config)


def unclocked(workdir):
    """The metrics without those that measure time."""
    records = read_metrics(workdir)
    return [{k: v for k, v in r.items() if k[:5] not in ("time/", "rate/")} for r in records]


def policy(workdir, which="latest"):
    """(parameters as numpy arrays by their path, iteration)."""
    import jax

    from evolving_rl_jax.run.folder import RunFolder
    from evolving_rl_jax.run.policy import load_policy

    params, _, iteration = load_policy(RunFolder(str(workdir)), which)
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}, iteration


def assert_same_policy(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def panel_of(workdir, name):
    return json.loads((workdir / "eval" / f"{name}-t0.5.json").read_text(encoding="utf-8"))


def table_of(text):
    """The before/after table in what a process printed."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("success in %"))
    return [line.rstrip() for line in lines[start : start + 10]]


# -- a run and its folder --------------------------------------------------------------------------


def test_a_run_says_what_it_does_and_where_the_report_is(finished, config):
    workdir, result, _ = finished
    total = config.train.num_iterations
    for i in range(1, total + 1):
        assert f"iteration {i}/{total}" in result.stdout
    assert "demonstrations" in result.stderr and "warm start: loss" in result.stderr
    table = "\n".join(table_of(result.stderr))
    for word in ("valid_unseen", "heldout_types", "own skill", "oracle skill", "misleading skill"):
        assert word in table
    assert f"report: {workdir / 'report.html'}" in result.stderr
    assert "Traceback" not in result.stderr and "Warning" not in result.stderr


def test_a_run_folder_has_all_that_is_promised(finished, config):
    workdir, _, _ = finished
    names = {p.name for p in workdir.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "report.html", "checkpoints", "warmstart", "games"),
        *("skills", "episodes", "eval", "tensorboard", "tokenizer", "train.lock"),
    }
    assert not [p for p in workdir.rglob("*.partial")]
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
    total = config.train.num_iterations
    assert steps[-2:] == [total - 1, total] and len(steps) <= 3
    panels = {p.name for p in (workdir / "eval").iterdir()}
    kinds = ("json", "skills.jsonl")
    assert panels == {f"{name}-t0.5.{kind}" for name in ("warmstart", "final") for kind in kinds}
    assert len(list((workdir / "episodes").iterdir())) == total
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert "own skill" in page and "<script src=" not in page and "<link " not in page


def test_every_stage_had_work_and_is_measured(finished, config):
    records = read_metrics(finished[0])
    assert [r["iteration"] for r in records] == list(range(config.train.num_iterations))
    for record in records:
        stages = ("environment", "prefill", "decode", "train", "other")
        shares = [record[f"time/{stage}"] for stage in stages]
        assert sum(shares) == pytest.approx(record["time/total"]) and min(shares) > -1e-3
        assert record["train/logprob_gap_max"] < 1e-3 and record["train/skipped_updates"] == 0
        assert all(v is not None for v in record.values())
    assert sum(r["rollout/skill_valid"] for r in records) > 0
    assert sum(r["rollout/scored_episodes"] for r in records) > 0
    assert sum(r["train/sequences_extractor"] for r in records) > 0
    assert all(r["train/update_norm"] > 0 for r in records)


def test_metrics_of_a_run_are_documented(finished):
    from conftest import ROOT

    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in read_metrics(finished[0])[0]:
        assert name == "iteration" or f"`{name}`" in text or f"`{name.split('/')[1]}`" in text, name


def test_the_bank_and_the_episodes_tell_the_same_story(finished, config):
    workdir, r = finished[0], config.rollout
    bank = [json.loads(line) for line in (workdir / "skills" / "bank.jsonl").open(encoding="utf-8")]
    assert len(bank) == config.train.num_iterations * r.num_sources * r.num_skills
    by_id = {record["id"]: record for record in bank}
    assert len(by_id) == len(bank)
    for iteration in range(config.train.num_iterations):
        path = workdir / "episodes" / f"iteration_{iteration:05d}.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            sources = [json.loads(line) for line in file]
        assert len(sources) == r.num_sources
        for g, source in enumerate(sources):
            assert source["iteration"] == iteration and source["source"]["turns"]
            for n, skill in enumerate(source["skills"]):
                record = by_id[f"it{iteration:05d}-g{g:03d}-n{n}"]
                assert record["source_task_id"] == source["source"]["task"]
                played = [e for e in skill["episodes"] if e["status"] in ("ok", "truncated")]
                assert record["uses"] == len(played)
                assert len(skill["episodes"]) == (r.num_retrieved if skill["valid"] else 0)
                assert source["source"]["task"] not in [e["task"] for e in skill["episodes"]]


def test_both_panels_play_the_same_games_once(finished, config):
    before, after = (panel_of(finished[0], name) for name in ("warmstart", "final"))
    assert before["game_list_hash"] == after["game_list_hash"]
    assert (before["iteration"], after["iteration"]) == (0, config.train.num_iterations)
    ids = [g["id"] for g in before["games"]]
    assert len(set(ids)) == len(ids) == len(config.eval.splits) * config.eval.num_games
    for game in before["games"]:
        assert set(game["conditions"]) == set(config.eval.conditions)
        assert game["retrieved"]["hash"] not in {g["hash"] for g in before["games"]}


def test_nothing_compiles_after_the_first_iteration(finished):
    counts = finished[2]
    assert len(counts) > 5  # the listener heard something
    assert [c for c in counts if c > 0] == []


# -- started again ---------------------------------------------------------------------------------


def test_a_second_start_does_nothing_and_shows_the_table_again(finished, program, tiny_config):
    workdir, first, _ = finished

    def state():
        files = [p for p in workdir.rglob("*") if p.is_file() and p.name != "train.lock"]
        kept = [p for p in files if p.name != "report.html" and "tensorboard" not in p.parts]
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in kept if p.name != "config.json"}

    before = state()
    result = program("train", f"--config={tiny_config}", f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "iteration" not in result.stdout
    assert "going on from the checkpoint after iteration 4" in result.stderr
    assert table_of(result.stderr) == table_of(first.stderr)
    assert state() == before


def wait_for_lines(path, count, process):
    end = time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_killed_run_goes_on_bit_for_bit(finished, program, tiny_config, tmp_path):
    rng = random.Random(7)
    command = ("train", f"--config={tiny_config}", f"--workdir={tmp_path}")
    for lines in (1, 3):
        process = program(*command, wait=False)
        wait_for_lines(tmp_path / "metrics.jsonl", lines, process)
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    result = program(*command)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "going on from the checkpoint after iteration" in result.stderr
    undisturbed = finished[0]
    assert unclocked(tmp_path) == unclocked(undisturbed)
    bank = "skills/bank.jsonl"
    assert (tmp_path / bank).read_bytes() == (undisturbed / bank).read_bytes()
    for path in sorted((undisturbed / "episodes").iterdir()):
        assert (tmp_path / "episodes" / path.name).read_bytes() == path.read_bytes()
    for name in ("warmstart", "final"):
        assert panel_of(tmp_path, name) == panel_of(undisturbed, name)
    (params, iteration), (expected, last) = policy(tmp_path), policy(undisturbed)
    assert iteration == last == 4
    assert_same_policy(params, expected)


# -- arms ------------------------------------------------------------------------------------------


def test_the_other_arms_run_from_an_imported_policy(
    finished, program, tiny_config, tmp_path, config
):
    workdir, r = finished[0], config.rollout
    result = program(
        tmp_path, "train", f"--config={tiny_config}",
        f"--config.data.games={workdir / 'games'}", "--config.warmstart.enabled=false",
        f"--config.model.hf_path={workdir / 'warmstart'}", "--config.train.num_iterations=1",
        "--config.eval.num_games=1", "--config.eval.conditions=none", code=ARMS,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    arms = ("solver_only", "extractor_only", "grpo")
    found = {arm: read_metrics(tmp_path / arm)[0] for arm in arms}
    for arm, record in found.items():
        assert record["train/update_norm"] > 0 and np.isfinite(record["train/loss"]), arm
        assert policy(tmp_path / arm)[1] == 1
    episodes = r.num_sources * r.num_retrieved * r.num_skills * r.num_repeats
    grpo = found["grpo"]
    shares = config.train.minibatches  # metrics are means over the optimizer steps
    assert grpo["train/sequences_solver"] * shares == grpo["rollout/scored_episodes"] == episodes
    assert grpo["train/sequences_extractor"] == 0
    assert not (tmp_path / "grpo" / "skills").exists()
    for arm in ("solver_only", "extractor_only"):
        assert found[arm]["train/sequences_extractor"] > 0
        assert (tmp_path / arm / "skills" / "bank.jsonl").is_file()


# -- the other commands ----------------------------------------------------------------------------


def test_eval_of_the_last_checkpoint_equals_the_panel_of_the_run(finished, program, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["mesh"] = {"data": 2, "fsdp": 4, "tensor": 1}  # eval needs no such devices
    (workdir / "config.json").write_text(json.dumps(config))
    arguments = ("eval", f"--workdir={workdir}", "--temperature=0.5")
    stopped = program(*arguments, code=NOTICE)
    assert stopped.returncode == 75, stopped.stderr[-3000:]
    result = program(*arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "plays are kept, going on from there" in result.stderr
    path = workdir / "eval" / "checkpoint_00004-t0.5.json"
    assert f"written: {path}" in result.stdout and "oracle" in result.stdout
    played, final = panel_of(workdir, "checkpoint_00004"), panel_of(workdir, "final")
    assert played["games"] == final["games"] and played["summary"] == final["summary"]


def test_a_killed_stream_goes_on(finished, program, tmp_path):
    results, banks = [], []
    for name in ("whole", "killed"):
        workdir = tmp_path / name
        shutil.copytree(finished[0], workdir)
        arguments = ("eval", f"--workdir={workdir}", "--mode=stream", "--temperature=0.5")
        journal = workdir / "eval" / "stream-checkpoint_00004-t0.5.plays.jsonl"
        if name == "killed":
            assert program(*arguments, code=ENDING).returncode == 9
            assert len(journal.read_bytes().splitlines()) == 11
            assert program(*arguments, "--seeds=2").returncode == 0  # in files of its own
            assert len(journal.read_bytes().splitlines()) == 11
            assert (workdir / "eval/stream-checkpoint_00004-2seeds-t0.5.json").is_file()
        done = program(*arguments)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("going on from there" in done.stderr) == (name == "killed")
        assert "later half" in done.stdout and not journal.exists()
        results.append(json.loads((workdir / "eval/stream-checkpoint_00004-t0.5.json").read_text()))
        (bank,) = (workdir / "eval").glob("stream-checkpoint_00004-t0.5-s*.skills.jsonl")
        banks.append(bank.read_text())
    assert results[0] == results[1] and banks[0] == banks[1]
    assert any(play["skills"] for play in results[0]["plays"])


def test_export_gives_the_policy_of_the_checkpoint(finished, tmp_path, capsys):
    from evolving_rl_jax import models
    from evolving_rl_jax.models.tokenizer import load_tokenizer

    workdir, out = finished[0], tmp_path / "policy"
    assert main(["export", f"--workdir={workdir}", f"--out={out}", "--checkpoint=3"]) == 0
    assert f"policy in {out}" in capsys.readouterr().out
    import jax

    params, cfg = models.load_hf(out)
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    exported = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    assert_same_policy(exported, policy(workdir, 3)[0])
    assert load_tokenizer(out).vocab_size == cfg.vocab_size
    changed = policy(workdir, "warmstart")[0]
    assert any((exported[name] != changed[name]).any() for name in exported)


def test_report_can_be_written_again(finished, capsys):
    workdir = finished[0]
    (workdir / "report.html").unlink()
    assert main(["report", f"--workdir={workdir}"]) == 0
    out = capsys.readouterr().out
    assert table_of(out) == table_of(finished[1].stderr)
    assert f"report: {workdir / 'report.html'}" in out and (workdir / "report.html").is_file()


@pytest.mark.parametrize("which", ["99", "first", "-1"])
def test_a_checkpoint_that_is_not_there(finished, tmp_path, capsys, which):
    workdir = finished[0]
    command = ["export", f"--workdir={workdir}", f"--out={tmp_path / 'x'}", f"--checkpoint={which}"]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--checkpoint must be latest, best or one of [" in line and repr(which) in line
    assert not (tmp_path / "x").exists()


def test_an_unreadable_checkpoint_is_one_line_and_nothing_is_lost(finished, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir, ignore=shutil.ignore_patterns("games", "report.html"))
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    assert main(["export", f"--workdir={workdir}", f"--out={tmp_path / 'x'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{workdir / 'checkpoints'} must hold a readable checkpoint for 'latest'" in line
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before
    assert not (tmp_path / "x").exists()


def test_a_longer_run_goes_on_and_is_evaluated_again(finished, program, tiny_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    command = ("train", f"--config={tiny_config}", f"--workdir={workdir}")
    # the schedule of the learning rate is that of the run: going on with another one is refused
    kept = "--config.optimizer.decay_updates=8"
    result = program(*command, "--config.train.num_iterations=5", kept)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "iteration 5/5" in result.stdout and "iteration 4/5" not in result.stdout
    assert unclocked(workdir)[:4] == unclocked(finished[0])
    assert panel_of(workdir, "final")["iteration"] == 5


def test_a_run_whose_episodes_all_fail_ends_and_says_why(finished, program, tiny_config, tmp_path):
    left_out = shutil.ignore_patterns("metrics.jsonl", "checkpoints", "report.html", "bank.jsonl")
    workdir = shutil.copytree(finished[0], tmp_path / "run", ignore=left_out)
    options = (f"--config={tiny_config}", "--config.rollout.deadline_s=1e-4")
    result = program("train", *options, f"--workdir={workdir}")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    *_, last = result.stderr.strip().splitlines()
    assert "got 3 iterations in a row without any (config.train.max_unscored)" in last
    assert "not finished within config.rollout.deadline_s = 0.0001" in last
    records = read_metrics(workdir)
    assert len(records) == 3 and not (workdir / "report.html").exists()
    for record in records:
        assert record["rollout/source_failures"] > 0 == record["rollout/sources"]
        assert "rollout/win_rate" not in record and "train/loss" not in record
