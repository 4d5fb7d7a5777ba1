"""Files are written whole or not at all; `test_container` has what is wrong when one is read."""

import os
import stat
import sys

import pytest

from nestling import files
from nestling.errors import FileError
from nestling.files import write_atomically


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_disk_that_is_full_at_flush(tmp_path, monkeypatch):
    really_open = os.open
    full = lambda path, flags, *mode: really_open(  # noqa: E731
        "/dev/full" if str(path).endswith(".tmp") else path, flags & ~os.O_CREAT & ~os.O_EXCL
    )
    monkeypatch.setattr(files.os, "open", full)
    with pytest.raises(FileError, match="No space left on device; free some space"):
        write_atomically(tmp_path / "a", b"x" * 100)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"earlier")

    def payload(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, payload)
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["a"]


def test_the_file_is_flushed_before_it_is_renamed_and_the_folder_after(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("folder" if is_folder else os.fstat(descriptor).st_size)
        fsync(descriptor)

    def note_replace(source, target):
        steps.append("rename")
        assert os.path.dirname(source) == os.path.dirname(target) == str(tmp_path)
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", note_fsync)
    monkeypatch.setattr(files.os, "replace", note_replace)
    write_atomically(tmp_path / "a", b"abc")
    assert steps == [3, "rename", "folder"]


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(FileError, match=r"make the folder .*none.* first"):
        write_atomically(tmp_path / "none" / "a", b"")
    with pytest.raises(FileError, match="not a regular file"):
        write_atomically(tmp_path, b"")
    with pytest.raises(FileError, match="not a regular file"):
        write_atomically("/dev/null", b"")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(FileError, match="null"):
        write_atomically("a\0b", b"")
    with pytest.raises(FileError, match="name too long"):
        write_atomically(tmp_path / ("x" * 300), b"")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="links and modes of POSIX")
def test_links_are_followed_and_the_mask_is_kept(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "link", b"new")
    finally:
        os.umask(mask)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640
