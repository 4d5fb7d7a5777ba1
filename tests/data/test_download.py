import hashlib
import http.server
import io
import tarfile
import threading
from dataclasses import replace

import numpy as np
import pytest

from nestling.data import cifar10, load
from nestling.data.download import Remote, fetch, fetch_archive
from nestling.errors import DataError

MEMBERS = ("one.bin", "two.bin")


def make_archive(path, files, *, links=()):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(member)
    return at(path)


def at(path):
    return Remote(f"file://{path}", hashlib.md5(path.read_bytes()).hexdigest())


@pytest.fixture
def place(tmp_path):
    """An empty folder for downloads, apart from what they come from."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.fixture
def server():
    """A server on this machine that knows `/good`, and breaks off in the middle of `/short`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in ("/good", "/short"):
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", "8" if self.path == "/good" else "80")
            self.end_headers()
            self.wfile.write(b"contents")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()
        thread.join()


def test_fetch_puts_the_file_in_place(server, place, capfd):
    target = place / "new" / "file"
    fetch(Remote(f"{server}/good", hashlib.md5(b"contents").hexdigest()), target)
    assert target.read_bytes() == b"contents"
    assert [path.name for path in target.parent.iterdir()] == ["file"]
    assert capfd.readouterr() == ("", "")  # no progress bar but on a terminal


@pytest.mark.parametrize("path", ["good", "short"])
def test_a_wrong_sum_is_refused_and_nothing_stays(server, place, path):
    with pytest.raises(DataError, match=f"{path} has the MD5 sum 98bf7d8c15.*expected 0{{32}}"):
        fetch(Remote(f"{server}/{path}", "0" * 32), place / "file")
    assert list(place.iterdir()) == []


def test_a_failing_network_is_an_oserror_and_nothing_stays(server, place):
    for address in (f"{server}/other", "http://127.0.0.1:1/", f"file://{place}/none"):
        with pytest.raises(OSError, match=r"404|refused|No such file"):
            fetch(Remote(address, "0" * 32), place / "file")
    assert list(place.iterdir()) == []


def test_a_garbled_answer_is_an_oserror(place, monkeypatch):
    def answer(*_, **__):
        raise http.client.BadStatusLine("noise")

    monkeypatch.setattr("urllib.request.urlopen", answer)
    with pytest.raises(OSError, match="BadStatusLine: noise"):
        fetch(Remote("http://127.0.0.1/", "0" * 32), place / "file")


def test_fetch_archive_takes_the_named_files_only(tmp_path, place):
    files = {"set/one.bin": b"1", "set/two.bin": b"2", "set/three": b"3", "../escaped": b"4"}
    fetch_archive(make_archive(tmp_path / "a", files), place / "set", members=MEMBERS)
    assert {path.name: path.read_bytes() for path in (place / "set").iterdir()} == {
        "one.bin": b"1",
        "two.bin": b"2",
    }
    assert [path.name for path in place.iterdir()] == ["set"]
    assert not (tmp_path / "escaped").exists()


def test_an_archive_with_a_link_for_a_file_is_refused(tmp_path, place):
    remote = make_archive(tmp_path / "a", {"set/one.bin": b"1"}, links=["set/two.bin"])
    with pytest.raises(DataError, match="does not unpack"):
        fetch_archive(remote, place / "set", members=MEMBERS)
    assert list(place.iterdir()) == []


def test_an_archive_without_one_of_the_files_is_refused(tmp_path, place):
    remote = make_archive(tmp_path / "a", {"set/one.bin": b"1"})
    with pytest.raises(DataError, match=r"does not unpack: .*two.bin"):
        fetch_archive(remote, place / "set", members=MEMBERS)
    assert list(place.iterdir()) == []


def test_what_is_no_archive_is_refused(tmp_path, place):
    (tmp_path / "a").write_bytes(b"<html>")
    with pytest.raises(DataError, match="does not unpack"):
        fetch_archive(at(tmp_path / "a"), place / "set", members=MEMBERS)
    assert list(place.iterdir()) == []


def test_a_faster_process_wins(tmp_path, place):
    remote = make_archive(tmp_path / "a", {"set/one.bin": b"1", "set/two.bin": b"2"})
    (place / "set").mkdir()
    (place / "set" / "one.bin").write_bytes(b"theirs")
    fetch_archive(remote, place / "set", members=MEMBERS)
    assert (place / "set" / "one.bin").read_bytes() == b"theirs"
    assert [path.name for path in place.iterdir()] == ["set"]


def test_a_file_in_the_way_is_an_oserror(tmp_path, place):
    remote = make_archive(tmp_path / "a", {"set/one.bin": b"1", "set/two.bin": b"2"})
    (place / "set").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        fetch_archive(remote, place / "set", members=MEMBERS)


def test_cifar10_is_fetched_once(tmp_path, place, monkeypatch):
    row = np.arange(3073, dtype=np.uint8).tobytes()
    version = cifar10.VERSION
    names = [*version.train_files, version.test_file]
    files = {f"{version.folder}/{name}": row * 4 for name in names}
    archive = make_archive(tmp_path / "a", files)
    monkeypatch.setattr(cifar10, "VERSION", replace(version, archive=archive))
    assert len(load("cifar10", place).train_labels) == 20
    (tmp_path / "a").unlink()
    assert len(load("cifar10", place).train_labels) == 20


def test_cifar10_without_network_is_an_error_with_ways_out(place, monkeypatch):
    archive = Remote("http://127.0.0.1:1/c.tar.gz", "0" * 32)
    monkeypatch.setattr(cifar10, "VERSION", replace(cifar10.VERSION, archive=archive))
    with pytest.raises(DataError) as caught:
        load("cifar10", place)
    for words in (
        f"cifar10 is not in {place / cifar10.VERSION.folder} and could not be fetched",
        "refused",
        "fetch http://127.0.0.1:1/c.tar.gz by hand",
        "--data-dir",
        "NESTLING_DATA",
    ):
        assert words in str(caught.value)
