"""What is exported: a packed subnet, with the names and shapes of its inputs and outputs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import nn

from nestling.errors import ModelError, brief
from nestling.interface import Interface, example
from nestling.packing import pack
from nestling.signature import Signature

Call: TypeAlias = Callable[..., Any]
"""Takes a model's own inputs, and returns what the model returns."""

TRACED = 2  # examples in the batch that is traced: a single one would be taken for a constant


@dataclass(frozen=True)
class Subject:
    """A subnet as an ordinary module, ready to be written in another format.

    Attributes:
        module: packed, on the CPU, in evaluation mode.
        interface: names and shapes of its inputs and outputs.
    """

    module: nn.Module
    interface: Interface

    @classmethod
    def of(cls, module: nn.Module, signature: Signature) -> Subject:
        """Return a subnet, or any module, as what is exported; it is packed first.

        Raises:
            ModelError: its inputs cannot be made up, or it fails on them.
            SpecError: the supernet's units were reordered since the subnet was made.
        """
        packed = pack(module).to("cpu").eval()
        return cls(packed, Interface.of(packed, signature))

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The model traced by `torch.export`, for any number of examples.

        Raises:
            ModelError: it cannot be traced.
        """
        args, kwargs = example(self.interface.signature, TRACED)
        try:
            with quiet(), torch.no_grad():
                return torch.export.export(
                    self.module, tuple(args), kwargs, dynamic_shapes=self.dynamic_shapes
                )
        except Exception as error:
            raise ModelError(
                f"torch.export cannot trace {type(self.module).__name__} for any number of "
                f"examples: {brief(error)}; see its notes on what a forward may hold, or export "
                "to safetensors, which needs no trace"
            ) from error

    @property
    def dynamic_shapes(self) -> tuple[Any, ...] | dict[str, Any]:
        """Which dimensions of the inputs are free, as `torch.export` takes them."""
        signature = self.interface.signature
        batch = torch.export.Dim("batch", min=1)

        def free(spec: Any) -> dict[int, Any]:
            return {0: batch} if signature.has_batch(spec) else {}

        places = [free(spec) for spec in signature.args]
        if not signature.kwargs:
            return tuple(places)
        named = dict(zip(self.interface.inputs, places, strict=False))
        return named | {name: free(spec) for name, spec in signature.kwargs}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings and the log lines of exporters, which are about their own code, away."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
