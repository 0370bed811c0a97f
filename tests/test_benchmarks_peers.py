"""The side-by-side with another library: its turns, its ratios and what it does without it; no tunix."""

import importlib.util
import json
import pathlib
import statistics
import sys

import pytest

pytest.importorskip("ml_collections")

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"

# A side that writes down when it was asked, and answers with numbers of its own.
FAKE = """
import json, pathlib, sys
name, log, folder = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
o = json.loads((folder / "options.json").read_text())
print("a line of a library that is no answer")
print(json.dumps({"versions": name, "parameters": o["shape"]["vocab"]}), flush=True)
for line in sys.stdin:
    with log.open("a") as f:
        f.write(f"{name} {line}")
    turn = log.read_text().count(f"{name} turn")
    speed = 60.0 if name == "ours" else 20.0 * turn
    print(json.dumps({"sampling": [speed, speed, 1e9], "training": [1 / speed, 9.0, 1 / speed]}
                     if line == "turn\\n" else {"layers": 0.5}), flush=True)
"""


def load(name):
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench():
    return load("peers")


def test_pairs_alternate_and_ratios_are_of_pairs(bench, tmp_path):
    fake, log = tmp_path / "fake.py", tmp_path / "log"
    fake.write_text(FAKE)
    given = bench.options(bench.parse_arguments(["--vocab=77"]))
    sides = {
        name: bench.Side([sys.executable, str(fake), name, str(log)], given)
        for name in ("ours", "tunix")
    }
    assert sides["ours"].said == {"versions": "ours", "parameters": 77}
    found = bench.turns(sides, 3)
    assert sides["ours"].ask("parts") == {"layers": 0.5}
    for side in sides.values():
        side.close()
    order = [line.split()[0] for line in log.read_text().splitlines()]
    assert order == ["ours", "tunix", "tunix", "ours", "ours", "tunix", "ours"]
    result = bench.summary(found, given)
    for what in ("sampling", "training"):  # 60 against 20, 40 and 60 tokens a second
        assert result[what]["ratios"] == pytest.approx([3, 1.5, 1])
        assert result[what]["ratio"] == pytest.approx(1.5)
    assert result["sampling"]["ours"] == 60 and result["sampling"]["tunix"] == 40
    assert result["training"]["tunix"] == pytest.approx(1 / 40)
    assert result["training_tokens_per_second"]["tunix"] == pytest.approx(8 * 256 * 40)
    text = bench.table(result | {"parts": {"layers": 0.5}})
    assert "1.50   3.00, 1.50, 1.00" in text and "layers 500.0 ms" in text


def test_a_side_that_fails_ends_the_comparison(bench, tmp_path):
    fake = tmp_path / "fake.py"
    fake.write_text("import sys; sys.exit(3)")
    with pytest.raises(SystemExit, match=r"fake.py failed with exit code 3"):
        _ = bench.Side([sys.executable, str(fake)], {}).said


def test_without_the_peer_nothing_is_measured_and_that_is_no_failure(bench, tmp_path, capsys):
    """An environment whose pip installs nothing."""
    python = tmp_path / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    python.chmod(0o755)
    assert bench.main([f"--environment={tmp_path}"]) == 0
    out, err = capsys.readouterr()
    assert "google-tunix==0.1.7 cannot be installed here: nothing was measured" in out
    assert "no network" in err


@pytest.mark.parametrize("option", ["--pairs=0", "--hidden=100", "--new=-1"])
def test_sizes_are_checked(bench, option, capsys):
    with pytest.raises(SystemExit):
        bench.parse_arguments([option])
    assert option.split("=")[0] in capsys.readouterr().err


def test_our_side_measures_what_it_says(bench, monkeypatch, capsys, tmp_path):
    sizes = ("layers=1", "hidden=64", "vocab=32", "batch=2", "prompt=4", "new=3", "repeats=1")
    given = bench.options(bench.parse_arguments([f"--{size}" for size in (*sizes, "steps=2")]))
    ours = load("peers_ours")
    (tmp_path / "options.json").write_text(json.dumps(given))
    monkeypatch.setattr(sys, "stdin", iter(["turn\n", "parts\n"]))
    ours.main(tmp_path)
    said, turn, parts = map(json.loads, capsys.readouterr().out.splitlines())
    # Embedding, final norm, and the layer: two norms, q, k, v, o, norms of heads, and the MLP.
    assert said["parameters"] == 32 * 64 + 64 + (2 * 64 + 4 * 64 * 64 + 2 * 64 + 3 * 64 * 192)
    assert len(turn["sampling"]) == 1 and len(turn["training"]) == 2
    assert statistics.mean(turn["training"]) > 0 and min(turn["sampling"]) > 0
    assert set(parts) == {"layers", "logits", "gradient", "optimizer"}
