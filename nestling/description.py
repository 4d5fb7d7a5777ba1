"""The report on a space: what is elastic, what is frozen and why, what to do about it.

It reads a space through the protocols below and so stands above `spec.py`, whose `Space` prints
itself with `describe`. The same facts are text for people and plain data for programs.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nestling import extent as extents
from nestling.advice import ADVICE, Advice, advice_on
from nestling.coding import Coding
from nestling.extent import Counts, Extent

WIDTH = 100  # columns of the report
SMALL = 0.01  # share of the parameters under which an expected reason is no news


class Axis(Protocol):
    """What the report reads of an axis."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def kind(self) -> str:
        """What a unit is."""

    @property
    def size(self) -> int:
        """Units of the full net."""

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of units that a spec may keep."""

    @property
    def outer(self) -> bool:
        """Whether the uniform width cuts it."""


class Frozen(Protocol):
    """What the report reads of a frozen dimension."""

    @property
    def parameter(self) -> str:
        """The parameter's name."""

    @property
    def dim(self) -> int:
        """The dimension's number."""

    @property
    def size(self) -> int:
        """Its entries."""

    @property
    def op(self) -> str:
        """The op that froze it."""

    @property
    def module(self) -> str:
        """Path of the module that ran the op."""

    @property
    def reason(self) -> str:
        """Why it cannot be cut."""


class Layout(Protocol):
    """What the report reads of a tensor's layout."""

    @property
    def extents(self) -> tuple[Extent, ...]:
        """What its dimensions are made of."""

    @property
    def parameter(self) -> bool:
        """Whether it is a parameter, not a buffer."""


class Block(Protocol):
    """What the report reads of a residual block."""

    @property
    def module(self) -> str:
        """Its path."""

    @property
    def axis(self) -> str:
        """The depth axis of its stage."""

    @property
    def place(self) -> int:
        """How many blocks of the stage come before it."""


class Space(Protocol):
    """What the report reads of a space."""

    @property
    def axes(self) -> Mapping[str, Axis]:
        """Name to axis."""

    @property
    def frozen(self) -> Sequence[Frozen]:
        """Every dimension that cannot be cut."""

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """Parameter or buffer name to what its dimensions are made of."""

    @property
    def blocks(self) -> Sequence[Block]:
        """The residual blocks that subnets of less depth pass by."""

    @property
    def codings(self) -> Sequence[Coding]:
        """The layers whose weights and inputs can be in few bits."""

    @property
    def notes(self) -> Sequence[str]:
        """What the proof has to say."""

    def touches(self, name: str) -> list[tuple[str, int]]:
        """Return the dimensions that an axis cuts."""

    def gathers(self, name: str) -> list[tuple[str, int]]:
        """Return those whose cut is not one range."""

    def elastic_share(self) -> float:
        """Return the share of the parameters in tensors with an elastic dimension."""

    def macs(self, spec: Counts) -> int:
        """Return the multiply-accumulates for some counts."""

    def params(self, spec: Counts) -> int:
        """Return the parameters for some counts."""


# -- facts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cause:
    """One reason for which dimensions keep their size, in one op of one module.

    Attributes:
        reason: in words.
        op: the op that was running; empty if it was none.
        module: path of the module that was running.
        advice: what the user can do.
        rows: the dimensions.
        lost: the parameter tensors that no axis cuts. One that several causes keep whole counts
            once, where something can be done about it.
        params: the parameters in them.
    """

    reason: str
    op: str
    module: str
    advice: Advice
    rows: tuple[Frozen, ...]
    lost: tuple[str, ...]
    params: int


def causes(space: Space) -> list[Cause]:
    """Return what keeps dimensions from being cut, the most costly cause first."""
    groups: dict[tuple[str, str, str], list[Frozen]] = {}
    for row in space.frozen:
        groups.setdefault((row.reason, row.op, row.module), []).append(row)
    advice = {key: advice_on(key[0]) for key in groups}
    rank = sorted(groups, key=lambda key: _hope(advice[key]))
    blamed: dict[str, tuple[str, str, str]] = {}
    for key in rank:
        for row in groups[key]:
            blamed.setdefault(row.parameter, key)
    found = []
    for key, rows in groups.items():
        tensors = [name for name, blame in blamed.items() if blame == key]
        lost = {name: _shape(space, name) for name in tensors if _is_whole(space, name)}
        params = sum(map(math.prod, lost.values()))
        found.append(Cause(*key, advice[key], tuple(rows), tuple(lost), params))
    return sorted(found, key=lambda cause: -cause.params)


def _shape(space: Space, name: str) -> tuple[int, ...]:
    return tuple(extent.size for extent in space.layouts[name].extents)


def _is_whole(space: Space, name: str) -> bool:
    """Return whether no axis cuts a tensor."""
    layout = space.layouts.get(name)
    return layout is not None and not any(any(extents.axes_of(e)) for e in layout.extents)


def _hope(advice: Advice) -> int:
    """Return how little a user can do: 0 much, 1 something, 2 nothing at all."""
    return 2 if not advice.text else 1 if advice.expected else 0


def whole_params(space: Space) -> int:
    """Return the parameters of the full net."""
    return space.params({})


def axis_facts(space: Space, name: str) -> dict[str, Any]:
    """Return all that is known of an axis, as JSON values.

    Args:
        space: the space.
        name: of the axis.

    Returns:
        name, kind, size, counts, outer; `tensors`: for each cut dimension the tensor, the
        dimension, its size, whether the tensor is a parameter, whether the cut is a view; `blocks`:
        the modules that a depth axis passes by; `half`: the count nearest to half, and the
        multiply-accumulates and parameters that the net loses there.
    """
    axis = space.axes[name]
    gathered = set(space.gathers(name))
    half = min(axis.counts, key=lambda count: (abs(count - axis.size / 2), -count))
    cut = {name: half}
    return {
        "name": name,
        "kind": axis.kind,
        "size": axis.size,
        "counts": list(axis.counts),
        "outer": axis.outer,
        "tensors": [
            {
                "tensor": tensor,
                "dim": dim,
                "size": space.layouts[tensor].extents[dim].size,
                "parameter": space.layouts[tensor].parameter,
                "cut": "gather" if (tensor, dim) in gathered else "view",
            }
            for tensor, dim in space.touches(name)
        ],
        "blocks": [block.module for block in space.blocks if block.axis == name],
        "half": {
            "count": half,
            "macs": space.macs({}) - space.macs(cut),
            "params": space.params({}) - space.params(cut),
        },
    }


def cause_facts(cause: Cause) -> dict[str, Any]:
    """Return a cause as JSON values."""
    return {
        "key": cause.advice.key,
        "reason": cause.reason,
        "op": cause.op,
        "module": cause.module,
        "params": cause.params,
        "lost": list(cause.lost),
        "dimensions": [
            {"parameter": row.parameter, "dim": row.dim, "size": row.size} for row in cause.rows
        ],
        "expected": bool(cause.advice.expected),
        "advice": cause.advice.text,
    }


# -- text -------------------------------------------------------------------------------------


def describe(space: Space, fold: bool = True) -> str:
    """Return the report on a space as text: the axes, then what is frozen and why.

    Args:
        space: the space.
        fold: show as one line what differs in the number of a layer alone.
    """
    total = whole_params(space)
    number = _number(len(space.axes), "elastic axis", "elastic axes")
    share = _share(space.elastic_share())
    lines = [f"{number}; {share} of the {total:,} parameters are in tensors that they cut"]
    if space.axes:
        heads = ("axis", "kind", "size", "counts", "tensors cut")
        lines += ["", *_table([heads, *_axis_rows(space, fold)])]
    lines += _frozen_lines(space, total, fold)
    notes = folded({note: "" for note in map(_tie_folded, space.notes)}, together=True)
    for note, members in notes if fold else ((note, [note]) for note in space.notes):
        times = f" ({len(members)} times)" if len(members) > 1 else ""
        lines += ["", *_wrapped(f"note: {note}{times}")]
    return "\n".join(lines)


def describe_axis(space: Space, name: str) -> str:
    """Return all that is known of one axis as text: every dimension that it cuts, and how."""
    facts = axis_facts(space, name)
    half, macs, params = facts["half"], max(space.macs({}), 1), max(space.params({}), 1)
    lines = [
        f"{name}: {facts['kind']}, {facts['size']} in the full net; a subnet keeps "
        f"{_counts(facts['counts'])}",
        f"at {half['count']} the net saves {half['macs']:,} multiply-accumulates "
        f"({_share(half['macs'] / macs)}) and {half['params']:,} parameters "
        f"({_share(half['params'] / params)})",
    ]
    if not facts["outer"]:
        plain = facts["blocks"] or facts["kind"] == "bits"
        inside = "" if plain else ", for it stands inside the units of another axis"
        lines += _wrapped(
            f"width= and fraction= leave it whole{inside}: give its count by name", ""
        )
    blocks = [(b.module, f"counts from {b.place + 1}") for b in space.blocks if b.axis == name]
    if blocks:
        lines += ["", *_table([("block", "kept by"), *blocks])]
    rows = [(f"{t['tensor']}[{t['dim']}]", str(t["size"]), t["cut"]) for t in facts["tensors"]]
    if rows:
        lines += ["", *_table([("tensor[dimension]", "size", "cut"), *rows])]
    return "\n".join(lines)


def _axis_rows(space: Space, fold: bool) -> list[tuple[str, ...]]:
    """Return kind, size, counts and cuts of each axis, or of each group of like axes."""
    kinds = {n: (a.kind, str(a.size), _counts(a.counts)) for n, a in space.axes.items()}
    cuts = {name: _cuts(space, [name]) for name in space.axes}
    groups = [(name, [name]) for name in kinds]
    if fold:
        same = {name: (cells, cuts[name]) for name, cells in kinds.items()}
        groups = folded(same, loose=kinds)
    rows: list[tuple[str, ...]] = []
    for name, members in groups:
        more = f" ({len(members)} axes)" if len(members) > 1 else ""
        rows.append((f"{name}{more}", *kinds[members[0]], _cuts(space, members)))
    return rows


def _cuts(space: Space, names: Sequence[str]) -> str:
    """Return how many tensors like axes cut, and how many of them by gathering."""
    depth = [block for block in space.blocks if block.axis == names[0]]
    if depth:
        axis = space.axes[names[0]]
        return f"{axis.size - axis.counts[0]} of {axis.size} blocks"
    if space.axes[names[0]].kind == "bits":
        held = any(coding.axis == names[0] for coding in space.codings)
        return "the bits of a weight" if held else "the bits of inputs"
    tensors = [len({tensor for tensor, _ in space.touches(name)}) for name in names]
    gathered = [len({tensor for tensor, _ in space.gathers(name)}) for name in names]
    if not any(gathered):
        return _between(tensors)
    return f"{_between(tensors)}, {'all' if gathered == tensors else _between(gathered)} gathered"


def _between(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _frozen_lines(space: Space, total: int, fold: bool) -> list[str]:
    """Return what is frozen: what was to be expected in one line, the rest cause by cause."""
    found = causes(space)
    calm = [c for c in found if c.advice.expected and not _is_news(space, c, total)]
    calm.sort(key=lambda cause: list(ADVICE.values()).index(cause.advice))
    loud = [c for c in found if c not in calm]
    lines = []
    if loud:
        lost = sum(cause.params for cause in loud)
        share = (
            f"{lost:,} parameters ({_share(lost / max(total, 1))}) are in tensors that no axis cuts"
        )
        lines += ["", f"frozen; {share}:" if lost else "frozen, in tensors that other axes cut:"]
    for reason, group in _like(loud, fold):
        lines += _cause_lines(reason, group)
    kinds: dict[str, int] = {}
    for cause in calm:
        kinds[cause.advice.expected] = kinds.get(cause.advice.expected, 0) + len(cause.rows)
    if calm:
        number = _number(sum(kinds.values()), "dimension keeps its", "dimensions keep their")
        listed = ", ".join(f"{number} {words}" for words, number in kinds.items())
        lines += ["", *_wrapped(f"as expected, {number} size: {listed}")]
    return lines


def _is_news(space: Space, cause: Cause, total: int) -> bool:
    """Return whether an expected reason costs more than the bias of the last layer."""
    matrix = any(sum(n > 1 for n in _shape(space, name)) > 1 for name in cause.lost)
    return matrix and cause.params > SMALL * total


def _like(found: Sequence[Cause], fold: bool) -> list[tuple[str, list[Cause]]]:
    """Return groups of causes that differ in the number of a layer alone, each with its words."""
    texts: dict[str, list[Cause]] = {}
    for cause in found:
        where = f"{cause.op} in {cause.module}" if cause.op and cause.module else cause.op
        texts.setdefault(f"{cause.reason} ({where})" if where else cause.reason, []).append(cause)
    groups = folded(dict.fromkeys(texts, ""), together=True) if fold else [(t, [t]) for t in texts]
    return [(text, [c for member in members for c in texts[member]]) for text, members in groups]


def _cause_lines(reason: str, group: Sequence[Cause]) -> list[str]:
    rows = [f"{row.parameter}[{row.dim}]" for cause in group for row in cause.rows]
    names = [name for name, _ in folded(dict.fromkeys(rows, ""))]
    more = f" and {len(names) - 4} more" if len(names) > 5 else ""
    shown = ", ".join(names[: 4 if more else None])
    params = sum(cause.params for cause in group)
    lost = f"{params:,} parameters, " if params else ""
    lines = _wrapped(f"  {reason}", "    ")
    lines += _wrapped(f"    {lost}{_number(len(rows), 'dimension')}: {shown}{more}", "      ")
    if group[0].advice.text:
        lines += _wrapped(f"    -> {group[0].advice.text}", "       ")
    return lines


# -- words ------------------------------------------------------------------------------------

NUMBER = re.compile(r"(?<![\d-])(0|[1-9]\d*)(?![\w-])")  # of a layer: `blocks.3`, `layer3`


def folded(
    texts: Mapping[str, object],
    together: bool = False,
    loose: Mapping[str, object] | None = None,
) -> list[tuple[str, list[str]]]:
    """Join texts that differ in one number alone and whose values are equal.

    Args:
        texts: text to what must be equal.
        together: a number that a text has at several places may differ at all of them at once.
        loose: text to what must be equal where the numbers follow one another.

    Returns:
        (text with the numbers as ranges, the texts that it stands for), in the order of the texts.

    Example:
        >>> folded({"blocks.0.mlp": 64, "blocks.1.mlp": 64, "head": 64})
        [('blocks.0-1.mlp', ['blocks.0.mlp', 'blocks.1.mlp']), ('head', ['head'])]
    """
    groups: dict[tuple[Any, ...], dict[int, str]] = {}
    for text, value in texts.items():
        for pieces, number in _ways(text, together):
            groups.setdefault((pieces, value, False), {})[number] = text
            if loose is not None:
                groups.setdefault((pieces, loose[text], True), {})[number] = text
    # The largest first; of equal ones the innermost number.
    ranked = sorted(groups.items(), key=lambda group: (-len(group[1]), -len(group[0][0][0])))
    home: dict[str, tuple[str, list[str]]] = {}
    for (pieces, _, consecutive), members in ranked:
        free = sorted(number for number, text in members.items() if text not in home)
        for run in _runs(free) if consecutive else [free]:
            if len(run) > 1:
                names = [members[number] for number in run]
                home |= dict.fromkeys(names, (ranges(run).join(pieces), names))
    done: set[str] = set()
    result = []
    for text in texts:
        joined = home.get(text, (text, [text]))
        if joined[0] not in done:
            result.append(joined)
            done.add(joined[0])
    return result


def _ways(text: str, together: bool) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield what is left of a text without one of its numbers, and the number."""
    spans = [match.span() for match in NUMBER.finditer(text)]
    ways = [[span] for span in spans]
    if together:
        same = [(text[slice(*span)], _word_before(text, span[0])) for span in spans]
        for number, word in same:
            ways.append([s for s, (n, _) in zip(spans, same, strict=True) if n == number])
            ways.append([s for s, one in zip(spans, same, strict=True) if one == (number, word)])
    for way in ways:
        yield _pieces(text, way), int(text[slice(*way[0])])


def _word_before(text: str, start: int) -> str:
    """Return the word before a place: a number of another word is of something else."""
    return text[:start].rstrip("._ ").rpartition(".")[2].rpartition(" ")[2]


def _pieces(text: str, spans: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Return what stands before, between and behind some places of a text."""
    ends = [0, *(stop for _, stop in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    return tuple(text[end:start] for end, start in zip(ends, starts, strict=True))


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers as ranges.

    Example:
        >>> ranges([0, 1, 2, 5])
        '0-2,5'
    """
    runs = _runs(sorted(numbers))
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Split ascending numbers where one is missing."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _tie_folded(note: str) -> str:
    """Return a note on tied axes with the names of repeated layers as ranges."""
    words, _, names = note.partition(": ")
    if not words.startswith("tied"):
        return note
    listed = folded(dict.fromkeys(names.split(", "), ""))
    return f"{words}: {', '.join(name for name, _ in listed)}"


def _counts(counts: Sequence[int]) -> str:
    """Return allowed counts: all of a few, else the first, the last and the step."""
    if len(counts) <= 3:
        return ", ".join(map(str, counts))
    step = counts[1] - counts[0]
    even = range(counts[0], counts[-1], step)
    if tuple(counts) != (*even, counts[-1]):
        return f"{', '.join(map(str, counts[:3]))} ... {counts[-1]}"
    return f"{counts[0]} to {counts[-1]}" + (f" by {step}" if step > 1 else "")


def _share(share: float) -> str:
    """Return a share in percent; what is not all is never said to be all, nor something nothing."""
    if 0 < share < 0.001 or 0.999 < share < 1:
        return "under 0.1%" if share < 0.5 else "over 99.9%"
    return f"{share:.0%}" if share in (0, 1) else f"{share:.1%}"


def _number(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned columns, numbers to the right; an overlong first cell has its own line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], max(24, WIDTH - sum(widths[1:]) - 2 * len(widths)))
    right = [all(row[i].isdigit() for row in rows[1:]) for i in range(len(widths))]
    lines = []
    for first, *rest in rows:
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(rest, widths[1:], right[1:], strict=True)
        ]
        if len(first) > widths[0]:
            lines.append(f"  {first}")
            first = ""
        lines.append("  ".join(["", first.ljust(widths[0]), *cells]).rstrip())
    return lines


def _wrapped(text: str, indent: str = "      ") -> list[str]:
    """Return a text in lines of the report's width, the first as it is, the others indented."""
    return textwrap.wrap(
        text,
        WIDTH,
        subsequent_indent=indent,
        drop_whitespace=True,
        break_long_words=False,
        break_on_hyphens=False,
    )
