"""Rewriting: find the literal numbers in a module's own code that follow the axes.

When no attribute helps, the code itself holds a size. The forward of the module that first goes
wrong is traced with its parts left whole (`nestling.rewrite`), the traced code is run once in the
place of the real one, and each literal is matched with a size that the op behind it was given. The
proof decides.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from nestling.axes.repair import first_wrong, repaired
from nestling.axes.tracer import Tracer, run, trace
from nestling.axes.trials import Trials
from nestling.extent import Concat, Counts, Extent, axes_of
from nestling.rewrite import Edit, Rewrite, literals, traced
from nestling.spec import Space


@dataclass(frozen=True)
class Noted:
    """A size that an op of a node was given."""

    value: int
    extent: Extent


def rewritten(trials: Trials, space: Space, counts: Counts) -> Space | None:
    """Return the space with the rewritten forwards that make a cut work; None if none do."""
    expected = trials.calls(space, counts)
    while True:
        far, where = first_wrong(trials, space, counts, expected)
        better = None
        for path in dict.fromkeys((where, where.rpartition(".")[0])):
            found = _rewrite(trials, space, path)
            if found is None:
                continue
            trial = replace(space, rewrites=(*space.rewrites, found))
            if first_wrong(trials, trial, counts, expected)[0] > far:
                better = _with_note(trial, trials.model, path)
                break
        if better is None:
            return None
        space = better
        done = repaired(trials, space, counts)
        if done is not None:
            return done


def _with_note(space: Space, model: nn.Module, path: str) -> Space:
    kind = type(model.get_submodule(path)).__name__
    note = (
        f"{path or 'the model'} ({kind}) holds sizes as numbers in its code: subnets run the same "
        "code with the numbers that their widths ask for"
    )
    return replace(space, notes=(*space.notes, note))


def _rewrite(trials: Trials, space: Space, path: str) -> Rewrite | None:
    """Return a module's literals that follow axes; None if its code cannot be traced."""
    module = trials.model.get_submodule(path)
    if any(given.module == path for given in space.rewrites):
        return None
    given = _first_call(trials, module)
    if given is None:
        return None
    fixed = {k: v for k, v in given.items() if v is None or isinstance(v, (bool, str))}
    try:
        graph, other = traced(module, False, fixed), traced(module, True, fixed)
        events = _events(trials, module, path, graph)
    except Exception:  # noqa: BLE001  (the user's code is traced here)
        return None
    if [*map(_form, graph.nodes)] != [*map(_form, other.nodes)]:
        return None  # in training it is another code
    own = [pair for pair in trials.discovery.sizes if pair[0].module == path]
    if [value for _, value in events] != [size.value for size, _ in own]:
        return None
    noted: dict[str, list[Noted]] = {}
    for (node, value), (_, extent) in zip(events, own, strict=True):
        noted.setdefault(node, []).append(Noted(value, trials.current(extent)))
    edits = [e for node in graph.nodes for e in _edits(node, noted.get(node.name, []))]
    return Rewrite(path, tuple(fixed.items()), tuple(edits)) if edits else None


def _form(node: fx.Node) -> Any:
    return node.op, str(node.target), node.name, tuple(literals(node))


def _first_call(trials: Trials, module: nn.Module) -> Mapping[str, Any] | None:
    """Return a module's inputs by name, as it is given them in the first call."""
    calls: list[Mapping[str, Any]] = []
    signature = inspect.signature(module.forward)

    def look(_: nn.Module, args: Any, kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        calls.append(dict(bound.arguments))

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        run(trials.model, trials.args, trials.kwargs, None)
    finally:
        handle.remove()
    return calls[0] if calls else None


def _events(trials: Trials, module: nn.Module, path: str, graph: fx.Graph) -> list[tuple[str, int]]:
    """Run a module's traced code in its place: the sizes that its nodes gave to ops, in order."""
    events: list[tuple[str, int]] = []
    signature = inspect.signature(module.forward)
    places = [str(node.target) for node in graph.nodes if node.op == "placeholder"]

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = [bound.arguments[place] for place in places]
        return _Observer(fx.GraphModule(module, graph), path, events).run(*given)

    module.__dict__["forward"] = forward
    try:
        trace(trials.model, trials.args, trials.kwargs)
    finally:
        del module.__dict__["forward"]
    return events


class _Observer(fx.Interpreter):
    """Runs a graph and notes the sizes that each node gave to its ops."""

    def __init__(self, graph: fx.GraphModule, path: str, events: list[tuple[str, int]]) -> None:
        super().__init__(graph)
        self.path = path
        self.events = events

    def run_node(self, n: fx.Node) -> Any:
        mode = _get_current_dispatch_mode()
        sizes = mode.trace.sizes if isinstance(mode, Tracer) else []
        before = len(sizes)
        result = super().run_node(n)
        own = (size for size in sizes[before:] if size.module == self.path)
        self.events.extend((n.name, size.value) for size in own)
        return result


def _edits(node: fx.Node, noted: Sequence[Noted]) -> Iterator[Edit]:
    """Yield the literals of a node that follow axes."""
    places = list(literals(node))
    pairs = _by_position(node, noted) or _by_value(places, noted)
    for path, value in places:
        extent = pairs.get(path)
        if extent is not None and extent.size == value and any(axes_of(extent)):
            yield Edit(node.name, path, extent)


def _by_position(node: fx.Node, noted: Sequence[Noted]) -> dict[tuple[int | str, ...], Extent]:
    """Match a shape, dimension by dimension, where the op was given just as many sizes."""
    entries: list[tuple[tuple[int | str, ...], Any]] = []
    for index, value in enumerate(node.args):
        if isinstance(value, (tuple, list)):
            entries += [((index, place), item) for place, item in enumerate(value)]
        elif isinstance(value, (int, fx.Node)):
            entries.append(((index,), value))
    if not len(noted) <= len(entries) <= len(noted) + 1:  # perhaps the tensor itself stands first
        return {}
    pairs = list(zip(entries[-len(noted) :], noted, strict=True)) if noted else []
    if any(isinstance(item, int) and item not in (-1, each.value) for (_, item), each in pairs):
        return {}
    return {path: each.extent for (path, _), each in pairs}


def _by_value(
    places: Sequence[tuple[tuple[int | str, ...], int]], noted: Sequence[Noted]
) -> dict[tuple[int | str, ...], Extent]:
    """Match each literal with the first size of its value; the end of a slice with two of them."""
    left = list(noted)
    found: dict[tuple[int | str, ...], Extent] = {}
    for path, value in places:
        if path[-1] == "stop":
            for length, low in itertools.pairwise(noted):
                if length.value + low.value == value:
                    parts = (low.extent, length.extent)
                    found[path] = Concat(parts) if low.value else length.extent
                    break
            continue
        match = next((each for each in left if each.value == value), None)
        if match is not None:
            left.remove(match)
            found[path] = match.extent
    return found
