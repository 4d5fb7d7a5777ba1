"""Location: the line of the user's code in which an error was raised."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import FrameType

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


def line_of_run() -> str:
    """Return `file.py:12` for the line of the model's code that runs now; empty if it has none.

    To be called while an op of a model that we run is dispatched. What called us is not told.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and PACKAGES[1] in Path(frame.f_code.co_filename).parents:
        frame = frame.f_back  # our own, which the op was dispatched to
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGES[1] in path.parents:
            return ""  # it is what runs the model
        if path.suffix == ".py" and PACKAGES[0] not in path.parents:
            return f"{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
