"""Commands side by side: at the same time, on their own cores, in order, and none left behind."""

import os
import sys

import pytest

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.run.preemption import EXIT_AGAIN, Preempted
from evolving_rl_jax.train.ablation import side_by_side
from evolving_rl_jax.train.ablation.side_by_side import (
    Piece,
    PieceFailed,
    core_shares,
    run_side_by_side,
)

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")

# Says that it is there, and waits for somebody else.
MEET = """
import pathlib, sys, time
me, other = (pathlib.Path(p) for p in sys.argv[1:])
me.touch()
end = time.monotonic() + 120
while not other.exists():
    assert time.monotonic() < end
    time.sleep(0.01)
"""

# Runs until it is told to stop, and says that it was.
STAY = f"""
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path(sys.argv[2]).touch()
    sys.exit({EXIT_AGAIN})
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""


# Goes on for ever, whatever it is told.
STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(600)
"""


def always(*_):
    return True


def nothing():
    pass


@pytest.fixture
def piece(tmp_path):
    def make(name, code, *arguments):
        command = (sys.executable, "-c", code, *(str(tmp_path / a) for a in arguments))
        return Piece(name, command, tmp_path / "logs" / f"{name}.txt")

    return make


def test_two_at_a_time_on_their_own_cores(piece):
    tell = "import os; print(*sorted(os.sched_getaffinity(0)))"
    pieces = [piece("a", MEET + tell, "a", "b"), piece("b", MEET + tell, "b", "a")]
    run_side_by_side(pieces, core_shares(2), always, nothing)
    shares = [{int(n) for n in p.log.read_text().split()} for p in pieces]
    assert shares == core_shares(2) and shares[0] | shares[1] == set(CORES)
    assert not shares[0] & shares[1] and sorted(os.sched_getaffinity(0)) == CORES


def test_one_at_a_time_in_order(piece, tmp_path):
    tell = "import sys; open(sys.argv[1], 'a').write(sys.argv[2][-1])"
    run_side_by_side([piece(n, tell, "said", n) for n in "abc"], core_shares(1), always, nothing)
    assert (tmp_path / "said").read_text() == "abc"


def test_a_piece_waits_until_it_may(piece, tmp_path):
    seen = []

    def ready(name, running, ended):
        seen.append((name, sorted(running), list(ended)))
        return name != "a" or "c" in ended

    tell = "import sys; open(sys.argv[1], 'a').write(sys.argv[2][-1])"
    run_side_by_side([piece(n, tell, "said", n) for n in "abc"], core_shares(2), ready, nothing)
    said = (tmp_path / "said").read_text()
    assert sorted(said) == ["a", "b", "c"] and said.endswith("a")
    assert ("a", [], []) in seen and ("c", ["b"], []) in seen


def test_pieces_that_can_never_start(piece):
    with pytest.raises(RuntimeError, match="none of \\['a'\\] may start"):
        run_side_by_side([piece("a", "")], core_shares(2), lambda *_: False, nothing)


def test_after_a_failure_nothing_starts_and_the_others_end(piece, tmp_path):
    fail = "import sys; print('before'); print('wrong key'); print(); sys.exit(2)"
    slow = "import sys, time; time.sleep(1); open(sys.argv[1], 'w').close()"
    pieces = [piece("a", fail), piece("b", slow, "ended"), piece("c", slow, "never")]

    def ready(name, _running, ended):
        return name != "c" or "a" in ended

    with pytest.raises(PieceFailed, match="^a ended with exit code 2: wrong key .*logs/a.txt"):
        run_side_by_side(pieces, core_shares(2), ready, nothing)
    assert (tmp_path / "ended").exists() and not (tmp_path / "never").exists()


def test_one_that_was_told_to_stop_stops_all(piece, tmp_path):
    pieces = [
        piece("a", f"{MEET}sys.exit({EXIT_AGAIN})", "a", "b"),
        piece("b", STAY, "b", "stopped"),
        piece("c", "", "c"),
    ]
    with pytest.raises(Preempted, match="a was stopped"):
        run_side_by_side(pieces, core_shares(2), always, nothing)
    assert (tmp_path / "stopped").exists() and not pieces[2].log.exists()


def test_none_is_left_behind(piece, tmp_path):
    def tick():
        if (tmp_path / "b").exists() and (tmp_path / "a").exists():
            raise Preempted("SIGTERM")

    pieces = [piece("a", STAY, "a", "stopped-a"), piece("b", STAY, "b", "stopped-b")]
    with pytest.raises(Preempted, match="SIGTERM"):
        run_side_by_side(pieces, core_shares(2), always, tick)
    assert (tmp_path / "stopped-a").exists() and (tmp_path / "stopped-b").exists()


@pytest.mark.parametrize("jobs", [0, len(CORES) + 1])
def test_wrong_number_of_jobs(jobs):
    with pytest.raises(ConfigError, match=f"--jobs must be from 1 to .* {len(CORES)}, got {jobs}"):
        core_shares(jobs)


def test_every_core_is_in_one_share():
    for jobs in range(1, len(CORES) + 1):
        shares = core_shares(jobs)
        assert sorted(core for share in shares for core in share) == CORES and all(shares)


def test_what_does_not_end_when_it_is_told_to_is_killed(piece, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(side_by_side, "GRACE_S", 0.2)
    told = tmp_path / "told"

    def tick():
        if told.exists() and told.read_text():
            raise Preempted("SIGTERM")

    with pytest.raises(Preempted):
        run_side_by_side([piece("a", STUBBORN, "told")], core_shares(1), always, tick)
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)
    assert "has not ended within 0.2 s and is killed" in capsys.readouterr().err
