"""Comparison: whether two runs of a model differ by more than rounding explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SMALLEST = 1e-3  # outputs below this are measured against it, so that rounding of a zero passes


@dataclass(frozen=True)
class Tolerance:
    """How large differences are, relative to the largest entry of the tensor.

    Attributes:
        exact: the largest that rounding explains.
        moved: the smallest by which a cut counts as noticed; well above `exact`, so that a wrong
            subnet cannot pass as a rounded right one.
    """

    exact: float
    moved: float


TOLERANCES = {
    torch.float64: Tolerance(1e-9, 1e-7),
    torch.float32: Tolerance(1e-4, 1e-3),
    torch.float16: Tolerance(1e-2, 4e-2),
    torch.bfloat16: Tolerance(3e-2, 1e-1),
}


@dataclass(frozen=True)
class Verdict:
    """What one comparison said.

    Attributes:
        holds: whether the subnet equals the masked model.
        difference: the largest relative difference; infinite if the subnet did not run.
        reason: why it does not hold.
        noticed: whether the output showed the cut at all; if not, nothing was proven.
    """

    holds: bool
    difference: float
    reason: str = ""
    noticed: bool = True


def compare(found: Sequence[Tensor], reference: Sequence[Tensor], tolerance: Tolerance) -> Verdict:
    """Compare a cut subnet's tensors with those of the masked model."""
    if [t.shape for t in found] != [t.shape for t in reference]:
        return Verdict(False, float("inf"), "the cut subnet returns another shape")
    worst = max((difference(a, b) for a, b in zip(found, reference, strict=True)), default=0.0)
    if worst <= tolerance.exact:
        return Verdict(True, worst)
    return Verdict(False, worst, f"the cut subnet differs from the masked model by {worst:.1e}")


def moved(found: Sequence[Tensor], whole: Sequence[Tensor], tolerance: Tolerance) -> bool:
    """Return whether any tensor is another one, by more than rounding could make of it."""
    if [t.shape for t in found] != [t.shape for t in whole]:
        return True
    pairs = zip(found, whole, strict=True)
    return any(difference(one, other) > tolerance.moved for one, other in pairs)


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference relative to the largest finite entry of the second tensor.

    Entries that are both NaN, or the same infinity, do not differ; NaN against a number does,
    infinitely.
    """
    if not one.numel():
        return 0.0
    one, other = _as_double(one), _as_double(other)
    same = (one == other) | (one.isnan() & other.isnan())
    apart = torch.where(same, torch.zeros_like(one), (one - other).abs())
    if not bool(apart.isfinite().all()):
        return float("inf")
    finite = torch.where(other.isfinite(), other.abs(), torch.zeros_like(other))
    return float(apart.max()) / max(float(finite.max()), SMALLEST)


def finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether no tensor holds NaN or an infinity."""
    return all(bool(_as_double(tensor).isfinite().all()) for tensor in tensors)


def _as_double(tensor: Tensor) -> Any:
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.double()
