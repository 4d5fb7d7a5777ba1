"""Suitability: models that cannot become a supernet, refused with the cure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from nestling.errors import ModelError
from nestling.weights import tensors_of

_SHARDED = "torch.distributed"  # where the wrappers that shard weights are defined


def refuse_unsuitable(model: nn.Module) -> None:
    """Refuse wrappers that hide the model's code, and weights that cannot be cut into views.

    Raises:
        ModelError: with the cure.
    """
    for path, module in model.named_modules():
        _refuse_wrapper(module, f"the module {path!r}" if path else "the model")
    tensors = tensors_of(model)
    _refuse_hidden(model, tensors)
    for name, tensor in tensors.items():
        if not isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            _refuse_tensor(name, tensor)
    _refuse_overlaps(tensors)


def is_quantised(module: nn.Module) -> bool:
    """Return whether a module is one of torch's quantised layers, whose weights are packed."""
    return ".quantized" in type(module).__module__


def _refuse_wrapper(module: nn.Module, what: str) -> None:
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"{what} ({kind}) is scripted, so its code cannot be run with other sizes; pass the "
            "plain nn.Module that it was made from"
        )
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(module, parallel) or type(module).__module__.startswith(_SHARDED):
        raise ModelError(
            f"{what} ({kind}) hides code or weights behind a wrapper that distributes it; pass the "
            "plain model (model.module, or as it was before) and distribute the training instead"
        )
    if "_orig_mod" in module._modules:
        raise ModelError(
            f"{what} comes from torch.compile, which hides its code; pass the plain model "
            "(compiled._orig_mod) and compile the subnets instead"
        )


def _refuse_hidden(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Refuse a model whose own way of listing its tensors leaves some out."""
    shown = set(map(id, tensors.values()))
    every = (nn.Module.named_parameters(model), nn.Module.named_buffers(model))
    for name, tensor in itertools.chain(*every):
        if id(tensor) not in shown:
            raise ModelError(
                f"{type(model).__name__} leaves {name!r} out of what its named_parameters or "
                "named_buffers list, so subnets could not share it; let them list all tensors, "
                "and choose what trains with requires_grad_"
            )


def _refuse_tensor(name: str, tensor: Tensor) -> None:
    kind = type(tensor)
    if kind is not Tensor and not issubclass(kind, nn.Parameter):
        raise ModelError(
            f"{name!r} is a {kind.__name__}, a tensor class with ways of its own (sharded, "
            "quantised ...), and subnets are made of views of plain tensors; make it a plain "
            "nn.Parameter or buffer first (full_tensor(), dequantize() or as_subclass(Tensor))"
        )
    if tensor.is_meta:
        raise ModelError(
            f"{name!r} is on the meta device and has no values, so nothing can be proven; "
            "call model.to_empty(device='cpu') and load or initialise the weights first"
        )
    if tensor.layout is not torch.strided or tensor.is_quantized:
        layout = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise ModelError(
            f"{name!r} is {layout}, and subnets are made of views of dense weights; replace it by "
            "its dense form (.to_dense(), .dequantize()) first"
        )
    if tensor.is_inference():
        raise ModelError(
            f"{name!r} was made under torch.inference_mode() and can never be trained; make "
            "the model and the supernet outside of it"
        )
    if any(
        step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
    ):
        raise ModelError(
            f"{name!r} is an expanded tensor: several of its entries are one number in memory, so "
            "it can be neither trained nor reordered; expand a copy of it (.expand(...).clone())"
        )


def _refuse_overlaps(tensors: dict[str, Tensor]) -> None:
    """Refuse two tensors that hold the same numbers: a reorder would move these twice."""
    by_storage: dict[int, list[tuple[int, int, str]]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)) or not tensor.numel():
            continue
        start, end = _span(tensor)
        by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append((start, end, name))
    for spans in by_storage.values():
        for first, second in _near(sorted(spans)):
            if _meet(tensors[first], tensors[second]):
                raise ModelError(
                    f"{first!r} and {second!r} share memory without being one tensor, so that "
                    "reordering the units of one would scramble the other; tie them (assign the "
                    "same nn.Parameter to both) or give each memory of its own (.clone())"
                )


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor in its storage, and the one behind its last."""
    size = tensor.element_size()
    start = tensor.storage_offset() * size
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return int(start), int(start + (sum((n - 1) * step for n, step in pairs) + 1) * size)


def _near(spans: list[tuple[int, int, str]]) -> Iterator[tuple[str, str]]:
    """Yield the names of all pairs whose spans meet."""
    for number, (_, end, name) in enumerate(spans):
        for start, _, other in spans[number + 1 :]:
            if start >= end:
                break
            yield name, other


def _meet(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of one storage have an entry in common."""
    if one.element_size() != other.element_size():
        return True
    end = max(_span(one)[1], _span(other)[1]) // one.element_size()
    marks = torch.zeros(end, dtype=torch.bool, device="cpu")
    first, second = (
        marks.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        for tensor in (one, other)
    )
    first.fill_(True)
    return bool(second.any())
