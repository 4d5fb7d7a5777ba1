"""The menu: the subnets on offer, with measured figures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nestling.costs import latency
from nestling.costs.latency import Latency
from nestling.errors import ModelError, SpecError, did_you_mean
from nestling.evaluation import Metric, accuracy, evaluate
from nestling.profile import Key, Profile, this_key
from nestling.spec import Spec
from nestling.subnet import binding, pack
from nestling.supernet import Supernet

CALIBRATION = 50  # batches of training data that measure a subnet's norm statistics
LATENCY_SECONDS = 1.0  # longest time to measure one entry


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
    """

    net: Supernet
    entries: tuple[Entry, ...]
    metric: str = "accuracy"
    order: int = 0
    profile: Profile = field(default_factory=lambda: Profile("", {}))
    facts: Mapping[str, Any] = field(default_factory=dict)

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

    @property
    def full(self) -> Entry:
        """The largest entry: fractions are shares of its MACs."""
        return max(self.entries, key=lambda entry: entry.macs)

    def module(self, name: str) -> nn.Module:
        """Return the subnet of an entry, in evaluation mode, with its own norm statistics.

        Raises:
            SpecError: there is no such entry, or the units were reordered since.
        """
        entry = self[name]
        if self.order != self.net.order:
            raise SpecError(
                "this menu was made before the supernet's units were reordered; make it again "
                "with nestling.make_menu"
            )
        return module_of(self.net, entry)

    def measured(
        self, batch: int = 1, *, seconds: float = LATENCY_SECONDS, precision: float = 0.03
    ) -> Menu:
        """Return the menu with latencies measured on this device, and with `offered` settled anew.

        All entries are measured in turn within one run until each median is known to `precision`.

        Args:
            batch: examples in a call.
            seconds: longest time for one entry.
            precision: half width of the 95 % interval, relative to the median.
        """
        signature = self.net.signature
        device = next(self.net.parameters()).device
        args, kwargs = signature.example(batch, device)
        calls = {}
        for entry in self.entries:
            calls[entry.name] = _call(self.module(entry.name), args, kwargs)
        synchronize = torch.cuda.synchronize if device.type == "cuda" else None
        table = latency.measure(
            calls, precision=precision, seconds=seconds * len(calls), synchronize=synchronize
        )
        dtype = str(next(self.net.parameters()).dtype).removeprefix("torch.")
        key = this_key(batch, device=device, dtype=dtype)
        profile = self.profile.with_table(key, table)
        return replace(self, profile=profile, entries=settle_offers(self.entries, table))

    def latencies(self, batch: int = 1) -> Mapping[str, Latency]:
        """Return the latencies measured on this device with the present number of threads.

        Raises:
            BudgetError: there is no such profile.
        """
        return self.profile.table(self.key(batch))

    def key(self, batch: int = 1) -> Key:
        """Return what a profile of this menu on this device is filed under."""
        parameter = next(self.net.parameters())
        dtype = str(parameter.dtype).removeprefix("torch.")
        return this_key(batch, device=parameter.device, dtype=dtype)

    def identity(self) -> str:
        """Return what tells this menu from any other: a digest of its specs and weights."""
        digest = hashlib.sha256()
        for entry in self.entries:
            digest.update(repr((entry.name, entry.spec)).encode())
        for name, tensor in sorted(self.net.state_dict().items()):
            digest.update(name.encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:32]

    def save(self, path: str | Path) -> Path:
        """Write one file with the weights (once) and the menu, and the profile beside it.

        Args:
            path: ends in `.nest`.

        Returns:
            The path of the file.

        Raises:
            FileError: the file cannot be written.
            SpecError: the units were reordered since the menu was made.
        """
        from nestling.modelfile import save  # the file knows the menu, so it is imported late

        return save(self, Path(path))


def make_menu(
    net: Supernet,
    specs: Iterable[Mapping[str, int]] | Mapping[str, Mapping[str, int]],
    val: Iterable[Any] | None = None,
    *,
    calibrate: Iterable[Any] | None = None,
    metric: Metric = accuracy,
    measure: bool = True,
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

    Raises:
        SpecError: an unknown axis or count, or two equal specs.
        ModelError: the net has norm statistics, but `calibrate` is not given.

    Example:
        >>> specs = [net.space.spec(fraction=f) for f in (1.0, 0.5, 0.25)]
        >>> menu = nestling.make_menu(net, specs, val, calibrate=train)
    """
    named = _named(net, specs)
    if net.private and calibrate is None and len(named) > 1:
        raise ModelError(
            "subnets of a net with norm statistics must be recalibrated, but calibrate= is not "
            "given; pass training batches"
        )
    modules = {name: (spec, net.subnet(spec)) for name, spec in named.items()}
    return menu_of(net, modules, val, calibrate=calibrate, metric=metric, measure=measure)


def menu_of(
    net: Supernet,
    modules: Mapping[str, tuple[Spec, nn.Module]],
    val: Iterable[Any] | None,
    *,
    calibrate: Iterable[Any] | None,
    metric: Metric = accuracy,
    measure: bool = True,
) -> Menu:
    """Return a menu for modules that are subnets of a net or stand-alone nets of the same shapes."""
    batches = _first(calibrate, CALIBRATION)
    entries = []
    for name, (spec, module) in modules.items():
        tie = binding(module)
        if batches and tie is not None and not tie.full:
            net.recalibrate(module, batches)
        score = None if val is None else evaluate(module, val, metric)
        costs = net.space.macs(spec), net.space.params(spec), net.space.bytes(spec)
        entries.append(Entry(name, spec, *costs, score, private=_private(net, module)))
    entries.sort(key=lambda entry: entry.macs, reverse=True)
    label = "accuracy" if metric is accuracy else getattr(metric, "__name__", "metric")
    menu = Menu(net, tuple(entries), label, net.order)
    menu = replace(menu, profile=Profile(menu.identity(), {}))
    return menu.measured() if measure else menu


def settle_offers(entries: Sequence[Entry], table: Mapping[str, Latency]) -> tuple[Entry, ...]:
    """Return the entries with `offered` False where another one is clearly faster and as accurate.

    Clearly means that the 95 % intervals of the medians do not overlap. Such an entry stays listed,
    so that a noisy machine does not change the menu's length.
    """

    def beaten(entry: Entry) -> bool:
        return any(
            table[other.name].high < table[entry.name].low and score(other) >= score(entry)
            for other in entries
            if other is not entry and other.name in table
        )

    return tuple(
        replace(entry, offered=not (entry.name in table and beaten(entry))) for entry in entries
    )


def module_of(net: Supernet, entry: Entry) -> nn.Module:
    """Return an entry's subnet in evaluation mode, holding the entry's own tensors."""
    module = net.subnet(entry.spec)
    own = dict(entry.private)
    parameters = dict(module.named_parameters())
    if own.keys() & parameters.keys():
        return _alone(module, own)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name in own and own[name] is not buffer:
                buffer.copy_(own[name])
    return module.eval()


def _alone(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    packed = pack(module)
    packed.load_state_dict(dict(tensors), strict=True)
    return packed.eval()


def _private(net: Supernet, module: nn.Module) -> dict[str, Tensor]:
    if binding(module) is None:
        return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    return {
        name: buffer.detach().clone()
        for name, buffer in module.named_buffers()
        if name in net.private
    }


def _named(
    net: Supernet, specs: Iterable[Mapping[str, int]] | Mapping[str, Mapping[str, int]]
) -> dict[str, Spec]:
    space = net.space
    if isinstance(specs, Mapping):
        named = {str(name): space.spec(dict(spec)) for name, spec in specs.items()}
    else:
        named = names_for(net, [space.spec(dict(spec)) for spec in specs])
    if not named:
        raise SpecError(
            "a menu has at least one spec, but none was given; try nestling.ladder(net.space)"
        )
    if space.full not in named.values():
        named = {"full": space.full, **named}
    return named


def names_for(net: Supernet, specs: Iterable[Spec]) -> dict[str, Spec]:
    """Name specs by their share of the full net's MACs: `full`, `m50`, `m25` ...

    Example:
        >>> list(nestling.menu.names_for(net, [net.space.spec(fraction=0.5)]))
        ['m46']
    """
    full = net.space.macs(net.space.full)
    named: dict[str, Spec] = {}
    for spec in dict.fromkeys(specs):
        share = 100 * net.space.macs(spec) / full
        base = (
            "full" if spec == net.space.full else f"m{share:.0f}" if share >= 1 else f"m{share:.2g}"
        )
        name, number = base, 1
        while name in named:
            number += 1
            name = f"{base}-{number}"
        named[name] = spec
    return named


def _first(batches: Iterable[Any] | None, count: int) -> list[Any]:
    if batches is None:
        return []
    found = []
    for batch in batches:
        found.append(batch)
        if len(found) == count:
            break
    return found


def _call(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return module(*args, **kwargs)

    return run
