"""A run and the folders outside it: found from anywhere, moved with an override, never exchanged."""

import json
import pathlib
import shutil

import pytest
from official_games import TYPES, official, prepare, write_game

pytest.importorskip("alfworld")

from evolving_rl_jax.cli import main as cli
from evolving_rl_jax.config import ConfigError, load_config
from evolving_rl_jax.run import inputs
from evolving_rl_jax.run.environments import prepare_games
from evolving_rl_jax.run.folder import RunFolder

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SCRATCH, IMPORTED = (
    str(CONFIGS / f"{name}.py") for name in ("alfworld_quickstart", "alfworld_qwen3_1_7b")
)
# What downloaded games cannot give; a policy from scratch, so that no model is looked for.
WITHOUT = {"eval.conditions": "none,own", "warmstart.enabled": "False"}
OTHER = "must hold what it held when the run"


@pytest.fixture
def games(tmp_path):
    """Two folders with games of the same names, of which one has a game more."""
    for name in ("a", "b"):
        source = official(tmp_path / name / "source", games_per_type=6)
        if name == "b":
            write_game(source / "json_2.1.1" / "train" / "one-more" / "t", TYPES[0], 99)
        prepare(source, tmp_path / name / "games")
    return tmp_path


def start(run, games, model=""):
    """As far as ``train`` goes before it makes a worker; the configuration that is kept."""
    overrides = {"model.hf_path": str(model)} if model else WITHOUT
    config = load_config(IMPORTED if model else SCRATCH, {"data.games": str(games)} | overrides)
    prepare_games(config, RunFolder(str(run), config))
    return json.loads((run / "config.json").read_text())


def test_a_relative_path_is_of_the_folder_in_which_it_was_given(games, monkeypatch, capsys):
    run = games / "run"
    monkeypatch.chdir(games / "a")
    assert start(run, "games")["data"]["games"] == str(games / "a" / "games")
    monkeypatch.chdir("/")
    found = prepare_games(RunFolder(str(run)).load_config(), RunFolder(str(run)))
    assert len(found) == 6 * 8
    monkeypatch.chdir(games / "b")
    before = (run / "config.json").read_text()
    arguments = [f"--config={SCRATCH}", f"--workdir={run}", "--config.data.games=games"]
    arguments += [f"--config.{key}={value}" for key, value in WITHOUT.items()]
    assert cli.main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert f"config.data.games {OTHER}" in error and str(games / "b" / "games") in error
    assert error.count("\n") == 1 and (run / "config.json").read_text() == before


def test_a_folder_that_moved_is_found_by_an_override(games):
    run, new = games / "run", games / "elsewhere"
    start(run, games / "a" / "games")
    shutil.move(games / "a" / "games", new)
    with pytest.raises(ConfigError, match="found no such folder"):
        start(run, games / "a" / "games")
    moved = RunFolder(str(run), moved={"data.games": str(new)})  # as eval and export read it
    assert len(prepare_games(moved.load_config(), moved)) == 6 * 8
    assert json.loads((run / "config.json").read_text())["data"]["games"] != str(new)
    assert start(run, new)["data"]["games"] == str(new)
    assert json.loads((run / "inputs.json").read_text())["data.games"]["path"] == str(new)
    # The folder without its index holds the same games.
    assert start(run, games / "a" / "source")["data"]["games"] == str(games / "a" / "source")


def test_other_content_is_refused_wherever_it_lies(games):
    run = games / "run"
    start(run, games / "a" / "games")
    with pytest.raises(ConfigError, match=OTHER):
        start(run, games / "b" / "games")
    moved = RunFolder(str(run), moved={"data.games": str(games / "b" / "games")})
    with pytest.raises(ConfigError, match=OTHER):
        prepare_games(moved.load_config(), moved)
    index = games / "a" / "games" / "games.json"
    content = json.loads(index.read_text())
    del content["games"][0]
    index.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=OTHER):
        start(run, games / "a" / "games")


def test_eval_and_export_take_overrides_of_folders_alone(games, capsys):
    run = games / "run"
    start(run, games / "a" / "games")
    for command in (["eval"], ["export", f"--out={games / 'out'}"]):
        assert cli.main([*command, f"--workdir={run}", "--config.seed=3"]) == 2
        assert "must say where a folder of the run has moved" in capsys.readouterr().err
    assert cli.main(["eval", f"--workdir={run}", f"--config.data.games={games / 'b/games'}"]) == 2
    assert OTHER in capsys.readouterr().err


def test_a_run_of_an_earlier_version_goes_on_where_it_was(games, monkeypatch):
    """It kept the path as it was given, and no hash."""
    run, config = games / "run", games / "run" / "config.json"
    monkeypatch.chdir(games / "a")
    saved = start(run, "games")
    saved["data"]["games"] = "games"
    config.write_text(json.dumps(saved))
    (run / "inputs.json").unlink()
    with pytest.raises(ConfigError, match="where data.games is .* and not .*use another folder"):
        start(run, games / "b" / "games")
    assert start(run, "games")["data"]["games"] == str(games / "a" / "games")
    with pytest.raises(ConfigError, match=OTHER):
        start(run, games / "b" / "games")


def test_the_policy_that_training_starts_from_is_compared_too(games, monkeypatch):
    run, model = games / "run", games / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(5_000))
    start(run, games / "a" / "games", model=model)
    model.rename(games / "moved")
    (games / "moved" / "README.md").write_text("a note")
    saved = start(run, games / "a" / "games", model=games / "moved")
    assert saved["model"]["hf_path"] == str(games / "moved")
    (games / "moved" / "model.safetensors").write_bytes(bytes(4_999) + b"1")
    with pytest.raises(ConfigError, match=f"config.model.hf_path {OTHER}"):
        start(run, games / "a" / "games", model=games / "moved")


def test_a_policy_that_is_one_file_is_found_and_compared_as_a_folder_is(games, monkeypatch):
    run = games / "run"
    (games / "model.gguf").write_bytes(b"GGUF" + bytes(5_000))
    monkeypatch.chdir(games)
    saved = start(run, games / "a" / "games", model="model.gguf")
    assert saved["model"]["hf_path"] == str(games / "model.gguf")
    (games / "model.gguf").rename(games / "moved.gguf")
    saved = start(run, games / "a" / "games", model=games / "moved.gguf")
    assert saved["model"]["hf_path"] == str(games / "moved.gguf")
    (games / "moved.gguf").write_bytes(b"GGUF" + bytes(4_999) + b"1")
    with pytest.raises(ConfigError, match=f"config.model.hf_path {OTHER}"):
        start(run, games / "a" / "games", model=games / "moved.gguf")


def test_large_weights_are_compared_by_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_WHOLE_BYTES", 1_000)
    monkeypatch.setattr(inputs, "_HEAD_BYTES", 100)
    monkeypatch.setattr(inputs, "_BLOCK_BYTES", 8)
    hashes = set()
    for data in (bytes(9_000), bytes(9_001), bytes([1]) + bytes(8_999), bytes(8_996) + b"\1" * 4):
        (tmp_path / "model.safetensors").write_bytes(data)
        hashes.add(inputs.folder_hash(tmp_path))
    assert len(hashes) == 3  # the last four bytes alone are not looked at
    (tmp_path / "model.safetensors").write_bytes(b"\1" * 9_000)
    assert inputs.folder_hash(tmp_path) not in hashes


def test_the_id_of_a_hub_is_no_path():
    assert load_config(IMPORTED, {"data.games": "x"}).model.hf_path == "Qwen/Qwen3-1.7B"
