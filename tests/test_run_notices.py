"""Notices that a run must end, and announcements that it may: what they set off, and what not."""

import contextlib
import os
import signal
import time
from types import SimpleNamespace

import metadata_server
import pytest

from evolving_rl_jax.run.preemption import (
    EXIT_AGAIN,
    Preempted,
    Preemption,
    announced,
    metadata_host,
)


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_signal_ends_a_run_with_nothing_to_save():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption, pytest.raises(Preempted, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: preemption)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_waits_once_there_is_something_to_save():
    with Preemption() as preemption:
        preemption.defer()
        preemption.check()
        assert not preemption
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: preemption)
        assert preemption.reason == "SIGTERM"
        with pytest.raises(Preempted):
            preemption.check()


def test_ctrl_c_waits_once_there_is_something_to_save_and_the_second_does_not(capfd):
    before = signal.getsignal(signal.SIGINT)
    with Preemption() as preemption:
        preemption.defer()
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: preemption)
        assert preemption.reason == "SIGINT" and "Ctrl-C again" in capfd.readouterr().err
        with pytest.raises(Preempted) as e:
            preemption.check()
        assert e.value.exit_code == 130  # a launcher starts nothing again
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(20)
    assert signal.getsignal(signal.SIGINT) is before
    assert Preempted("SIGTERM").exit_code == EXIT_AGAIN


def test_eval_takes_a_notice(monkeypatch, tmp_path, capsys):
    from evolving_rl_jax.cli.main import main
    from evolving_rl_jax.config import default_config
    from evolving_rl_jax.run import parts
    from evolving_rl_jax.run.folder import RunFolder

    RunFolder(str(tmp_path), default_config()).begin()

    @contextlib.contextmanager
    def open_parts(_config, _folder, _hosts, preemption):
        signal.raise_signal(signal.SIGTERM)
        yield

    monkeypatch.setattr(parts, "open_parts", open_parts)
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        assert main(["eval", f"--workdir={tmp_path}"]) == EXIT_AGAIN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert "the same command goes on from here" in capsys.readouterr().err


@pytest.fixture
def metadata(monkeypatch):
    with metadata_server.serve(monkeypatch) as server:
        yield server


def test_a_preemption_is_a_notice(metadata):
    metadata.values["preempted"] = ["FALSE", "FALSE", "TRUE"]
    with Preemption() as preemption:
        preemption.defer()
        wait_until(lambda: preemption)
    assert preemption.reason == "preempted TRUE" and not preemption.announced
    paths = {path.partition("?")[0] for path, _ in metadata.asked}
    assert paths == {f"/computeMetadata/v1/instance/{name}" for name in metadata.values}


def test_maintenance_is_announced_once_while_it_stands(metadata):
    metadata.values["maintenance-event"] = (
        [metadata_server.MAINTENANCE] * 4 + ["NONE"] + [metadata_server.MAINTENANCE]
    )
    told = []
    with Preemption() as preemption:
        preemption.defer()
        end = time.monotonic() + 20
        while len(told) < 2 and time.monotonic() < end:
            told += [x for x in [preemption.take_announced()] if x]
            time.sleep(0.01)
        asked = len(metadata.asked)
        wait_until(lambda: len(metadata.asked) > asked + 8)  # it stands for a while
        assert not preemption.take_announced() and not preemption
    assert told == [f"maintenance-event {metadata_server.MAINTENANCE}"] * 2


def test_what_is_announced_to_one_host_is_known_to_all():
    one, other = Preemption(), Preemption()
    other.announced = "maintenance-event X"
    hosts = SimpleNamespace(gather=lambda mine: [mine, other.take_announced()])
    assert announced(hosts, one) == "maintenance-event X" and announced(hosts, one) == ""


def test_where_the_metadata_server_is(tmp_path):
    product = tmp_path / "product_name"
    assert metadata_host({}, str(product)) == ""
    product.write_text("Some Laptop\n")
    assert metadata_host({}, str(product)) == ""
    product.write_text("Google Compute Engine\n")
    assert metadata_host({}, str(product)) == "metadata.google.internal"
    assert metadata_host({"GCE_METADATA_HOST": "a:1"}, str(product)) == "a:1"
