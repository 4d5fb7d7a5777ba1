"""Fetching files: checked against a known sum, and in place whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nestling.errors import DataError

CHUNK_BYTES = 1 << 18
TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Remote:
    """A file to be had from the network.

    Args:
        address: its URL.
        md5: the MD5 sum of its content, in hexadecimal.
    """

    address: str
    md5: str


def missing_error(
    what: str, where: Path, remote: Remote, *, hint: str, reason: str | None = None
) -> DataError:
    """Return the error for files that are absent, with the ways out of it.

    Args:
        what: the data set, and the files that are absent.
        where: the folder that was looked in.
        remote: what to fetch by hand.
        hint: where to put or unpack that.
        reason: why it could not be fetched; None if that was not tried.
    """
    tried = f" and could not be fetched ({reason})" if reason else ""
    return DataError(
        f"data set {what} is not in {where}{tried}; fetch {remote.address} by hand and {hint}, "
        "or name the folder that has it with --data-dir or the environment variable NESTLING_DATA"
    )


def found_or_fetched(
    what: str, candidates: Sequence[Path], remote: Remote, *, download: bool
) -> Path:
    """Return the first of some paths that is a file; if there is none, fetch the last.

    Args:
        what: the data set.
        candidates: paths in one folder.
        remote: what to fetch.
        download: whether it may be fetched.

    Raises:
        DataError: none is there, and it cannot be fetched.
    """
    for path in candidates:
        if path.is_file():
            return path
    target = candidates[-1]
    where, reason = target.parent, None
    if download:
        try:
            fetch(remote, target)
        except OSError as error:
            reason = error
        else:
            return target
    raise missing_error(
        f"{what} ({candidates[0].name})",
        where,
        remote,
        hint=f"put it in {where}",
        reason=str(reason) if reason else None,
    ) from reason


def fetch(remote: Remote, target: Path) -> None:
    """Download a file to `target`, with a progress bar on stderr if that is a terminal.

    It is written under another name and takes its own only when it is complete and its sum is
    right, so that a file that is there is a good one.

    Raises:
        OSError: the network or the disk failed.
        DataError: the content has another MD5 sum than it should.
    """
    with workspace(target) as folder:
        packed = folder / target.name
        _download(remote, packed)
        packed.replace(target)


def fetch_archive(remote: Remote, target: Path, *, members: Sequence[str]) -> None:
    """Download a tar archive and unpack some files of its folder `target.name` as `target`.

    Only the bytes of the named files are taken: no path, link or mode from the archive is used.

    Args:
        remote: the archive.
        target: the folder to make.
        members: the names of the files in it.

    Raises:
        OSError: the network or the disk failed.
        DataError: the archive has another MD5 sum than it should, or lacks one of the files.
    """
    with workspace(target) as folder:
        packed, unpacked = folder / "archive", folder / target.name
        _download(remote, packed)
        unpacked.mkdir()
        try:
            with tarfile.open(packed) as archive:
                for name in members:
                    source = archive.extractfile(f"{target.name}/{name}")
                    if source is None:
                        raise KeyError(f"{name} is not a file")
                    with source, (unpacked / name).open("wb") as sink:
                        shutil.copyfileobj(source, sink)
        except (tarfile.TarError, KeyError, EOFError, zlib.error) as error:
            raise DataError(f"the archive {remote.address} does not unpack: {error}") from error
        try:
            unpacked.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster, with the same content
                raise


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside `target`, on its disk, so that a rename is all it takes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as folder:
        yield Path(folder)


def _download(remote: Remote, path: Path) -> None:
    """Write the content of an address to a file and check its sum."""
    from rich.console import Console  # here, as only a download needs it
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with (
            urllib.request.urlopen(remote.address, timeout=TIMEOUT_SECONDS) as response,
            path.open("wb") as sink,
            Progress(
                *columns, TransferSpeedColumn(), console=console, disable=not console.is_terminal
            ) as progress,
        ):
            size = response.headers.get("Content-Length")
            name = remote.address.rsplit("/", 1)[-1]
            task = progress.add_task(f"fetching {name}", total=int(size) if size else None)
            while chunk := response.read(CHUNK_BYTES):
                digest.update(chunk)
                sink.write(chunk)
                progress.advance(task, len(chunk))
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    if digest.hexdigest() != remote.md5:
        raise DataError(
            f"{remote.address} has the MD5 sum {digest.hexdigest()}, expected {remote.md5}: it was "
            f"cut short or replaced on its way ({os.path.getsize(path)} bytes came); try again, "
            "or fetch it by hand"
        )
