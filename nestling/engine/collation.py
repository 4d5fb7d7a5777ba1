"""Collation: single examples into the inputs of one call, and its outputs back into single ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nestling.axes.structure import map_tensors
from nestling.errors import ModelError
from nestling.signature import Signature, TensorSpec


class Collation:
    """How the examples of a model are put together.

    Args:
        signature: of the model.
        device: that it runs on.

    Raises:
        ModelError: an input is no tensor, or one that has no dimension of the batch.
    """

    def __init__(self, signature: Signature, device: torch.device) -> None:
        self._signature = signature
        self._device = device
        self._names = [name for name, _ in signature.kwargs]
        if signature.args and signature.kwargs:
            raise ModelError(
                f"the engine gives a model positional inputs or keywords, but this one takes "
                f"{signature}; wrap it so that it takes one kind"
            )
        self._specs: list[TensorSpec] = []
        for spec in [*signature.args, *(each for _, each in signature.kwargs)]:
            if spec is None or not spec.shape or spec.shape[0] != self._first(signature):
                raise ModelError(
                    "the engine puts examples together, so that every input is a tensor whose "
                    f"first dimension is the batch, but the model takes {signature}; wrap it so "
                    "that it makes the others itself"
                )
            self._specs.append(spec)

    def inputs(self, example: Any) -> tuple[Tensor, ...]:
        """Return the tensors of one example, checked.

        Args:
            example: a tensor; for several inputs a tuple of tensors, or a mapping by keyword.

        Raises:
            ModelError: a wrong number, name, shape or dtype.
        """
        if self._names:
            if not isinstance(example, Mapping) or set(example) != set(self._names):
                raise self._refused(example)
            tensors = tuple(example[name] for name in self._names)
        elif len(self._specs) == 1:
            tensors = (example,)
        elif isinstance(example, Sequence) and len(example) == len(self._specs):
            tensors = tuple(example)
        else:
            raise self._refused(example)
        for tensor, spec in zip(tensors, self._specs, strict=True):
            fits = isinstance(tensor, Tensor) and tensor.shape == spec.shape[1:]
            if not fits or str(tensor.dtype) != f"torch.{spec.dtype}":
                raise self._refused(example)
        return tensors

    def call(
        self, examples: Sequence[tuple[Tensor, ...]]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the positional inputs and the keywords of a call with examples."""
        if len(examples) == 1:
            stacked = [tensor[None] for tensor in examples[0]]
        else:
            stacked = [torch.stack(row) for row in zip(*examples, strict=True)]
        if self._device.type != "cpu":
            stacked = [tensor.to(self._device) for tensor in stacked]
        if self._names:
            return [], dict(zip(self._names, stacked, strict=True))
        return stacked, {}

    def apart(self, outputs: Any, count: int) -> list[Any]:
        """Return the outputs of each example, without the dimension of the batch.

        Raises:
            ModelError: a tensor of the outputs has no such dimension.
        """
        if isinstance(outputs, Tensor):
            _check_batch(outputs, count)
            return list(outputs.unbind())

        def of(place: int) -> Any:
            def pick(tensor: Tensor) -> Tensor:
                _check_batch(tensor, count)
                return tensor[place]

            return map_tensors(outputs, pick)

        return [of(place) for place in range(count)]

    def together(self, outputs: Sequence[Any]) -> Any:
        """Return single outputs as those of one call."""
        if all(isinstance(each, Tensor) for each in outputs):
            return torch.stack(list(outputs))
        return list(outputs)

    @staticmethod
    def _first(signature: Signature) -> int:
        specs = [*signature.args, *(each for _, each in signature.kwargs)]
        return next((each.shape[0] for each in specs if each is not None and each.shape), -1)

    def _refused(self, example: Any) -> ModelError:
        rows = [f"{tuple(spec.shape[1:])} {spec.dtype}" for spec in self._specs]
        if self._names:
            rows = [f"{name}={row}" for name, row in zip(self._names, rows, strict=True)]
        many = isinstance(example, Tensor) and example.shape[1:] == self._specs[0].shape[1:]
        cure = "; for several examples call engine.batch" if many else ""
        return ModelError(f"one example is {', '.join(rows)}, but got {_shown(example)}{cure}")


def _check_batch(tensor: Tensor, count: int) -> None:
    if not tensor.dim() or tensor.shape[0] != count:
        raise ModelError(
            f"the engine hands each of {count} examples its part of the outputs, whose first "
            f"dimension is the batch, but one has the shape {tuple(tensor.shape)}; wrap the model "
            "so that it returns a row an example"
        )


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return "a mapping of " + ", ".join(f"{key}={_shown(each)}" for key, each in value.items())
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of " + ", ".join(map(_shown, value))
    return type(value).__name__
