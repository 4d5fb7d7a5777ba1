"""Pretrained weights: read a safetensors state dict into a model."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nestling.errors import FileError, ModelError

M = TypeVar("M", bound=nn.Module)


def load_weights(model: M, path: str | PathLike[str]) -> M:
    """Load a safetensors state dict into a model of the same names and shapes.

    Strict: every parameter and buffer must be in the file and the other way round. The one
    exception are norms' `num_batches_tracked`, which published weights often leave out. The model
    is changed only after all has been checked.

    Args:
        model: changed in place; weights are cast to its dtypes and devices.
        path: a safetensors file.

    Returns:
        The same model.

    Raises:
        FileError: the file is missing or no safetensors file.
        ModelError: names, shapes or kinds of number differ.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> from torch import nn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(nn.Linear(2, 3).state_dict(), f"{folder}/weights.safetensors")
        ...     load_weights(nn.Linear(2, 3), f"{folder}/weights.safetensors")
        Linear(in_features=2, out_features=3, bias=True)
    """
    weights = _read(Path(path))
    own = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    missing = [k for k in own.keys() - weights.keys() if not k.endswith("num_batches_tracked")]
    _check_none(path, "lacks", missing)
    _check_none(path, "has, and the model has not,", list(weights.keys() - own.keys()))
    _check_none(
        path,
        "has other shapes for",
        [
            f"{key} ({tuple(weight.shape)}, the model's is {tuple(own[key].shape)})"
            for key, weight in weights.items()
            if weight.shape != own[key].shape
        ],
    )
    _check_none(
        path,
        "has another kind of number for",
        [
            f"{key} ({weight.dtype}, the model's is {own[key].dtype})"
            for key, weight in weights.items()
            if weight.is_floating_point() != own[key].is_floating_point()
        ],
    )
    model.load_state_dict(weights, strict=False)
    return model


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileError(f"{str(path)!r} is not a file: give the path of a safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FileError(f"{str(path)!r} cannot be read as a safetensors file: {error}") from error


def _check_none(path: str | PathLike[str], complaint: str, found: list[str]) -> None:
    """Raise an error that shows the first few of what was found, if anything was."""
    if found:
        shown = ", ".join(sorted(found)[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ModelError(
            f"{str(path)!r} {complaint} {shown}{more}: "
            "build the model with the arguments that the weights were made with"
        )
