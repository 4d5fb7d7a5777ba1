"""What the coverage benchmark checks of one architecture; every check is the benchmark's own."""

from __future__ import annotations

import copy
import io
import math
import random
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from masked import enliven, loss_of, outputs_of, run_masked
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode
from zoo import Case

import nestling
from nestling.axes.discovery import Discovery, discover
from nestling.axes.preparation import double
from nestling.axes.proof import Prover
from nestling.axes.structure import batch_of, with_batch
from nestling.construction import picker
from nestling.extent import Along, Fixed, axes_of, substitute
from nestling.spec import Frozen, Space
from nestling.testing import check_masked

EXACT = {torch.float64: 1e-9, torch.float32: 1e-4}
SLOPES = {torch.float64: 1e-7, torch.float32: 1e-3}
MOVED = 1e-7  # of the largest output: what a cut must change, so that equality means something
JOINT = 3
CONTROLS = 2
FILE_HEADER = 1024  # bytes a tensor in a file of torch.save, at most: name, type, alignment
SHARE = 0.9
SECONDS = 60.0  # for the axes one by one


def check(case: Case, seed: int = 0, run: str = "all") -> dict[str, Any]:
    """Return one row of the benchmark for an architecture.

    Args:
        case: model and inputs.
        seed: of the random subnets and damages.
        run: "all", or "discovery" for the seconds of finding the axes alone.
    """
    row: dict[str, Any] = {
        "parameters": sum(p.numel() for p in case.model.parameters()),
        "failures": [],
    }
    row["discovery_s"], row["discovery_cpu_s"], found = timed_discovery(case)
    row["axes_found"] = len(found.space.axes)
    if run == "discovery":
        return row
    start = time.perf_counter()
    net = nestling.Supernet(
        case.model, *case.args, kwargs=case.kwargs or None, outputs=case.outputs
    )
    row["supernet_s"] = time.perf_counter() - start
    row.update(report(net.space))
    subject = Subject(case, net)
    for part in CHECKS:
        before = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row.update(part(subject, random.Random(seed)))
        row.setdefault("seconds_of", {})[part.__name__] = time.perf_counter() - before
    row["seconds"] = time.perf_counter() - start
    row["failures"] = failures(row)
    return row


def timed_discovery(case: Case, runs: int = 3) -> tuple[float, float, Discovery]:
    """Return the seconds of finding the axes, without their proof, and what was found.

    Medians over the runs: of the time that passed, and of the processor's.
    """
    passed, worked = [], []
    for _ in range(runs):
        start, begun = time.perf_counter(), time.process_time()
        found = discover(case.model, case.args, case.kwargs, outputs=picker(case.outputs))
        passed.append(time.perf_counter() - start)
        worked.append(time.process_time() - begun)
    return statistics.median(passed), statistics.median(worked), found


def report(space: Space) -> dict[str, Any]:
    """Return what the space says of itself: axes, share, what is frozen and why."""
    shapes = {
        name: tuple(extent.size for extent in layout.extents)
        for name, layout in space.layouts.items()
        if layout.parameter
    }
    reasons: Counter[str] = Counter()
    told: dict[str, bool] = {}
    for frozen in space.frozen:
        told[frozen.parameter] = told.get(frozen.parameter, True) and bool(frozen.reason)
    inelastic = [
        name
        for name in shapes
        if not any(any(axes_of(extent)) for extent in space.layouts[name].extents)
    ]
    for name in inelastic:
        rows = [f for f in space.frozen if f.parameter == name]
        where = rows[0].op or rows[0].module if rows else ""
        text = f"{rows[0].reason} ({where})" if rows and where else rows[0].reason if rows else ""
        reasons[text or "no reason given"] += math.prod(shapes[name])
    return {
        "axes": len(space.axes),
        "kinds": dict(Counter(axis.kind for axis in space.axes.values())),
        "frozen": len(space.frozen),
        "share": space.elastic_share(),
        "unnamed": [n for n in inelastic if not told.get(n) and math.prod(shapes[n]) > 1],
        "reasons": dict(reasons.most_common(3)),
        "notes": list(space.notes),
    }


# -- equality with the masked model ------------------------------------------------------------


class _Precisions(TorchDispatchMode):
    """Notes whether a run in float64 has floats of fewer bits inside."""

    def __init__(self) -> None:
        super().__init__()
        self.least = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in out if isinstance(out, tuple | list) else [out]:
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() > 1:
                self.least = torch.float32 if leaf.dtype != torch.float64 else self.least
        return out


class Subject:
    """A supernet in float64 on which equality means something, with its inputs.

    Args:
        case: model and inputs.
        net: the user's supernet of it.
    """

    def __init__(self, case: Case, net: nestling.Supernet) -> None:
        self.case, self.net, self.pick = case, net, picker(case.outputs)
        self.model, (self.args, self.kwargs) = double(net.model, (case.args, case.kwargs))
        self.model.zero_grad()
        enliven(self.model, lambda: self.call(self.model))
        self.wide = self.supernet(self.model)
        with _Precisions() as precisions, torch.no_grad():
            self.whole = self.call(self.model)
        doubles = next(self.model.parameters()).dtype == torch.float64
        self.precision = precisions.least if doubles else torch.float32

    def supernet(self, model: nn.Module) -> nestling.Supernet:
        """Return a supernet of another model of the same space."""
        net = self.net
        return nestling.Supernet.restore(model, net.space, net.orders, net.private, net.signature)

    def call(self, module: nn.Module) -> list[Tensor]:
        """Return the outputs that are needed, of a module on the inputs."""
        with sdpa_kernel(SDPBackend.MATH):
            return outputs_of(self.pick, module(*self.args, **self.kwargs))

    def specs(self, draw: random.Random) -> list[nestling.Spec]:
        """Return random joint specs, each of which cuts something."""
        space, chosen = self.net.space, []
        while len(chosen) < JOINT:
            spec = {name: draw.choice(axis.counts) for name, axis in space.axes.items()}
            if any(count < space.axes[name].size for name, count in spec.items()):
                chosen.append(nestling.Spec(space, spec))
        return chosen


@dataclass
class Comparison:
    """How a subnet compares with the masked model.

    Attributes:
        by: "weights" (zeroed weights alone), "library" (its replay of ops), or "" if it differs.
        outputs: largest difference of the outputs, relative to the largest.
        gradients: the same of the gradients of the shared weights.
        wrong: what else is wrong.
        moved: whether the cut changes the output at all.
    """

    by: str
    outputs: float
    gradients: float
    wrong: str
    moved: bool


def compare(subject: Subject, spec: Mapping[str, int], backward: bool = True) -> Comparison:
    """Compare a subnet with the masked full model, forward and backward."""
    net = subject.wide
    net.zero_grad()
    try:
        subnet = net.subnet(spec).eval()
        found = _quiet(lambda: subject.call(subnet))
        if backward:
            loss_of(found).backward()
    except Exception as error:  # noqa: BLE001  (the user's code runs here)
        return Comparison("", math.inf, math.inf, _short(error), True)
    wrong = _wrong(found, subject.whole) or (_wrong_gradients(subnet) if backward else "")
    apart, slopes = _independent(subject, spec, found, backward)
    near = apart <= EXACT[subject.precision] and slopes <= SLOPES[subject.precision]
    by = "weights" if near else "library" if _by_the_library(subject, spec) else ""
    moved = _largest(zip(found, subject.whole, strict=True)) > MOVED
    return Comparison(by, apart, slopes, wrong, moved)


def _independent(
    subject: Subject, spec: Mapping[str, int], found: list[Tensor], backward: bool
) -> tuple[float, float]:
    """Return how far outputs and gradients are from those of the independent masked model."""
    net = subject.wide
    try:
        value, leaves = run_masked(net.model, net.space, spec, subject.args, subject.kwargs)
        expected = outputs_of(subject.pick, value)
    except Exception:  # noqa: BLE001  (code that counts its units need not take masked ones)
        return math.inf, math.inf
    apart = _largest(zip(found, expected, strict=True))
    if not backward:
        return apart, 0.0
    loss_of(expected).backward()
    own = [(p.grad, leaves[name].grad) for name, p in net.named_parameters()]
    return apart, _largest((_filled(a, b), _filled(b, a)) for a, b in own)


def _filled(one: Tensor | None, other: Tensor | None) -> Tensor:
    if one is not None:
        return one
    return torch.zeros(()) if other is None else torch.zeros_like(other)


def _largest(pairs: Any) -> float:
    """Return the largest difference relative to the largest entry of all second tensors."""
    pairs = [(a.detach(), b.detach()) for a, b in pairs]
    if any(a.shape != b.shape for a, b in pairs):
        return math.inf
    apart = max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)
    size = max((float(b.abs().max()) for _, b in pairs if b.numel()), default=0.0)
    return apart / max(size, 1e-12) if math.isfinite(apart) else math.inf


def _by_the_library(subject: Subject, spec: Mapping[str, int]) -> bool:
    """Return whether the subnet equals the library's masked model, forward and backward.

    `check_masked` takes its specs from a space; this one holds the given counts and no others.
    Attention runs as plain products, whatever kernel torch would pick for a width.
    """
    space = subject.net.space
    axes = {
        name: replace(axis, counts=(spec.get(name, axis.size), axis.size))
        for name, axis in space.axes.items()
    }
    net = subject.wide
    only = replace(space, axes=axes)
    twin = nestling.Supernet.restore(net.model, only, net.orders, net.private, net.signature)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            check_masked(twin, *subject.args, outputs=subject.case.outputs, **subject.kwargs)
    except Exception:  # noqa: BLE001  (it says so by raising, and the user's code runs in it)
        return False
    return True


def _quiet(call: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # statistics that are not measured are no news here
        return call()


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _wrong(found: list[Tensor], whole: list[Tensor]) -> str:
    if [t.shape for t in found] != [t.shape for t in whole]:
        return "outputs of another shape"
    if not all(bool(t.isfinite().all()) for t in found):
        finite = all(bool(t.isfinite().all()) for t in whole)
        return "outputs that are not finite" if finite else ""
    if not any(bool((t != 0).any()) for t in found):
        return "outputs that are all zero"
    return ""


def _wrong_gradients(subnet: nn.Module) -> str:
    gradients = {n: p.grad for n, p in subnet.named_parameters() if p.grad is not None}
    shapes = {n: p.shape for n, p in subnet.named_parameters()}
    if not gradients:
        return "no gradients"
    if any(g.shape != shapes[n] for n, g in gradients.items()):
        return "gradients of another shape"
    if not all(bool(g.isfinite().all()) for g in gradients.values()):
        return "gradients that are not finite"
    if not any(bool((g != 0).any()) for g in gradients.values()):
        return "gradients that are all zero"
    return ""


# -- the checks --------------------------------------------------------------------------------


def one_by_one(subject: Subject, draw: random.Random) -> dict[str, Any]:
    """Every axis alone, cut to its least count: forward."""
    by: Counter[str] = Counter()
    wrong, still = [], []
    start = time.perf_counter()
    for name, axis in subject.net.space.axes.items():
        if time.perf_counter() - start > SECONDS:
            break
        one = compare(subject, {name: axis.counts[0]}, backward=False)
        by[one.by] += 1
        if not one.by or one.wrong:
            wrong.append(f"{name}: {one.wrong or 'differs from the masked model'}")
        if not one.moved:
            still.append(name)
    return {"axes_checked": by.total(), "axes_by": dict(by), "axes_wrong": wrong, "unmoved": still}


def joint(subject: Subject, draw: random.Random) -> dict[str, Any]:
    """Random joint subnets: forward and gradients, evaluation and training mode."""
    by: Counter[str] = Counter()
    wrong, unmoved, outputs, gradients = [], 0, [], []
    for number, spec in enumerate(subject.specs(draw)):
        one = compare(subject, spec)
        by[one.by] += 1
        unmoved += not one.moved
        if not one.by:
            wrong.append(f"subnet {number}: differs from the masked model")
        if one.wrong:
            wrong.append(f"subnet {number}: {one.wrong}")
        if one.by == "weights":
            outputs.append(one.outputs)
            gradients.append(one.gradients)
        if error := _trains(subject, spec):
            wrong.append(f"subnet {number} in training mode: {error}")
    return {
        "joint": JOINT - sum("differs" in w for w in wrong),
        "joint_by": dict(by),
        "joint_wrong": wrong,
        "joint_unmoved": unmoved,
        "precision": str(subject.precision).removeprefix("torch."),
        "difference": max(outputs, default=None),
        "gradient_difference": max(gradients, default=None),
    }


def _trains(subject: Subject, spec: Mapping[str, int]) -> str:
    """Return what goes wrong in a training step of a subnet in float32 that the net takes."""
    args, kwargs = with_batch((subject.case.args, subject.case.kwargs), 4)

    def step(module: nn.Module) -> str:
        module.train().zero_grad()
        with torch.random.fork_rng(devices=[]):
            loss_of(outputs_of(lambda value: value, module(*args, **kwargs))).backward()
        return _wrong_gradients(module)

    subnet = subject.supernet(copy.deepcopy(subject.net.model)).subnet(spec)
    try:
        return step(subnet)
    except Exception as error:  # noqa: BLE001  (the user's code runs here)
        try:
            step(copy.deepcopy(subject.net.model))
        except Exception:  # noqa: BLE001  (the model itself does not train on these inputs)
            return ""
        return _short(error)


def macs(subject: Subject, draw: random.Random) -> dict[str, Any]:
    """The space's multiply-accumulates against torch's count on packed subnets, for one example.

    In float64, in which recurrent layers and attention run as ops that torch counts. Where the
    modules that run depend on values (experts), a subnet may run others than the net, and its count
    is not compared.
    """
    net = subject.wide
    given = subject.args, subject.kwargs
    if _called(net.model, *given) != _called(net.model, *tree_map(_other_numbers, given)):
        return {"macs": net.space.macs(net.space.full), "macs_equal": 0, "macs_of": 0}
    counted = []
    for spec in [net.space.full, *subject.specs(draw)]:
        packed = nestling.pack(net.subnet(spec)).eval()
        counted.append((net.space.macs(spec), _for_one(packed, given)))
    ratios = [one / max(other, 1) for one, other in counted]
    return {
        "macs": counted[0][0],
        "macs_equal": sum(one == other for one, other in counted),
        "macs_of": len(counted),
        "macs_ratio": max(ratios, key=lambda ratio: abs(ratio - 1)),
    }


def _called(module: nn.Module, args: Any, kwargs: Any) -> list[str]:
    """Return the paths of the modules that a run calls."""
    called: list[str] = []
    handles = [
        part.register_forward_pre_hook(lambda *given, path=path: called.append(path))
        for path, part in module.named_modules()
    ]
    try:
        with torch.no_grad():
            module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return called


def _for_one(module: nn.Module, given: Any) -> int:
    """Return torch's count for one example in a batch of the size that is given.

    Where examples meet in pairs (the scores of CLIP), an example costs the more the larger its
    batch is. Three counts tell what is done once, for each example and for each pair.
    """
    batch = batch_of(given)
    if batch == 1:
        return _counted(module, *given)
    one, two, three = (_counted(module, *with_batch(given, number)) for number in (1, 2, 3))
    pair = (three - 2 * two + one) // 2
    each = two - one - 3 * pair
    once = one - each - pair
    return once + each + batch * pair


def _grouped(one: Sequence[int], other: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the operations of products whose rows, columns or inner entries fall into groups.

    A dimension of the groups is there once where they divide one of the others: tokens that go to
    an expert each, (tokens, k) by (experts, k, n), cost as much as one product does.
    """
    groups = one[0] if len(one) == len(other) == 3 else 1
    return 2 * groups * one[-2] * one[-1] * other[-1]


def _counted(module: nn.Module, args: Any, kwargs: Any) -> int:
    """Return torch's count of multiply-accumulates, with attention as plain products."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    module = copy.deepcopy(module).requires_grad_(False)  # the counter hooks on to gradients
    try:
        mapping = {torch.ops.aten._grouped_mm: _grouped}  # torch has no formula for it
        counter = FlopCounterMode(display=False, custom_mapping=mapping)
        with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            module(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops() // 2)


def _other_numbers(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        generator = torch.Generator().manual_seed(1)
        return 3 * torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)
    return leaf


def files(subject: Subject, draw: random.Random) -> dict[str, Any]:
    """The bytes of a saved subnet of about a quarter of the parameters."""
    net = subject.net
    space = net.space
    total = space.params(space.full)
    spec = min(space.uniform, key=lambda s: abs(space.params(s) / total - 0.25))
    packed = nestling.pack(net.subnet(spec))
    size, whole = _saved(packed), _saved(nestling.pack(net.subnet(space.full)))
    tensors = len(packed.state_dict())
    loaded = sum(p.numel() for p in packed.parameters())
    least = sum(t.numel() * t.element_size() for t in _distinct(packed))
    return {
        "quarter_params": space.params(spec) / total,
        "quarter_file": size / whole,
        "quarter_right": loaded == space.params(spec)
        and least <= size <= least + FILE_HEADER * tensors + 4 * FILE_HEADER,
    }


def _distinct(module: nn.Module) -> list[Tensor]:
    """Return the tensors of the state dict, each once."""
    found = {(t.data_ptr(), t.shape): t for t in module.state_dict().values() if t.numel()}
    return list(found.values())


def _saved(module: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    return file.getbuffer().nbytes


# -- the negative control ----------------------------------------------------------------------


def control(subject: Subject, draw: random.Random) -> dict[str, Any]:
    """Axes damaged on purpose: the library's proof must refuse each.

    An axis that can be proven alone is damaged by dropping one dimension of one parameter from it.
    Then it is proven alone once more, by the code that proves the user's axes.
    """
    args, kwargs, pick = subject.args, subject.kwargs, subject.pick
    tried, caught, missed = 0, 0, []
    names = list(subject.net.space.axes)
    for name in draw.sample(names, len(names)):
        if tried == CONTROLS:
            break
        found = discover(subject.model, args, kwargs, outputs=pick)
        places = _places(found.space, name)
        if not places or not _survives(subject, found, found.space, name):
            continue
        tensor, dim = draw.choice(places)
        damaged = damage(found.space, name, tensor, dim)
        tried += 1
        fresh = discover(subject.model, args, kwargs, outputs=pick)
        if _survives(subject, fresh, damaged, name):
            missed.append(f"{name} without dimension {dim} of {tensor}")
        else:
            caught += 1
    return {"controls": tried, "caught": caught, "missed": missed}


def _places(space: Space, name: str) -> list[tuple[str, int]]:
    if name not in space.axes:
        return []
    return [place for place in space.touches(name) if space.layouts[place[0]].parameter]


def damage(space: Space, name: str, tensor: str, dim: int) -> Space:
    """Return the space with one dimension of one parameter dropped from an axis."""

    def drop(at: Along) -> Along | Fixed:
        return Fixed(at.size) if at.axis == name else at

    layout = space.layouts[tensor]
    extents = list(layout.extents)
    extents[dim] = substitute(extents[dim], drop)
    return replace(
        space, layouts={**space.layouts, tensor: replace(layout, extents=tuple(extents))}
    )


def _survives(subject: Subject, found: Discovery, space: Space, name: str) -> bool:
    """Return whether an axis is still there when it was proven alone."""
    model = copy.deepcopy(subject.model)
    prover = Prover(model, subject.args, subject.kwargs, found, subject.pick)
    for other in list(space.axes):
        if other != name:
            prover.let_go(other)
            space = space.without(other, Frozen("", 0, 0, "", "", "left out of the control"))
    return name in prover.prove(space).axes


# -- the verdict -------------------------------------------------------------------------------


def failures(row: Mapping[str, Any]) -> list[str]:
    """Return why an architecture does not pass; an empty list if it does."""
    found = []
    if row["share"] < SHARE and row["unnamed"]:
        found.append(f"{row['share']:.0%} elastic, and no reason for {len(row['unnamed'])} tensors")
    found += row["axes_wrong"] + row["joint_wrong"]
    if row["unmoved"]:
        found.append(f"cutting {row['unmoved'][0]} does not change the output")
    if row["macs_equal"] < row["macs_of"]:
        found.append(f"multiply-accumulates are {row['macs_ratio']:.3f} of torch's count")
    if not row["quarter_right"]:
        found.append("the file of a quarter-size subnet is too large")
    if row["caught"] < row["controls"]:
        found.append(f"damage not caught: {row['missed'][0]}")
    return found


CHECKS: tuple[Callable[[Subject, random.Random], dict[str, Any]], ...] = (
    one_by_one,
    joint,
    macs,
    files,
    control,
)
