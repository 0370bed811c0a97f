"""The record of a run: what is written, what survives a kill, what is shown."""

import json
import math

import numpy as np
import pytest

from evolving_rl_jax.record import metrics
from evolving_rl_jax.record.metrics import MetricsLogger, read_metrics


def _logger(folder, **options):
    return MetricsLogger(folder, **{"tensorboard": False, "console": False, "total": 10, **options})


def test_records_come_back_and_non_finite_values_are_null(tmp_path):
    with _logger(tmp_path / "run") as logger:
        logger.log(0, {"train/loss": np.float32(0.5), "train/kl": math.nan, "train/x": math.inf})
        logger.log(1, {"train/loss": 0.1 + 0.2})
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert read_metrics(tmp_path / "run") == [
        {"iteration": 0, "train/loss": 0.5, "train/kl": None, "train/x": None},
        {"iteration": 1, "train/loss": 0.1 + 0.2},
    ]


def test_resume_drops_later_and_torn_lines_and_goes_on(tmp_path, caplog):
    with _logger(tmp_path) as logger:
        for i in range(4):
            logger.log(i, {"train/loss": i})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"iteration": 4, "train/lo')
    assert [r["iteration"] for r in read_metrics(tmp_path)] == [0, 1, 2, 3]
    assert "line 5 dropped" in caplog.text
    with _logger(tmp_path, resume_from=2) as logger:
        logger.log(2, {"train/loss": 20})
    assert [(r["iteration"], r["train/loss"]) for r in read_metrics(tmp_path)] == [
        (0, 0),
        (1, 1),
        (2, 20),
    ]


def test_a_whole_last_line_without_its_newline_is_kept_apart(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0}')
    with _logger(tmp_path) as logger:
        logger.log(1, {})
    assert [r["iteration"] for r in read_metrics(tmp_path)] == [0, 1]


def test_a_record_is_in_the_file_before_the_logger_closes(tmp_path):
    logger = _logger(tmp_path)
    logger.log(0, {"a/b": 1})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"iteration": 0, "a/b": 1.0}
    logger.close()


def test_rates_follow_from_counts_and_total_time(tmp_path):
    with _logger(tmp_path) as logger:
        logger.log(0, {"rollout/episodes": 264, "rollout/decoded_tokens": 9000, "time/total": 4.0})
    (record,) = read_metrics(tmp_path)
    assert record["rate/episodes_per_s"] == 66 and record["rate/tokens_per_s"] == 2250


def test_wrong_values_name_the_metric(tmp_path):
    with _logger(tmp_path) as logger:
        with pytest.raises(ValueError, match="metric 'train/loss' must be a number, got 'high'"):
            logger.log(0, {"train/loss": "high"})
        with pytest.raises(ValueError, match="must not be called 'iteration'"):
            logger.log(0, {"iteration": 3})
    assert read_metrics(tmp_path) == []


def test_no_file_gives_no_records(tmp_path):
    assert read_metrics(tmp_path) == []


def test_one_progress_line_an_iteration(tmp_path, capsys):
    with _logger(tmp_path, console=True, total=56) as logger:
        logger.log(0, {"rollout/win_rate": 0.4123, "train/kl": math.nan})
        logger.log(55, {"rollout/win_rate": 0.5})
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("iteration  1/56  win 0.412  kl n/a")
    assert last.startswith("iteration 56/56  win 0.500") and last.endswith("0 s left")


def test_progress_line_shows_rates_and_time_left():
    values = {"rate/episodes_per_s": 56.2, "rate/tokens_per_s": 9130.0, "train/kl": 0.00045}
    line = metrics.progress_line(11, 56, values, seconds=4.71, left=208.0)
    assert line == (
        "iteration 12/56  kl 4.5e-04  56 episodes/s  9.1k tokens/s  4.7 s  3 min 28 s left"
    )


def test_time_left_uses_recent_iterations_and_not_the_compiling_first(tmp_path, monkeypatch):
    clock = iter([0.0, 60.0, 65.0, 70.0, 75.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    with _logger(tmp_path, total=10) as logger:
        for i in range(4):
            logger.log(i, {})
        assert logger.seconds_left(3) == 6 * 5.0
        assert logger.seconds_left(9) == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (208, "3 min 28 s"), (7500, "2 h 05 min")],
)
def test_format_duration(seconds, text):
    assert metrics.format_duration(seconds) == text


def test_tensorboard_holds_the_same_scalars(tmp_path):
    with _logger(tmp_path, tensorboard=True) as logger:
        logger.log(3, {"train/loss": 0.25, "train/kl": math.nan})
    (events,) = (tmp_path / "tensorboard").iterdir()
    data = events.read_bytes()
    assert b"train/loss" in data and b"train/kl" not in data
