"""Options that a command would otherwise take for others, or leave without effect."""

import pytest

pytest.importorskip("ml_collections")

from evolving_rl_jax.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["export", "--what=policy", "--out=o", "--top=3"],
            "--top must be left out without --what=skills",
        ),
        (
            ["export", "--what=skills", "--out=o", "--dtype=float32"],
            "--dtype must be left out without",
        ),
        (["eval", "--top=2"], "--top must be left out without --mode=stream, got 2"),
        (["eval", "--out=x.json"], "--out must be left out without --compare, got x.json"),
    ],
)
def test_options_of_another_mode_are_refused(tmp_path, capsys, arguments, message):
    assert main([*arguments, f"--workdir={tmp_path}"]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["eval"], ["ablation", "--config=configs/debug.py"]])
def test_seed_is_not_taken_for_seeds(command, capsys):
    with pytest.raises(SystemExit):
        main([*command, "--workdir=run", "--seed=5"])
    assert "unrecognized arguments: --seed=5" in capsys.readouterr().err
