"""Names and kinds of axes: what a unit is, and where in the model it is made.

A name is a module path, followed by the kind where the path does not tell it: `layer2`,
`blocks.3.attn.heads`, `model.embedding`. It follows from the modules that produce the axis (a
change elsewhere does not rename it). Where several axes would share a name, all of them take a
narrower one: the part of the model where most of their producers are, then the first block, then
the first producer; at last what they are in the dimension that they share, as `wide.outer` and
`wide.inner`, or `stem.part1` and `stem.part2`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from nestling.axes import expression as algebra
from nestling.axes.expression import Atom, Expression
from nestling.axes.tracer import Trace

KINDS = ("heads", "head_size", "paths", "embedding", "channels", "neurons")  # strongest first
PLAIN = ("channels", "neurons")  # kinds that need no mention in an axis's name
ATTENTION = ("heads", "head_size")
ATTENTION_PAIRS = {  # two axes of one attention: the one that stands in more weights first
    "heads": ("kv_heads", "heads_per_kv"),
    "head_size": ("v_head_size", "qk_head_size"),
}
EMPTY_WORDS = ("self",)  # a last word of a path that says no more than the one before it


def kinds_of(record: Trace, tensors: Mapping[str, Sequence[Expression]]) -> dict[Atom, str]:
    """Return what the units of each produced atom are.

    The strongest of what its producers say, but channels or neurons that attention reads or writes
    are an embedding, whatever makes them first (the patches of a picture come from a convolution).

    Args:
        record: the trace.
        tensors: name of a parameter or buffer to its dimensions.
    """
    kinds: dict[Atom, str] = {}
    for expression, _, kind in record.produced:
        for atom in _atoms(expression):
            known = kinds.get(atom, kind)
            kinds[atom] = min(known, kind, key=KINDS.index)
    inside = _attention_paths(record)
    for name, expressions in tensors.items():
        sides = [_atoms(expression) for expression in expressions if expression.size > 1]
        if len(sides) != 2:
            continue
        for side, other in (sides, sides[::-1]):
            paths = {path for atom in other for path in inside.get(atom, ())}
            if any(name.startswith(f"{path}." if path else "") for path in paths):
                kinds |= {atom: "embedding" for atom in side if kinds.get(atom) in PLAIN}
    return kinds


def _attention_paths(record: Trace) -> dict[Atom, set[str]]:
    """Return heads and head sizes with the modules in which attention runs over them."""
    paths: dict[Atom, set[str]] = {}
    for expression, module, kind in record.produced:
        for atom in _atoms(expression) if kind in ATTENTION else ():
            paths.setdefault(atom, set()).add(module)
    return paths


def name_axes(record: Trace, tensors: Mapping[str, Sequence[Expression]]) -> dict[Atom, str]:
    """Name every live atom that a parameter or buffer has.

    Args:
        record: the trace.
        tensors: name of a parameter or buffer to its dimensions.

    Returns:
        Atom to a name that no other atom has, in the order in which the tensors stand.
    """
    owners: dict[Atom, list[str]] = {}
    for name, expressions in tensors.items():
        for expression in expressions:
            for atom in dict.fromkeys(algebra.live(algebra.normal(expression))):
                owners.setdefault(atom, []).append(name.rpartition(".")[0] or name)
    producers: dict[Atom, list[str]] = {}
    for expression, module, _ in record.produced:
        for atom in _atoms(expression):
            producers.setdefault(atom, []).append(module)
    kinds = kinds_of(record, tensors)
    made, where = _made_below(producers), _places(tensors, kinds)
    choices = {}
    for atom, places in owners.items():
        paths = [path for path in producers.get(atom, ()) if path] or places
        paths = [_printable(path) for path in dict.fromkeys(paths)]
        names = [*_choices(paths, kinds.get(atom, "channels"), atom, made)]
        place = f"{_shared(paths) or paths[0]}.{where[atom]}" if atom in where else names[0]
        choices[atom] = list(dict.fromkeys([*names, place]))
    return _distinct(choices)


def _atoms(expression: Expression) -> list[Atom]:
    return list(dict.fromkeys(algebra.atoms(algebra.normal(expression))))


def _printable(path: str) -> str:
    """Return a path that terminals and files take: a module may have any name."""
    return "".join(letter if letter.isprintable() else "_" for letter in path)


def _places(
    tensors: Mapping[str, Sequence[Expression]], kinds: Mapping[Atom, str]
) -> dict[Atom, str]:
    """Return what an atom is in the first dimension that it shares with others of its kind."""
    found: dict[Atom, str] = {}
    stands: dict[Atom, set[tuple[str, int]]] = {}
    shared: list[tuple[str, list[Atom], bool]] = []
    for name, expressions in tensors.items():
        for dim, expression in enumerate(expressions):
            whole = algebra.normal(expression)
            alike: dict[str, list[Atom]] = {}
            for atom in dict.fromkeys(algebra.live(whole)):
                stands.setdefault(atom, set()).add((name, dim))
                alike.setdefault(kinds.get(atom, "channels"), []).append(atom)
            nested = isinstance(whole, algebra.Times)
            shared += [(kind, group, nested) for kind, group in alike.items() if len(group) > 1]
    for kind, group, nested in shared:
        for atom, word in _words(kind, group, nested, stands).items():
            found.setdefault(atom, word)
    return found


def _words(
    kind: str, group: Sequence[Atom], nested: bool, stands: Mapping[Atom, set[tuple[str, int]]]
) -> dict[Atom, str]:
    """Return what each atom of a group is that makes up one dimension together.

    Of two in attention, one stands wherever the other does and elsewhere: keys' heads (also in the
    weights of keys and values), values' head size (also in what reads the result).
    """
    front = "" if kind in PLAIN else f"{kind}."
    words = [f"{front}part{number + 1}" for number in range(len(group))]
    if nested and len(group) == 2:
        words = [f"{front}outer", f"{front}inner"]
    found = dict(zip(group, words, strict=True))
    if kind in ATTENTION and len(group) == 2:
        few, many = sorted(group, key=lambda atom: len(stands[atom]))
        if stands[few] < stands[many]:
            return dict(zip((many, few), ATTENTION_PAIRS[kind], strict=True))
    return found


def _made_below(producers: Mapping[Atom, Iterable[str]]) -> dict[str, set[Atom]]:
    """Return module path to the atoms that are produced in it or below it."""
    made: dict[str, set[Atom]] = {}
    for atom, paths in producers.items():
        for path in paths:
            for above in _upwards(path):
                made.setdefault(above, set()).add(atom)
    return made


def _upwards(path: str) -> Iterator[str]:
    """Yield a path and those above it, without the model itself."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _choices(
    paths: Sequence[str], kind: str, atom: Atom, made: Mapping[str, set[Atom]]
) -> Iterator[str]:
    """Yield names for an axis from the widest to the narrowest."""
    common, shared, most = _common(paths), _shared(paths), _most(paths)
    block = ".".join(paths[0].split(".")[: len(common.split(".")) + 1]) if common else paths[0]
    if kind in ATTENTION:  # the first attention, rather than the block around it
        block = _common([path for path in paths if path.startswith(f"{block}.")] or [block])
    bases = [common] if kind == "embedding" else []
    bases += [shared, most, block]
    if len(paths) == 1:
        bases.insert(0, _risen(paths[0], atom, made))
    bases.append(paths[0])
    for base in bases:
        yield _with_kind(base, kind)
    for base in bases:
        yield f"{base}.{kind}" if base else kind


def _with_kind(base: str, kind: str) -> str:
    """Return a path with the kind behind it, unless the path tells it."""
    above, _, last = base.rpartition(".")
    if kind in ATTENTION and last in EMPTY_WORDS and above:
        base = above
    if base and (kind in PLAIN or (kind == "embedding" and "embed" in last)):
        return base
    return f"{base}.{kind}" if base else kind


def _risen(path: str, atom: Atom, made: Mapping[str, set[Atom]]) -> str:
    """Return the highest module around a path in which nothing but this atom is produced."""
    for above in _upwards(path):
        if made.get(above, {atom}) != {atom}:
            break
        path = above
    return path


def _common(paths: Sequence[str]) -> str:
    """Return the longest module path that all share; empty if they share none."""
    common: list[str] = []
    for level in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)


def _shared(paths: Sequence[str]) -> str:
    """Return the longest module path that all share, or else the one that most share."""
    common = _common(paths)
    if common or len(paths) < 2:
        return common
    tops = Counter(path.split(".")[0] for path in paths)
    top = tops.most_common(1)[0][0]
    return _shared([path for path in paths if path.split(".")[0] == top])


def _most(paths: Sequence[str]) -> str:
    """Return the deepest module path in which, level by level, more than half of the paths are."""
    inside = [path.split(".") for path in paths]
    found: list[str] = []
    while inside:
        head, number = Counter(path[0] for path in inside).most_common(1)[0]
        if found and 2 * number <= len(inside):
            break
        found.append(head)
        inside = [path[1:] for path in inside if path[0] == head and len(path) > 1]
    return ".".join(found)


def _distinct(choices: Mapping[Atom, Sequence[str]]) -> dict[Atom, str]:
    """Give each axis its first choice that no other axis shares; number those that have none."""
    places = dict.fromkeys(choices, 0)
    while True:
        names = {atom: choices[atom][place] for atom, place in places.items()}
        shared = Counter(names.values())
        moving = [
            atom
            for atom, place in places.items()
            if shared[names[atom]] > 1 and place + 1 < len(choices[atom])
        ]
        if not moving:
            break
        for atom in moving:
            places[atom] += 1
    taken = set(names.values())
    for atom, name in names.items():
        if shared[name] > 1:  # nothing tells them apart
            numbers = (f"{choices[atom][0]}#{number}" for number in itertools.count(1))
            names[atom] = next(number for number in numbers if number not in taken)
            taken.add(names[atom])
    return names
