"""What a backend runs: one entry of a menu, for a number of threads and examples."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from nestling import exporters
from nestling.errors import ModelError
from nestling.exporters import onnx
from nestling.interface import example
from nestling.supernet import Supernet
from nestling.timing import packed_copy

Call: TypeAlias = Callable[..., Any]
"""Takes a model's own inputs, and returns what the model returns."""


class Conversions:
    """ONNX files of entries, on the disk while somebody holds this: two runtimes read them."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._made: dict[str, tuple[Path, exporters.Subject]] = {}

    def onnx(self, subject: Subject) -> tuple[Path, exporters.Subject]:
        """Return the ONNX file of an entry, converted once, and what was converted.

        Raises:
            ModelError: a package is missing, or the entry cannot be converted.
        """
        if subject.name not in self._made:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="nestling-"))
                weakref.finalize(self, _remove, self._folder, os.getpid())
            path = self._folder / f"{len(self._made)}.onnx"
            source = exporters.Subject.of(subject.module, subject.net.signature)
            onnx.write(source, path)
            # The weights are in the file; beyond its interface the source is not needed again.
            emptied = exporters.Subject(nn.Module(), source.interface)
            self._made[subject.name] = path, emptied
        return self._made[subject.name]


def _remove(folder: Path, process: int) -> None:
    """Remove a folder, unless this is a fork of the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Subject:
    """One entry, and the conditions under which it shall run.

    Attributes:
        name: of the entry.
        module: its subnet, views of the shared weights, in evaluation mode.
        net: that owns these.
        batch: examples in a call.
        threads: that a call may use.
        conversions: of all entries of the menu.
    """

    name: str
    module: nn.Module
    net: Supernet
    batch: int = 1
    threads: int = 1
    conversions: Conversions = field(default_factory=Conversions, compare=False)

    def packed(self) -> nn.Module:
        """Return a contiguous copy, laid out as the net's weights."""
        return packed_copy(self.net, self.module)

    def example(self) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """Return made-up inputs of the batch.

        Raises:
            ModelError: inputs cannot be made up.
        """
        return example(self.net.signature, self.batch, self.device)

    @property
    def device(self) -> torch.device:
        """Where the shared weights are."""
        return next(self.net.parameters()).device

    def on_cpu(self, backend: str) -> None:
        """Check that the weights are where a runtime computes.

        Raises:
            ModelError: they are on a GPU, and the backend computes on the processor.
        """
        if self.device.type != "cpu":
            raise ModelError(
                f"the backend {backend} computes on the processor, but the model is on "
                f"{self.device}; use eager, packed or compiled there, or move the net to the CPU"
            )
