"""Location: the line of the user's code in which an error was raised."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

PACKAGES = (Path(torch.__file__).parent, Path(__file__).parent.parent)


def line_of(error: BaseException) -> str:
    """Return `file.py:12` for the innermost line that is neither torch's nor ours; empty if none.

    Only the file's name is told, for the text may be saved in a file that is given away.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.suffix == ".py" and not any(package in path.parents for package in PACKAGES):
            return f"{path.name}:{frame.lineno}"
    return ""
