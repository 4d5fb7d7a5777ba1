"""Extras: optional packages, imported when something needs them, with a clear message."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from typing import Any

from nestling.errors import ModelError


def imported(package: str, extra: str, what: str) -> Any:
    """Return an optional package.

    Args:
        package: as it is imported.
        extra: of Nestling, that installs it.
        what: needs it, as the message says it.

    Raises:
        ModelError: it is not installed, or cannot be loaded.

    Example:
        >>> imported("json", "onnx", "the backend").dumps([])
        '[]'
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        why = "which is not installed" if absent else f"which cannot be loaded ({error})"
        raise ModelError(
            f"{what} needs {package}, {why}; run `pip install 'nestling[{extra}]'`"
        ) from error


def absent(packages: Iterable[str]) -> list[str]:
    """Return those of some packages that are not installed; none of them is loaded.

    Example:
        >>> absent(["json", "no_such_package"])
        ['no_such_package']
    """
    return [name for name in packages if importlib.util.find_spec(name) is None]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages; "unknown" where they do not say.

    Example:
        >>> list(versions(["torch"]))
        ['torch']
    """
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
