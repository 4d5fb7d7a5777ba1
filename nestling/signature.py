"""Signatures: the shapes and dtypes of the inputs that a model was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nestling.errors import ModelError

LARGEST = 1 << 28  # entries of an example input: a file must not ask for more


@dataclass(frozen=True)
class TensorSpec:
    """Shape (the first dimension is the batch) and dtype of one input."""

    shape: tuple[int, ...]
    dtype: str

    def example(self, batch: int, device: torch.device) -> Tensor:
        """Return an input of this form: random numbers, or zeros for integers."""
        shape = (batch, *self.shape[1:]) if self.shape else ()
        dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point:
            generator = torch.Generator().manual_seed(0)
            return torch.randn(shape, generator=generator).to(device, dtype)
        return torch.zeros(shape, dtype=dtype, device=device)

    def __str__(self) -> str:
        return f"({', '.join(['batch', *map(str, self.shape[1:])])}) {self.dtype}"


@dataclass(frozen=True)
class Signature:
    """The inputs of a model: positional and by keyword; None where an input is no tensor."""

    args: tuple[TensorSpec | None, ...]
    kwargs: tuple[tuple[str, TensorSpec | None], ...] = ()

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Signature:
        """Return the signature of example inputs."""
        return cls(
            tuple(_spec(value) for value in args),
            tuple((name, _spec(value)) for name, value in kwargs.items()),
        )

    def example(self, batch: int, device: torch.device) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return random inputs with `batch` examples.

        Raises:
            ModelError: an input is no tensor, so that it cannot be made up.
        """
        specs = [*self.args, *(spec for _, spec in self.kwargs)]
        if any(spec is None for spec in specs) or not specs:
            raise ModelError(
                "latency is measured on made-up inputs, which needs a model whose inputs are all "
                "tensors; wrap the model so that it takes tensors only"
            )
        positional = [spec.example(batch, device) for spec in self.args if spec is not None]
        named = {n: spec.example(batch, device) for n, spec in self.kwargs if spec is not None}
        return positional, named

    def __str__(self) -> str:
        parts = [str(spec) for spec in self.args]
        parts += [f"{name}={spec}" for name, spec in self.kwargs]
        return ", ".join(parts)

    def to_json(self) -> Any:
        """Return the signature as JSON values."""
        return {
            "args": [_json(spec) for spec in self.args],
            "kwargs": {name: _json(spec) for name, spec in self.kwargs},
        }

    @classmethod
    def from_json(cls, value: Any) -> Signature:
        """Return the signature that `to_json` wrote.

        Raises:
            ValueError: the value is not of that form.
        """
        args = tuple(_from_json(spec) for spec in value["args"])
        kwargs = tuple((str(name), _from_json(spec)) for name, spec in value["kwargs"].items())
        return cls(args, kwargs)


def _spec(value: Any) -> TensorSpec | None:
    if isinstance(value, Tensor):
        return TensorSpec(tuple(value.shape), str(value.dtype).removeprefix("torch."))
    return None


def _json(spec: TensorSpec | None) -> Any:
    return None if spec is None else [list(spec.shape), spec.dtype]


def _from_json(value: Any) -> TensorSpec | None:
    if value is None:
        return None
    shape, dtype = value
    entries = 1
    for length in shape:
        if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= LARGEST:
            raise ValueError(f"not a length: {length!r}")
        entries *= max(length, 1)
    if entries > LARGEST or len(shape) > 16:
        raise ValueError(f"an input of {entries} entries")
    if not isinstance(getattr(torch, str(dtype), None), torch.dtype):
        raise ValueError(f"not a dtype: {dtype!r}")
    return TensorSpec(tuple(shape), dtype)
