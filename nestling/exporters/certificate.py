"""Certificates: what an exported file was seen to do, beside the subnet that it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nestling import batch as batches
from nestling.coding import InputCoder
from nestling.evaluation import evaluate
from nestling.exporters.subject import Call, Subject
from nestling.interface import example
from nestling.profile import machine

FORMAT = "nestling-certificate"
VERSION = 1
SIZES = (1, 2, 3, 7)  # examples in the batches that are compared; the trace saw 2
# Largest difference that rounding explains, as a share of the largest output.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
ROUNDED = 2e-2  # where inputs are in few bits: another order of a sum takes some to the next step


@dataclass(frozen=True)
class Difference:
    """How far the outputs of a file are from those of the subnet, on one batch.

    Attributes:
        batch: examples in it.
        inputs: where they are from: "made up", "given" or "data".
        absolute: the largest difference of two numbers; infinite where one of them alone is finite.
        relative: that, as a share of the subnet's largest output.
    """

    batch: int
    inputs: str
    absolute: float
    relative: float


@dataclass(frozen=True)
class Certificate:
    """What an exported file was seen to do.

    Attributes:
        target: the format's name.
        files: name -> bytes and SHA-256 of every file that was written.
        subnet: where the file is from: name, spec, order of the units, identity of the model.
        inputs: names, shapes and dtypes.
        outputs: names.
        differences: one for each batch that was run.
        tolerance: the largest relative difference that was allowed.
        accuracy: of subnet and file on the given data; None where none was given.
        versions: of the packages that wrote and ran the file.
        machine: where that was.
    """

    target: str
    files: Mapping[str, Mapping[str, Any]]
    subnet: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...]
    outputs: tuple[str, ...]
    differences: tuple[Difference, ...]
    tolerance: float
    accuracy: Mapping[str, float] | None
    versions: Mapping[str, str]
    machine: Mapping[str, str]

    @property
    def absolute(self) -> float:
        """The largest difference of two numbers over all batches."""
        return max(each.absolute for each in self.differences)

    @property
    def relative(self) -> float:
        """The largest difference over all batches, as a share of a batch's largest output."""
        return max(each.relative for each in self.differences)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "largest_absolute_difference": self.absolute,
            "largest_relative_difference": self.relative,
            **asdict(self),
        }


def differences(
    subject: Subject, run: Call, given: tuple[Any, Any] | None, data: Iterable[Any] | None
) -> list[Difference]:
    """Compare what a file returns with what the subnet returns.

    Args:
        subject: what was written.
        run: the file, opened again.
        given: inputs of the user's own, by place and by keyword.
        data: batches, of which the first is compared.
    """
    signature = subject.interface.signature
    cases = [(size, "made up", *example(signature, size, seed=size)) for size in SIZES]
    if given is not None:
        args, kwargs = given
        cases.append((batches.size(given), "given", list(args), dict(kwargs)))
    if data is not None:
        inputs = batches.inputs_of(next(iter(data)))
        kept = dict(inputs) if isinstance(inputs, Mapping) else {}
        places = [] if kept else list(inputs) if isinstance(inputs, tuple | list) else [inputs]
        cases.append((batches.size(inputs), "data", places, kept))
    found = []
    for size, source, args, kwargs in cases:
        with torch.no_grad():
            wanted = subject.module(*args, **kwargs)
        found.append(Difference(size, source, *distance(wanted, run(*args, **kwargs))))
    return found


def distance(wanted: Any, found: Any) -> tuple[float, float]:
    """Return the largest absolute and relative difference of two outputs.

    Numbers that are not finite must be the same in both; the difference is infinite else.

    Example:
        >>> distance(torch.tensor([2.0, 4.0]), torch.tensor([2.0, 5.0]))
        (1.0, 0.25)
    """
    pairs = [
        (one.detach().to(torch.float64), other.detach().to(torch.float64))
        for one, other in zip(_tensors(wanted), _tensors(found), strict=True)
    ]
    absolute = relative = 0.0
    for one, other in pairs:
        if one.shape != other.shape or not torch.equal(_odd(one), _odd(other)):
            return float("inf"), float("inf")
        finite = torch.isfinite(one)
        if not finite.any():
            continue
        furthest = float((one - other)[finite].abs().max())
        largest = float(one[finite].abs().max())
        absolute = max(absolute, furthest)
        relative = max(relative, furthest / largest if largest else furthest)
    return absolute, relative


def accuracies(subject: Subject, run: Call, data: Iterable[Any]) -> dict[str, float]:
    """Return the accuracy of the subnet and of its file on data.

    Raises:
        DataError: the data does not fit, or is none.
    """
    return {"subnet": evaluate(subject.module, data), "export": evaluate(_Running(run), data)}


def certified(
    subject: Subject,
    target: str,
    files: Iterable[Path],
    about: Mapping[str, Any],
    **seen: Any,
) -> Certificate:
    """Return the certificate of files that were written and run."""
    signature = subject.interface.signature
    specs = [*signature.args, *(spec for _, spec in signature.kwargs)]
    inputs = [
        {
            "name": name,
            "shape": ["batch" if signature.has_batch(spec) else spec.shape[0], *spec.shape[1:]]
            if spec.shape
            else [],
            "dtype": spec.dtype,
        }
        for name, spec in zip(subject.interface.inputs, specs, strict=True)
        if spec is not None
    ]
    sums = {
        file.name: {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in files
    }
    outputs = subject.interface.outputs
    return Certificate(target, sums, about, tuple(inputs), outputs, machine=machine(), **seen)


def tolerance_of(module: nn.Module) -> float:
    """Return the largest relative difference that rounding explains in a module's precision."""
    found = [TOLERANCES[p.dtype] for p in module.parameters() if p.dtype in TOLERANCES]
    if any(
        isinstance(hook, InputCoder)
        for m in module.modules()
        for hook in m._forward_pre_hooks.values()
    ):
        found.append(ROUNDED)
    return max(found, default=TOLERANCES[torch.float32])


class _Running(nn.Module):
    """A call in the place of a module, for `evaluate`."""

    def __init__(self, run: Call) -> None:
        super().__init__()
        self.run = run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _odd(tensor: Tensor) -> Tensor:
    """Return a tensor in which all finite numbers are 0, and NaN is a number of its own."""
    rest = torch.where(torch.isfinite(tensor), torch.zeros_like(tensor), tensor)
    return torch.nan_to_num(rest, nan=7.0, posinf=8.0, neginf=9.0)
