"""MiniWoB++ without a browser: tasks on disk, families, options, what is missing, prompts."""

import gzip
import json
import stat

import pytest

pytest.importorskip("ml_collections")

from evolving_rl_jax import envs
from evolving_rl_jax.config import default_config
from evolving_rl_jax.envs.base import EnvError, TaskError
from evolving_rl_jax.envs.miniwob import chromium, families, index
from evolving_rl_jax.envs.miniwob.texts import TEXTS
from evolving_rl_jax.skills.audit import AuditRules


def wanted(**changes):
    data = default_config().data
    data.miniwob.update(
        {"families": ("enter-text", "click-test"), "test_families": ("click-tab",)}
        | {"train_seeds": 30, "test_seeds": 4, **changes}
    )
    return data.miniwob


def show(family, seed):
    """A page like the package's: a family without seeds, and families with as many as there are."""
    if family == "click-test":
        return "Task: Click the button.\nPage:\nbutton"
    return f'Task: Enter "name{seed}" into the text field and press Submit.\nPage:\nfield'


@pytest.fixture
def tasks(tmp_path):
    done = []
    index.write(tmp_path, show, index.plan(wanted()), done.append)
    assert done[-1] == len(index.plan(wanted())) == 76
    return index.load_tasks(tmp_path)


def test_splits_share_no_seed_and_no_page(tasks):
    assert {t.split for t in tasks} == set(index.SPLITS)
    assert len({(t.meta["family"], t.meta["seed"]) for t in tasks}) == len(tasks)
    assert len({t.content_hash for t in tasks}) == len(tasks)
    seeds = {s: {t.meta["seed"] for t in tasks if t.split == s} for s in index.SPLITS}
    for first in index.SPLITS:
        for second in set(index.SPLITS) - {first}:
            assert not seeds[first] & seeds[second]
    counts = {s: sum(t.split == s for t in tasks) for s in index.SPLITS}
    assert counts == {"train": 31, "test_task": 4, "test_family": 4, "test_family_sources": 4}
    assert all(t.group == t.task_type == t.meta["family"] for t in tasks)


def test_a_skill_must_not_say_what_is_the_seeds(tasks):
    one = next(t for t in tasks if t.task_type == "enter-text")
    assert one.meta["answers"] == [one.text.split('"')[1]]
    rules = AuditRules(leakage=True)
    assert rules.apply("type the text into the field, click Submit", one).passed
    assert not rules.apply(f"type {one.meta['answers'][0]}, click Submit", one).passed


def test_unknown_families_are_said():
    for changes, words in (
        (
            {"families": ("fly",)},
            "families must be of miniwob, got 'fly'; there are ascending-numbers, ",
        ),
        ({"families": ("enter-txt",)}, "got 'enter-txt'; there are enter-text, "),
        ({"families": ("drag-box",)}, "drag-box of miniwob is not played: needs the path"),
        ({"test_families": ("enter-text",)}, "must not be of families, got enter-text"),
    ):
        with pytest.raises(ValueError, match=words):
            index.plan(wanted(**changes))


def test_every_family_of_the_package_is_played_or_left_out_with_a_reason():
    assert len(families.known()) == len(set(families.known())) == 128
    assert not set(families.PLAYED) & set(families.LEFT_OUT)
    assert all(reason for reason in families.LEFT_OUT.values())
    for family in families.LEFT_OUT:
        with pytest.raises(EnvError, match=f"miniwob's {family} is not played"):
            families.refuse(family)


def test_the_families_are_those_that_the_package_registers():
    gymnasium = pytest.importorskip("gymnasium")
    miniwob = pytest.importorskip("miniwob")
    gymnasium.register_envs(miniwob)
    names = {n.split("/")[1].removesuffix("-v1") for n in gymnasium.registry if "miniwob/" in n}
    assert set(families.known()) == names


def test_damaged_indexes_are_named(tmp_path):
    with pytest.raises(TaskError, match=r"must hold miniwob.jsonl.gz"):
        index.load_tasks(tmp_path)
    (tmp_path / index.FILE).write_bytes(b"no gzip")
    with pytest.raises(TaskError, match="is damaged"):
        index.load_tasks(tmp_path)
    (tmp_path / index.FILE).write_bytes(gzip.compress(b'{"id": "a"}\n'))
    with pytest.raises(TaskError, match="line 1: split must be a str"):
        index.load_tasks(tmp_path)


def test_options_are_checked():
    for options, words in (
        ({"snapshot_tokens": 0}, "snapshot_tokens must be an integer of at least 1, got 0"),
        ({"browser_mb": -1}, "browser_mb must be a number above 0, got -1"),
        ({"answer_s": "x"}, "answer_s must be a number above 0, got 'x'"),
        ({"tabs": 2}, "option of miniwob must be one of .*, got 'tabs'"),
    ):
        with pytest.raises(ValueError, match=words):
            envs.validate("miniwob", **options)


def test_what_is_missing_is_one_line(monkeypatch):
    monkeypatch.setattr(chromium.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(chromium.shutil, "which", lambda name: None)
    assert "found none of chromium" in chromium.missing()
    monkeypatch.setattr(
        chromium.shutil, "which", lambda name: None if name in chromium.DRIVERS else "/x"
    )
    assert "found no chromedriver on PATH" in chromium.missing()
    monkeypatch.setattr(chromium.importlib.util, "find_spec", lambda name: None)
    assert "pip install -e '.[miniwob]'" in chromium.missing()
    assert "\n" not in chromium.missing()


def test_a_driver_of_another_version_is_named(tmp_path, monkeypatch):
    for name, said in (
        ("chromium", "Chromium 140.0.1.2"),
        ("chromedriver", "ChromeDriver 139.0.3.4"),
    ):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho {said}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(chromium.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(
        ValueError, match=r"must be of Chromium's version 140.0.1.2, .* is 139.0.3.4"
    ):
        chromium.versions()
    (tmp_path / "chromedriver").write_text("#!/bin/sh\necho nothing\n")
    chromium._version.cache_clear()
    with pytest.raises(ValueError, match="must name a version, it says 'nothing'"):
        chromium.versions()


def test_the_sandbox_is_off_for_root_alone(monkeypatch):
    for user, off in ((0, True), (1000, False)):
        monkeypatch.setattr(chromium.os, "geteuid", lambda user=user: user)
        assert ("--no-sandbox" in chromium.flags("profile")) == off


def test_prompts_keep_the_case_and_know_the_keyboard():
    compact = TEXTS.compact
    observation = 'Task: Enter "Ann"\nEarlier actions:\nnone\nPage:\ntextbox "Name" [ref=e1] = "Bo"\nbutton "OK" [ref=e2]'
    assert compact.opening(observation) == ["textbox Name = Bo OK"]
    action = json.dumps({"op": "TYPE", "ref": "e1", "value": "Ann Lee"})
    answer = compact.answer("Name", action, observation)
    assert answer == "textbox Name> type Ann Lee"
    assert compact.parse(answer, observation) == (action, True)
    key = json.dumps({"op": "KEY", "ref": "e1", "value": "Enter"})
    assert compact.parse(compact.answer("Name", key, observation), observation) == (key, True)
    assert "Control+C" in TEXTS.chat.rules and "how" in TEXTS.chat.request.lower().split()
