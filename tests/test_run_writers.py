"""Two processes over everything that writes to a run folder: nobody fails, nobody reads half a file."""

import gzip
import json
import os
import subprocess
import sys

import numpy as np
from conftest import ROOT
from report_runs import make_run

from evolving_rl_jax.config import from_json
from evolving_rl_jax.skills import Bank

ROUNDS = 40

WRITERS = """
import pathlib, sys
import numpy as np
from evolving_rl_jax.config import default_config
from evolving_rl_jax.files import write_json
from evolving_rl_jax.models.safetensors import write_tensors
from evolving_rl_jax.record.metrics import MetricsLogger
from evolving_rl_jax.report.page import write_report
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.skills import Bank
from evolving_rl_jax.skills.bank import write_bank
from evolving_rl_jax.skills.folders import export_folders
from evolving_rl_jax.train.collapse import CollapseLog

workdir, rounds = pathlib.Path(sys.argv[1]), int(sys.argv[2])
config = default_config()
config.seed, config.algorithm.arm = 3, "joint"
records = Bank(workdir / "skills" / "bank.jsonl").records
weights = np.ones((64, 64), np.float32)
print("ready", flush=True)
sys.stdin.readline()
for i in range(rounds):
    folder = RunFolder(str(workdir), config)
    folder.begin()
    folder.write_episodes(3, [{"id": n, "text": "x" * 2000} for n in range(20)])
    write_json(folder.eval_file("both", 1.0), [i] * 3000)
    write_bank(workdir / "eval" / "both-t1.skills.jsonl", records)
    write_tensors(workdir / "both.safetensors", [("w", (64, 64), np.float32, lambda: weights)])
    MetricsLogger(workdir, total=9, resume_from=50 - i, console=False, tensorboard=False).close()
    CollapseLog(workdir, resume_from=50 - i)
    if i % 20 == 0:
        write_report(workdir)
        export_folders(records, workdir / "skill_folders", top=3)
"""


def read_all(workdir):
    """Each of the files that the processes write, if it is there; raises where one is not whole."""
    from_json(workdir / "config.json")
    with gzip.open(workdir / "episodes" / "iteration_00003.jsonl.gz", "rt") as file:
        assert all(json.loads(line) for line in file)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == list(range(len(lines)))
    assert all(json.loads(line) for line in (workdir / "collapses.jsonl").read_text().splitlines())
    if (path := workdir / "eval" / "both-t1.json").exists():
        values = json.loads(path.read_text())
        assert values == [values[0]] * 3000
    if (path := workdir / "eval" / "both-t1.skills.jsonl").exists():
        assert len(Bank(path).records) == 15
    if (path := workdir / "both.safetensors").exists():
        assert path.read_bytes()[-64 * 64 * 4 :] == np.ones((64, 64), np.float32).tobytes()


def test_two_processes_write_everything_at_once(tmp_path):
    workdir = make_run(tmp_path / "run", 50, logged=[3], sources=1, turns=1)
    (workdir / "skills" / "bank.jsonl").write_text(
        "".join((workdir / "skills" / "bank.jsonl").read_text().splitlines(keepends=True)[:15])
    )
    record = {"iteration": 0, "action": "warn", "restored": None, "message": "x", "breaches": []}
    lines = [json.dumps(record | {"iteration": i}) + "\n" for i in range(50)]
    (workdir / "collapses.jsonl").write_text("".join(lines))
    variables = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", WRITERS, str(workdir), str(ROUNDS)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    writers = [subprocess.Popen(command, env=variables, text=True, **pipes) for _ in range(2)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n", writer.communicate()[1][-3000:]
    for writer in writers:  # all at once
        writer.stdin.write("\n")
        writer.stdin.flush()
    while any(writer.poll() is None for writer in writers):
        read_all(workdir)
    for writer in writers:
        _, err = writer.communicate()
        assert writer.returncode == 0, err[-3000:]
    read_all(workdir)
    assert not list(workdir.rglob("*.partial")) and not list(workdir.rglob("*.tmp"))
