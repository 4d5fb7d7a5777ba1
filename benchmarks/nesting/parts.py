"""Parts: which kinds of units are nested in which net, and what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comparison.cases import BASELINE, DENSE, PLAIN, UNIFORM_SHAPE, Case, Shape, by_itself
from comparison.protocols import FULL, NETS, PRETRAINED, Protocol, protocol

from nestling.errors import ModelError, did_you_mean

METHOD = "nested"
ALL = "all kinds"
EQUAL = ", equal compute"
ANY_PRECISION, ADABITS = "any-precision", "adabits"
EVERY = 4  # steps for which a draw is kept, in the variant
LOOKED = 1_000  # held-out pictures that the search of a short training looks at
SHORT_SEARCH = {"groups": 4, "look": 2}  # which would take longer than the training otherwise
# Shares of the MACs in a short training: the budgets, and what is about as often among the units
# removed. Scoring a subnet takes as long as half an epoch.
FEWER = (1.0, 0.95, 0.9, 0.8, 0.75, 0.65, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1)
FEW = {"pictures": 5_000, "epochs": 5, "batch": 64, "held_out": 2_500}


@dataclass(frozen=True)
class Part:
    """A question, the net that it is asked of, and the kinds whose nets answer it.

    Attributes:
        name: of the part.
        net: one of `comparison.protocols.NETS`.
        data: a data set of `nestling.data`.
        labels: of the main cases: a kind that is nested alone, or all kinds.
        rival: whether Universally Slimmable trains too, at equal epochs and at equal compute.
        variants: further options of the first main case, by what tables call them.
        bits: numbers of bits of nets that are trained alone; none where bits are not nested.
            Any-Precision and AdaBits train too then, and we at equal compute.
        short: what protocols other than the full one have otherwise.
        long: whether the part is of the full protocol alone, unless it is named.
    """

    name: str
    net: str
    data: str
    labels: tuple[str, ...]
    rival: bool = False
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    bits: tuple[int, ...] = ()
    short: Mapping[str, Any] = field(default_factory=dict)
    long: bool = False

    @property
    def called(self) -> str:
        """What the net is called where it does not matter which layers may be in few bits."""
        return self.net.removesuffix("-bits")

    def asked_of(self, name: str) -> bool:
        """Return whether a protocol has this part without its being named."""
        if name == PRETRAINED.name:
            return NETS[self.net].builder == NETS[PRETRAINED.net].builder
        return name == FULL.name or not self.long


VARIANTS: dict[str, dict[str, Any]] = {
    "geometric 0.8": {"law": "geometric", "go_on": 0.8},
    "geometric 0.9": {"law": "geometric", "go_on": 0.9},
    "geometric 0.95": {"law": "geometric", "go_on": 0.95},
    "tied": {"tied": "kind"},
    f"drawn every {EVERY} steps": {"every": EVERY},
    "idle units move": {"idle": "moves"},
    "one set of statistics": {"statistics": "shared"},
    "all axes looked at": {"search_options": {"look": None}},
}
BITS_VARIANTS: dict[str, dict[str, Any]] = {
    "one number for all layers": {"tied": "kind"},
    "idle units move": {"idle": "moves"},
}
PARTS = {
    each.name: each
    for each in (
        Part("channels", "resnet20", "cifar10", ("channels",), rival=True, variants=VARIANTS),
        Part("depth", "resnet56", "cifar10", ("depth",)),
        Part("neurons", "mlp", "fashion-mnist", ("neurons",)),
        Part("paths", "resnext29", "cifar10", ("paths",)),
        Part("all", "resnext29", "cifar10", (ALL, "channels", "paths", "depth")),
        Part(
            *("bits", "resnet20-bits", "cifar10", ("bits",)),
            variants=BITS_VARIANTS,
            bits=(8, 4, 3, 2),
            short=FEW,
        ),
        Part(
            *("wide bits", "preact-resnet20-bits", "cifar10", ("bits",)),
            variants=BITS_VARIANTS,
            bits=(8, 4, 3, 2, 1),
            short=FEW,
            long=True,
        ),
    )
}


def part_of(name: str) -> Part:
    """Return a part by its name.

    Raises:
        ModelError: there is none.
    """
    if name not in PARTS:
        raise ModelError(
            f"unknown part {name!r}{did_you_mean(name, PARTS)}; the parts are {', '.join(PARTS)}"
        )
    return PARTS[name]


def protocol_of(part: Part, name: str, **changes: Any) -> Protocol:
    """Return the protocol of a part; changes that are None change nothing.

    Where a search chooses subnets on held-out pictures, no method trains on these, so that
    variants can be chosen by them too; where numbers of bits are listed, all train on all.
    """
    own: dict[str, Any] = {} if part.bits else {"all_pictures": False}
    own |= part.short if name != FULL.name else {}
    return protocol(name, part.net, **{"data": part.data, **own, **_given(changes)})


def cases(part: Part, of: Protocol) -> list[Case]:
    """Return all cases of a part, seed by seed; what others need comes before them."""
    return [case for seed in of.seeds for case in _of_seed(part, of, seed)]


def _of_seed(part: Part, of: Protocol, seed: int) -> list[Case]:
    label = part.labels[0]
    found = [_nested(of, each, each, seed) for each in part.labels]
    whole = (Shape(UNIFORM_SHAPE, 1.0),)
    found.append(Case(PLAIN, "individual", by_itself(of), seed, shapes=whole))
    if part.rival:
        found.append(Case(BASELINE, "uniform", {}, seed))
    if part.bits:
        found += [Case(each, each, {}, seed) for each in (ANY_PRECISION, ADABITS)]
    against = BASELINE if part.rival else ANY_PRECISION if part.bits else None
    if against is not None:
        equal: dict[str, Any] = {"equals": (label,), "compute": against}
        found.append(_nested(of, label + EQUAL, label, seed, **equal))
    for words, options in part.variants.items():
        found.append(_nested(of, f"{label}, {words}", label, seed, options, group="variants"))
    if part.bits:
        found.append(
            Case(f"{ANY_PRECISION}, SGD", ANY_PRECISION, {"adam": False}, seed, "variants")
        )
    for bits in part.bits:
        found.append(Case(f"alone {bits} bits", "few-bits", {"bits": bits}, seed, "alone"))
    return found


def _nested(
    of: Protocol,
    label: str,
    kind: str,
    seed: int,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> Case:
    kinds = {} if kind == ALL else {"kinds": [kind]}
    if kind == "bits":  # nothing is searched: the numbers of bits are listed
        return Case(label, METHOD, {"fractions": [1.0], **kinds, **(options or {})}, seed, **more)
    short = of.name != FULL.name
    given = {"fractions": list(FEWER if short else DENSE), **kinds, **(options or {})}
    if short:
        given["search_options"] = {**SHORT_SEARCH, **given.get("search_options", {})}
        more["looked_at"] = LOOKED
    return Case(label, METHOD, given, seed, **more)


def _given(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if value is not None}


def parts_in(labels: Sequence[str], net: str) -> list[Part]:
    """Return the parts that results of a net answer: those of which every main case is there."""
    return [
        part
        for part in PARTS.values()
        if part.net == net and all(label in labels for label in part.labels)
    ]
