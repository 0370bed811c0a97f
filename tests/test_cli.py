"""The command: its help, and what a mistake looks like: one line, exit code 2, nothing written."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from report_runs import make_run

from evolving_rl_jax import __version__
from evolving_rl_jax.cli.main import COMMANDS, main
from evolving_rl_jax.config import default_config, to_json

ROOT = pathlib.Path(__file__).parents[1]
DEBUG = f"--config={ROOT / 'configs' / 'debug.py'}"


def files_of(folder):
    """Every file below a folder with its content."""
    return {p: p.read_bytes() for p in pathlib.Path(folder).rglob("*") if p.is_file()}


@pytest.fixture
def fails(tmp_path, capsys):
    """Runs a command that must be refused; returns its line."""

    def run(*arguments):
        before, folders = files_of(tmp_path), set(tmp_path.rglob("*"))
        assert main([str(a) for a in arguments]) == 2
        out, err = capsys.readouterr()
        assert not out
        (line,) = err.splitlines()
        assert line.startswith("evolving-rl: ")
        assert files_of(tmp_path) == before and set(tmp_path.rglob("*")) == folders
        return line

    return run


def train(workdir, *overrides, config=DEBUG):
    return ("train", config, f"--workdir={workdir}", *overrides)


def test_missing_config_file(fails, tmp_path):
    line = fails(*train(tmp_path / "run", config="--config=configs/none.py"))
    assert "--config must be a .py file with get_config(), got 'configs/none.py'" in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.rollout.num_skils=3", "unknown config key 'rollout.num_skils'; accepted in '"),
        ("--config.seed=one", "config.seed must be a int like 0, got 'one'"),
        ("--config.rollout.num_skills=1", "config.rollout.num_skills must be >= 2 when the ext"),
        ("--config.train.row_length=100", "config.train.row_length must be >= rollout.max_length"),
        ("--config.rollout.memory_limit_gb=0.0001", "fit memory_limit_gb = 0.0001, got 8 x 384"),
        ("--config.seed", "--config.seed must be followed by a value, got none"),
        # what only the games show
        ("--config.rollout.num_retrieved=96", "< the number of training tasks (96), got 96"),
        ("--config.eval.splits=valid_sean", "config.eval.splits must be splits with games (held"),
        ("--config.data.train_types=fly", "train_split and train_types must select games"),
        ("--config.data.households.num_train=9999", "config.data.households: GamesSpec must ask"),
        ("--config.data.households.warmstart_games=0", "config.warmstart.enabled must be False"),
    ],
)
def test_a_wrong_setting(fails, tmp_path, override, message):
    assert message in fails(*train(tmp_path / "run", override))


def test_a_setting_can_follow_as_the_next_word(fails, tmp_path):
    assert "got 'one'" in fails(*train(tmp_path / "run", "--config.seed", "one"))


def test_settings_are_for_train_only(fails, tmp_path):
    line = fails("report", f"--workdir={tmp_path}", "--config.seed=1")
    assert (
        "--config.KEY=VALUE must be given to train, ablation, compile, transfer, doctor, eval, export, got report"
        in line
    )


def test_a_run_folder_of_another_config(fails, tmp_path):
    from evolving_rl_jax.config import load_config

    folder = tmp_path / "run"
    folder.mkdir()
    saved = to_json(load_config(DEBUG.removeprefix("--config="), {"seed": "5"}))
    (folder / "config.json").write_text(saved, encoding="utf-8")
    line = fails(*train(folder))
    assert "--workdir must be a run of this config" in line
    assert "seed is 5 and not 0; use another folder" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.hf_path=/nowhere", "warmstart.enabled=false"], "config.model.hf_path: /nowhere/"),
        (["skills.embedder=/nowhere"], "config.skills.embedder must be tfidf, sentence-transf"),
        (["skills.embedder=sentence-transformers:x"], "config.skills.embedder 'sentence-transf"),
        (["mesh.fsdp=3"], "config.mesh: mesh axis sizes must multiply to the number of devices"),
        (["model.attention=splash"], "config.model.attention must be auto, plain, blockwise or"),
    ],
)
def test_what_this_machine_does_not_have_leaves_no_folder(fails, tmp_path, options, message):
    assert message in fails(*train(tmp_path / "run", *(f"--config.{o}" for o in options)))


def test_an_empty_workdir_is_not_the_present_folder(fails):
    assert "--workdir must be a folder, got ''" in fails(*train(""))


@pytest.mark.parametrize("text", ["{", "[]", '{"seed": 0}'])
def test_a_run_folder_with_an_unreadable_config(fails, tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    fails(*train(tmp_path))
    fails("report", f"--workdir={tmp_path}")


def test_a_folder_with_other_files(fails, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    line = fails(*train(tmp_path))
    assert "with files but no config.json" in line and "new, empty or a run folder" in line


def test_a_workdir_that_is_a_file_or_below_one(fails, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "--workdir must be a folder, got the file" in fails(*train(tmp_path / "file"))
    assert "--workdir must be a folder that can be written" in fails(*train(tmp_path / "file/x"))


def test_games_that_are_not_there_or_broken(fails, tmp_path):
    games, run = tmp_path / "games", tmp_path / "run"
    option = f"--config.data.games={games}"
    line = fails(*train(run, option))
    assert f"config.data.games: {games}: must be a folder of games, found no such folder" in line
    games.mkdir()
    assert "must hold games.json or folders with traj_data.json" in fails(*train(run, option))
    (games / "games.json").write_text("{", encoding="utf-8")
    assert f"{games / 'games.json'}: must be a JSON file" in fails(*train(run, option))
    entry = {"id": "a", "split": "train", "path": "a", "content_hash": "0"}
    (games / "games.json").write_text(json.dumps({"games": [entry]}), encoding="utf-8")
    assert f"{games / 'a'}: must be a game folder" in fails(*train(run, option))
    (games / "a").mkdir()
    (games / "a" / "traj_data.json").write_text('{"task_type": "fly"}', encoding="utf-8")
    (games / "a" / "game.tw-pddl").write_text("{}", encoding="utf-8")
    assert "task_type must be one of pick_and_place_simple" in fails(*train(run, option))
    assert not run.exists()


def test_games_without_what_the_config_needs(fails, tmp_path, household_games):
    folder = pathlib.Path(household_games[0].path).parents[3]
    assert (folder / "games.json").is_file()
    option = f"--config.data.games={folder}"
    line = fails(*train(tmp_path / "run", option))
    assert "config.eval.splits must be splits with games (train), got 'valid_unseen'" in line
    assert "config.eval.conditions must not have 'own' for the split 'train'" in line
    assert "config.warmstart.enabled must be False without games in the split 'warmstart'" in line


@pytest.mark.parametrize(
    "command",
    [
        ("eval", "--workdir={}"),
        ("report", "--workdir={}"),
        ("export", "--workdir={}", "--out={}/policy"),
    ],
)
def test_a_folder_that_is_no_run(fails, tmp_path, command):
    for folder in (tmp_path, tmp_path / "none"):
        line = fails(*(word.format(folder) for word in command))
        assert f"--workdir must be a run folder with config.json, got {str(folder)!r}" in line


def test_export_before_there_is_anything(fails, tmp_path):
    (tmp_path / "config.json").write_text(to_json(default_config()), encoding="utf-8")
    line = fails("export", f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}")
    assert f"--workdir: {tmp_path / 'tokenizer' / 'tokenizer.json'} must belong to a" in line
    line = fails(
        "export", f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}", "--checkpoint=warmstart"
    )
    assert f"--checkpoint 'warmstart': {tmp_path / 'warmstart' / 'config.json'} must be" in line
    line = fails("export", f"--workdir={tmp_path}", f"--out={tmp_path}")
    assert f"--out must be a new or empty folder, got {str(tmp_path)!r}" in line


@pytest.mark.parametrize(
    "command", [("export",), ("export", "--what=skills"), ("games", "--num=6")], ids=" ".join
)
def test_an_out_that_cannot_be_made(fails, tmp_path, command):
    (tmp_path / "config.json").write_text(to_json(default_config()), encoding="utf-8")
    run = [f"--workdir={tmp_path}"] if command[0] == "export" else []
    line = fails(*command, *run, f"--out={tmp_path / 'config.json' / 'x'}")
    assert "--out must be a folder that can be written, got" in line and "below" in line


@pytest.mark.parametrize("temperature", ["-1", "nan", "inf", ""])
def test_a_wrong_temperature(fails, tmp_path, temperature):
    line = fails("eval", f"--workdir={tmp_path}", f"--temperature={temperature}")
    assert "--temperature must be >= 0, got" in line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--num=0", "--num must be between 1 and "),
        ("--num=99999999", "--num must be between 1 and "),
        ("--split=a/b", "--split must be made of letters, digits and underscores, got 'a/b'"),
    ],
)
def test_wrong_options_of_games(fails, tmp_path, option, message):
    assert message in fails("games", f"--out={tmp_path / 'games'}", "--num=6", option)


def test_games_are_generated_and_load(tmp_path, capsys, fails):
    from evolving_rl_jax.data.tasks import load_tasks

    out = tmp_path / "games"
    arguments = ["games", f"--out={out}", "--num=12", "--seed=4", "--split=valid_seen"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"12 games in {out}\n"
    tasks = load_tasks(out)
    assert len(tasks) == 12 and {t.split for t in tasks} == {"valid_seen"}
    assert len({t.task_type for t in tasks}) == 6
    assert "--out must be a new or empty folder" in fails(*arguments)
    assert main(["games", f"--out={tmp_path / 'again'}", *arguments[2:]]) == 0
    contents = [
        {p.relative_to(folder): data for p, data in files_of(folder).items()}
        for folder in (out, tmp_path / "again")
    ]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as leave:
        main([command, "--help"])
    assert leave.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: evolving-rl {command}") and "show this help" in out


def test_help_and_version_list_everything(capsys):
    for option in ("--help", "--version"):
        with pytest.raises(SystemExit) as leave:
            main([option])
        assert leave.value.code == 0
    out = capsys.readouterr().out
    assert f"evolving-rl {__version__}" in out
    shown = {line.split()[0] for line in out.splitlines() if line.startswith("    ")}
    assert set(COMMANDS) <= shown


def test_help_loads_nothing_heavy():
    code = f"""
import contextlib, io, sys
from evolving_rl_jax.cli.main import main
for command in {list(COMMANDS)}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([command, "--help"])
print(*{{name.split(".")[0] for name in sys.modules}})
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "sklearn", "scipy", "textworld", "alfworld"}
    heavy |= {"tokenizers", "bokeh", "jinja2", "selectolax", "tensorflow_datasets", "httpx"}
    assert not heavy & set(run.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], "COMMAND"),
        (["trane"], "'trane'"),
        (["train"], "--config"),
        (["games", "--num=x", "--out=y"], "argument --num: invalid int value: 'x'"),
        (["eval", "--sedes=3"], "--sedes=3"),
        (["data", "mind3web", "--out=x"], "'mind3web'"),
        (["compile", "--topology"], "--topology"),
    ],
)
def test_usage_errors_leave_with_2(arguments, found, capsys):
    with pytest.raises(SystemExit) as leave:
        main(arguments)
    assert leave.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("evolving-rl: ") and found in line and " --help)" in line


def test_the_process_itself_leaves_with_2_and_one_line(program, tmp_path):
    result = program(*train(tmp_path / "run", "--config.data.games=/nowhere"))
    assert result.returncode == 2 and not result.stdout
    assert result.stderr == (
        "evolving-rl: config.data.games: /nowhere: must be a folder of games, "
        "found no such folder\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("ml_collections", ["--help"]),
        ("tqdm", ["train", "--help"]),
        ("flax", ["train", DEBUG, "--workdir={}"]),
        ("alfworld", ["games", "--num=6", "--out={}"]),
    ],
)
def test_a_package_that_is_missing_is_one_line(program, tmp_path, package, arguments):
    """As in the base install, which is jax and numpy alone."""
    hide = """
import sys
package = sys.argv.pop(1)
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == package else found(name, *a)
from evolving_rl_jax.__main__ import main
sys.exit(main())
"""
    result = program(package, *(a.format(tmp_path / "new") for a in arguments), code=hide)
    assert result.returncode == 2 and not result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"evolving-rl: the package {package} must be installed (it comes with")


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_names_that_the_locale_cannot_read(tmp_path, utf8):
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": utf8}
    command = [sys.executable, "-m", "evolving_rl_jax", "games", "--num=6", "--out=\u00e9".encode()]
    environment = os.environ | locale | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert [p.name for p in tmp_path.iterdir()] == ["\u00e9"][: int(utf8)]
    assert done.returncode == (0 if utf8 == "1" else 2)
    if utf8 == "0":
        assert "encoding is ascii, got '--out=\\udcc3\\udca9'; with PYTHONUTF8=1" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS["report"], "run", interrupted)
    assert main(["report", "--workdir=x"]) == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().err


def test_report_of_several_runs_in_one_page(tmp_path, capsys):
    runs = [make_run(tmp_path / name, 3, seed=i) for i, name in enumerate("ab")]
    out = tmp_path / "both.html"
    assert main(["report", f"--workdir={runs[0]}", str(runs[1]), f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert f"report: {out}" in printed and printed.count("temperature 0.3") == 2
    assert out.stat().st_size > 100_000 and not (runs[0] / "report.html").exists()


def test_report_to_a_place_that_cannot_be_written(fails, tmp_path):
    run = make_run(tmp_path / "a", 3)
    line = fails("report", f"--workdir={run}", f"--out={tmp_path / 'no' / 'such' / 'folder.html'}")
    assert "--out must be a file that can be written, got" in line


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_ends_it_without_a_traceback(unbuffered):
    code = (
        "import sys; from evolving_rl_jax.cli import main as m\n"
        "m.COMMANDS['doctor'].run = lambda *_: [print('x' * 999) for _ in range(9999)] and 0\n"
        "sys.exit(m.main(['doctor']))"
    )
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "$CODE" | head -n 1'],
        env={**os.environ, "CODE": code, "PYTHONUNBUFFERED": unbuffered},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr == "" and done.stdout.startswith("xxx")
