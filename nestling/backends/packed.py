"""packed: torch runs a contiguous copy; faster than views at batch 1, where these are copied."""

from __future__ import annotations

from nestling.backends.subject import Call, Subject

EXTRA = ""
PACKAGES: tuple[str, ...] = ()
COPIES = True
BOUND = ""


def convert(subject: Subject) -> None:
    """Do nothing: torch runs modules as they are."""


def prepare(subject: Subject) -> Call:
    """Return a contiguous copy of the subnet."""
    return subject.packed()
