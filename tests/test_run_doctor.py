"""The doctor: its table, its exit code, what it finds, and two hosts at once."""

import pathlib
import re

import pytest
from ml_collections import ConfigDict

from evolving_rl_jax.cli.main import main
from evolving_rl_jax.config import default_config
from evolving_rl_jax.run import doctor
from evolving_rl_jax.run.doctor import Line, Problem, Subject, check_all
from evolving_rl_jax.run.hosts import Hosts


def subject(workdir=None, **changes):
    config = default_config()
    for key, value in changes.items():
        group, name = key.split("__")
        config[group][name] = value
    return Subject(Hosts(), config, workdir)


def fine(_subject):
    return "all here"


def broken(_subject):
    raise Problem("X must be 1, got 2")


def crashing(_subject):
    raise KeyError("k")


def elsewhere(_subject):
    raise doctor._NotHere("one process")


def test_the_table_and_the_verdict(monkeypatch, capsys):
    checks = {"one": fine, "two": broken, "three": crashing, "four": elsewhere}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert not check_all(Subject(Hosts()))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["ok", "FAIL", "FAIL", "--"]
    assert lines[1].endswith("X must be 1, got 2") and "KeyError: 'k'" in lines[2]
    assert lines[4] == "something is wrong, see the lines with FAIL"
    monkeypatch.setattr(doctor, "CHECKS", {"one": fine, "four": elsewhere})
    assert check_all(Subject(Hosts()))
    assert capsys.readouterr().out.splitlines()[-1] == "all is well"


def test_a_failure_on_one_host_names_it():
    everyone = [Line("disk", True, "9 GB"), Line("disk", False, "no space"), Line("disk", True, "")]
    (text,) = doctor._shown(everyone, [(1, everyone[1])], 3)
    assert text.startswith("FAIL") and text.endswith("no space (process 1)")
    (text,) = doctor._shown([everyone[0]] * 3, [], 3)
    assert text.startswith("ok") and text.endswith("9 GB")


def test_the_exit_code(monkeypatch, capsys):
    for checks, code in (({"a": fine}, 0), ({"a": broken}, 1)):
        monkeypatch.setattr(doctor, "CHECKS", checks)
        assert main(["doctor"]) == code
    assert main(["doctor", "--config.seed=1"]) == 2
    assert "--config must be given with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("check", "changes", "message"),
    [
        ("mesh", {"mesh__data": 3}, "must multiply to the number of devices"),
        ("data", {"data__games": "/no/such/games"}, "/no/such/games"),
        ("data", {"model__hf_path": "/no/such/model"}, "/no/such/model"),
        ("token round trip", {"model__hf_path": "/no/such/model"}, "/no/such/model"),
    ],
)
def test_what_it_finds(check, changes, message):
    line = doctor._outcome(check, doctor.CHECKS[check], subject(**changes))
    assert line.ok is False and message in line.text and "\n" not in line.text


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    line = doctor._outcome("folders", doctor.folders, subject(tmp_path / "file" / "run"))
    assert line.ok is False and "--workdir must be writable" in line.text


def test_too_little_space(tmp_path, monkeypatch):
    usage = ConfigDict({"free": 2_000_000_000})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    line = doctor._outcome("folders", doctor.folders, subject(tmp_path))
    assert line.ok is False and "must have 5 GB free, got 2.0 GB" in line.text


def test_a_missing_package(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package"))
    line = doctor._outcome("versions", doctor.versions, Subject(Hosts()))
    assert line.ok is False and "must be installed" in line.text and "no-such-package" in line.text


def test_tokens_and_engines_agree_here():
    for check in (doctor.tokens, doctor.generation, doctor.arithmetic):
        line = doctor._outcome("check", check, Subject(Hosts()))
        assert line.ok, line.text


def test_the_engine_of_the_benchmark_is_compared_where_it_has_two():
    pytest.importorskip("alfworld")
    line = doctor._outcome("game engines", doctor.game_engines, Subject(Hosts()))
    assert line.ok and re.fullmatch(r"native equals stock over a game of \d+ steps", line.text)
    config = default_config()
    config.env.name = "mind2web"
    line = doctor._outcome("game engines", doctor.game_engines, Subject(Hosts(), config))
    assert line.ok is None and line.text == "the environment is mind2web"


def test_a_tokenizer_that_loses_something(monkeypatch):
    from evolving_rl_jax.models import tokenizer

    monkeypatch.setattr(tokenizer.Tokenizer, "decode", lambda *_a, **_k: "something else")
    line = doctor._outcome("tokens", doctor.tokens, Subject(Hosts()))
    assert line.ok is False and "got 'something else'" in line.text


@pytest.mark.slow
def test_two_hosts_at_once(tmp_path):
    pytest.importorskip("alfworld")
    from test_train_hosts import finish, launch

    debug = pathlib.Path(__file__).parents[1] / "configs" / "debug.py"
    arguments = ["doctor", f"--config={debug}", f"--workdir={tmp_path / 'run'}"]
    results = finish(launch([*arguments, "--config.rollout.num_sources=4"], 2), 300)
    for (_, err), code in results:
        assert code == 0, err[-2000:]
    out = results[0][0][0]
    assert "all is well" in out and "FAIL" not in out
    assert re.search(r"devices +2 processes x 2 cpu", out)
    assert "is the same on 2 hosts" in out and "sums of 16 MiB over 4 devices" in out
    assert not list(tmp_path.iterdir())  # it leaves nothing behind
    results = finish(launch(arguments, 2), 300)  # 2 sources in 2 minibatches: one a process too few
    assert results[0][1] == results[1][1] == 1
    assert "must be a multiple of the number of processes" in results[0][0][0]
