"""eager: torch runs the subnet as it is, on views of the shared weights. Costs no memory."""

from __future__ import annotations

from nestling.backends.subject import Call, Subject

EXTRA = ""
PACKAGES: tuple[str, ...] = ()
COPIES = False
BOUND = ""


def convert(subject: Subject) -> None:
    """Do nothing: torch runs modules as they are."""


def prepare(subject: Subject) -> Call:
    """Return the subnet itself."""
    return subject.module
