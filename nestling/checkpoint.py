"""Checkpoints: all that a training needs to go on exactly where it stopped.

Weights, optimiser state, random states (torch's, Python's, NumPy's and the loader's own, now and at
the start of the epoch) and the place in the data, in one safetensors file; no pickle.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nestling import container, strictjson
from nestling.errors import FileError, ModelError
from nestling.weights import fill, misfit, tensors_of

VERSION = 2
NAME = "checkpoint.safetensors"  # in the folder of a run


@dataclass
class RandomState:
    """The states of the global random generators, and of named ones of a data loader."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]

    @classmethod
    def now(cls, own: Mapping[str, torch.Generator] | None = None) -> RandomState:
        """Return the present states; `own` are the generators of the data loader by name."""
        version, words, gauss = random.getstate()
        _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        tensors = {
            "torch": torch.get_rng_state(),
            "python": torch.tensor(words, dtype=torch.int64),
            "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        }
        if torch.cuda.is_available():
            for index, state in enumerate(torch.cuda.get_rng_state_all()):
                tensors[f"cuda{index}"] = state
        for name, generator in (own or {}).items():
            tensors[f"own/{name}"] = generator.get_state()
        header = {
            "python": [version, gauss],
            "numpy": [int(position), int(has_gauss), float(cached)],
        }
        return cls(tensors, header)

    def restore(self, own: Mapping[str, torch.Generator] | None = None) -> None:
        """Put the generators back into these states.

        Raises:
            FileError: the states, read from a file, are none.
        """
        try:
            torch.set_rng_state(self.tensors["torch"])
            version, gauss = self.header["python"]
            random.setstate((version, tuple(self.tensors["python"].tolist()), gauss))
            position, has_gauss, cached = self.header["numpy"]
            keys = self.tensors["numpy"].numpy().astype(np.uint32)
            np.random.set_state(("MT19937", keys, position, has_gauss, cached))
            for name, generator in (own or {}).items():
                generator.set_state(self.tensors[f"own/{name}"])
            for index in range(torch.cuda.device_count()):
                if f"cuda{index}" in self.tensors:
                    torch.cuda.set_rng_state(self.tensors[f"cuda{index}"], index)
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise FileError(
                f"the checkpoint holds no valid random states ({error}); start the training anew"
            ) from error


def generators_of(loader: Any) -> dict[str, torch.Generator]:
    """Return the generators of a data loader's own, by where they are, each once.

    Example:
        >>> list(generators_of(DataLoader(data, shuffle=True, generator=torch.Generator())))
        ['generator']
    """
    found: dict[str, torch.Generator] = {}
    for place in ("generator", "sampler.generator", "batch_sampler.sampler.generator"):
        value = loader
        for name in place.split("."):
            value = getattr(value, name, None)
        if isinstance(value, torch.Generator) and not any(value is each for each in found.values()):
            found[place] = value
    return found


def seed_all(seed: int) -> None:
    """Seed the global random generators of torch, Python and NumPy.

    Raises:
        ModelError: the seed is no whole number from 0 to 2**63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ModelError(f"seed= is a whole number from 0 to 2**63 - 1, but it is {seed!r}")
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@dataclass
class Checkpoint:
    """The state of a training run.

    Attributes:
        header: JSON values: stage, epoch, batch, what the run was started with, the log.
        weights: of what is being trained, by name.
        optimizer: the optimiser's state dict.
        results: weights of finished stages that trained stand-alone nets.
        epoch_start: random state when the epoch began; the data order follows from it.
        present: random state when the checkpoint was taken.
    """

    header: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    epoch_start: RandomState
    present: RandomState
    results: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the checkpoint; an earlier one of that name is replaced at once, at the end.

        Raises:
            FileError: the file cannot be written.
        """
        tensors = {f"weights/{name}": tensor for name, tensor in self.weights.items()}
        for stage, weights in self.results.items():
            tensors |= {f"results/{stage}/{name}": tensor for name, tensor in weights.items()}
        numbers: dict[str, dict[str, Any]] = {}
        for index, state in self.optimizer.get("state", {}).items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{key}"] = value
                else:
                    numbers.setdefault(str(index), {})[key] = value
        for moment, random_state in (("epoch", self.epoch_start), ("now", self.present)):
            named = random_state.tensors.items()
            tensors |= {f"random/{moment}/{name}": tensor for name, tensor in named}
        header = {
            "checkpoint": VERSION,
            "run": self.header,
            "optimizer": {"groups": _numbers(self.optimizer["param_groups"]), "state": numbers},
            "random": {"epoch": self.epoch_start.header, "now": self.present.header},
        }
        container.write(path, header, tensors)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            FileError: the file is missing, damaged, or a checkpoint of another version.
        """
        header, tensors = container.read(path)
        if header.get("checkpoint") != VERSION:
            raise FileError(
                f"{path} is no checkpoint of version {VERSION} (it says "
                f"{header.get('checkpoint')!r:.80}); start the training anew, or resume it with "
                "the Nestling that wrote it"
            )
        try:
            _check_run(header["run"])
            return cls._of(header, _grouped(tensors))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileError(f"{path} is no complete checkpoint ({error}); start anew") from error

    @classmethod
    def _of(
        cls, header: Mapping[str, Any], grouped: Mapping[str, Mapping[str, Tensor]]
    ) -> Checkpoint:
        state: dict[int, dict[str, Any]] = {}
        for key, tensor in grouped.get("optimizer", {}).items():
            index, _, name = key.partition("/")
            state.setdefault(int(index), {})[name] = tensor
        for text, values in header["optimizer"]["state"].items():
            state.setdefault(int(text), {}).update(values)
        results: dict[str, dict[str, Tensor]] = {}
        for key, tensor in grouped.get("results", {}).items():
            stage, _, name = key.partition("/")
            results.setdefault(stage, {})[name] = tensor
        epoch, now = (_random(grouped, header, moment) for moment in ("epoch", "now"))
        optimizer = {"state": state, "param_groups": header["optimizer"]["groups"]}
        weights = dict(grouped.get("weights", {}))
        return cls(header["run"], weights, optimizer, epoch, now, results)


def _numbers(value: Any) -> Any:
    """Return the values of an optimiser as JSON holds them: a tensor of one number as a number."""
    return tree_map(lambda leaf: leaf.item() if isinstance(leaf, Tensor) else leaf, value)


def _check_run(run: Any) -> None:
    kinds: dict[str, Any] = {"facts": dict, "stage": int, "epoch": int, "batch": int, "alone": bool}
    kinds |= {"log": list, "losses": list, "optimizer": dict, "first_loss": float}
    kinds |= {"gradients": list, "compiled": dict, "stages": list, "changes": int, "orders": dict}
    kinds |= {"trained in": str | None}
    for key, kind in kinds.items():
        if not isinstance(run[key], kind):
            raise ValueError(f"{key!r} is {run[key]!r:.80}")
    if not all(isinstance(facts, dict) for facts in run["stages"]):
        raise ValueError(f"'stages' is {run['stages']!r:.80}")


def _grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition("/")
        grouped.setdefault(head, {})[rest] = tensor
    return grouped


def _random(
    grouped: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, Any], moment: str
) -> RandomState:
    prefix = f"{moment}/"
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in grouped["random"].items()
        if name.startswith(prefix)
    }
    return RandomState(tensors, header["random"][moment])


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ, in words, theirs first."""
    return [
        f"{key}={theirs.get(key)!r:.200} (now {ours.get(key)!r:.200})"
        for key in dict.fromkeys([*theirs, *ours])
        if theirs.get(key) != ours.get(key)
    ]


def refuse_other(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], path: Path | None, where: str = ""
) -> None:
    """Check that a checkpoint was made with these settings; name those that differ.

    Args:
        theirs: the checkpoint's.
        ours: those of now.
        path: of the checkpoint.
        where: of what part of it they are, such as " in its stage 2".

    Raises:
        FileError: some differ.
    """
    different = differing(theirs, ours)
    if different:
        raise FileError(
            f"{path} was made with {', '.join(different)}{where}; resume with the same data and "
            "settings, or start with another checkpoint="
        )


def load_into(module: nn.Module, weights: Mapping[str, Tensor], path: Path | None) -> None:
    """Fill a module from a checkpoint; nothing is changed unless all of it fits."""
    problem = misfit(module, weights)
    own = tensors_of(module)
    if not problem and any(own[name].dtype != tensor.dtype for name, tensor in weights.items()):
        problem = "its numbers are of another dtype"
    if problem:
        raise FileError(
            f"{path} holds the weights of another model: {problem}; resume with the model, "
            "bits and Nestling that it was made with, or start with another checkpoint="
        )
    fill(module, weights)


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], path: Path | None
) -> None:
    """Fill an optimiser of the same settings; JSON has made lists of tuples."""
    groups = [
        {
            key: tuple(value) if isinstance(own.get(key), tuple) else value
            for key, value in group.items()
        }
        for own, group in zip(optimizer.param_groups, state["param_groups"], strict=False)
    ]
    try:
        optimizer.load_state_dict({**state, "param_groups": groups})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FileError(f"{path} holds the state of another optimiser: {error}") from error


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value as JSON gives it back; what JSON does not know by the name of its type."""

    def known(each: Any) -> Any:
        if isinstance(each, Mapping):
            return {str(key): known(item) for key, item in each.items()}
        if isinstance(each, (list, tuple)):
            return [known(item) for item in each]
        if isinstance(each, Tensor) and each.numel() == 1:
            return known(each.item())
        if each is None or isinstance(each, (str, bool, int)):
            return each
        if isinstance(each, float):
            return each if math.isfinite(each) else str(each)
        return type(each).__name__

    found: dict[str, Any] = json.loads(strictjson.dump(known(value)))
    return found


def optimizer_settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what tells an optimiser from another: its class and the settings of its groups."""
    groups = [
        {key: value for key, value in group.items() if key not in ("params", "param_names")}
        | {"tensors": len(group["params"])}
        for group in optimizer.param_groups
    ]
    return plain({"optimizer": type(optimizer).__name__, "groups": groups})
