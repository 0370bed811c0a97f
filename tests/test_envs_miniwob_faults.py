"""MiniWoB++ where something is wrong with browser, driver, display or pages: each is one line, nothing is left."""

import os
import pathlib
import subprocess
import sys
import time

import pytest
from miniwob_pages import browsed, descendants, gone, play, task

pytest.importorskip("ml_collections")

from evolving_rl_jax.cli.main import main
from evolving_rl_jax.config import default_config
from evolving_rl_jax.envs.base import EnvError
from evolving_rl_jax.envs.miniwob import chromium, index
from evolving_rl_jax.envs.miniwob.env import Options, make
from evolving_rl_jax.run.environments import make_pool

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
TRAIN = ["train", f"--config={CONFIGS / 'miniwob.py'}"]


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts programs before the others of their name: (name, version that it says, what else it does)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def write(name, version, does):
        path = folder / name
        path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec echo {version}\n{does}\n')
        path.chmod(0o755)

    return write


def ended(capsys, *arguments):
    """Exit code and the one line of a command."""
    code = main([*arguments])
    (line,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("evolving-rl:")]
    return code, line


def test_a_run_without_a_browser_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    workdir = tmp_path / "run"
    code, line = ended(capsys, *TRAIN, f"--workdir={workdir}")
    assert code == 2 and line.startswith("evolving-rl: config.data.miniwob: ")
    assert "must be installed" in line and not workdir.exists()
    config = default_config()
    config.env.name = "miniwob"
    with pytest.raises(EnvError, match="must be installed"):
        make_pool(config, [task("click-test")])


def test_an_unknown_family_is_one_line(tmp_path, capsys):
    families = "--config.data.miniwob.families=('clik-button',)"
    code, line = ended(capsys, *TRAIN, f"--workdir={tmp_path / 'run'}", families)
    assert code == 2 and "got 'clik-button'; there are click-button" in line


def test_a_page_that_raises_while_tasks_are_written_is_one_line(tmp_path, monkeypatch, capsys):
    def write(*_):
        raise EnvError("the page odd of miniwob raised: x")

    monkeypatch.setattr("evolving_rl_jax.envs.miniwob.benchmark.versions", lambda: ("1", "1"))
    monkeypatch.setattr(index, "write", write)
    code, line = ended(capsys, *TRAIN, f"--workdir={tmp_path / 'run'}")
    assert code == 1 and line == "evolving-rl: the page odd of miniwob raised: x"


@browsed
def test_a_driver_of_another_version_is_named_where_it_does_not_start(program):
    program("chromedriver", "ChromeDriver 1.2.3", "exit 1")
    with pytest.raises(EnvError, match="cannot be started: the driver must be of Chromium's"):
        make(Options(answer_s=300.0)).reset(task("click-test"))


@browsed
@pytest.mark.parametrize("name", ["chromium", "chromedriver"])
def test_a_program_that_ends_at_once_is_named(program, name):
    program(name, f"$(exec {chromium.executable()} --version)", "exit 1")
    with pytest.raises(EnvError, match="Chromium cannot be started: .+") as raised:
        make(Options(answer_s=300.0)).reset(task("click-test"))
    assert "\n" not in str(raised.value)


@browsed
@pytest.mark.parametrize("display", [None, ":987"])
def test_no_display_is_needed(monkeypatch, display):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if display:
        monkeypatch.setenv("DISPLAY", display)  # there is none of this number
    env = make(Options(answer_s=300.0))
    assert play(env, "click-test", 0)[1]
    env.browser.close()


@browsed
def test_a_driver_that_is_still_starting_ends_with_its_owner(program, tmp_path):
    """It is watched from its first moment: here it never says that it is up."""
    program("chromedriver", "1.2.3", f"echo up > {tmp_path / 'up'}; exec sleep 1000")
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from miniwob_pages import task\n"
        "from evolving_rl_jax.envs.miniwob.env import Options, make\n"
        "make(Options(answer_s=300.0)).reset(task('click-test'))"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "up").exists():
        assert child.poll() is None
        time.sleep(0.05)
    started = descendants(child.pid)
    assert len(started) == 2 and not gone(started, 0.0)
    child.kill()
    child.wait()
    assert gone(started)
