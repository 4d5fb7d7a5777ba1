"""Entries: the subnets of a menu, each with its figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from nestling.errors import SpecError
from nestling.quantize import FULL
from nestling.spec import Space, Spec

CONFIDENT = 1.96  # standard errors on either side of a 95 % interval


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
        offered: False for a subnet that is clearly slower, or shown to be no faster, and no better
            than another one.
        reason: why it is not offered; empty where it is.
        scored: held-out examples, of which `accuracy` is the share that is right; None where that
            is unknown, or the metric is another one.
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
    reason: str = ""
    scored: int | None = None
    private: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return all that is no tensor, by name, as JSON values: a row of a file or a listing."""
        row = {each.name: getattr(self, each.name) for each in fields(self)}
        del row["private"]
        return {**row, "spec": dict(self.spec)}


def score(entry: Entry) -> float:
    """Return what makes one entry better than another: accuracy, or size where it is unknown."""
    return entry.accuracy if entry.accuracy is not None else float(entry.macs)


def noise(one: Entry, other: Entry) -> float:
    """Return how far two accuracies may differ by chance alone: the 95 % margin of a difference.

    0 where it is unknown how many examples they rest on. A smaller net may be one picture better
    than the full net by luck, and 300 pictures tell no differences of a percent. Each share gets
    one more hit and one more miss, without which none of 300 wrong would pass for certainty. Both
    nets saw the same examples, so that the margin is rather too wide.

    Source: Agresti and Caffo, Simple and Effective Confidence Intervals for Proportions and
    Differences of Proportions (The American Statistician, 2000).

    Example:
        >>> half = Entry("half", {}, 1, 1, 1, 0.98, scored=300)
        >>> round(noise(half, half), 4)
        0.024
    """
    variance = 0.0
    for entry in (one, other):
        if entry.accuracy is None or not entry.scored or not 0 <= entry.accuracy <= 1:
            return 0.0
        share = (entry.accuracy * entry.scored + 1) / (entry.scored + 2)
        variance += share * (1 - share) / (entry.scored + 2)
    return CONFIDENT * math.sqrt(variance)


def is_as_good(other: Entry, entry: Entry) -> bool:
    """Return whether one entry is at least as good as another, and not by luck.

    A larger net is expected to be better, so measuring it as equal is enough. A smaller one has to
    be better by more than `noise`.
    """
    lead = score(other) - score(entry)
    return lead >= (0 if other.macs > entry.macs else noise(other, entry))


def checked_name(name: object) -> str:
    """Return the name of an entry.

    Raises:
        SpecError: it is no such name.
    """
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 100:
        raise SpecError(f"the name of an entry is a text of 1 to 100 characters, not {name!r:.120}")
    if "/" in name:
        raise SpecError(f"the name of an entry has no '/' in it, but it is {name!r}")
    return name


def names_for(space: Space, specs: Iterable[Spec]) -> dict[str, Spec]:
    """Name specs by their share of the full net's MACs: `full`, `m50`, `m25` ...

    The mean bits of the weights follow where these are in fewer than full: `m50-b4`.

    Example:
        >>> list(names_for(net.space, [net.space.spec(fraction=0.5)]))
        ['m46']
    """
    full = space.macs(space.full)
    named: dict[str, Spec] = {}
    for spec in dict.fromkeys(specs):
        share = 100 * space.macs(spec) / full
        base = "full" if spec == space.full else f"m{share:.0f}" if share >= 1 else f"m{share:.2g}"
        bits = _mean_bits(space, spec)
        base += f"-b{bits:.2g}" if bits < FULL else ""
        name, number = base, 1
        while name in named:
            number += 1
            name = f"{base}-{number}"
        named[name] = spec
    return named


def _mean_bits(space: Space, spec: Spec) -> float:
    """Return the mean bits of the weights that can be in few; `FULL` where none can."""
    total, bits = 0, 0
    present = space.present(spec)
    for coding in space.codings:
        layout = present.get(coding.parameter("weight"))
        if layout is not None:
            size = math.prod(layout.shape(spec))
            total, bits = total + size, bits + size * coding.weight_bits(spec)
    return bits / total if total else FULL
