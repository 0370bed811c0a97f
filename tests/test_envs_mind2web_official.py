"""Compacting Mind2Web: what is read, counted, reported and refused."""

import json
import pathlib
import shutil
from types import SimpleNamespace

import pytest
from web_data import FORM, action, official, write_split, zipcrypto

from evolving_rl_jax import envs
from evolving_rl_jax.cli import main as cli
from evolving_rl_jax.config import ConfigError, default_config
from evolving_rl_jax.data.tasks import TaskError, source_split
from evolving_rl_jax.envs.mind2web import official as mind2web_official
from evolving_rl_jax.envs.mind2web.index import build_index
from evolving_rl_jax.envs.mind2web.official import DataError, find_files
from evolving_rl_jax.envs.mind2web.records import RecordError, from_official
from evolving_rl_jax.envs.mind2web.store import load_web_tasks, read_task
from evolving_rl_jax.run.environments import prepare_games
from evolving_rl_jax.run.folder import RunFolder

pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "source", tmp_path / "out"


def test_tasks_come_back_as_they_were(folders):
    source, out = folders
    tasks = [official(f"t{i}") for i in range(12)]
    write_split(source, "train", tasks[:5])
    write_split(source, "train", tasks[5:8], 1)
    write_split(source, "test_website", tasks[8:])
    report = build_index([source], out)
    assert report.counts == {"train": 8, "test_website": 4}
    assert report.num_steps == {"train": 24, "test_website": 12}
    assert not report.problems and not report.duplicates
    loaded = load_web_tasks(out)
    assert [t.id for t in loaded] == sorted(t["annotation_id"] for t in tasks)
    for task in loaded:
        data = tasks[int(task.id[1:])]
        assert read_task(task.path) == from_official(data)
        assert (task.text, task.group, task.step_limit) == (data["confirmed_task"], "rooms", 3)
        assert task.content_hash == from_official(data).content_hash
        sealed = task.split != "train"  # unpacked or not: published in the protected archive alone
        assert task.meta["sealed"] == sealed
        assert task.meta["answers"] == ([] if sealed else from_official(data).answers)
    assert len(load_web_tasks(out, "train")) == 8
    assert "tensorflow" not in __import__("sys").modules
    with pytest.raises(TaskError, match="split must be one of test_website, train, got 'x'"):
        load_web_tasks(out, "x")
    with pytest.raises(TaskError, match="must be a record below 8, got '8'"):
        read_task(f"{out}/train/8")


@pytest.mark.parametrize("damage", ["gone", "empty", "about", "another"])
def test_damaged_records_are_one_line_before_anything_starts(folders, damage, capsys):
    source, out = folders
    write_split(source, "train", [official(f"t{i}") for i in range(5)])
    build_index([source], out)
    (records,) = out.rglob("*array_record*")
    about = records.with_name("dataset_info.json")
    if damage == "another":
        (folders[0] / "train" / "train_0.json").unlink()
        write_split(source, "train", [official(f"t{i}") for i in range(4)])
        build_index([source], out.with_name("other"))
        shutil.copy(out.with_name("other") / "index.json", out)
    elif damage == "empty":
        records.write_bytes(b"")
    else:
        (records if damage == "gone" else about).unlink()
    config = pathlib.Path(__file__).parents[1] / "configs" / "mind2web_quickstart.py"
    run = out.with_name("run")
    arguments = [f"--config={config}", f"--workdir={run}", f"--config.data.games={out}"]
    assert cli.main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    named = records if damage in ("gone", "empty") else about
    assert error.startswith(f"evolving-rl: config.data.games: {named}: must")
    assert error.count("\n") == 1 and not run.exists()


def test_counts_duplicates_and_recall_are_reported(folders):
    source, out = folders
    again = official("t9", confirmed_task="Find a ROOM in  Oslo (t1)")
    lost = official(
        "t2", actions=[action(FORM, nodes=("99",)), action(FORM, nodes=()), action(FORM)]
    )
    write_split(source, "train", [official("t1"), lost])
    write_split(source, "test_task", [again, official("t2")])
    report = build_index([source], out, budgets=(5, 1000))
    assert report.differences == [
        "test_task: 2 tasks, the published data has 252 or 177",
        "train: 2 tasks, the published data has 1009",
    ]
    assert report.duplicates == [["test_task/t2", "train/t2"], ["test_task/t9", "train/t1"]]
    assert report.recall["train"][0] == report.recall["train"][1000] == pytest.approx(4 / 5)
    assert report.recall["train"][5] == 0.0  # no element is that short
    text = report.text()
    assert "no files of test_website, test_domain" in text
    assert "gold element shown 80.0% on the page" in text and "80.0% at 1000 tokens" in text
    assert "train: 1 steps without a right element" in text


BAD = {
    "confirmed_task must be a text, found nothing": {"confirmed_task": None},
    "annotation_id must be a non-empty text": {"annotation_id": " "},
    "website must be a text, found int": {"website": 3},
    "actions must be a list, found dict": {"actions": {}},
    "actions must hold at least one step": {"actions": [], "action_reprs": []},
    "action_reprs must be as many as actions \\(3\\), found 1": {"action_reprs": ["x"]},
    "actions\\[0\\] must be a JSON object, found str": {"actions": ["x", "y", "z"]},
    "action_reprs\\[0\\] must be a text, found int": {"action_reprs": [1, 2, 3]},
    "generated must be a JSON object": {"generated": []},
}
BAD_ACTION = {
    "cleaned_html must be a page .* found no cleaned_html, no raw_html": {
        "cleaned_html": None,
        "raw_html": None,
    },
    "actions\\[0\\].cleaned_html must be a text, found list": {"cleaned_html": []},
    "actions\\[0\\].operation must be a JSON object, found nothing": {"operation": None},
    "operation.op must be a text, found nothing": {"operation": {"value": ""}},
    "operation.op must be one of CLICK.* found 'SCROLL'": {
        "operation": {"op": "scroll", "value": ""}
    },
    "operation.value must be a text, found int": {"operation": {"op": "TYPE", "value": 3}},
    "pos_candidates must be a list, found nothing": {"pos_candidates": None},
    "pos_candidates\\[0\\].backend_node_id must be a text": {"pos_candidates": [{"tag": "a"}]},
    "pos_candidates\\[0\\] must be JSON": {"pos_candidates": ["{"]},
}


@pytest.mark.parametrize("message", BAD)
def test_malformed_tasks_name_the_field(message):
    with pytest.raises(RecordError, match=message):
        from_official(official(**BAD[message]))


@pytest.mark.parametrize("message", BAD_ACTION)
def test_malformed_actions_name_the_field(message):
    data = official()
    data["actions"][0] |= BAD_ACTION[message]
    with pytest.raises(RecordError, match=message):
        from_official(data)


def test_what_is_tolerated():
    data = official()
    data["actions"][0] |= {"pos_candidates": ['{"backend_node_id": "2"}', {"backend_node_id": 2}]}
    data["actions"][1] |= {"cleaned_html": "", "raw_html": FORM}
    data["actions"][2] |= {
        "cleaned_html": f'<html a="{"x" * 3_000_000}">{FORM}</html>',
        "pos_candidates": [],
    }
    steps = from_official(data).steps
    assert steps[0].gold.node_ids == ("2",) and steps[2].gold.node_ids == ()
    assert steps[1].page == steps[2].page == steps[0].page
    assert from_official(official(confirmed_task="a \ud800")).text == "a \ufffd"


def test_malformed_tasks_are_left_out_and_named(folders):
    source, out = folders
    path = write_split(
        source, "train", [official("t1"), official("t2", actions=3), [1], official("t1")]
    )
    report = build_index([source], out)
    assert report.counts == {"train": 1}
    assert report.problems == [
        f"{path}: task t2: actions must be a list, found int",
        f"{path}: task number 2: a task must be a JSON object, found list",
        f"{path}: task t1: annotation_id must be unique in its split, found it twice",
    ]
    assert "left out: 3 tasks" in report.text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be JSON to its end, found after 0 tasks"),
        ("[{]", "must be JSON to its end, found after 0 tasks"),
        ('{"a": 1}', "must be a JSON list of tasks, found start_map"),
        ("3", "must be a JSON list of tasks, found number"),
        (
            json.dumps([official("t1"), official("t2")])[:-40],
            "found after 1 tasks: .*(incomplete|premature)",
        ),
        ("[]", "the split train must have a usable task: found none"),
        (
            json.dumps([{}]),
            "must have a usable task: .*task number 0: annotation_id must be a text",
        ),
    ],
)
def test_broken_files_are_named_and_leave_nothing_behind(folders, text, message):
    source, out = folders
    write_split(source, "train", []).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        build_index([source], out)
    assert sorted(p.name for p in out.parent.iterdir()) == ["source"]


def test_sources_that_are_no_data(folders, tmp_path):
    source, out = folders
    with pytest.raises(DataError, match="found nothing there"):
        build_index([source], out)
    source.mkdir()
    with pytest.raises(DataError, match="must hold JSON files of train, test_task"):
        build_index([source], out)
    (source / "test.zip").write_bytes(b"PK no")
    with pytest.raises(DataError, match=r"test\.zip: must be a zip archive"):
        build_index([source], out)
    with pytest.raises(DataError, match="or download, got none"):
        build_index([], out)


def test_files_are_found_by_folder_or_name_in_their_order(tmp_path):
    for name in (
        "data/train/train_10.json",
        "data/train/train_9.json",
        "test_task_0.json",
        "other.json",
        "data/train/._train_9.json",
        "data/train/dataset_info.json",
        "__MACOSX/train/train_1.json",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[]", encoding="utf-8")
    files = [(f.split, f.path.name) for f in find_files(tmp_path)]
    assert files == [
        ("test_task", "test_task_0.json"),
        ("train", "train_9.json"),
        ("train", "train_10.json"),
    ]


def test_the_output_is_new_and_in_no_run_folder(folders, tmp_path):
    source, out = folders
    write_split(source, "train", [official()])
    out.mkdir()
    build_index([source], out)
    with pytest.raises(DataError, match="--out must be a new or empty folder"):
        build_index([source], out)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="must not be inside a run folder"):
        build_index([source], run / "data")


def test_the_protected_archive(folders, monkeypatch, capsys):
    source, out = folders
    write_split(source, "train", [official("t1")])
    members = {
        "data/test_task/test_task_0.json": json.dumps([official("t2"), official("t3")]).encode()
    }
    (source / "test.zip").write_bytes(zipcrypto(members, b"secret"))
    with pytest.raises(
        DataError, match="test_task_0.json: needs the archive's password: give --password"
    ):
        build_index([source], out)
    with pytest.raises(DataError, match="password must be the archive's, got another one"):
        build_index([source], out, password="wrong!!")
    assert cli.main(["data", "mind2web", f"--source={source}", f"--out={out.parent / 'b'}"]) == 2
    assert "give --password or set MIND2WEB_PASSWORD" in capsys.readouterr().err
    monkeypatch.setenv("MIND2WEB_PASSWORD", "secret")
    assert cli.main(["data", "mind2web", f"--source={source}", f"--out={out}"]) == 0
    assert "3 tasks indexed" in capsys.readouterr().out
    sealed = {t.id: t.meta["sealed"] for t in load_web_tasks(out)}
    assert sealed == {"t1": False, "t2": True, "t3": True}
    assert [bool(t.meta["answers"]) for t in load_web_tasks(out)] == [True, False, False]
    assert sorted(p.name for p in out.iterdir()) == ["index.json", "mind2web"]  # nothing unpacked


def test_unpacked_files_are_preferred_to_the_archive(tmp_path):
    write_split(tmp_path, "test_task", [official()])
    (tmp_path / "test.zip").write_bytes(zipcrypto({"test_task/a.json": b"[]"}, b"x"))
    assert [f.member for f in find_files(tmp_path)] == [""]


def test_download_without_a_network_says_what_to_do(folders, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def offline(*_args, **_kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(DataError, match="ConnectionError: no route.*give their folder as --source"):
        build_index(["download"], folders[1])
    assert mind2web_official.REPOSITORY == "osunlp/Mind2Web"


@pytest.mark.parametrize("text", ["", "{}", '{"tasks": [{"id": 3}]}', '{"tasks": 3}'])
def test_a_damaged_index_is_named(tmp_path, text):
    with pytest.raises(TaskError, match="index.json: must exist"):
        load_web_tasks(tmp_path)
    (tmp_path / "index.json").write_text(text, encoding="utf-8")
    with pytest.raises(TaskError, match="index.json: must be an index of web tasks"):
        load_web_tasks(tmp_path)


def test_tasks_of_a_run_are_generated_once_or_read(tmp_path):
    config = default_config()
    config.data.sites.update(
        num_train=2, tasks_per_site=2, test_tasks=2, num_test=2, tasks_per_test_site=1
    )
    config.data.sites.update(warmstart_sites=2, tasks_per_warmstart_site=1)
    config.env.name, config.data.train_types = "mind2web", ("Shopping", "Travel")
    config.rollout.num_retrieved = 1
    config.eval.splits = ("test_task", "test_website", "test_domain")
    folder = tmp_path / "run" / "games"
    run = SimpleNamespace(path=folder.parent, begin=lambda: None)
    tasks = prepare_games(config, run)
    stamp = (folder / "index.json").stat().st_mtime_ns
    config.seed = 1
    assert prepare_games(config, run) == tasks  # what is there is kept
    assert (folder / "index.json").stat().st_mtime_ns == stamp
    assert [p.name for p in folder.parent.iterdir()] == ["games"]
    config.data.games = str(folder)
    assert prepare_games(config, RunFolder(str(tmp_path / "unused"))) == tasks
    splits = {t.split for t in tasks}
    assert source_split("test_website", splits) == "test_website_sources"
    assert source_split("test_task", splits) == "train"
    assert source_split("test_website", {"train", "test_website"}) == "train"
    config.data.games = str(tmp_path)
    with pytest.raises(ConfigError, match="config.data.games: .*index.json: must exist"):
        prepare_games(config, run)
    options = envs.benchmark("mind2web").worker_options(config.env)
    assert envs.make("mind2web", **options).reset(tasks[0]).status == "ok"
