"""What a report shows, as plain data: one `Row` a subnet, one `Page` a menu."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nestling.errors import NestlingError, did_you_mean
from nestling.report.own import Own


@dataclass(frozen=True)
class Row:
    """One subnet of a menu, with its figures; checked when made.

    Args:
        name: what the menu calls it.
        macs: multiply-accumulates of one sample.
        params: number of parameters.
        bytes: bytes of parameters and buffers.
        accuracy: a share, 0 to 1; `None` when it was not measured.
        latency: median, low and high end of its 95 % interval, in ms; `None` when not measured.
        offered: whether the menu offers it.
        counts: axis name -> kept units; an axis that is not named is kept whole.
        reason: why it is not offered, where the menu says so.

    Raises:
        NestlingError: a figure that cannot be (an accuracy of 95.1, a latency of zero).

    Example:
        >>> Row("small", 900_000, 20_000, 80_000, 0.951, (0.61, 0.6, 0.63), True, {"conv": 8}).name
        'small'
    """

    name: str
    macs: int
    params: int
    bytes: int
    accuracy: float | None
    latency: tuple[float, float, float] | None
    offered: bool
    counts: Mapping[str, int]
    reason: str = ""

    def __post_init__(self) -> None:
        if self.macs < 1 or self.params < 0 or self.bytes < 0:
            raise NestlingError(
                f"row {self.name!r} needs at least one MAC and no negative count, got macs="
                f"{self.macs}, params={self.params}, bytes={self.bytes}; count them on the subnet"
            )
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise NestlingError(
                f"row {self.name!r}: accuracy is a share from 0 to 1, got {self.accuracy}; divide "
                "a percentage by 100, or give None when it was not measured"
            )
        if self.latency is not None and not _is_interval(self.latency):
            raise NestlingError(
                f"row {self.name!r}: latency is (median, low, high) in ms with 0 < low <= median "
                f"<= high, got {self.latency}; give None when it was not measured"
            )


@dataclass(frozen=True)
class Page:
    """Everything a report shows; checked when made.

    Args:
        title: the head line, for example the model and the data set.
        rows: the subnets, the full net first.
        sizes: axis name -> full size, in network order.
        metric: what `Row.accuracy` measures, in the user's words.
        machine: facts about the device that the latencies were measured on.
        facts: how the menu was made (data set, method, epochs, seed, batch, threads, date); `file`,
            when present, is the model file that the lines of code in the report open.
        narrowed: which counts are not worth having on the device, a line each.
        own: the function that makes the model, where it is of the user's own class: the lines of
            code in the report name it.

    Raises:
        NestlingError: no rows, no axes, an unknown axis, or more kept units than the axis has.
    """

    title: str
    rows: Sequence[Row]
    sizes: Mapping[str, int]
    metric: str
    machine: Mapping[str, str]
    facts: Mapping[str, str]
    narrowed: Sequence[str] = ()
    own: Own | None = None

    def __post_init__(self) -> None:
        if not self.rows or not self.sizes:
            raise NestlingError(
                f"a page shows at least the full net and one axis, got {len(self.rows)} rows and "
                f"{len(self.sizes)} axes; make it from a menu that holds the full net"
            )
        for row in self.rows:
            self._check_counts(row)

    def _check_counts(self, row: Row) -> None:
        for axis, kept in row.counts.items():
            if axis not in self.sizes:
                raise NestlingError(
                    f"row {row.name!r} counts axis {axis!r}, which is not in the page's sizes"
                    f"{did_you_mean(axis, self.sizes)}; make rows and sizes from the same space"
                )
            if not 0 <= kept <= self.sizes[axis]:
                raise NestlingError(
                    f"row {row.name!r} keeps {kept} of the {self.sizes[axis]} units of axis "
                    f"{axis!r}; a count lies between 0 and the size"
                )

    @property
    def full(self) -> Row:
        """The full net: the first row."""
        return self.rows[0]


def _is_interval(latency: tuple[float, float, float]) -> bool:
    median, low, high = latency
    return 0 < low <= median <= high and math.isfinite(high)
