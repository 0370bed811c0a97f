"""Several configurations side by side: what they must share, how long each trains, and their table."""

import json
import pathlib

import pytest
from report_runs import make_run, panel, write_json

from evolving_rl_jax.cli.main import main
from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.train.ablation.methods import episodes_an_iteration, read_methods
from evolving_rl_jax.train.ablation.run import Ablation
from evolving_rl_jax.train.ablation.summary import write_summary

METHOD = """
from evolving_rl_jax.config import default_config


def get_config():
    config = default_config()
    config.rollout.update(num_sources=4, num_retrieved=2, num_skills=4, num_repeats=1)
    config.train.num_iterations = 10
    config.update_from_flattened_dict({changes!r})
    return config
"""


def write(folder, **methods):
    for name, changes in methods.items():
        (folder / f"{name}.py").write_text(METHOD.format(changes=changes), encoding="utf-8")
    return [str(folder / f"{name}.py") for name in methods]


def test_every_config_plays_as_much_as_the_first(tmp_path):
    paths = write(
        tmp_path,
        ours={},
        grpo={"algorithm.arm": "grpo"},
        bank={"guidance.free_repeats": 4, "guidance.repeats": 2},
    )
    configs = read_methods(paths, {})
    # sources + K x (N x R + free + guided), for each of 4 sources
    plays = {"ours": 4 * (1 + 2 * 4), "grpo": 4 * 2 * 4, "bank": 4 * (1 + 2 * (4 + 4 + 2))}
    for name, config in configs.items():
        assert episodes_an_iteration(config) == plays[name]
        assert config.train.num_iterations == round(10 * plays["ours"] / plays[name])
    short = read_methods(paths, {"train.num_iterations": "1"})
    assert [c.train.num_iterations for c in short.values()] == [1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model.num_layers": 3}, "model.num_layers"),
        ({"eval.num_games": 5}, "eval.num_games"),
        ({"rollout.max_steps": 7}, "rollout.max_steps"),
        ({"data.households.num_train": 9}, "data.households"),
    ],
)
def test_what_a_comparison_must_share(tmp_path, changes, key):
    paths = write(tmp_path, ours={}, other=changes)
    with pytest.raises(ConfigError, match=f"got other with another config.{key} than ours"):
        read_methods(paths, {})


def test_names_are_those_of_the_files(tmp_path, capsys):
    (tmp_path / "more").mkdir()
    one, two = write(tmp_path, ours={}), write(tmp_path / "more", ours={})
    with pytest.raises(ConfigError, match="different names, got 'ours' twice"):
        read_methods([*one, *two], {})
    with pytest.raises(ConfigError, match="at least one file"):
        read_methods([], {})
    code = main(["ablation", f"--configs={one[0]}", "--workdir=x", "--arms=joint"])
    assert code == 2 and "--arms must be left out with --configs" in capsys.readouterr().err


def test_runs_have_their_own_configuration_and_the_shared_games(tmp_path):
    configs = read_methods(write(tmp_path, ours={}, grpo={"algorithm.arm": "grpo"}), {})
    first = configs["ours"]
    ablation = Ablation(RunFolder(str(tmp_path / "all"), first), tuple(configs), (0, 3), configs)
    assert list(ablation.pieces()) == ["ours-0", "grpo-0", "ours-3", "grpo-3"]  # and no crossing
    found = ablation.run_config(first, "grpo", 3)
    assert (found.algorithm.arm, found.seed) == ("grpo", 3)
    assert found.data.games == str(tmp_path / "all" / "games")
    assert found.train.num_iterations == configs["grpo"].train.num_iterations
    arms = Ablation(RunFolder(str(tmp_path / "arms"), first), ("grpo",), (0,))
    assert list(arms.pieces()) == ["grpo-0", "cross-0"]
    assert arms.run_config(first, "grpo", 0).train.num_iterations == 10


def test_the_table_names_the_configs_and_compares_with_the_first(tmp_path):
    folders = []
    for seed in (0, 1):
        for shift, (name, arm) in enumerate((("base", "grpo"), ("mem-rl", "joint"))):
            folder = make_run(tmp_path / "runs" / f"{name}-{seed}", seed=seed, arm=arm)
            for late, which in enumerate(("warmstart", "final")):
                file = panel(which, 1.0, late, seed=seed + 10 * shift * late)
                write_json(folder, f"eval/{which}-t1.json", file)
            folders.append(folder)
    text = write_summary(tmp_path, folders, named=True)
    summary = json.loads((tmp_path / "ablation.json").read_text())
    table = summary["success"][0]
    assert [row["label"] for row in table["rows"]] == ["warm start", "base", "mem-rl"]
    assert table["base"] == "base"  # the first, though another one is of the arm joint
    assert [row["label"] for row in table["differences"]] == ["mem-rl"]
    conditions = {condition for _, condition in table["columns"]}
    assert conditions == {"none", "own"}
    assert {(r["arm"], r["seed"]) for r in summary["by_seed"]} == {
        (name, seed) for name in ("base", "mem-rl") for seed in (0, 1)
    }
    assert "| seed | warm start | base | mem-rl |" in text and not summary["cross"]


def test_the_methods_of_the_project_can_be_compared():
    """Every file of configs/methods goes with the first: the same world, short, and with its docs."""
    root = pathlib.Path(__file__).parents[1]
    files = sorted((root / "configs" / "methods").glob("*.py"))
    first = root / "configs" / "methods" / "evolving_rl.py"
    configs = read_methods([str(first), *(str(f) for f in files if f != first)], {})
    page = (root / "docs" / "methods.md").read_text(encoding="utf-8")
    assert len(configs) == len(files) >= 12
    for file in files:
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 30, file
        assert f"`configs/methods/{file.name}`" in page
