"""Batches: what a data loader yields, and how a model is called with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nestling.axes.structure import map_tensors, tensors_in
from nestling.errors import DataError, NestlingError, brief

TARGETS = ("labels", "label_ids")  # under which a batch of keywords holds what is to be learned


def inputs_of(batch: Any) -> Any:
    """Return the inputs of a batch: the first of an `(inputs, targets)` pair, or all of it."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0]
    return batch


def pair(batch: Any) -> tuple[Any, Any]:
    """Return the inputs and targets of a batch.

    A mapping is the model's keywords, targets included, as models that return their own loss take
    it; its targets are its "labels", or None where it has none.

    Raises:
        DataError: the batch is neither an `(inputs, targets)` pair nor a mapping.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        return batch, next((batch[key] for key in TARGETS if key in batch), None)
    raise DataError(
        f"a batch is a pair (inputs, targets) or a mapping of keywords, but got "
        f"{type(batch).__name__}"
        + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
        + "; wrap your loader so that it yields pairs"
    )


def forward(model: Callable[..., Any], inputs: Any) -> Any:
    """Call a model: with keywords for a mapping, with several arguments for a tuple or list."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def part_of(outputs: Any, name: str) -> Tensor | None:
    """Return a tensor that a model's output holds under a name; None where it holds none.

    Models return a mapping or an object with `logits` and, given targets, a `loss`.

    Example:
        >>> part_of({"logits": torch.zeros(2, 3)}, "logits").shape
        torch.Size([2, 3])
    """
    if isinstance(outputs, (Tensor, tuple, list)) and not hasattr(outputs, "_fields"):
        return None
    found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
    return found if isinstance(found, Tensor) else None


def scores_of(outputs: Any) -> Tensor:
    """Return the class scores of a model's output: itself, or its `logits`.

    Raises:
        DataError: it is neither a tensor nor holds logits.
    """
    scores = outputs if isinstance(outputs, Tensor) else part_of(outputs, "logits")
    if scores is None:
        raise DataError(
            "the usual loss and metric take class scores, a tensor or the `logits` of an output, "
            f"but the model returns {type(outputs).__name__}; give loss= and metric= of your own"
        )
    return scores


def size(inputs: Any) -> int:
    """Return the number of examples: the first dimension of the first tensor."""
    return next((int(tensor.shape[0]) for tensor in tensors_in(inputs) if tensor.dim()), 1)


def move(
    inputs: Any, device: torch.device, memory_format: torch.memory_format | None = None
) -> Any:
    """Move all tensors to a device; those of four dimensions also to a memory format."""

    def change(tensor: Tensor) -> Tensor:
        if memory_format is not None and tensor.dim() == 4:
            return tensor.to(device, memory_format=memory_format)
        return tensor.to(device)

    return map_tensors(inputs, change)


def check_finite(inputs: Any) -> None:
    """Check that inputs hold finite numbers; one of several may hold -inf, as masks do.

    Raises:
        DataError: NaN or infinity.
    """
    for leaf, flag in finite_flags(inputs):
        if not bool(flag):
            raise not_finite(tuple(leaf.shape))


def finite_flags(inputs: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Return each tensor of floating-point numbers with whether these are finite.

    That is a tensor of one boolean on the same device, for it may cost a wait to look at it. One of
    several tensors may hold -inf, as masks do.
    """
    leaves = tensors_in(inputs)
    for leaf in leaves:
        if leaf.is_floating_point():
            alone = len(leaves) == 1
            fine = torch.isfinite(leaf) if alone else ~(leaf.isnan() | leaf.isposinf())
            yield leaf, fine.all()


def not_finite(shape: tuple[int, ...]) -> DataError:
    """Return the error of a batch of this shape that holds NaN or infinity."""
    return DataError(
        f"inputs must be finite numbers, but a batch of shape {shape} holds NaN or infinity; "
        "clean the data"
    )


def length_of(data: Iterable[Any], name: str) -> int:
    """Return how many batches an epoch of the data has.

    Raises:
        DataError: it cannot say.
    """
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError as error:
        raise DataError(
            f"{name} must have a length and be iterable once an epoch, but a "
            f"{type(data).__name__} has no len(); use a DataLoader or a list of batches"
        ) from error


def starts_anywhere(data: Iterable[Any]) -> bool:
    """Return whether a loader begins anywhere: `loader.at(epoch, start=k)`, as `Batches` does."""
    return callable(getattr(data, "at", None))


def at(data: Iterable[Any], epoch: int, start: int = 0) -> Iterable[Any]:
    """Return the batches of an epoch from `start` on, where the loader can tell epochs apart."""
    return data.at(epoch, start=start) if starts_anywhere(data) else data  # type: ignore[attr-defined]


@contextmanager
def blamed(rule: str, *given: Any) -> Iterator[None]:
    """Turn what a block raises into one error that names what it was given.

    Args:
        rule: what must hold, such as "the model must accept its inputs".
        *given: the inputs and targets; their shapes are named.

    Raises:
        DataError: the block failed; the original error is its cause.
    """
    try:
        yield
    except NestlingError:
        raise
    except Exception as error:
        raise DataError(f"{rule}, but it fails on {shapes(given)}: {brief(error)}") from error


def shapes(given: Any) -> str:
    """Return the shapes and dtypes of all tensors, as an error names them.

    Example:
        >>> shapes((torch.zeros(2, 3), "text"))
        '(2, 3) float32, str'
    """
    shown = [
        f"{tuple(part.shape)} {str(part.dtype).removeprefix('torch.')}"
        if isinstance(part, Tensor)
        else type(part).__name__
        for leaf in tree_leaves(given)
        for part in tensors_in(leaf) or [leaf]
    ]
    return ", ".join(shown) or "nothing"
