"""The registry of architectures."""

from __future__ import annotations

import contextlib
import fnmatch
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

SEED = 0


class Case(NamedTuple):
    """A model and what a user gives to `nestling.Supernet` with it.

    Attributes:
        model: random weights, float32, in evaluation mode.
        args: example inputs.
        kwargs: keyword inputs.
        outputs: as the supernet's `outputs=`.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}  # noqa: RUF012  (never written to)
    outputs: Any = None


@dataclass(frozen=True)
class Architecture:
    """One row of the zoo.

    Attributes:
        name: `family/model`.
        build: makes the case.
        full: whether it is of full size, for the seconds of discovery alone.
        heads: for Torch-Pruning, from the model: its documented `num_heads`, a mapping of the
            modules that project queries, keys and values to their numbers of heads.
    """

    name: str
    build: Callable[[], Case]
    full: bool = False
    heads: Callable[[nn.Module], Mapping[nn.Module, int]] | None = None

    @property
    def family(self) -> str:
        """The library that it is from, or "plain" and "traps"."""
        return self.name.split("/")[0]


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(
    name: str,
    *,
    full: bool = False,
    heads: Callable[[nn.Module], Mapping[nn.Module, int]] | None = None,
) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register a function that returns a case."""

    def register(build: Callable[[], Case]) -> Callable[[], Case]:
        if name in ARCHITECTURES:
            raise ValueError(f"two architectures are named {name!r}")
        ARCHITECTURES[name] = Architecture(name, build, full, heads)
        return build

    return register


def make(name: str) -> Case:
    """Return a case, the same weights and inputs at every call.

    Args:
        name: of the architecture.

    Raises:
        ImportError: the library that it is from is missing.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(SEED)
        case = ARCHITECTURES[name].build()
    case.model.eval()
    return case


def matching(pattern: str) -> list[str]:
    """Return the names that a pattern (`*` and `?`) or a part of a name means, in order."""
    return [n for n in ARCHITECTURES if fnmatch.fnmatchcase(n, pattern) or pattern in n]


def heads_by_name(
    names: tuple[str, ...], attribute: str | int
) -> Callable[[nn.Module], dict[nn.Module, int]]:
    """Return the `num_heads` that Torch-Pruning's documentation asks for, by layers' names.

    Args:
        names: how the paths of the projecting layers end.
        attribute: of the parent module, its number of heads, or the number itself.
    """

    def found(model: nn.Module) -> dict[nn.Module, int]:
        result = {}
        for path, module in model.named_modules():
            if path.rpartition(".")[2] in names and isinstance(module, nn.Linear):
                parent = model.get_submodule(path.rpartition(".")[0])
                result[module] = (
                    attribute if isinstance(attribute, int) else int(getattr(parent, attribute))
                )
        return result

    return found


def tokens(batch: int = 2, length: int = 8, vocabulary: int = 64) -> torch.Tensor:
    """Return random token numbers, (batch, length)."""
    return torch.randint(vocabulary, (batch, length))


def import_torchvision() -> Any:
    """Import torchvision; beside a CPU-only torch its compiled operators may be missing.

    Its Python part declares meta kernels for two operators that only the compiled part defines; for
    the models, which do not use them, empty declarations are enough. timm imports torchvision.
    """
    if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")  # lasts as long as we hold it
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)
    import torchvision

    return torchvision


def import_transformers() -> Any:
    """Import transformers, which imports torchvision where it is installed."""
    with contextlib.suppress(ImportError):  # transformers works without it
        import_torchvision()
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers


_LIBRARIES: list[torch.library.Library] = []
