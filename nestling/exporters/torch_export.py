"""torch.export: a traced program (.pt2) that torch runs without the model's source.

Weights are raw bytes in it, the graph is JSON; no pickle, since no example inputs are kept.

Source: https://docs.pytorch.org/docs/stable/export.html
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from nestling.exporters.subject import Call, Subject, quiet
from nestling.files import write_atomically

SUFFIX = ".pt2"
EXTRA = ""
PACKAGES: tuple[str, ...] = ()


def write(subject: Subject, path: Path) -> None:
    """Write a subject as a program of `torch.export`.

    Raises:
        ModelError: it cannot be traced.
    """
    program = subject.program
    kept = program._example_inputs
    content = io.BytesIO()
    try:
        program._example_inputs = None  # they would be pickled
        with quiet():
            torch.export.save(program, content)
    finally:
        program._example_inputs = kept
    write_atomically(path, content.getvalue())


def reopen(path: Path, subject: Subject) -> Call:
    """Return what runs a program of `torch.export`."""
    with quiet():
        return checked(torch.export.load(path).module(), subject)


def checked(module: Any, subject: Subject) -> Call:
    """Return the program's module; it takes its inputs as they were traced, by place or keyword."""
    interface = subject.interface
    count = len(interface.signature.args)

    def run(*args: Any, **kwargs: Any) -> Any:
        flat = interface.flat(args, kwargs)
        with torch.no_grad():
            return module(
                *flat[:count], **dict(zip(interface.inputs[count:], flat[count:], strict=True))
            )

    return run
