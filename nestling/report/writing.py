"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from nestling.errors import FileError


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write the bytes under a temporary name beside `path`, then rename: no reader sees a part.

    Raises:
        FileError: the folder is missing, the disk is full, or the place may not be written.
    """
    goal = Path(path)
    part = goal.with_name(f".{goal.name[:80]}.{secrets.token_hex(4)}.part")
    try:
        # "x" rather than tempfile: the file keeps the permissions of the user's umask.
        with part.open("xb") as file:
            file.write(data)
        part.replace(goal)
    except OSError as error:
        if part.exists():
            part.unlink()
        raise FileError(
            f"a report file is written to a folder that exists and may be written; {str(goal)!r} "
            f"could not be ({error.strerror or error}); create the folder or choose another path"
        ) from error
    return goal
