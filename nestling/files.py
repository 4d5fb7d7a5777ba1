"""Files: written whole or not at all; whatever is wrong when one is read is one `FileError`."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from nestling.errors import FileError

StrPath = str | os.PathLike[str]


def write_atomically(path: StrPath, payload: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file so that a reader sees the old content or the new, never a part of it.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and then take the
    name in one step. Whatever fails before that step, the temporary file is removed and an earlier
    file stays as it was. A link is followed: the file it points to is replaced.

    Args:
        path: the file to write.
        payload: its bytes, or a function that writes them to the binary file it is given.

    Raises:
        FileError: the disk is full, the folder is missing or may not be written to, or the path
            names something other than a regular file. What `payload` itself raises passes through,
            except OSError.
    """
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise FileError(f"cannot write {path}: it is not a regular file; choose another name")
        temporary = target.with_name(f".nestling-{secrets.token_hex(8)}.tmp")
        _write_and_rename(temporary, target, payload)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise FileError(f"cannot write {path}: {reason}; {_cure(problem, path)}") from problem
    except ValueError as problem:  # a path that no file can have, such as one with a null byte
        if isinstance(problem, FileError):
            raise
        raise FileError(f"cannot write {path!r}: {problem}; choose another name") from problem


def _write_and_rename(
    temporary: Path, target: Path, payload: bytes | Callable[[BinaryIO], None]
) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if callable(payload):
                payload(file)
            else:
                file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":
        # The file is whole and in place; a file system that cannot flush a folder (some network
        # shares) only leaves open whether the new name outlives a power cut.
        with contextlib.suppress(OSError):
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _cure(problem: OSError, path: StrPath) -> str:
    if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space or choose another disk"
    if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a folder that you may write to"
    if problem.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"make the folder {str(Path(path).parent)!r} first"
    return "choose another path"


@contextlib.contextmanager
def reading(
    path: StrPath, cure: str = "copy it again from its source, or save it anew"
) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file for reading, with its size; whatever is wrong with it is one FileError.

    Args:
        path: the file.
        cure: what the user can do about damaged content; ends the message of the error.

    Yields:
        The open file, at its first byte, and its size in bytes.

    Raises:
        FileError: it is missing, no file, cannot be read or does not fit in memory; or the block
            raised a ValueError, which says what is wrong with the content.
    """
    try:
        # Asked before opening: to open a pipe would wait for its writer for ever.
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
            raise FileError(f"cannot read {path}: it is {kind}, not a file; check the path")
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except FileError:
        raise
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise FileError(f"cannot read {path}: {reason}; check the path") from problem
    except (MemoryError, RuntimeError) as problem:
        raise FileError(
            f"cannot read {path}: its content does not fit in memory; free some, or use a smaller "
            f"file ({str(problem).splitlines()[0] if str(problem) else type(problem).__name__})"
        ) from problem
    except ValueError as problem:
        raise FileError(f"cannot read {path}: {problem}; {cure}") from problem
