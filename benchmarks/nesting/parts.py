"""Parts: which kinds of units are nested in which net, and what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comparison.cases import BASELINE, DENSE, PLAIN, UNIFORM_SHAPE, Case, Shape
from comparison.protocols import Protocol, protocol

from nestling.errors import ModelError, did_you_mean

METHOD = "nested"
ALL = "all kinds"
EQUAL = ", equal compute"
EVERY = 4  # steps for which a draw is kept, in the variant


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
    """

    name: str
    net: str
    data: str
    labels: tuple[str, ...]
    rival: bool = False
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


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
PARTS = {
    each.name: each
    for each in (
        Part("channels", "resnet20", "cifar10", ("channels",), rival=True, variants=VARIANTS),
        Part("depth", "resnet56", "cifar10", ("depth",)),
        Part("neurons", "mlp", "fashion-mnist", ("neurons",)),
        Part("paths", "resnext29", "cifar10", ("paths",)),
        Part("all", "resnext29", "cifar10", (ALL, "channels", "paths", "depth")),
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
    """Return the protocol of a part; changes that are None change nothing."""
    return protocol(name, part.net, **{"data": part.data, **_given(changes)})


def cases(part: Part, of: Protocol) -> list[Case]:
    """Return all cases of a part, seed by seed; what others need comes before them."""
    return [case for seed in of.seeds for case in _of_seed(part, seed)]


def _of_seed(part: Part, seed: int) -> list[Case]:
    found = [_nested(label, label, seed) for label in part.labels]
    found.append(Case(PLAIN, "individual", {}, seed, shapes=(Shape(UNIFORM_SHAPE, 1.0),)))
    if part.rival:
        label = part.labels[0]
        long = _nested(label + EQUAL, label, seed, equals=(label,), compute=BASELINE)
        found += [Case(BASELINE, "uniform", {}, seed), long]
    for words, options in part.variants.items():
        label = part.labels[0]
        found.append(_nested(f"{label}, {words}", label, seed, options, group="variants"))
    return found


def _nested(
    label: str, kind: str, seed: int, options: Mapping[str, Any] | None = None, **more: Any
) -> Case:
    kinds = {} if kind == ALL else {"kinds": [kind]}
    given = {"fractions": list(DENSE), **kinds, **(options or {})}
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
