"""Export targets: a subnet as a file that other software runs. A target is one file.

Its name is the file's, with `-` for `_`. It has

- `write(subject, path)`: writes the file, and others beside it where the format wants that;
- `reopen(path, subject)`: returns what runs that file as the model is called;
- `SUFFIX` of the file, `EXTRA` of Nestling that installs what it needs, and these `PACKAGES`.

A new file is found by its name; `nestling.export` checks and certifies what it writes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nestling.catalogue import Catalogue
from nestling.exporters.subject import Call, Subject

__all__ = ["Call", "Exporter", "Subject", "find", "names"]

_ALL = Catalogue(__name__, "export target", function="write")


@dataclass(frozen=True)
class Exporter:
    """One target.

    Attributes:
        name: as `to=` takes it.
        write: writes a subject at a path.
        reopen: returns what runs the written file.
        suffix: of the file, such as `.onnx`.
        extra: of Nestling, that installs the packages; empty where none are needed.
        packages: beyond those that Nestling needs itself.
    """

    name: str
    write: Callable[[Subject, Path], None]
    reopen: Callable[[Path, Subject], Call]
    suffix: str
    extra: str
    packages: tuple[str, ...]


def names() -> list[str]:
    """Return the names of all targets, as `to=` takes them.

    Example:
        >>> names()
        ['onnx', 'openvino', 'safetensors', 'torch-export']
    """
    return _ALL.names()


def find(name: str) -> Exporter:
    """Return the target of a name.

    Raises:
        ModelError: there is none.
    """
    write = _ALL.find(name)
    file = sys.modules[write.__module__]
    return Exporter(name, write, file.reopen, file.SUFFIX, file.EXTRA, file.PACKAGES)
