"""Backends: what runs a subnet. A backend is one file, found by its name.

It has

- `convert(subject)`: does what has to be done once for an entry, on the disk;
- `prepare(subject)`: returns what runs the entry as the model is called; a module is called without
  gradients, what is none makes none;
- `COPIES`: whether it holds weights of its own, so that every entry costs memory;
- `BOUND`: what a prepared entry is made for: nothing, a number of "threads", or a "batch" on a
  number of threads;
- `EXTRA` of Nestling that installs what it needs, and these `PACKAGES`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass

from nestling.backends.subject import Call, Conversions, Subject
from nestling.catalogue import Catalogue
from nestling.errors import ModelError, did_you_mean
from nestling.extras import absent

__all__ = ["AUTO", "Backend", "Call", "Conversions", "Subject", "find", "installed", "names"]

AUTO = "auto"  # no backend: the fastest one, by the profile
_ALL = Catalogue(__name__, "backend", function="prepare")


@dataclass(frozen=True)
class Backend:
    """One backend.

    Attributes:
        name: as `backend=` takes it.
        convert: does once for an entry what need not be in memory.
        prepare: returns what runs an entry.
        copies: whether it holds weights of its own.
        bound: what a prepared entry is made for: "", "threads" or "batch".
        extra: of Nestling, that installs the packages.
        packages: beyond those that Nestling needs itself.
    """

    name: str
    convert: Callable[[Subject], None]
    prepare: Callable[[Subject], Call]
    copies: bool
    bound: str
    extra: str
    packages: tuple[str, ...]

    @property
    def missing(self) -> str:
        """Why it cannot run here; empty where its packages are installed."""
        found = absent(self.packages)
        if not found:
            return ""
        return (
            f"the backend {self.name} needs {', '.join(found)}; run "
            f"`pip install 'nestling[{self.extra}]'`"
        )


def names() -> list[str]:
    """Return the names of all backends, as `backend=` takes them.

    Example:
        >>> names()[:2]
        ['aotinductor', 'compiled']
    """
    return _ALL.names()


def installed() -> list[str]:
    """Return the names of those whose packages are installed."""
    return [name for name in names() if not find(name).missing]


@functools.cache
def find(name: str) -> Backend:
    """Return the backend of a name; its packages are not loaded.

    Raises:
        ModelError: there is none.
    """
    prepare = _ALL.find(name)
    file = sys.modules[prepare.__module__]
    return Backend(name, file.convert, prepare, file.COPIES, file.BOUND, file.EXTRA, file.PACKAGES)


def check(name: str) -> str:
    """Return a name that `backend=` takes, "auto" too.

    Raises:
        ModelError: it is unknown, or its packages are not installed.
    """
    if name == AUTO:
        return name
    known = [AUTO, *names()]
    if name not in known:
        raise ModelError(
            f"unknown backend {name!r:.80}{did_you_mean(str(name), known)}; the backends are "
            f"{', '.join(known)}"
        )
    missing = find(name).missing
    if missing:
        raise ModelError(f"{missing}, or use another backend")
    return name
