"""compiled: torch.compile makes code for a packed copy, with its weights frozen into it.

Freezing lays the weights out once for the processor's kernels; without it compiling gains nothing
at batch 1. The code is for one number of examples and threads, and takes seconds to make; a
compiler such as g++ must be installed.

Source: https://docs.pytorch.org/docs/stable/torch.compiler.html
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nestling.backends.subject import Call, Subject
from nestling.compilation import INDUCTOR, check_compiler, fresh
from nestling.errors import ModelError, brief
from nestling.interface import Interface

EXTRA = ""
PACKAGES: tuple[str, ...] = ()
COPIES = True
BOUND = "batch"


def convert(subject: Subject) -> None:
    """Check that the compiler works here, which loads it.

    Raises:
        ModelError: it does not.
    """
    check_compiler(INDUCTOR, subject.device)


def prepare(subject: Subject) -> Call:
    """Return compiled code for the subject's batch; it is made now, not at the first call.

    Raises:
        ModelError: the subnet cannot be compiled, or there is no compiler.
    """
    module = subject.packed().requires_grad_(False)
    interface = Interface.of(module, subject.net.signature)
    args, kwargs = subject.example()
    try:
        return _compiled(module, interface, args, kwargs)
    except Exception as error:
        inner = getattr(error, "inner_exception", error)
        raise ModelError(
            f"torch.compile cannot compile {subject.name!r}: {brief(inner)}; install a C++ "
            "compiler such as g++, or use another backend"
        ) from error


def _compiled(module: nn.Module, interface: Interface, args: Any, kwargs: Any) -> Call:
    import torch._inductor.config as inductor  # here, as it takes long to import

    def call(*args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs)  # closed over: what is an argument cannot be frozen

    # All entries run the same lines, and the compiler gives up after eight graphs of one function.
    code = torch.compile(fresh("entry", call), fullgraph=True, dynamic=False, backend=INDUCTOR)
    on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
    with torch.no_grad(), inductor.patch(freezing=on_cpu):
        for _ in range(2):
            code(*args, **kwargs)

    def run(*args: Any, **kwargs: Any) -> Any:
        interface.flat(args, kwargs)  # other shapes would be compiled anew, for seconds
        with torch.no_grad():
            return code(*args, **kwargs)

    return run
