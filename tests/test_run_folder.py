"""The run folder: whose it is, when it is written, and writes that a kill cannot tear."""

import errno
import fcntl
import gzip
import json
import os
import pathlib
import subprocess
import sys

import pytest

from evolving_rl_jax.cli.main import main
from evolving_rl_jax.config import ConfigError, default_config, first_difference, set_key
from evolving_rl_jax.files import write_atomic
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.update.optimizer import learning_rate_schedule


def config(**changes):
    result = default_config()
    result.update(changes)
    return result


def test_opening_writes_nothing_and_beginning_writes_the_config(tmp_path):
    path = tmp_path / "a" / "run"
    folder = RunFolder(str(path), config(seed=3))
    assert not (tmp_path / "a").exists()
    folder.begin()
    assert [p.name for p in path.iterdir()] == ["config.json"]
    saved = RunFolder(str(path)).load_config()
    assert saved.seed == 3 and first_difference(saved, config(seed=3)) is None


def test_reading_never_writes(tmp_path):
    folder = RunFolder(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="--workdir must be a run folder with config.json, got"):
        folder.load_config()
    folder.begin()
    assert not (tmp_path / "none").exists()


def test_another_config_is_refused_and_a_longer_run_is_not(tmp_path):
    RunFolder(str(tmp_path), config()).begin()
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="a run of this config, got .* seed is 0 and not 1; use"):
        RunFolder(str(tmp_path), config(seed=1))
    assert (tmp_path / "config.json").read_bytes() == before
    longer = config()
    longer.train.num_iterations = 999
    RunFolder(str(tmp_path), longer).begin()
    assert RunFolder(str(tmp_path)).load_config().train.num_iterations == 999


def test_a_cosine_does_not_get_another_length_without_a_word(tmp_path):
    def of(iterations, updates=0):
        result = config()
        result.train.update(num_iterations=iterations, minibatches=2)
        result.optimizer.update(
            schedule="cosine", learning_rate=5e-4, warmup_steps=10, decay_updates=updates
        )
        return result

    RunFolder(str(tmp_path), of(80)).begin()
    rates = [float(learning_rate_schedule(of(n), 2 * n)(159)) for n in (80, 160)]
    assert rates[0] < 1e-7 and rates[1] > 2e-4
    with pytest.raises(ConfigError) as refused:
        RunFolder(str(tmp_path), of(160))
    message = str(refused.value)
    assert "config.train.num_iterations must keep the schedule" in message
    assert f"of update 159 from {rates[0]:.2g} to {rates[1]:.2g}" in message
    assert "optimizer.decay_updates=160 keeps it" in message
    RunFolder(str(tmp_path), of(160, 160)).begin()
    RunFolder(str(tmp_path), of(300, 160)).begin()
    kept = [learning_rate_schedule(c, n)(100) for c, n in ((of(80), 160), (of(300, 160), 600))]
    assert kept[0] == kept[1]
    with pytest.raises(ConfigError, match="160 updates|instead of 160"):
        RunFolder(str(tmp_path), of(300))


def test_an_empty_folder_is_new_and_a_folder_of_other_files_is_not(tmp_path):
    RunFolder(str(tmp_path), config())
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="with files but no config.json"):
        RunFolder(str(tmp_path), config())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="must be a folder that can be written"):
        RunFolder(str(tmp_path / "run"), config()).begin()


def test_only_one_process_trains_in_a_folder(tmp_path):
    with RunFolder(str(tmp_path)).hold():
        message = f"nothing else trains in, got .* where process {os.getpid()} on .* does"
        with pytest.raises(ConfigError, match=message), RunFolder(str(tmp_path)).hold():
            pass
        with RunFolder(str(tmp_path), writes=False).hold():  # another process of the same run
            pass
    assert (tmp_path / "train.lock").read_text() == ""
    with RunFolder(str(tmp_path)).hold():
        pass


def test_a_second_start_is_refused_before_anything_is_made(tmp_path, capsys):
    config_file = pathlib.Path(__file__).parents[1] / "configs" / "debug.py"
    workdir = tmp_path / "deep" / "run"
    with RunFolder(str(workdir), config()).hold():
        assert main(["train", f"--config={config_file}", f"--workdir={workdir}"]) == 2
        assert "nothing else trains in" in capsys.readouterr().err
        assert [p.name for p in workdir.iterdir()] == ["train.lock"]
    assert not list(tmp_path.iterdir())  # the first has made nothing but the lock
    workdir.mkdir(parents=True)
    (workdir / "train.lock").touch()  # of a process that was killed before it made anything
    RunFolder(str(workdir), config())


def test_who_holds_a_folder_may_hold_it_again(tmp_path):
    folder = RunFolder(str(tmp_path))
    with folder.hold():
        with folder.hold():
            pass
        with pytest.raises(ConfigError), RunFolder(str(tmp_path)).hold():
            pass
    with RunFolder(str(tmp_path)).hold():
        pass


@pytest.mark.parametrize(
    "key",
    ["train.micro_batch_rows", "train.logprob_chunk", "rollout.num_slots", "rollout.decode_window",
     "eval.every", "mesh.fsdp", "env.num_workers"],
)  # fmt: skip
def test_a_run_may_go_on_in_less_memory_or_elsewhere(tmp_path, key):
    RunFolder(str(tmp_path), config()).begin()
    changed = config()
    set_key(changed, key, "1")
    RunFolder(str(tmp_path), changed)


def test_a_killed_process_leaves_the_folder_free(tmp_path):
    code = (
        "import sys, time; from evolving_rl_jax.run.folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).hold(): print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        with pytest.raises(ConfigError, match=f"process {holder.pid} on"):
            with RunFolder(str(tmp_path)).hold():
                pass
        holder.kill()
    with RunFolder(str(tmp_path)).hold():
        assert (tmp_path / "train.lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    def flock(file, operation):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunFolder(str(tmp_path)).hold():
        pass
    assert "cannot be locked (not supported)" in capsys.readouterr().err


def test_names_of_result_files(tmp_path):
    folder = RunFolder(str(tmp_path))
    assert folder.eval_file("final", 1.0).name == "final-t1.json"
    assert folder.eval_file("final", 0.3).name == "final-t0.3.json"
    assert folder.bank_file == tmp_path / "skills" / "bank.jsonl"


def test_episodes_of_an_iteration_are_one_file_and_the_same_bytes_every_time(tmp_path):
    folder = RunFolder(str(tmp_path))
    records = [{"iteration": 7, "text": "ä"}, {"iteration": 7}]
    folder.write_episodes(7, records)
    path = tmp_path / "episodes" / "iteration_00007.jsonl.gz"
    first = path.read_bytes()
    assert first[8] == 0  # the header says 2 for gzip's slowest level, which saves next to nothing
    with gzip.open(path, "rt", encoding="utf-8") as file:
        assert [json.loads(line) for line in file] == records
    folder.write_episodes(7, records)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_text(encoding="utf-8") == "old"
