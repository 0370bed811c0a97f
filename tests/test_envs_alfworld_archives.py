"""Zip files and the download of the official ALFWorld games."""

import base64
import dataclasses
import hashlib
import http.server
import json
import random
import stat
import threading
import zipfile

import pytest
from official_games import official, prepare, zipped

from evolving_rl_jax.cli import main as cli
from evolving_rl_jax.data.tasks import load_tasks
from evolving_rl_jax.envs.alfworld import official as alfworld
from evolving_rl_jax.envs.alfworld.archives import ArchiveError, DownloadError, download, extract

pytest.importorskip("alfworld")


@pytest.fixture
def source(tmp_path):
    return official(tmp_path / "source")


@pytest.fixture
def index(source, tmp_path):
    prepare(source, tmp_path / "index")
    return tmp_path / "index"


# -- zip files -------------------------------------------------------------------------------------


def test_the_two_zips_of_the_release_give_the_same_games(source, index, tmp_path):
    parts = [
        zipped(source, tmp_path / "json.zip", lambda p: p.name == "traj_data.json"),
        zipped(source, tmp_path / "pddl.zip", lambda p: p.name == "game.tw-pddl"),
    ]
    out = tmp_path / "unzipped"
    prepare(parts, out)
    ours, theirs = load_tasks(out), load_tasks(index)
    assert [dataclasses.replace(t, path="") for t in ours] == [
        dataclasses.replace(t, path="") for t in theirs
    ]
    assert all(t.path.startswith(str(out / "games")) for t in ours)
    moved = tmp_path / "moved"
    out.rename(moved)  # the games came along: the index names them by relative paths
    assert len(list(load_tasks(moved))) == len(theirs)


@pytest.mark.parametrize(
    "name", ["../evil", "json_2.1.1/../../evil", "/tmp/evil", "..\\evil", "C:\\evil", "\\evil"]
)
def test_members_that_leave_the_target_are_refused_before_anything_is_written(
    tmp_path, source, name
):
    archive = zipped(source, tmp_path / "games.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, "x")
    with pytest.raises(
        ArchiveError, match="games.zip: members must stay in the target folder"
    ) as error:
        prepare(archive, tmp_path / "a" / "out")
    assert repr(name) in str(error.value)
    assert not (tmp_path / "a").exists() and not list(tmp_path.rglob("evil"))


def test_links_and_other_releases_are_refused_by_name(tmp_path):
    archive = tmp_path / "games.zip"
    link = zipfile.ZipInfo("json_2.1.1/train/link/game.tw-pddl")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(ArchiveError, match="must be files, found the link 'json_2.1.1/train/link"):
        prepare(archive, tmp_path / "out")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("json_2.0.0/train/a/b/traj_data.json", "{}")
    with pytest.raises(
        ArchiveError, match="must be of json_2.1.1, found 'json_2.0.0/train/a/b/traj"
    ):
        prepare(archive, tmp_path / "out")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "")
    with pytest.raises(ArchiveError, match="must hold traj_data.json or game.tw-pddl below train"):
        prepare(archive, tmp_path / "out")


def test_damaged_archives_are_refused_by_name(source, tmp_path):
    archive = zipped(source, tmp_path / "games.zip")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArchiveError, match="games.zip: must be a whole zip file"):
        prepare(archive, tmp_path / "out")
    with zipfile.ZipFile(zipped(source, archive)) as file:
        member = file.infolist()[0]
    start = member.header_offset + 30 + len(member.filename)
    spoilt = bytearray(whole)
    spoilt[start + 20 : start + 40] = bytes(20)
    archive.write_bytes(spoilt)
    with pytest.raises(ArchiveError, match=f"{member.filename}' must be whole"):
        prepare(archive, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_an_interrupted_extraction_goes_on(source, tmp_path):
    archive, out = zipped(source, tmp_path / "games.zip"), tmp_path / "out"

    def stop(done):
        if done == 5:
            raise KeyboardInterrupt

    def place(name):
        return name

    with pytest.raises(KeyboardInterrupt):
        extract(archive, out, place, stop)
    first = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert len(first) == 5
    assert extract(archive, out, place) == 48
    assert all(p.stat().st_mtime_ns == t for p, t in first.items())
    assert all(
        (out / p.relative_to(source)).read_bytes() == p.read_bytes()
        for p in source.rglob("*.*")
        if p.is_file()
    )


# -- download --------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path/served with ranges, and cuts the first answer of every file short.

    A file NAME.headers beside a file has further headers of its answers.
    """
    folder = tmp_path / "served"
    folder.mkdir()
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            data = (folder / self.path.strip("/")).read_bytes()
            first = not any(path == self.path for path, _ in asked)
            wanted = self.headers.get("Range")
            asked.append((self.path, wanted))
            extra = folder / f"{self.path.strip('/')}.headers"
            headers = json.loads(extra.read_text()) if extra.is_file() else {}
            if self.headers.get("If-Range", headers.get("ETag")) != headers.get("ETag"):
                wanted = None
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.end_headers()
                return
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(data) - start))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[start : len(data) // 2] if first else data[start:])

        def log_message(self, *_args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{httpd.server_port}", asked
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_a_cut_download_goes_on_where_it_was(server, tmp_path):
    folder, address, asked = server
    data = random.Random(0).randbytes(100_000)
    (folder / "a.zip").write_bytes(data)
    with pytest.raises(
        DownloadError, match=r"a.zip must (give 100000 bytes, got 50000|be reachable)"
    ):
        download(f"{address}/a.zip", tmp_path)
    seen = []
    path = download(f"{address}/a.zip", tmp_path, lambda done, size: seen.append((done, size)))
    assert path.read_bytes() == data and seen[-1] == (100_000, 100_000)
    assert asked == [("/a.zip", None), ("/a.zip", "bytes=50000-")]
    assert download(f"{address}/a.zip", tmp_path) == path and len(asked) == 2
    path.rename(tmp_path / "a.zip.partial")  # killed before the last rename
    assert download(f"{address}/a.zip", tmp_path).read_bytes() == data


def test_a_file_that_was_replaced_meanwhile_is_fetched_anew(server, tmp_path):
    """Not the first half of one file with the second half of another."""
    folder, address, asked = server
    rng = random.Random(0)
    for tag in ('"one"', '"two"'):
        data = rng.randbytes(100_000)
        (folder / "a.zip").write_bytes(data)
        (folder / "a.zip.headers").write_text(json.dumps({"ETag": tag}))
        if tag == '"one"':
            with pytest.raises(DownloadError):
                download(f"{address}/a.zip", tmp_path / "out")
    assert download(f"{address}/a.zip", tmp_path / "out").read_bytes() == data
    assert asked == [("/a.zip", None), ("/a.zip", "bytes=50000-")]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.zip"]


def test_a_part_of_a_longer_file_is_dropped(server, tmp_path):
    folder, address, asked = server
    asked.append(("/a.zip", None))  # cuts nothing short
    (folder / "a.zip").write_bytes(b"short")
    (tmp_path / "a.zip.partial").write_bytes(bytes(100))
    assert download(f"{address}/a.zip", tmp_path).read_bytes() == b"short"


@pytest.mark.parametrize("name", ["Repr-Digest", "x-goog-hash", "Content-MD5"])
def test_a_file_that_differs_from_its_checksum_is_fetched_anew(server, tmp_path, name):
    folder, address, asked = server
    asked.append(("/a.zip", None))  # cuts nothing short
    data = random.Random(0).randbytes(10_000)
    algorithm = "sha256" if name == "Repr-Digest" else "md5"
    digest = base64.b64encode(hashlib.new(algorithm, data).digest()).decode()
    forms = {"Repr-Digest": f"sha-256=:{digest}:", "x-goog-hash": f"crc32c=AAAAAA==, md5={digest}"}
    (folder / "a.zip.headers").write_text(json.dumps({name: forms.get(name, digest)}))
    (folder / "a.zip").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(DownloadError, match=f"{algorithm} .* the same command starts anew"):
        download(f"{address}/a.zip", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    (folder / "a.zip").write_bytes(data)
    assert download(f"{address}/a.zip", tmp_path / "out").read_bytes() == data


def test_a_damaged_zip_that_was_fetched_is_fetched_again(server, source, tmp_path, monkeypatch):
    folder, address, asked = server
    asked.append(("/games.zip", None))  # cuts nothing short
    whole = zipped(source, folder / "games.zip").read_bytes()
    with zipfile.ZipFile(folder / "games.zip") as file:
        member = file.infolist()[0]
    spoilt = bytearray(whole)
    spoilt[member.header_offset + 60 + len(member.filename)] ^= 255  # of its content
    (folder / "games.zip").write_bytes(spoilt)
    monkeypatch.setattr(alfworld, "release_urls", lambda: [f"{address}/games.zip"])
    with pytest.raises(ArchiveError, match="the same command fetches it again"):
        prepare("download", tmp_path / "out")
    (folder / "games.zip").write_bytes(whole)
    assert prepare("download", tmp_path / "out").num_games == 24


def test_the_download_command_fetches_unpacks_and_indexes(
    server, source, tmp_path, monkeypatch, capsys
):
    folder, address, _ = server
    zipped(source, folder / "json.zip", lambda p: p.name == "traj_data.json")
    zipped(source, folder / "pddl.zip", lambda p: p.name == "game.tw-pddl")
    urls = [f"{address}/json.zip", f"{address}/pddl.zip"]
    monkeypatch.setattr(alfworld, "release_urls", lambda: urls)
    out = tmp_path / "out"
    arguments = ["data", "alfworld", "--source=download", f"--out={out}", "--allow-counts"]
    assert [cli.main(arguments) for _ in range(3)] == [2, 2, 0]  # each file was cut short once
    assert "the same command goes on" in capsys.readouterr().err
    assert len(load_tasks(out)) == 24 and not (out / "downloads").exists()


def test_without_a_network_the_error_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(alfworld, "release_urls", lambda: ["http://127.0.0.1:9/json.zip"])
    out = tmp_path / "out"
    assert cli.main(["data", "alfworld", "--source=download", f"--out={out}"]) == 2
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9/json.zip must be reachable, found: " in error
    assert "give --source=ZIP" in error and error.count("\n") == 1


def test_the_addresses_come_from_the_installed_package():
    pytest.importorskip("alfworld")
    urls = alfworld.release_urls()
    assert len(urls) == 2 and all(u.startswith("https://") and u.endswith(".zip") for u in urls)
    assert "tw-pddl" in urls[1]
