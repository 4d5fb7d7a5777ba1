"""Interface: the inputs and outputs of a model by name, as a runtime that knows no Python has them.

A runtime takes a flat list of tensors and returns one. The model takes arguments by place or by
keyword, and returns a tensor, or a structure of them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import (
    TreeSpec,
    keystr,
    tree_flatten_with_path,
    tree_unflatten,
)

from nestling.errors import ModelError
from nestling.signature import Signature

_PLACES = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Interface:
    """How a model's own inputs and outputs are laid out as flat lists.

    Attributes:
        signature: shapes and dtypes of the inputs.
        inputs: names in order: those by place, then those by keyword.
        parameters: names of all that the model takes by place.
        outputs: names of the tensors it returns, in order.
        leaves: the parts of what it returns, in order; None stands for a tensor.
        structure: of what it returns.
    """

    signature: Signature
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]
    outputs: tuple[str, ...]
    leaves: tuple[Any, ...]
    structure: TreeSpec

    @classmethod
    def of(cls, module: nn.Module, signature: Signature) -> Interface:
        """Return the interface of a module, which is run once on made-up inputs.

        Raises:
            ModelError: inputs cannot be made up, the model fails on them, or returns no tensor.
        """
        if None in (*signature.args, *dict(signature.kwargs).values()):
            raise ModelError(
                f"a runtime takes tensors only, but the model's inputs are {signature}; wrap the "
                "model so that it takes tensors, or use the backend eager"
            )
        args, kwargs = example(signature, 2, _device(module))
        try:
            with torch.no_grad():
                returned = module(*args, **kwargs)
        except Exception as error:
            raise ModelError(f"the model fails on inputs like {signature}: {error}") from error
        paths, structure = tree_flatten_with_path(returned)
        tensors = [path for path, leaf in paths if isinstance(leaf, Tensor)]
        if not tensors:
            raise ModelError(
                f"the model must return tensors, but it returns {type(returned).__name__}; wrap it "
                "so that it does"
            )
        parameters = _parameters(module)
        places = list(parameters[: len(args)])
        places += [f"input_{number}" for number in range(len(places), len(args))]
        inputs = (*places, *kwargs)
        taken = {*inputs, *module.state_dict()}  # in a graph a name stands for one thing
        names = [_name_of(path) for path in tensors]
        names = [f"{name}_output" if name in taken else name for name in names]
        outputs = tuple(names) if len(set(names)) == len(names) else _numbered("output", len(names))
        return cls(
            signature,
            inputs,
            parameters,
            outputs,
            tuple(None if isinstance(leaf, Tensor) else _Constant(leaf) for _, leaf in paths),
            structure,
        )

    def flat(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Return a call's inputs in the order of `inputs`.

        Raises:
            ValueError: they are not those of the signature.
        """
        if kwargs or self.signature.kwargs or len(args) != len(self.inputs):
            args = self._bound(args, kwargs)
        wanted = zip(self.inputs, args, self._wanted, strict=True)
        for name, value, (start, lengths, dtype) in wanted:
            fits = isinstance(value, Tensor) and value.dtype == dtype
            if not fits or value.shape[start:] != lengths or value.dim() != start + len(lengths):
                raise _misfit(name, value)
        return list(args)

    def nested(self, tensors: Sequence[Tensor]) -> Any:
        """Return the flat outputs of a runtime as the model returns them."""
        if self._single:
            return tensors[0]
        rest = iter(tensors)
        leaves = [next(rest) if leaf is None else leaf.value for leaf in self.leaves]
        return tree_unflatten(leaves, self.structure)

    @cached_property
    def _wanted(self) -> list[tuple[int, torch.Size, torch.dtype]]:
        """Where the lengths of each input begin that are not free, these lengths, and the dtype.

        Made once, as every call is checked.
        """
        found = []
        for spec in (*self.signature.args, *(spec for _, spec in self.signature.kwargs)):
            if spec is not None:
                start = 1 if self.signature.has_batch(spec) else 0
                found.append((start, torch.Size(spec.shape[start:]), getattr(torch, spec.dtype)))
        return found

    @cached_property
    def _single(self) -> bool:
        """Whether the model returns one tensor and nothing around it."""
        return self.leaves == (None,) and self.structure.is_leaf()

    def _bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        named = dict(zip(self.parameters, args, strict=False)) | dict(kwargs)
        if len(args) > len(self.parameters):
            named |= {f"input_{n}": args[n] for n in range(len(self.parameters), len(args))}
        if named.keys() != set(self.inputs):
            raise ValueError(f"the inputs are {', '.join(self.inputs)}, not {', '.join(named)}")
        return [named[name] for name in self.inputs]


@dataclass(frozen=True)
class _Constant:
    """A part of an output that is no tensor."""

    value: Any


def example(
    signature: Signature, batch: int, device: torch.device | str = "cpu", seed: int = 0
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return made-up inputs: see `Signature.example`. Another seed gives other numbers.

    Raises:
        ModelError: an input is no tensor, so that it cannot be made up.
    """
    args, kwargs = signature.example(batch, torch.device(device))
    generator = torch.Generator().manual_seed(seed)

    def varied(tensor: Tensor) -> Tensor:
        if not seed or not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    return [varied(each) for each in args], {name: varied(each) for name, each in kwargs.items()}


def _misfit(name: str, value: Any) -> ValueError:
    if not isinstance(value, Tensor):
        return ValueError(f"{name} is a tensor, not {type(value).__name__}")
    kind = str(value.dtype).removeprefix("torch.")
    return ValueError(f"{name} does not fit, it is {tuple(value.shape)} {kind}")


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _parameters(module: nn.Module) -> tuple[str, ...]:
    """Return the names of what a module's forward takes by place."""
    try:
        found = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(each.name for each in found if each.kind in _PLACES)


def _name_of(path: Sequence[Any]) -> str:
    """Return a readable name of a place in an output: `logits`, `states_0`, `output_1`."""
    words = re.findall(r"\w+", keystr(tuple(path)))
    if not words:
        return "output"
    return "_".join(words if not words[0].isdigit() else ["output", *words])


def _numbered(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}_{number}" for number in range(count))
