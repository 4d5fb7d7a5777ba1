"""aotinductor: machine code that torch makes ahead of time, for any number of examples.

The subnet is traced by `torch.export` with a free number of examples and compiled once, its weights
frozen into the code; `compiled` makes code for every number of examples anew. A compiler such as
g++ must be installed, and takes from ten seconds to a minute for a subnet.

Source: https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from nestling import exporters
from nestling.backends.subject import Call, Subject
from nestling.compilation import INDUCTOR, check_compiler
from nestling.errors import ModelError, NestlingError, brief
from nestling.exporters.subject import quiet
from nestling.exporters.torch_export import checked

EXTRA = ""
PACKAGES: tuple[str, ...] = ()
COPIES = True
BOUND = "threads"


def convert(subject: Subject) -> None:
    """Check that the compiler works here, which loads it.

    Raises:
        ModelError: it does not, or the model is not on the processor.
    """
    subject.on_cpu("aotinductor")
    check_compiler(INDUCTOR, subject.device)


def prepare(subject: Subject) -> Call:
    """Return the code of the subject, compiled now, for any number of examples.

    Raises:
        ModelError: the subnet cannot be traced or compiled, or there is no compiler.
    """
    source = exporters.Subject.of(subject.module, subject.net.signature)
    try:
        with quiet(), torch.no_grad():
            code = checked(library(source.program), source)
    except NestlingError:
        raise
    except Exception as error:
        raise ModelError(
            f"AOTInductor cannot compile {subject.name!r}: {brief(error)}; install a C++ compiler "
            "such as g++, or use another backend"
        ) from error

    def run(*args: Any, **kwargs: Any) -> Any:
        # The code reads memory in the layout that was traced, and looks at no strides.
        args = tuple(map(_contiguous, args))
        return code(*args, **{name: _contiguous(each) for name, each in kwargs.items()})

    return run


def library(program: torch.export.ExportedProgram) -> Any:
    """Return what runs a program as machine code; the file that is made is not kept."""
    import torch._inductor as inductor  # here, as it takes long to import
    from torch._inductor import config

    with tempfile.TemporaryDirectory() as folder, config.patch(freezing=True):
        path = inductor.aoti_compile_and_package(
            program, package_path=str(Path(folder) / "entry.pt2")
        )
        return inductor.aoti_load_package(path)


def _contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, torch.Tensor) else value
