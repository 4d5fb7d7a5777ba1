"""The menu: the subnets on offer, with measured figures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nestling import modelfile
from nestling.batch import blamed, check_finite, inputs_of, move, pair, size
from nestling.binding import binding
from nestling.costs import latency
from nestling.costs.latency import Latency
from nestling.entry import Entry, checked_name, names_for
from nestling.errors import DataError, ModelError, SpecError, did_you_mean
from nestling.evaluation import Metric, accuracy, check_rereadable, evaluate
from nestling.modelfile import Contents
from nestling.narrowing import Narrowing
from nestling.offers import settle_offers
from nestling.ownership import take
from nestling.profile import Key, Profile, this_key
from nestling.quantize import FULL
from nestling.spec import Spec
from nestling.supernet import Supernet, check_supernet
from nestling.timing import (
    NARROWING_SECONDS,
    check_batch,
    check_narrow,
    narrowing_of,
    packed_copy,
    prepared,
    waiting,
)
from nestling.upkeep import Upkeep
from nestling.weights import Versions, cloned, fill, tensors_of

CALIBRATION = 50  # batches of training data that measure a subnet's norm statistics
LATENCY_SECONDS = 1.0  # longest time to measure one entry


@dataclass(frozen=True)
class Menu:
    """The subnets on offer, largest first, with the weights that they share.

    Attributes:
        net: the supernet that owns the weights.
        entries: at least one; names are unique.
        metric: what `accuracy` of the entries is.
        order: identity of the unit order that the specs belong to.
        profile: measured latencies, by device, backend, threads, batch and dtype.
        facts: how the menu was made (method, epochs, seed, data ...).
        weights: which weights the figures belong to; those of now for a new menu.
    """

    net: Supernet
    entries: tuple[Entry, ...]
    metric: str = "accuracy"
    order: int = 0
    profile: Profile = field(default_factory=lambda: Profile("", {}))
    facts: Mapping[str, Any] = field(default_factory=dict)
    weights: Versions | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.weights is None:
            object.__setattr__(self, "weights", Versions(self.net.parameters()))

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, name: str) -> Entry:
        for entry in self.entries:
            if entry.name == name:
                return entry
        names = [entry.name for entry in self.entries]
        near = did_you_mean(name, names)
        raise SpecError(f"the menu has no entry {name!r}{near}; it has {', '.join(names)}")

    def __str__(self) -> str:
        """Return the entries with their figures, a line each."""
        rows = [["name", "MACs", "params", self.metric, "offered"]]
        for entry in self.entries:
            reached = "-" if entry.accuracy is None else f"{entry.accuracy:.4g}"
            offered = "yes" if entry.offered else "no"
            rows.append([entry.name, f"{entry.macs:,}", f"{entry.params:,}", reached, offered])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{row[0]:<{widths[0]}}  "
            + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
            for row in rows
        ]
        hidden = [entry for entry in self.entries if entry.reason]
        return "\n".join([*lines, *(f"{e.name} is not offered: {e.reason}" for e in hidden)])

    @property
    def full(self) -> Entry:
        """The largest entry: what runs when there is no budget."""
        return max(self.entries, key=lambda entry: entry.macs)

    def module(self, name: str, *, packed: bool = False) -> nn.Module:
        """Return the subnet of an entry, in evaluation mode, with its own norm statistics.

        Args:
            name: of the entry.
            packed: return a contiguous copy instead of views.

        Raises:
            SpecError: there is no such entry, or the units were reordered or the weights changed
                since the menu was made.
        """
        self.check_current()
        module = module_of(self.net, self[name])
        return packed_copy(self.net, module) if packed else module

    def check_current(self) -> None:
        """Check that units and weights are those that the menu was made of.

        Raises:
            SpecError: the units were reordered or the weights changed since.
        """
        if self.order != self.net.order:
            raise SpecError(
                "this menu was made before the supernet's units were reordered; make it again "
                "with nestling.make_menu"
            )
        if self.weights is not None and self.weights.changed():
            raise SpecError(
                "the weights changed since this menu was made; make it again with "
                "nestling.make_menu"
            )

    def measured(
        self,
        batch: int = 1,
        *,
        seconds: float = LATENCY_SECONDS,
        precision: float = 0.03,
        packed: bool = False,
    ) -> Menu:
        """Return the menu with latencies measured on this device, and with `offered` settled anew.

        All entries are measured in turn within one run until each median is known to `precision`.
        They run as views of the shared weights, which is slower at batch 1 than `packed`. Other
        backends, memory and energy are measured by `nestling.profiling.profiled`.

        Args:
            batch: examples in a call.
            seconds: longest time for one entry.
            precision: half width of the 95 % interval, relative to the median.
            packed: measure contiguous copies, for a packed `LoadedModel`.

        Raises:
            ModelError: inputs cannot be made up, or the model fails on those that were.
            SpecError: the units were reordered or the weights changed since the menu was made.
        """
        check_batch(batch)
        device = next(self.net.parameters()).device
        args, kwargs = self.net.signature.example(batch, device)
        calls = {
            entry.name: prepared(self.module(entry.name, packed=packed), args, kwargs)
            for entry in self.entries
        }
        table = latency.measure(
            calls,
            precision=precision,
            seconds=seconds * len(calls),
            synchronize=waiting(device),
        )
        return self.with_tables(batch, {backend(packed): table})

    def with_tables(
        self,
        batch: int,
        tables: Mapping[str, Mapping[str, Latency]],
        upkeeps: Mapping[str, Upkeep] | None = None,
    ) -> Menu:
        """Return the menu with latencies that were just measured here, and `offered` settled anew.

        What decides is each entry's fastest backend of these. A table without an upkeep keeps the
        one that was measured before, but for what was seen over a sustained time.

        Args:
            batch: examples in a call.
            tables: by backend and entry.
            upkeeps: by backend.
        """
        profile, best = self.profile, dict[str, Latency]()
        for name, table in tables.items():
            key = self.key(batch, name)
            upkeep = (upkeeps or {}).get(name)
            before = self.profile.upkeeps.get(key)
            if upkeep is None and before is not None:
                upkeep = replace(before, minutes=0.0, drift=None)
            profile = profile.with_table(key, table, upkeep)
            for entry, found in table.items():
                if entry not in best or found.median < best[entry].median:
                    best[entry] = found
        narrowing = profile.narrowings.get(self.key(batch, next(iter(tables))))
        return replace(self, profile=profile, entries=settle_offers(self.entries, best, narrowing))

    def narrowed(
        self, batch: int = 1, *, seconds: float = NARROWING_SECONDS, packed: bool = False
    ) -> Menu:
        """Return the menu with what is measured here on which counts are worth having.

        Its specs stay, since the accuracy of others is unknown. But a subnet that is no faster here
        than a larger one of the menu, and no better, is no longer offered: that one takes its
        place. What was found before on this device is not measured again. To replace specs by
        larger ones that cost no time, make the menu here: `make_menu(..., narrow=seconds)`.

        Args:
            batch: examples in a call.
            seconds: for all measurements together; what they do not suffice for stays open.
            packed: time contiguous copies, for a packed `LoadedModel`.

        Raises:
            ModelError: inputs cannot be made up, or the model fails on those that were.
            SpecError: the units were reordered or the weights changed since the menu was made.
        """
        check_batch(batch)
        self.check_current()
        key = self.key(batch, backend(packed))
        known = self.profile.narrowings.get(key)
        specs = [entry.spec for entry in self.entries]
        found = narrowing_of(self.net, specs, batch, seconds=seconds, packed=packed, known=known)
        profile = self.profile.with_narrowing(key, found)
        entries = settle_offers(self.entries, self.profile.tables.get(key, {}), found)
        return replace(self, profile=profile, entries=entries)

    def latencies(self, batch: int = 1, backend: str = "eager") -> Mapping[str, Latency]:
        """Return the latencies measured on this device with the present number of threads.

        Args:
            batch: examples in a call.
            backend: "eager" for views of the shared weights, or another of `nestling.backends`.

        Raises:
            BudgetError: there is no such profile.
        """
        return self.profile.table(self.key(batch, backend))

    def key(self, batch: int = 1, backend: str = "eager") -> Key:
        """Return what a profile of this menu on this device is filed under."""
        return _key(self.net, batch, backend)

    def identity(self) -> str:
        """Return what tells this menu from any other: a digest of its specs and weights."""
        digest = hashlib.sha256()
        for entry in self.entries:
            digest.update(repr((entry.name, entry.spec)).encode())
            _digest(digest, entry.private)
        _digest(digest, tensors_of(self.net.model))
        return digest.hexdigest()[:32]

    def only(self, *names: str) -> Menu:
        """Return the menu with some of its entries alone.

        Raises:
            SpecError: there is no such entry, or none is named.

        Example:
            >>> menu.only("m100-b4", "m50-b2").save("small.nest", integers=True)
        """
        kept = {self[name].name for name in names}
        if not kept:
            listed = ", ".join(entry.name for entry in self.entries)
            raise SpecError(f"a menu has at least one entry, but none is named; it has {listed}")
        return replace(self, entries=tuple(e for e in self.entries if e.name in kept))

    def save(self, path: str | Path, *, integers: bool = False) -> Path:
        """Write one file with the weights (once) and the menu, and the profile beside it.

        Args:
            path: ends in `.nest`.
            integers: write the weights that no entry has in floating point as integers of as many
                bits as the entry of most bits has. The file is smaller, and what is read from it
                computes the same for every entry; but the finer bits are gone, for training too.

        Returns:
            The path of the file.

        Raises:
            FileError: the file cannot be written.
            SpecError: the units were reordered or the weights changed since the menu was made; or
                there are no weights to write as integers.
            ModelError: weights to write as integers are NaN or infinite, or nearly all of a layer's
                lie beyond their scale.
        """
        self.check_current()
        parts = self.net, self.entries, self.metric, self.order, self.profile, self.facts
        return modelfile.save(Contents(*parts), Path(path), integers=integers)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: nn.Module | None = None,
        *,
        only: Sequence[str] | None = None,
    ) -> Menu:
        """Return the menu of a file, with its weights; `nestling.load` makes it ready to run.

        What the file offers was settled where it was made. Where the profile beside it has a
        narrowing of this device, with the present number of threads, that one decides instead.

        Args:
            path: of the file.
            model: an instance of the user's own class, as for `nestling.load`.
            only: names of the entries to load, as for `nestling.load`.

        Raises:
            FileError: the file is missing, damaged, of another version, or does not fit the model.
            SpecError: the file has no entry of a name in `only`, or none is named.
        """
        menu = cls(*modelfile.read(path, model, only=only))
        for key, narrowing in reversed(list(menu.profile.narrowings.items())):
            if key == menu.key(key.batch):
                table = menu.profile.tables.get(key, {})
                return replace(menu, entries=settle_offers(menu.entries, table, narrowing))
        return menu


def make_menu(
    net: Supernet,
    specs: Iterable[Mapping[str, int]] | Mapping[str, Mapping[str, int]],
    val: Iterable[Any] | None = None,
    *,
    calibrate: Iterable[Any] | None = None,
    metric: Metric = accuracy,
    measure: bool = True,
    narrow: float = 0,
) -> Menu:
    """Return a menu for specs: each recalibrated, evaluated, counted and measured on this device.

    Args:
        net: a trained supernet.
        specs: specs or counts, or a mapping from names to them; the names are made from the share
            of the full net's MACs otherwise. The full net is added if it is missing.
        val: held-out `(inputs, targets)` batches; None leaves the accuracies open.
        calibrate: training batches; the first 50 measure each subnet's norm statistics.
        metric: mean score of a batch, larger is better; top-1 accuracy by default.
        measure: whether to measure latencies at batch 1 now.
        narrow: seconds for measuring, at batch 1, which counts are worth having on this device: one
            that is no faster than a larger one gives way to it. The specs' subnets then contain
            those that were asked for, and fewer may be left. 0 takes the specs as they are.

    Raises:
        SpecError: an unknown axis or count, a name that is no plain text, or one spec under two
            names.
        ModelError: the net has norm statistics, but `calibrate` is not given; or with `narrow`,
            inputs cannot be made up.
        DataError: batches that do not fit, hold NaN, or are none.

    Example:
        >>> specs = [net.space.spec(fraction=f) for f in (1.0, 0.5, 0.25)]
        >>> menu = nestling.make_menu(net, specs, val, calibrate=train)
    """
    check_supernet(net, "make_menu")
    named = _named(net, specs)
    if net.private and calibrate is None and len(named) > 1:
        raise ModelError(
            "subnets of a net with norm statistics must be recalibrated, but calibrate= is not "
            "given; pass training batches"
        )
    check_narrow(narrow)
    found = narrowing_of(net, named.values(), seconds=narrow) if narrow else None
    modules = {name: (spec, net.subnet(spec)) for name, spec in named.items()}
    return menu_of(
        net,
        modules,
        val,
        calibrate=calibrate,
        metric=metric,
        measure=measure,
        narrowing=found,
    )


def menu_of(
    net: Supernet,
    modules: Mapping[str, tuple[Spec, nn.Module]],
    val: Iterable[Any] | None,
    *,
    calibrate: Iterable[Any] | None,
    metric: Metric = accuracy,
    measure: bool = True,
    narrowing: Narrowing | None = None,
) -> Menu:
    """Return a menu for modules that are subnets of a net or stand-alone nets of the same shapes.

    Norm statistics are measured afresh, but for those of subnets that are known to have their own.
    With a `narrowing`, which is that of batch 1 on this device, subnets give way to the larger ones
    that it shows to cost no time; stand-alone nets stay.

    Raises:
        DataError: batches that do not fit, hold NaN, or are none.
        SpecError: a stand-alone net for a spec of weights in few bits.
    """
    if val is not None:
        check_rereadable(val)
    batches = _first(calibrate, CALIBRATION) if net.private else []
    if narrowing is not None:
        modules = _narrowed(net, modules, narrowing)
    entries = []
    for name, (spec, module) in modules.items():
        tie = binding(module)
        due = tie is not None and not tie.full and not tie.measured
        if calibrate is not None and net.private and due:
            _recalibrate(net, module, batches)
        held_out = None if val is None else _Counted(val)
        reached = None if held_out is None else evaluate(module, held_out, metric)
        scored = held_out.examples if held_out is not None and metric is accuracy else None
        if tie is None:
            check_alone(net, spec)
        costs = net.space.macs(spec), net.space.params(spec), net.space.bytes(spec)
        private = _private(net, module)
        entries.append(Entry(name, spec, *costs, reached, scored=scored, private=private))
    entries.sort(key=lambda entry: (entry.macs, entry.bytes), reverse=True)
    label = "accuracy" if metric is accuracy else getattr(metric, "__name__", "metric")
    menu = Menu(net, tuple(entries), label, net.order)
    profile = Profile(menu.identity(), {})
    if narrowing is not None:
        profile = profile.with_narrowing(menu.key(), narrowing)
    menu = replace(menu, profile=profile)
    return menu.measured() if measure else menu


def check_alone(net: Supernet, spec: Spec) -> None:
    """Check that a stand-alone net can be of a spec: that all of its weights keep their bits.

    Raises:
        SpecError: it cannot.
    """
    fewer = [each.axis for each in net.space.codings if each.weight_bits(spec) != FULL]
    if fewer:
        raise SpecError(
            f"a stand-alone net has floating-point weights, but the spec keeps {spec[fewer[0]]} of "
            f"{FULL} bits of axis {fewer[0]!r}: train it as a subnet, net.subnet(spec), or leave "
            "the axes of kind bits full"
        )


def backend(packed: bool) -> str:
    """Return what the latencies of packed copies, or of views, are filed under."""
    return "packed" if packed else "eager"


def module_of(net: Supernet, entry: Entry) -> nn.Module:
    """Return an entry's subnet in evaluation mode, holding the entry's own tensors."""
    module = net.subnet(entry.spec)
    own = entry.private
    tie = binding(module)
    if tensors_of(module).keys() <= own.keys():
        return _alone(net, module, own)
    take(module, {name: own[name] for name, _ in module.named_parameters() if name in own})
    if tie is None or not tie.full:  # the full net's statistics are the supernet's own
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in own:
                    buffer.copy_(own[name])
    return module.eval()


def _alone(net: Supernet, module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    packed = packed_copy(net, module)
    fill(packed, tensors)
    return packed


def _narrowed(
    net: Supernet, modules: Mapping[str, tuple[Spec, nn.Module]], narrowing: Narrowing
) -> dict[str, tuple[Spec, nn.Module]]:
    """Return the modules, subnets replaced by those that a narrowing uses; equal ones once.

    Names that tell the share of MACs are made anew; those of the user stay.
    """
    used = {
        # Only what shares all of the net's weights has more units to take.
        name: spec if _owns(module) else Spec(net.space, narrowing.used(spec))
        for name, (spec, module) in modules.items()
    }
    # What was asked for keeps its name where a smaller one is rounded up to it.
    taken = {spec for name, (spec, _) in modules.items() if used[name] == spec}
    found: dict[str, tuple[Spec, nn.Module]] = {}
    for name, (spec, module) in modules.items():
        if used[name] == spec:
            found[name] = spec, module
        elif used[name] not in taken:
            taken.add(used[name])
            found[name] = used[name], net.subnet(used[name])
    before = {name: spec for name, (spec, _) in modules.items()}
    if names_for(net.space, before.values()) != before:
        return found
    named = names_for(net.space, [spec for spec, _ in found.values()])
    return dict(zip(named, found.values(), strict=True))


def _owns(module: nn.Module) -> bool:
    """Return whether a module has weights of its own."""
    tie = binding(module)
    return tie is None or bool(tie.own)


class _Counted:
    """Batches that count their examples while they are read."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self.examples = 0

    def __iter__(self) -> Iterator[Any]:
        self.examples = 0
        for batch in self._batches:
            yield batch
            self.examples += size(pair(batch)[0])


def _private(net: Supernet, module: nn.Module) -> dict[str, Tensor]:
    tie = binding(module)
    if tie is None:
        return cloned(tensors_of(module))
    own = {name: buffer for name, buffer in module.named_buffers() if name in net.private}
    return {} if tie.full else cloned({**own, **tie.own})


def _recalibrate(net: Supernet, module: nn.Module, batches: Sequence[Any]) -> None:
    if not batches:
        raise DataError("calibrate= must yield at least one batch of training data, but has none")
    device = next(net.parameters()).device
    with blamed("the model must accept the inputs of calibrate=", inputs_of(batches[0])):
        net.recalibrate(module, (move(inputs_of(batch), device) for batch in batches))


def _digest(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(name.encode())
        digest.update(memoryview(flat.view(torch.uint8).numpy()))  # type: ignore[arg-type]


def _named(
    net: Supernet, specs: Iterable[Mapping[str, int]] | Mapping[str, Mapping[str, int]]
) -> dict[str, Spec]:
    space = net.space
    if isinstance(specs, Spec) or not isinstance(specs, Iterable):
        raise SpecError("specs= is a list of specs, or a mapping from names to them; write [spec]")
    each = list(specs.values()) if isinstance(specs, Mapping) else list(specs)
    if not each:
        raise SpecError(
            "a menu has at least one spec, but none was given; try "
            "nestling.search.ladder(net.space)"
        )
    for spec in each:
        if not isinstance(spec, Mapping):
            raise SpecError(f"a spec maps axis names to counts, but got {spec!r:.80}")
    checked = [space.spec(dict(spec)) for spec in each]
    if not isinstance(specs, Mapping):
        named = names_for(space, checked)
    else:
        named = dict(zip(map(checked_name, specs), checked, strict=True))
        if len(set(checked)) < len(checked):
            raise SpecError("each name of a menu stands for another spec, but two are equal")
    if space.full in named.values():
        return named
    if "full" in named:
        raise SpecError("the name 'full' is the full net's; give that spec another name")
    return {"full": space.full, **named}


def _first(batches: Iterable[Any] | None, count: int) -> list[Any]:
    if batches is None:
        return []
    found = []
    for batch in batches:
        check_finite(inputs_of(batch))
        found.append(batch)
        if len(found) == count:
            break
    return found


def _key(net: Supernet, batch: int, backend: str) -> Key:
    parameter = next(net.parameters())
    dtype = str(parameter.dtype).removeprefix("torch.")
    return this_key(batch, device=parameter.device, backend=backend, dtype=dtype)
