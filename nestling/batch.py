"""Batches: what a data loader yields, and how a model is called with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nestling.errors import DataError


def inputs_of(batch: Any) -> Any:
    """Return the inputs of a batch: the first of an `(inputs, targets)` pair, or all of it."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0]
    return batch


def pair(batch: Any) -> tuple[Any, Any]:
    """Return the inputs and targets of a batch.

    Raises:
        DataError: the batch is not an `(inputs, targets)` pair.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise DataError(
        f"a batch is a pair (inputs, targets), but got {type(batch).__name__}"
        + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
        + "; wrap your loader so that it yields pairs"
    )


def forward(model: nn.Module, inputs: Any) -> Any:
    """Call a model: with keywords for a mapping, with several arguments for a tuple or list."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def size(inputs: Any) -> int:
    """Return the number of examples: the first dimension of the first tensor."""
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.dim():
            return int(leaf.shape[0])
    return 1


def move(
    inputs: Any, device: torch.device, memory_format: torch.memory_format | None = None
) -> Any:
    """Move all tensors to a device; those of four dimensions also to a memory format."""

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if memory_format is not None and leaf.dim() == 4:
            return leaf.to(device, memory_format=memory_format)
        return leaf.to(device)

    return tree_map(change, inputs)
