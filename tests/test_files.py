"""The one way to put a file in place: whole and durable, whoever writes at the same time."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

from evolving_rl_jax.files import replacing, write_atomic, write_json

PACKAGE = pathlib.Path(__file__).parents[1] / "evolving_rl_jax"


def test_text_bytes_and_json(tmp_path):
    write_atomic(tmp_path / "a", "ä")
    write_atomic(tmp_path / "a", b"\xff")
    assert (tmp_path / "a").read_bytes() == b"\xff"
    write_json(tmp_path / "new" / "b.json", {"x": [1, None]})
    assert (tmp_path / "new" / "b.json").read_text() == '{"x": [1, null]}'
    write_json(tmp_path / "new" / "b.json", {"x": 1}, indent=1)
    assert (tmp_path / "new" / "b.json").read_text() == '{\n "x": 1\n}\n'
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b.json", "new"]


def test_the_file_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path, monkeypatch
):
    calls = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        calls.append(("sync", os.fstat(descriptor).st_ino))
        real_fsync(descriptor)

    def replace(old, new):
        calls.append(("replace", os.stat(old).st_ino))
        real_replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomic(tmp_path / "config.json", "text")
    file, folder = os.stat(tmp_path / "config.json").st_ino, os.stat(tmp_path).st_ino
    assert calls == [("sync", file), ("replace", file), ("sync", folder)]


def test_what_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    write_atomic(tmp_path / "file", "old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "member").write_text("half")
        raise ZeroDivisionError
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "none"):
        pass
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


def test_a_folder_takes_its_place_whole(tmp_path):
    with replacing(tmp_path / "folder") as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / "member").write_text("x")
        assert not (tmp_path / "folder").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "deep" / "member").read_text() == "x"


def test_the_temporary_name_is_of_this_process_and_this_write(tmp_path):
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as two:
        assert one != two and f".{os.getpid()}-" in one.name and one.suffix == ".partial"
        one.write_text("1")
        two.write_text("2")


_WRITER = """
import sys
from evolving_rl_jax.files import write_json
sys.stdin.readline()
for i in range(200):
    write_json(sys.argv[1], [sys.argv[2]] * 2000)
"""


def test_two_processes_may_write_one_file(tmp_path):
    path = tmp_path / "result.json"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), name], stdin=subprocess.PIPE
        )
        for name in "ab"
    ]  # fmt: skip
    write_json(path, ["a"] * 2000)
    for writer in writers:  # all at once
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    whole = {str([name] * 2000).replace("'", '"') for name in "ab"}
    while any(writer.poll() is None for writer in writers):
        assert path.read_text() in whole
    for writer in writers:
        writer.stdin.close()
        assert writer.wait() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_nothing_else_in_the_package_puts_files_in_place():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.replace", "os.rename"):
                found.add(str(path.relative_to(PACKAGE)))
    assert found == {"files.py"}
