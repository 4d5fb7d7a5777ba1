"""Caller: the thread that made an engine, which runs a batch itself where it would only wait."""

from __future__ import annotations

import threading

import torch
from torch.overrides import has_torch_function
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


class Caller:
    """The thread that makes it.

    To wake one thread and then the other takes 0.1 ms, and 0.3 at times, where the processor rests
    in between (one Xeon core); all else that an engine adds to a call takes less. It is one thread
    alone, as each that runs a model has threads and memory of its own for that.

    Args:
        device: that the model runs on.
    """

    def __init__(self, device: torch.device) -> None:
        self._thread = threading.current_thread()
        self._on_cpu = device.type == "cpu"  # others have a stream for each thread
        self._threads = torch.get_num_threads()

    @property
    def is_here(self) -> bool:
        """Whether it is the calling thread, and torch computes in it as in any other one.

        An answer must not depend on who runs the batch. Whether gradients are on is not asked, as
        the caller turns them on for its turn.
        """
        return (
            self._on_cpu
            and threading.current_thread() is self._thread
            and torch.get_num_threads() == self._threads  # a worker keeps the number it began with
            and not torch.is_inference_mode_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not has_torch_function((None,))  # true of anything within a function mode
            and not is_in_torch_dispatch_mode()
        )
