"""Influence: which axes the outputs depend on, told by one backward run.

Many axes are proven together. Then one comparison cannot tell whether each of them shows at all;
the gradient of the outputs with respect to the units that would be cut can, to first order.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nestling import extent as extents
from nestling.axes.comparison import SMALLEST
from nestling.axes.structure import renewed, tensors_in
from nestling.axes.trials import Trials
from nestling.spec import Space


def influential(trials: Trials, space: Space, names: Iterable[str]) -> set[str]:
    """Return those of the axes whose last units change the outputs, to first order.

    Axes of parameters that need no gradient, and all axes of a model that cannot be
    differentiated, are left out: nothing is known about them.
    """
    try:
        slopes, largest = _slopes(trials)
    except Exception:  # noqa: BLE001  (the user's code runs here)
        return set()
    least = trials.tolerance.moved * max(largest, SMALLEST)
    found = set()
    for name in names:
        counts = {name: space.axes[name].counts[0]}
        for tensor, dim in space.touches(name):
            if tensor in slopes:
                dead = torch.ones(slopes[tensor].shape[dim], dtype=torch.bool)
                dead[extents.kept(space.layouts[tensor].extents[dim], counts)] = False
                index = dead.nonzero().flatten().to(slopes[tensor].device)
                if float(slopes[tensor].index_select(dim, index).abs().sum()) > least:
                    found.add(name)
                    break
    return found


def _slopes(trials: Trials) -> tuple[dict[str, Tensor], float]:
    """Return weight times slope for every entry of a parameter, and the largest output."""
    held = {n: p for n, p in trials.model.named_parameters() if p.requires_grad}
    args, kwargs = renewed((trials.args, trials.kwargs))  # the model may write to them
    with torch.inference_mode(False), torch.enable_grad():
        outputs = tensors_in(trials.outputs(trials.model(*args, **kwargs)))
        loose = [t for t in outputs if t.requires_grad]
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in loose]
        parts = [(t * w.to(t)).sum() for t, w in zip(loose, weights, strict=True)]
        total = torch.stack([part.double() for part in parts]).sum()
        slopes = torch.autograd.grad(total, list(held.values()), allow_unused=True)
    pairs = zip(held.items(), slopes, strict=True)
    found = {n: p.detach() * slope for (n, p), slope in pairs if slope is not None}
    return found, max(float(t.detach().abs().max()) for t in loose)
