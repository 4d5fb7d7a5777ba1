"""Finiteness: whether the numbers of a training are finite, looked at without waiting for a GPU.

Python runs ahead of a GPU; to look at one of its numbers is to wait until it has caught up. So the
flags of many steps are gathered on the GPU and looked at together. On a CPU there is nothing to
wait for: each is looked at when it comes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nestling.errors import NestlingError

EVERY = 50  # steps between looks: a wait for the GPU costs about what a step of a small net does


def runs_behind(device: torch.device) -> bool:
    """Return whether Python runs ahead of a device, so that to look at its numbers is to wait."""
    return device.type == "cuda"


class Finiteness:
    """The flags of a training that have not been looked at.

    Example:
        >>> finite = Finiteness()
        >>> finite.require(torch.isfinite(loss), lambda: ModelError("the loss is not finite"))
        >>> finite.step()
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, Callable[[], NestlingError]]] = []
        self._steps = 0

    def require(self, flag: Tensor, error: Callable[[], NestlingError]) -> None:
        """Require a flag to be true: now on a CPU, at the next look on a GPU.

        Args:
            flag: a tensor of one boolean.
            error: makes what is raised where it is false.
        """
        if runs_behind(flag.device):
            self._pending.append((flag, error))
        elif not bool(flag):
            raise error()

    def step(self) -> None:
        """Count a step, and look at the gathered flags every `EVERY` steps."""
        self._steps += 1
        if self._steps % EVERY == 0:
            self.look()

    def look(self) -> None:
        """Look at all gathered flags, and wait for the GPU once.

        Raises:
            NestlingError: that of the first flag that is false.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        for fine, (_, error) in zip(
            torch.stack([flag for flag, _ in pending]).tolist(), pending, strict=True
        ):
            if not fine:
                found = error()
                raise type(found)(
                    f"{found} (on a GPU this is looked at every {EVERY} steps, so the weights in "
                    "memory are spoilt; those of a checkpoint are not)"
                )
