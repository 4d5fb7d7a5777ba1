"""Memory: the most bytes of tensors that are alive during a call.

On a CPU every tensor that an op returns is followed from its birth to its end; work space inside an
op is not seen. On a GPU the allocator itself is asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Return the most bytes that a call has in use at once, beyond what was there before.

    Args:
        call: a function of no arguments; it is run once, without gradients.
        device: where it computes.

    Example:
        >>> peak_bytes(lambda: torch.zeros(1000) + 1)
        8000
    """
    with torch.no_grad():
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            call()
            torch.cuda.synchronize()
            return int(torch.cuda.max_memory_allocated()) - int(before)
        with _Census() as census:
            call()
        return int(census.peak)


def resident_bytes() -> int | None:
    """Return the bytes of this process that are in memory; None where that cannot be known.

    What was freed is given back to the system first, as far as the C library does that, so that
    the growth from one call to the next is what is still in use.

    Example:
        >>> resident_bytes() is None or resident_bytes() > 0
        True
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # of the GNU C library
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


class _Census(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that ops make, while they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        returned = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(returned):
            if isinstance(leaf, Tensor):
                self._meet(leaf, before)
        return returned

    def _meet(self, tensor: Tensor, before: set[int]) -> None:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in before or place in self._known or not place:
            return
        size = self._known[place] = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._leave, place)

    def _leave(self, place: int) -> None:
        self.now -= self._known.pop(place, 0)
