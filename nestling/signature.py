"""Signatures: the shapes and dtypes of the inputs that a model was given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nestling.errors import ModelError

LARGEST = 1 << 26  # entries of all example inputs: a file must not ask for more
MANY = 100  # inputs
MAX_RANK = 16
DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
)


def made_up(
    shape: Sequence[int], dtype: torch.dtype, name: str = "", *, ones: bool = False
) -> Tensor:
    """Return an input: random numbers, or whole numbers that are all zero, or all one for a mask.

    Args:
        shape: of the input.
        dtype: of the input.
        name: its keyword; one that contains "mask" is a mask, which shall hide nothing.
        ones: whether it is known to be a mask.

    Example:
        >>> made_up((1, 2), torch.int64, "attention_mask")
        tensor([[1, 1]])
    """
    if dtype.is_floating_point:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return torch.full(shape, int(ones or "mask" in name.lower()), dtype=dtype)


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one input, as it was given.

    Attributes:
        shape: with the batch that was given.
        dtype: its name, as in torch.
        ones: whether it was a mask that hides nothing: whole numbers or truth values that are all
            one. Zeros would hide everything, which is another run of the model.
    """

    shape: tuple[int, ...]
    dtype: str
    ones: bool = False

    def example(self, shape: Sequence[int], device: torch.device, name: str = "") -> Tensor:
        """Return an input of this dtype: see `made_up`."""
        dtype = getattr(torch, self.dtype)
        return made_up(shape, dtype, name, ones=self.ones).to(device)


@dataclass(frozen=True)
class Signature:
    """The inputs of a model: positional and by keyword; None where an input is no tensor.

    The first dimension of the first tensor is the batch; so is that of any other input that has
    the same length.
    """

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
        specs = self._specs()
        if None in specs or not specs:
            raise ModelError(
                "latency is measured on made-up inputs, which needs a model whose inputs are all "
                f"tensors, but its inputs are {self}; wrap the model so that it takes tensors "
                "only, or do without (measure=False)"
            )

        def made(spec: TensorSpec, name: str = "") -> Tensor:
            shape = (batch, *spec.shape[1:]) if self.has_batch(spec) else spec.shape
            return spec.example(shape, device, name)

        positional = [made(spec) for spec in self.args if spec is not None]
        return positional, {
            name: made(spec, name) for name, spec in self.kwargs if spec is not None
        }

    def __str__(self) -> str:
        parts = [self._shown(spec) for spec in self.args]
        parts += [f"{name}={self._shown(spec)}" for name, spec in self.kwargs]
        return ", ".join(parts) or "none"

    def _specs(self) -> list[TensorSpec | None]:
        return [*self.args, *(spec for _, spec in self.kwargs)]

    def has_batch(self, spec: TensorSpec) -> bool:
        """Return whether the first dimension of an input is the batch."""
        first = next((each for each in self._specs() if each is not None and each.shape), spec)
        return spec.shape[:1] == first.shape[:1] != ()

    def _shown(self, spec: TensorSpec | None) -> str:
        if spec is None:
            return "no tensor"
        lengths = ["batch", *spec.shape[1:]] if self.has_batch(spec) else list(spec.shape)
        return f"({', '.join(map(str, lengths))}) {spec.dtype}"

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
        if not isinstance(value["args"], list) or not isinstance(value["kwargs"], dict):
            raise ValueError("inputs are a list and a mapping")
        args = tuple(_from_json(spec) for spec in value["args"])
        kwargs = tuple((str(name), _from_json(spec)) for name, spec in value["kwargs"].items())
        found = cls(args, kwargs)
        specs = [spec for spec in found._specs() if spec is not None]
        entries = [math.prod(spec.shape[found.has_batch(spec) :]) for spec in specs]
        if len(found._specs()) > MANY or sum(entries) > LARGEST:
            raise ValueError(f"at most {MANY} inputs of {LARGEST} entries an example")
        return found


def _spec(value: Any) -> TensorSpec | None:
    """Return the form of an input; None where none can be made up."""
    if not isinstance(value, Tensor) or value.dim() > MAX_RANK:
        return None
    dtype = str(value.dtype).removeprefix("torch.")
    storable = dtype in DTYPES and value.numel() <= LARGEST
    whole = not value.is_floating_point() and not value.is_complex() and value.numel() > 0
    ones = storable and whole and bool((value == 1).all())
    return TensorSpec(tuple(value.shape), dtype, ones) if storable else None


def _json(spec: TensorSpec | None) -> Any:
    if spec is None:
        return None
    return [list(spec.shape), spec.dtype, *([True] if spec.ones else [])]


def _from_json(value: Any) -> TensorSpec | None:
    if value is None:
        return None
    shape, dtype, *ones = value
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise ValueError(f"not a shape: {str(shape)[:40]}")
    for length in shape:
        if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= LARGEST:
            raise ValueError(f"not a length: {str(length)[:40]}")
    if dtype not in DTYPES:
        raise ValueError(f"not a dtype: {str(dtype)[:40]}")
    if ones not in ([], [True]):
        raise ValueError(f"not a kind of input: {str(ones)[:40]}")
    return TensorSpec(tuple(shape), dtype, bool(ones))
