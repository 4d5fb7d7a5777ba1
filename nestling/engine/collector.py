"""Python's garbage collector, kept off what was there when engines began.

A full collection looks at every object of the process while all threads wait: 0.14 s for the
300,000 objects of a process with torch, on one Xeon core. Every request that arrives meanwhile is
late, whatever the governor does. Objects that are frozen are passed over, so that a collection
looks at what has come since.
"""

from __future__ import annotations

import gc
import threading

_lock = threading.Lock()
_holders = 0
_ours = False  # whether nobody else had frozen anything


def hold() -> None:
    """Freeze all objects that there are, until as many calls of `release`."""
    global _holders, _ours
    with _lock:
        if _holders == 0:
            _ours = gc.get_freeze_count() == 0
        gc.freeze()
        _holders += 1


def release() -> None:
    """Let the collector look at everything again, once nobody holds; not at what others froze."""
    global _holders
    with _lock:
        _holders -= 1
        if _holders == 0 and _ours:
            gc.unfreeze()
