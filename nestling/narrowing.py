"""Narrowing: which counts are worth having on a device, measured on it.

What counts an axis allows follows from its size, its kind and `step=` alone, so that a file means
the same everywhere. Whether a count is *worth* having is a fact about one device: processors work
in blocks, and 33 channels may take longer than 40. Such a count is not used there, because the
larger one costs no time and is more accurate. The space stays as it is; the *menu* is narrowed.

What is measured. First, groups of axes that look alike (same kind, size and counts) are cut
together in the otherwise full net, since one axis of many would drown in the noise. Only counts
that the specs at hand use are looked at, and the aligned ones just above them, which could take
their place. From the largest down, each is timed side by side with the next larger one that proved
faster than all above it. A comparison ends in one of three ways, by the 95 % interval of the ratio
time(smaller) / time(larger):

- *faster*: the interval lies below 1. The smaller one is worth having.
- *no faster*: it reaches 1, and rules out that the smaller one gains even half of what it would if
  time fell in proportion to MACs. The smaller one is rounded up to the larger one.
- *unclear*: too much noise for the time that there was. Nothing is changed without evidence.

Then each spec with such a count is compared as a whole with itself rounded up, for counts that are
idle in the full net need not be so in a small one; it is replaced only if it is *no faster* too.
Counts are never lowered, so what takes the place of a subnet contains it.

The time for all of this is bounded. What it does not suffice for is left as it is; narrowing again
with what is `known` goes on there. Figures hold for one device, batch, number of threads and
backend, and are kept under these in the profile beside the model file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from nestling.costs.latency import Clock, Ratio
from nestling.spec import Axis, Space, Spec

FASTER, NO_FASTER, UNCLEAR = "faster", "no faster", "unclear"
MOST_COMPARISONS = 10_000  # of a file
_ALIGNED = (8, 16, 32, 64)  # numbers of units that processors work in
_FINEST, _COARSEST = 0.002, 0.02  # precision of a ratio: what clocks allow, what is quick
_SHARE_OF_AXES = 0.7  # of the time; whole specs have the rest
_SHOWN = 3  # names of axes in a line

Compare = Callable[[Spec, Spec, float, float], Ratio]
"""Times one spec against another: (smaller, larger, precision, seconds) -> time ratio."""


@dataclass(frozen=True)
class Comparison:
    """How long a subnet takes, as a multiple of the time of a larger one that contains it.

    Attributes:
        smaller: kept units by axis; axes that are not named keep all.
        larger: of the one that it was timed against, for the same axes.
        gain: share of the larger one's MACs that the smaller one saves, 0 to 1.
        ratio: time(smaller) / time(larger).

    Raises:
        ValueError: a gain that is no share, or a ratio that is not positive, finite and in order;
            or other axes in one than in the other, or a count that falls.
    """

    smaller: Mapping[str, int]
    larger: Mapping[str, int]
    gain: float
    ratio: Ratio

    def __post_init__(self) -> None:
        low, median, high = self.ratio.low, self.ratio.median, self.ratio.high
        if not (0 < low <= median <= high < math.inf and self.ratio.runs >= 1):
            raise ValueError(f"a ratio is positive, finite and in order, not {self.ratio}")
        if not 0 <= self.gain <= 1:
            raise ValueError(f"a gain is a share from 0 to 1, not {self.gain!r}")
        if self.smaller.keys() != self.larger.keys():
            raise ValueError("two subnets are compared that name different axes")
        if any(not 0 < count <= self.larger[name] for name, count in self.smaller.items()):
            raise ValueError("a subnet is compared with one that has fewer units of an axis")

    @property
    def verdict(self) -> str:
        """What the figures show of the smaller one: "faster", "no faster" or "unclear"."""
        if self.ratio.high < 1:
            return FASTER
        return NO_FASTER if self.ratio.low > 1 - self.gain / 2 else UNCLEAR

    @property
    def changes(self) -> dict[str, tuple[int, int]]:
        """The axes in which the two differ: name -> (count of the smaller, of the larger)."""
        pairs = {name: (count, self.larger[name]) for name, count in self.smaller.items()}
        return {name: pair for name, pair in pairs.items() if pair[0] < pair[1]}

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        found = self.ratio
        return {
            "smaller": dict(self.smaller),
            "larger": dict(self.larger),
            "gain": self.gain,
            "ratio": [found.median, found.low, found.high, found.runs],
        }

    @classmethod
    def from_json(cls, value: Any) -> Comparison:
        """Return the comparison that `to_json` wrote.

        Raises:
            ValueError: the value is not of that form.
        """
        if not isinstance(value, dict) or set(value) != {"smaller", "larger", "gain", "ratio"}:
            raise ValueError(f"a comparison has four parts, not {value!r:.80}")
        figures = value["ratio"]
        if not isinstance(figures, list) or len(figures) != 4:
            raise ValueError(f"a ratio is a list of four numbers, not {figures!r:.80}")
        median, low, high = map(_real, figures[:3])
        ratio = Ratio(median, low, high, _whole(figures[3]))
        return cls(_counts(value["smaller"]), _counts(value["larger"]), _real(value["gain"]), ratio)


@dataclass(frozen=True)
class Narrowing:
    """Which counts and specs are worth having on one device, with the figures that show it.

    Attributes:
        axes: comparisons of groups of axes, cut together in the otherwise full net.
        specs: comparisons of whole specs with themselves rounded up.
        open: comparisons that there was no time for, or that stayed unclear.
    """

    axes: tuple[Comparison, ...] = ()
    specs: tuple[Comparison, ...] = ()
    open: int = 0

    def counts(self, axis: Axis) -> tuple[int, ...]:
        """Return the allowed counts of an axis less those that are shown to be no faster."""
        idle = _targets(self.axes).get(axis.name, {})
        return tuple(count for count in axis.counts if count not in idle)

    def used(self, spec: Mapping[str, int]) -> dict[str, int]:
        """Return the counts that take the place of a spec on this device; mostly its own.

        No count is lower, and the subnet is no slower: both were measured as a whole.
        """
        for found in self.specs:
            if found.verdict == NO_FASTER and found.smaller == dict(spec):
                return dict(found.larger)
        return dict(spec)

    def told(self, sizes: Mapping[str, int], menu: Iterable[Mapping[str, int]]) -> list[str]:
        """Return lines for a report: which counts are not used here, and why.

        Args:
            sizes: axis name -> units of the full net.
            menu: the specs on offer. One that is still among them was not replaced, because the
                menu was made elsewhere or the subnet was trained alone.

        Example:
            >>> comparison = Comparison({"a": 33}, {"a": 40}, 0.1, Ratio(1.04, 1.02, 1.06, 40))
            >>> Narrowing(specs=(comparison,)).told({"a": 64}, [])
            ['a: 33 of 64 is no faster than 40 here, so 40 is used']
        """
        kept = [dict(spec) for spec in menu]
        idle = [found for found in self.specs if found.verdict == NO_FASTER]
        settled = {pair for found in idle for pair in _pairs(found)}
        lines: list[str] = []
        for found in idle:
            still = dict(found.smaller) in kept
            end = "and a menu that is made here uses {}" if still else "so {} is used"
            lines += _lines(_pairs(found), sizes, end)
        tried = {pair for found in self.specs for pair in _pairs(found)} - settled
        for found in self.axes:
            if found.verdict == NO_FASTER:
                stays = [pair for pair in _pairs(found) if pair in tried]
                lines += _lines(stays, sizes, "but no whole subnet was shown to be, so it stays")
        if self.open:
            many = "comparisons were" if self.open > 1 else "comparison was"
            lines.append(f"{self.open} {many} too close to call in the time; nothing follows")
        return list(dict.fromkeys(lines)) or ["every count that the menu uses is worth its time"]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "axes": [found.to_json() for found in self.axes],
            "specs": [found.to_json() for found in self.specs],
            "open": self.open,
        }

    @classmethod
    def from_json(cls, value: Any) -> Narrowing:
        """Return the narrowing that `to_json` wrote.

        Raises:
            ValueError: the value is not of that form.
        """
        if not isinstance(value, dict) or set(value) != {"axes", "specs", "open"}:
            raise ValueError(f"a narrowing has axes, specs and open, not {value!r:.80}")
        for part in (value["axes"], value["specs"]):
            if not isinstance(part, list) or len(part) > MOST_COMPARISONS:
                raise ValueError(f"not a list of at most {MOST_COMPARISONS}: {part!r:.80}")
        axes, specs = (tuple(map(Comparison.from_json, value[name])) for name in ("axes", "specs"))
        return cls(axes, specs, _whole(value["open"]))


def narrow(
    space: Space,
    specs: Iterable[Spec],
    compare: Compare,
    *,
    seconds: float,
    known: Narrowing | None = None,
    clock: Clock = time.perf_counter,
) -> Narrowing:
    """Measure which counts of some specs are worth having, in bounded time.

    Args:
        space: of the net.
        specs: those that a menu would have.
        compare: times one spec against another; what it raises passes through.
        seconds: for everything; each comparison has an equal share of what is left, and none is
            begun when it is over. 0 measures nothing, and applies what is known to the specs.
        known: an earlier narrowing under the same conditions: what it shows is not measured again.
        clock: a function that returns seconds.

    Raises:
        ValueError: a time that is negative or no number.
    """
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"seconds is a number of at least 0, not {seconds!r}")
    known = known or Narrowing()
    wanted = [spec for spec in dict.fromkeys(specs) if spec != space.full]
    start = clock()
    race = _Race(space, compare, clock)
    groups = _groups(space, wanted)
    race.begin(
        start + _SHARE_OF_AXES * seconds, sum(len(counts) for _, counts in groups), known.axes
    )
    axes = [found for names, counts in groups for found in _walk(space, names, counts, race)]
    # What is known of other counts and specs stays; what is known of these was looked at again.
    seen = {_frozen(found.smaller) for found in axes}
    axes += [found for found in known.axes if _frozen(found.smaller) not in seen]
    targets = _targets(axes)
    pairs = [(spec, _rounded(space, spec, targets)) for spec in wanted]
    pairs = [(spec, larger) for spec, larger in pairs if larger != spec]
    race.begin(start + seconds, len(pairs), known.specs)
    whole = [found for pair in pairs if (found := race.run(*map(dict, pair))) is not None]
    seen = {_frozen(spec) for spec in wanted}
    whole += [found for found in known.specs if _frozen(found.smaller) not in seen]
    return Narrowing(tuple(axes), tuple(whole), race.open)


def _rounded(space: Space, spec: Spec, targets: Mapping[str, Mapping[int, int]]) -> Spec:
    return Spec(space, {n: targets.get(n, {}).get(count, count) for n, count in spec.items()})


def _walk(
    space: Space, names: Sequence[str], counts: Sequence[int], race: _Race
) -> Iterator[Comparison]:
    """Compare counts of a group, from the largest down, each with the last one that was faster."""
    anchor = space.axes[names[0]].size
    for count in counts:
        found = race.run(dict.fromkeys(names, count), dict.fromkeys(names, anchor))
        if found is not None:
            yield found
            if found.verdict == FASTER:
                anchor = count


class _Race:
    """Makes comparisons until the time is over; what is known is not measured again.

    Attributes:
        open: comparisons that were not made, or were not clear.
    """

    def __init__(self, space: Space, compare: Compare, clock: Clock) -> None:
        self.open = 0
        self._space, self._compare, self._clock = space, compare, clock
        self._known: dict[tuple[frozenset[Any], ...], Comparison] = {}
        self._end, self._left = -math.inf, 1

    def begin(self, end: float, comparisons: int, known: Iterable[Comparison]) -> None:
        """Begin with axes, or with whole specs; what is known of the others is no evidence here.

        Args:
            end: when the last comparison has to begin.
            comparisons: how many are to come, at most.
            known: those of an earlier narrowing.
        """
        self._end, self._left = end, comparisons
        self._known = {_key(found.smaller, found.larger): found for found in known}

    def run(self, smaller: Mapping[str, int], larger: Mapping[str, int]) -> Comparison | None:
        """Return a comparison, known or new; None where there is no time for it."""
        found = self._known.get(_key(smaller, larger))
        remaining, share = self._end - self._clock(), max(self._left, 1)
        self._left -= 1
        if (found is None or found.verdict == UNCLEAR) and remaining > 0:
            found = self._measured(smaller, larger, remaining / share)
        self.open += found is None or found.verdict == UNCLEAR
        return found

    def _measured(
        self, smaller: Mapping[str, int], larger: Mapping[str, int], seconds: float
    ) -> Comparison:
        small, large = Spec(self._space, smaller), Spec(self._space, larger)
        whole = self._space.macs(large)
        gain = 1 - self._space.macs(small) / whole if whole else 0.0
        # The verdict turns on half of the gain, so the interval has to be narrower than that.
        precision = min(max(gain / 4, _FINEST), _COARSEST)
        ratio = self._compare(small, large, precision, seconds)
        return Comparison(dict(smaller), dict(larger), gain, ratio)


def _groups(space: Space, specs: Sequence[Spec]) -> list[tuple[tuple[str, ...], list[int]]]:
    """Return the axes to cut together with the counts to look at, descending; the costliest first.

    Axes that no spec cuts are left out, and those of bits: few bits save memory, and whether they
    save time is for a backend of integers to show, not for the floating-point copies timed here.
    """

    def kind(axis: Axis) -> tuple[Any, ...]:
        return axis.kind, axis.size, axis.counts, axis.outer

    timed = [axis for axis in space.axes.values() if axis.kind != "bits"]
    groups = []
    for _, members in groupby(sorted(timed, key=kind), key=kind):
        alike = list(members)
        axis, names = alike[0], tuple(each.name for each in alike)
        used = {spec[name] for spec in specs for name in names} - {axis.size}
        if used:
            counts = sorted(used | {c for count in used for c in _above(axis, count)}, reverse=True)
            least = Spec(space, dict.fromkeys(names, counts[-1]))
            groups.append((space.macs(least), names, counts))
    groups.sort(key=lambda group: group[0])
    return [(names, counts) for _, names, counts in groups]


def _above(axis: Axis, count: int) -> set[int]:
    """Return counts that could take the place of one: the next one, and the next aligned ones."""
    above = [each for each in axis.counts if count < each < axis.size]
    found = set(above[:1])
    for step in _ALIGNED:
        found.update([each for each in above if each % step == 0][:1])
    return found


def _targets(axes: Iterable[Comparison]) -> dict[str, dict[int, int]]:
    """Return what takes the place of the counts that are no faster: axis -> count -> count."""
    targets: dict[str, dict[int, int]] = {}
    for found in axes:
        if found.verdict == NO_FASTER:
            for name, (count, larger) in found.changes.items():
                targets.setdefault(name, {}).setdefault(count, larger)
    return targets


def _frozen(counts: Mapping[str, int]) -> frozenset[tuple[str, int]]:
    return frozenset(counts.items())


def _key(smaller: Mapping[str, int], larger: Mapping[str, int]) -> tuple[frozenset[Any], ...]:
    return _frozen(smaller), _frozen(larger)


def _pairs(found: Comparison) -> dict[tuple[str, int, int], None]:
    """Return the changes of a comparison as an ordered set: (axis, count, larger count)."""
    return {(name, *pair): None for name, pair in found.changes.items()}


def _lines(
    changes: Iterable[tuple[str, int, int]], sizes: Mapping[str, int], end: str
) -> Iterator[str]:
    """Return a line for each change of counts, with the axes that it is the same for."""
    alike: dict[tuple[int, int, int], list[str]] = {}
    for name, count, larger in changes:
        alike.setdefault((count, larger, sizes.get(name, larger)), []).append(name)
    for (count, larger, size), names in alike.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        yield (
            f"{', '.join(names[:_SHOWN])}{more}: {count} of {size} is no faster than {larger} "
            f"here, {end.format(larger)}"
        )


def _counts(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or len(value) > MOST_COMPARISONS:
        raise ValueError(f"counts are an object, not {value!r:.80}")
    for name in value:
        if not isinstance(name, str) or not name.isprintable():
            raise ValueError(f"the name of an axis is a plain text, not {name!r:.80}")
    return {name: _whole(count) for name, count in value.items()}


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1 << 40:
        raise ValueError(f"not a whole number from 0 to 2**40: {value!r:.80}")
    return value


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"not a number: {value!r:.80}")
    if not abs(value) < 1e300:  # JSON integers have no end, and NaN is no figure
        raise ValueError(f"not a finite number: {value!r:.80}")
    return float(value)
