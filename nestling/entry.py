"""Entries: the subnets of a menu, each with its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from nestling.spec import Spec


@dataclass(frozen=True)
class Entry:
    """One subnet on offer.

    Attributes:
        name: unique in the menu.
        spec: kept units per axis.
        macs: multiply-accumulates for one example.
        params: number of parameters.
        bytes: of parameters and buffers as a net of its own.
        accuracy: mean metric on the validation data; None if it was not measured.
        offered: False for a subnet that is clearly slower and no more accurate than another one.
        private: tensors that are this entry's own: norm statistics, or all weights of a net that
            was trained alone.
    """

    name: str
    spec: Spec
    macs: int
    params: int
    bytes: int
    accuracy: float | None = None
    offered: bool = True
    private: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)


def score(entry: Entry) -> float:
    """Return what makes one entry better than another: accuracy, or size where it is unknown."""
    return entry.accuracy if entry.accuracy is not None else float(entry.macs)
