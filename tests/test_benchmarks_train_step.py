"""The training-step benchmark: its packing, its FLOPs, its command line, and one tiny run."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

pytest.importorskip("ml_collections")

FILE = pathlib.Path(__file__).parents[1] / "benchmarks" / "train_step.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("train_step_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_are_full_of_sequences_that_count_from_zero(bench):
    batch = bench.packed_rows(3, 64, 50, seed=1)
    assert (batch["segment_ids"] > 0).all() and (batch["tokens"] < 50).all()
    for segments, positions in zip(batch["segment_ids"], batch["positions"], strict=True):
        for n in range(1, segments.max() + 1):
            np.testing.assert_array_equal(
                positions[segments == n], np.arange((segments == n).sum())
            )
    np.testing.assert_array_equal(batch["loss_mask"] == 0, batch["positions"] == 0)
    again = bench.packed_rows(3, 64, 50, seed=1)
    assert all((again[k] == batch[k]).all() for k in batch)


def test_flops_equal_a_count_by_hand(bench):
    shape = {
        "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 3, "vocab_size": 10,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    # Two sequences of 2 and 1 tokens: they see 1 + 2 and 1 keys.
    batch = {"tokens": np.zeros((1, 3)), "positions": np.array([[0, 1, 0]])}
    layer = 4 * 4 + 2 * (4 * 2) + 4 * 4 + 3 * (4 * 6)  # q, k and v, o, the three of the MLP
    forward = 3 * 2 * (3 * layer + 10 * 4) + (1 + 2 + 1) * 4 * 2 * 2 * 3
    assert bench.model_flops(shape, batch) == 3 * forward


def test_flops_agree_with_the_estimate_of_compile(bench):
    from evolving_rl_jax import models
    from evolving_rl_jax.aot import estimate

    for file, _, _ in bench.PRESETS.values():
        cfg = models.config_from_hf(file)
        batch = {"tokens": np.zeros((1, 4)), "positions": np.arange(4)[None]}
        weights = estimate.layer_weights(cfg) + estimate.unembedding_weights(cfg)
        expected = 3 * (4 * 2 * weights + estimate.attention_flops(cfg, 1 + 2 + 3 + 4))
        assert bench.model_flops(json.loads(file.read_text()), batch) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--rows=0", "--rows must be >= 1, got 0"),
        ("--micro-batch-rows=3", "--micro-batch-rows must divide --rows = 8, got 3"),
        ("--row-length=4", "--row-length must be >= 8, got 4"),
        ("--preset=gpt", "invalid choice: 'gpt'"),
    ],
)
def test_mistakes_are_named(bench, capsys, argument, message):
    with pytest.raises(SystemExit) as exit_info:
        bench.parse_arguments([argument])
    assert exit_info.value.code == 2 and message in capsys.readouterr().err


def test_help_and_presets(bench, capsys):
    with pytest.raises(SystemExit):
        bench.parse_arguments(["--help"])
    assert "--compare-torch" in capsys.readouterr().out
    args = bench.parse_arguments(["--preset=qwen2.5-1.5b"])
    assert (args.rows, args.row_length, args.dtype) == (8, 8192, "bfloat16")


@pytest.mark.slow
def test_a_tiny_run_prints_a_table_and_a_line_of_json(bench, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    bench.main(["--rows=2", "--row-length=64", "--steps=2"])
    *lines, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert any("share of the matmul ceiling" in line for line in lines)
    ours = result["jax"]
    assert ours["tokens_per_second"] == pytest.approx(2 * 64 / ours["seconds"])
    assert ours["losses"][0] == pytest.approx(np.log(1024), abs=0.2)  # near uniform at first
    assert ours["losses"][-1] < ours["losses"][0] and ours["peak_bytes"] > 0


def test_sides_whose_losses_differ_are_not_compared(bench):
    assert bench.agree([6.95, 6.94], [6.9501, 6.9402], "float32")
    assert not bench.agree([6.95, 6.94], [6.95, 6.93], "float32")
    assert bench.agree([6.95, 6.94], [6.97, 6.90], "bfloat16")
    assert not bench.agree([6.95, 6.94], [6.95, 6.80], "bfloat16")
