"""The prepared check of an accelerator: steps that fail, hang or have nothing to do, and all at toy size."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "device"


def load(name):
    spec = importlib.util.spec_from_file_location(f"device_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def steps():
    return load("steps")


def one(steps, out, code, limit=60.0):
    step = steps.Step("one", 60, ("-c", code))
    return steps.run_step(step, step.command, limit, out)


def test_a_step_gives_its_last_json_line(steps, tmp_path):
    line = one(
        steps, tmp_path, "print('{\"a\": 1}'); print('text'); print('{\"b\": 2}'); print('end')"
    )
    assert line["ok"] and line["result"] == {"b": 2} and "tail" not in line


def test_a_failing_step_keeps_its_traceback(steps, tmp_path):
    line = one(
        steps, tmp_path, "print('{\"partial\": 3}', flush=True); raise RuntimeError('no memory')"
    )
    assert not line["ok"] and line["code"] == 1 and line["result"] == {"partial": 3}
    assert "RuntimeError: no memory" in line["tail"]
    assert "RuntimeError: no memory" in (tmp_path / "one.log").read_text()


def test_a_hanging_step_and_its_children_end_at_the_limit(steps, tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\ntime.sleep(600)"
    )
    line = one(steps, tmp_path, code, limit=10.0)
    assert line["code"] == "time limit" and not line["ok"]
    child = int((tmp_path / "one.log").read_text().split()[0])
    status, end = pathlib.Path(f"/proc/{child}/stat"), time.monotonic() + 60

    def runs():  # killed, but perhaps not yet gone
        try:
            return status.read_text().split()[2] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False

    while runs() and time.monotonic() < end:
        time.sleep(0.05)
    assert not runs()


def test_code_of_a_failed_compiler_hides_no_figure(steps, tmp_path):
    code = "print('{\"a\": 1}', flush=True); print('{\\n  int x;\\n}'); raise SystemExit(1)"
    line = one(steps, tmp_path, code)
    assert line["result"] == {"a": 1} and line["code"] == 1


def test_a_run_that_does_not_end_is_read_all_the_same(monkeypatch, tmp_path, capsys):
    reader = load("run_and_read")
    (tmp_path / "warmstart").mkdir()
    (tmp_path / "warmstart" / "log.jsonl").write_text('{"step": 20, "loss": 1.5}\n')
    (tmp_path / "metrics.jsonl").write_text(
        '{"time/total": 2.0, "time/train": 1.0}\n{"time/total": 2.0, "ti'  # killed while it wrote
    )
    deaf = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\ntime.sleep(600)"
    )
    monkeypatch.setattr(reader, "GRACE", 0.5)
    popen = subprocess.Popen
    monkeypatch.setattr(
        reader.subprocess, "Popen", lambda command: popen([sys.executable, "-c", deaf])
    )
    monkeypatch.setattr(
        sys, "argv", ["x", "--config=none.py", f"--workdir={tmp_path}", "--limit=3"]
    )
    assert reader.main() == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["code"] == "killed" and result["records"] == 1
    assert result["warmstart"] == [{"step": 20, "loss": 1.5}]
    assert result["time_shares"] == {"train": 0.5}


def test_a_run_is_told_the_seconds_that_its_step_has(steps, tmp_path):
    step = steps.Step("one", 100, ("-c", "import sys; print('[' + sys.argv[1] + ']')", steps.LEFT))
    steps.run_step(step, step.command, 45.0, tmp_path)
    assert (tmp_path / "one.log").read_text() == "[15]\n"


def test_later_steps_survive_and_missing_pieces_are_said(steps, tmp_path, monkeypatch):
    plan = [
        steps.Step("bad", 60, ("-c", "raise SystemExit(3)")),
        steps.Step("absent", 60, ("-c", ""), needs="model/none.gguf"),
        steps.Step("good", 60, ("-c", "print('{}')")),
    ]
    monkeypatch.setattr(steps, "steps", lambda out: plan)
    assert steps.main([f"--out={tmp_path}"]) == 1
    lines = [json.loads(x) for x in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == ["bad", "absent", "good"]
    assert lines[0]["code"] == 3 and lines[2]["ok"]
    assert lines[1]["skipped"] == ".device/model/none.gguf is not here"


def test_the_limits_of_a_part_fit_into_ten_minutes_of_a_lease(steps, tmp_path):
    assert steps.TOTAL <= 9 * 60
    plan = steps.steps(tmp_path)
    names = [s.name for s in plan]
    assert len(set(names)) == len(names) and names[0] == "tests"
    for part in {s.part for s in plan}:
        assert sum(s.limit for s in plan if s.part == part) <= steps.TOTAL, part
    for step in plan:
        files = [p for p in step.command + step.toy if p.endswith(".py") and p[0] != "-"]
        files += [p.partition("=")[2] for p in step.command + step.toy if p.startswith("--config=")]
        assert files and all((ROOT / f).exists() for f in files), step.name


def test_a_part_is_chosen_by_number_or_by_names(steps, tmp_path, capsys):
    def names(*options):
        return [
            s.name for s in steps.chosen(steps.parse_arguments([f"--out={tmp_path}", *options]))
        ]

    assert names()[0] == "tests" and "smollm2" not in names() and names("--part=2")[0] == "smollm2"
    assert names("--only=smollm2,tests") == ["tests", "smollm2"]
    assert set(names("--cpu")) > set(names())
    with pytest.raises(SystemExit):
        names("--part=9")
    assert "--part must be one of 1, 2, 3, got 9" in capsys.readouterr().err


def test_an_unknown_step_is_named(steps, tmp_path, capsys):
    with pytest.raises(SystemExit):
        steps.main([f"--out={tmp_path}", "--only=tests,nothing"])
    assert "got nothing" in capsys.readouterr().err


def test_packs_stay_below_the_limit_and_leave_out_what_is_there(tmp_path, capsys):
    pack = load("pack")
    there = set((FOLDER / "there.txt").read_text().splitlines())
    found = pack.wanted("evolving-rl-jax", {"train"}, {pack.canonical(x) for x in there})
    assert "alfworld" in found and not {"numpy", "jax", "spacy"} & set(found)
    assert pack.main([f"--out={tmp_path}", "--limit-mb=45"]) == 0
    sizes = [p.stat().st_size for p in tmp_path.glob("*.tar")]
    assert sizes and max(sizes) < 64 * 2**20
    assert pack.main([f"--out={tmp_path}", "--limit-mb=1"]) == 2
    assert "more than --limit-mb=1" in capsys.readouterr().err


def test_run_at_toy_size(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "XLA_FLAGS": ""}
    done = subprocess.run(
        ["bash", str(FOLDER / "run.sh"), "--cpu", f"--out={tmp_path}"],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    lines = [json.loads(x) for x in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    names = ["tests", "train_0.5b", "generation_1.5b", "memory_1.7b", "smollm2"]
    assert [x["step"] for x in lines] == names
    run = lines[4]["result"]
    assert run["records"] and run["panels"] and run["time_shares"]["train"] > 0
    assert lines[3]["result"]["predicted_bytes"] > 0
