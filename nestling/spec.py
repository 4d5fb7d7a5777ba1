"""The space of subnets as plain data: axes, what follows them, and specs.

A `Space` is what discovery found and proof confirmed: the elastic axes of a model, what every
dimension of every weight is made of, which attributes follow (`out_channels`, `groups` ...), where
multiply-accumulates are spent, and what is frozen and why. It holds no tensor and no module, so it
is saved in a file and read back without running the model.
"""

from __future__ import annotations

import fnmatch
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any

from nestling import extent as extents
from nestling import setting
from nestling.axis import BITS, ORDERED, Axis, allowed_counts
from nestling.coding import Coding
from nestling.description import describe
from nestling.errors import BudgetError, SpecError, did_you_mean
from nestling.extent import Along, Counts, Extent, Fixed
from nestling.layout import Attribute, Block, Frozen, Layout, Work
from nestling.quantize import FULL
from nestling.rewrite import Rewrite
from nestling.setting import Setting

__all__ = [
    "Attribute",
    "Axis",
    "Block",
    "Frozen",
    "Layout",
    "Space",
    "Spec",
    "Work",
    "allowed_counts",
]


class Spec(Mapping[str, int]):
    """A point in the space: a count for every axis; frozen, hashable, checked when made.

    Args:
        space: the space that the spec is of.
        counts: axis name, or pattern of names, to kept units; an axis that is not named keeps all
            of its units. A name rules over a pattern.

    Raises:
        SpecError: an unknown axis, a pattern that matches none, two patterns that differ on an
            axis, or a count that an axis does not allow.

    Example:
        >>> spec = nestling.Spec(net.space, {"layer1": 8})
        >>> spec["layer1"]
        8
    """

    __slots__ = ("_counts",)

    _counts: dict[str, int]

    def __init__(self, space: Space, counts: Mapping[str, int] | None = None) -> None:
        counts = {} if counts is None else counts
        if not isinstance(counts, Mapping):
            raise SpecError(
                f"a spec is made from a mapping of axis names to counts, but got {counts!r}; "
                "for a share use space.spec(fraction=...) or space.spec(width=...)"
            )
        if not counts.keys() <= space.axes.keys():
            counts = _by_name(space, counts)
        for name, value in counts.items():
            _check_count(space, name, value)
        full = {name: int(counts.get(name, axis.size)) for name, axis in space.axes.items()}
        object.__setattr__(self, "_counts", full)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a spec is frozen: {name!r} cannot be set; make another spec")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._counts,)

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __hash__(self) -> int:
        return hash(frozenset(self._counts.items()))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Spec):
            return self._counts == other._counts
        return isinstance(other, Mapping) and dict(self) == dict(other)

    def __repr__(self) -> str:
        return f"Spec({', '.join(f'{name}={count}' for name, count in self.items())})"


@dataclass(frozen=True)
class Space:
    """All elastic axes of a model, and what is frozen and why.

    Attributes:
        axes: name to axis, in the order in which the net uses them.
        frozen: every dimension that cannot be cut, with parameter, op, module and reason.
        layouts: parameter or buffer name to what its dimensions are made of.
        attributes: the modules' size attributes that follow the axes.
        works: where multiply-accumulates are spent, for one example.
        notes: what the proof has to say.
        blocks: the residual blocks that subnets of less depth pass by.
        settings: the numbers of the model's config that follow the axes where they can.
        producers: (parameter, dimension) of the weights whose rows, columns or filters make the
            units along that dimension; see `made_by`.
        codings: the layers whose weights and inputs subnets may hold in few bits.
    """

    axes: Mapping[str, Axis]
    frozen: Sequence[Frozen]
    layouts: Mapping[str, Layout]
    attributes: Sequence[Attribute]
    works: Sequence[Work]
    notes: Sequence[str] = field(default=())
    blocks: Sequence[Block] = field(default=())
    rewrites: Sequence[Rewrite] = field(default=())
    settings: Sequence[Setting] = field(default=())
    producers: Sequence[tuple[str, int]] = field(default=())
    codings: Sequence[Coding] = field(default=())

    # -- specs --------------------------------------------------------------------------------

    def spec(
        self,
        counts: Mapping[str, int] | None = None,
        *,
        fraction: float | None = None,
        width: float | None = None,
    ) -> Spec:
        """Return a spec: from counts, from a share of the full net's MACs, or of one uniform width.

        Args:
            counts: axis name, or pattern such as `"blocks.*.heads"`, to kept units; axes that are
                not named keep all.
            fraction: the widest uniform spec that costs at most this share of the full net's MACs.
            width: every axis keeps this share of its units, to the nearest allowed count.

        Raises:
            SpecError: an unknown axis, a count that is not allowed, or not exactly one argument.
            BudgetError: the narrowest uniform spec still costs more than `fraction`.

        Example:
            >>> net.space.spec(fraction=0.5)
            >>> net.space.spec({"layer2": 16})
        """
        given = sum(value is not None for value in (counts, fraction, width))
        if given != 1:
            raise SpecError(
                "a spec is made from exactly one of counts, fraction= and width=, "
                f"but {given} were given; for the full net use width=1.0"
            )
        if counts is not None:
            return Spec(self, counts)
        share = fraction if fraction is not None else width
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share <= 1:
            name = "fraction" if fraction is not None else "width"
            raise SpecError(f"{name}= is a share above 0 and at most 1, but it is {share!r}")
        return self._within(float(share)) if fraction is not None else self._uniform(float(share))

    @cached_property
    def full(self) -> Spec:
        """The spec that keeps everything."""
        return Spec(self)

    @cached_property
    def uniform(self) -> tuple[Spec, ...]:
        """Every distinct uniform spec, narrowest first."""
        return tuple(dict.fromkeys(map(self._uniform, self._turns)))

    @cached_property
    def _turns(self) -> list[float]:
        """The least width of every uniform spec, ascending; rounded up by far less than a unit."""
        turns = {0.0}
        for axis in self.axes.values():
            if axis.outer:
                pairs = zip(axis.counts, axis.counts[1:], strict=False)
                turns.update((low + high) / 2 / axis.size + 1e-9 for low, high in pairs)
        return sorted(turns)

    def _uniform(self, width: float) -> Spec:
        outer = {n: a.nearest(width * a.size) for n, a in self.axes.items() if a.outer}
        return Spec(self, outer)

    def _within(self, fraction: float) -> Spec:
        full = self.macs(self.full)
        # Macs never fall when the width grows, so the widest that fits is found by bisection.
        fits = bisect_right(
            self._turns, fraction, key=lambda width: self.macs(self._uniform(width)) / full
        )
        if not fits:
            least = self.macs(self._uniform(self._turns[0])) / full
            raise BudgetError(
                f"no uniform spec costs at most {fraction:.3g} of the full net's MACs: the "
                f"narrowest costs {least:.3g}; ask for more, or make the axes finer with step="
            )
        return self._uniform(self._turns[fits - 1])

    # -- costs that follow from the space alone ----------------------------------------------

    def macs(self, spec: Counts) -> int:
        """Return the multiply-accumulates of a forward run for one example."""
        absent = self.absent(spec)
        return sum(work.macs(spec) for work in self.works if not absent(work.module))

    def bitops(self, spec: Counts) -> int:
        """Return the bit-operations of a forward run: multiply-accumulates by the bits of both."""
        bits = {c.module: c.weight_bits(spec) * c.input_bits(spec) for c in self.codings}
        absent, plain = self.absent(spec), FULL * FULL
        works = (work for work in self.works if not absent(work.module))
        return sum(work.macs(spec) * bits.get(work.module, plain) for work in works)

    def params(self, spec: Counts) -> int:
        """Return the number of parameters; those that only codes of few bits need do not count."""
        extras = {name for coding in self.codings for name in coding.extras}
        present = self.present(spec).items()
        counted = (layout for name, layout in present if layout.parameter and name not in extras)
        return sum(math.prod(layout.shape(spec)) for layout in counted)

    def bytes(self, spec: Counts) -> int:
        """Return the bytes of all parameters and buffers of the subnet as a net of its own."""
        weights = {c.parameter("weight"): c.weight_bits(spec) for c in self.codings}
        fewer = {name: bits for name, bits in weights.items() if bits < FULL}
        # Of inputs bits save nothing here, and a clip is one number.
        fewer |= {coding.clip(bits): 0 for coding in self.codings for bits in coding.clips}
        return sum(
            -(-math.prod(layout.shape(spec)) * fewer.get(name, 8 * layout.itemsize) // 8)
            for name, layout in self.present(spec).items()
        )

    # -- depth --------------------------------------------------------------------------------

    def passed(self, spec: Counts) -> list[Block]:
        """Return the blocks that a spec passes by."""
        return [
            block
            for block in self.blocks
            if spec.get(block.axis, self.axes[block.axis].size) <= block.place
        ]

    def absent(self, spec: Counts) -> Callable[[str], bool]:
        """Return a function that tells whether a spec leaves out a module, parameter or buffer.

        It does if that is in a passed block, or is a scale of weights that keep all of their bits,
        or a clip of inputs for another number of bits than they have.

        Args:
            spec: counts by axis name.
        """
        passed = {block.module for block in self.passed(spec)}
        unused = {name for coding in self.codings for name in coding.left_out(spec)}
        if not passed:
            return unused.__contains__
        return lambda path: path in unused or not passed.isdisjoint(self._blocks_around(path))

    def present(self, spec: Counts) -> Mapping[str, Layout]:
        """Return the layouts of the parameters and buffers that a spec leaves."""
        absent = self.absent(spec)
        return {name: layout for name, layout in self.layouts.items() if not absent(name)}

    def _blocks_around(self, path: str) -> tuple[str, ...]:
        """Return the blocks that a tensor or module is, or is in."""
        found = self._around.get(path)
        if found is None:
            blocks = {block.module for block in self.blocks}
            parts = path.split(".")
            above = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
            found = self._around[path] = tuple(name for name in above if name in blocks)
        return found

    @cached_property
    def _around(self) -> dict[str, tuple[str, ...]]:
        return {}  # fills as it is asked

    # -- what it looks like -------------------------------------------------------------------

    def touches(self, name: str) -> list[tuple[str, int]]:
        """Return the (tensor, dimension) pairs that an axis cuts; none for depth and bits."""
        return [
            (tensor, dim)
            for tensor, layout in self.layouts.items()
            for dim, extent in enumerate(layout.extents)
            if name in extents.axes_of(extent)
        ]

    def made_by(self, name: str) -> list[tuple[str, int]]:
        """Return the (parameter, dimension) pairs that make the units of an axis.

        They are the dimensions along which weights put out the axis: rows of a linear layer or a
        convolution, columns of an embedding. Where the run has shown none (a weight is computed
        from others), they are the first dimensions of weights that the axis runs along, or else
        all dimensions of parameters; none for depth.

        Example:
            >>> net.space.made_by("layer1")
            [('layer1.0.conv1.weight', 0), ('layer1.1.conv1.weight', 0)]
        """
        cut = [(n, dim) for n, dim in self.touches(name) if self.layouts[n].parameter]
        shown = set(self.producers)
        for made in (
            [place for place in cut if place in shown],
            [(n, dim) for n, dim in cut if dim == 0 and len(self.layouts[n].extents) > 1],
        ):
            if made:
                return made
        return cut

    def gathers(self, name: str) -> list[tuple[str, int]]:
        """Return those of `touches` whose cut is not one range, so that it costs a copy."""
        half = {name: self.axes[name].size // 2}
        return [
            (tensor, dim)
            for tensor, dim in self.touches(name)
            if extents.kept_range(self.layouts[tensor].extents[dim], half) is None
        ]

    # -- what the model's config can say ------------------------------------------------------

    def config_conflicts(self, spec: Counts) -> list[str]:
        """Return what the config of a subnet cannot say of it, a line each; nothing if it says all.

        Where it says all, the subnet's class builds the subnet from its config, so that a library
        loads what it saved. Where it does not, loading fails on sizes that do not match.
        """
        return setting.conflicts(self.axes, self.settings, spec)

    def config_spec(self, spec: Counts) -> Spec:
        """Return the spec nearest to another one of which the model's config can say all.

        It is within the other one where it can be.

        Example:
            >>> spec = net.space.config_spec(net.space.spec(width=0.5))
            >>> net.subnet(spec).save_pretrained("half")
        """
        return Spec(self, setting.fitted(self.axes, self.settings, spec))

    def elastic_share(self) -> float:
        """Return the share of the parameters that belong to tensors with an elastic dimension."""
        elastic = total = 0
        for layout in self.layouts.values():
            if layout.parameter:
                size = math.prod(extent.size for extent in layout.extents)
                total += size
                elastic += size * any(any(extents.axes_of(e)) for e in layout.extents)
        return elastic / max(total, 1)

    def __str__(self) -> str:
        return describe(self)

    # -- changes ------------------------------------------------------------------------------

    def without(self, name: str, why: Frozen) -> Space:
        """Return the space with an axis frozen, for the reason in `why` (op, module, reason)."""
        rows = [
            replace(why, parameter=tensor, dim=dim, size=self.layouts[tensor].extents[dim].size)
            for tensor, dim in self.touches(name)
            if self.layouts[tensor].parameter
        ]
        frozen = [*self.frozen, *rows]
        axes = {key: axis for key, axis in self.axes.items() if key != name}
        blocks = tuple(block for block in self.blocks if block.axis != name)
        fixed = len(blocks) < len(self.blocks)
        notes = (*self.notes, f"{name} is frozen: {why.reason}") if fixed else self.notes
        space = replace(self, axes=axes, frozen=frozen, blocks=blocks, notes=notes)
        return space._substituted(lambda at: Fixed(at.size) if at.axis == name else at)

    def tied(self, names: Sequence[str]) -> Space:
        """Return the space with several axes of one size made one axis, under the first name.

        It allows the counts that all of them allow.

        Raises:
            SpecError: an unknown axis, or axes of different sizes, or of kinds that do not mix.
        """
        for name in names:
            if name not in self.axes:
                raise SpecError(f"cannot tie {name!r}: {_unknown_axis(self, name)}")
        self._check_kinds(names)
        first = names[0]
        sizes = {name: self.axes[name].size for name in names}
        if len(set(sizes.values())) > 1:
            raise SpecError(f"only axes of one size can be tied, but the sizes are {sizes}")
        common = set.intersection(*(set(self.axes[name].counts) for name in names))
        counts = tuple(sorted(common))
        axes = {key: axis for key, axis in self.axes.items() if key == first or key not in names}
        axes[first] = replace(axes[first], counts=counts)
        blocks = tuple(
            replace(block, axis=first) if block.axis in names else block for block in self.blocks
        )
        codings = tuple(coding.tied(names) for coding in self.codings)
        return replace(self, axes=axes, blocks=blocks, codings=codings)._substituted(
            lambda at: Along(first, at.size) if at.axis in names else at
        )

    def become(self, tie: Mapping[str, Extent]) -> Space:
        """Return the space in which axes became other ones, or are made up of several others.

        An axis that others become allows the counts that all of them allow.

        Raises:
            SpecError: axes of kinds that do not mix.
        """
        for name, extent in tie.items():
            self._check_kinds([name, *extents.axes_of(extent)])
        axes = {name: axis for name, axis in self.axes.items() if name not in tie}
        for name, extent in tie.items():
            if isinstance(extent, Along):
                other = axes[extent.axis]
                common = tuple(n for n in other.counts if n in self.axes[name].counts)
                axes[extent.axis] = replace(other, counts=common)
        return replace(self, axes=axes)._substituted(lambda at: tie.get(at.axis, at))

    def _check_kinds(self, names: Sequence[str]) -> None:
        """Raise `SpecError` where units that have an order of their own meet those of others.

        Layers are left out from the last one on; channels in the order of their worth.
        """
        kinds = {name: self.axes[name].kind for name in names}
        if len(set(kinds.values())) > 1 and any(self.axes[name].ordered for name in names):
            listed = ", ".join(f"{name!r} is {kind}" for name, kind in kinds.items())
            raise SpecError(
                f"an axis of kind {' or '.join(ORDERED)} can only be tied to axes of its own kind, "
                f"but {listed}; tie each kind by itself"
            )

    def _substituted(self, change: Any) -> Space:
        def apply(items: tuple[Extent, ...]) -> tuple[Extent, ...]:
            return tuple(extents.substitute(extent, change) for extent in items)

        return replace(
            self,
            layouts={n: replace(x, extents=apply(x.extents)) for n, x in self.layouts.items()},
            attributes=tuple(
                replace(a, extent=extents.substitute(a.extent, change)) for a in self.attributes
            ),
            works=tuple(replace(work, extents=apply(work.extents)) for work in self.works),
            rewrites=tuple(
                replace(
                    given,
                    edits=tuple(
                        replace(edit, extent=extents.substitute(edit.extent, change))
                        for edit in given.edits
                    ),
                )
                for given in self.rewrites
            ),
            settings=tuple(each.substituted(change) for each in self.settings),
        )


def _unknown_axis(space: Space, name: str) -> str:
    near = did_you_mean(str(name), space.axes)
    listed = ", ".join(list(space.axes)[:8]) + (" ..." if len(space.axes) > 8 else "")
    return f"unknown axis {name!r}{near}; the axes are {listed}"


def _by_name(space: Space, counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts by axis name alone: each pattern stands for all axes that it matches."""
    found = {name: count for name, count in counts.items() if name in space.axes}
    named, told = set(found), dict.fromkeys(found, "")
    for pattern, count in counts.items():
        if pattern in named:
            continue
        alike = [axis for axis in space.axes if fnmatch.fnmatchcase(axis, str(pattern))]
        if not alike:
            raise SpecError(_unknown_axis(space, pattern))
        for axis in alike:
            if axis not in named and found.setdefault(axis, count) != count:
                raise SpecError(
                    f"the patterns {told[axis]!r} and {pattern!r} give axis {axis!r} different "
                    f"counts, {found[axis]} and {count}; name the axis itself"
                )
            told.setdefault(axis, pattern)
    return found


def _check_count(space: Space, name: str, value: object) -> None:
    if name not in space.axes:
        raise SpecError(_unknown_axis(space, name))
    axis = space.axes[name]
    if isinstance(value, bool) or not isinstance(value, Integral) or value not in axis.counts:
        shown = axis.counts if len(axis.counts) <= 12 else (*axis.counts[:5], "...", axis.size)
        rule = "the net was made for others"
        if axis.kind != BITS:
            step = axis.counts[1] - axis.counts[0] if len(axis.counts) > 1 else axis.size
            rule = f"counts go in steps of {step}"
        raise SpecError(
            f"axis {name!r} cannot keep {value!r} of {axis.size} {axis.kind}: {rule}; "
            f"choose one of ({', '.join(map(str, shown))})"
        )


def _restored(counts: dict[str, int]) -> Spec:
    spec = Spec.__new__(Spec)
    object.__setattr__(spec, "_counts", dict(counts))
    return spec
