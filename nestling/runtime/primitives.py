"""Primitives: the code that oneDNN makes for the shapes of a call, and how much of it is kept."""

from __future__ import annotations

import os

NAMES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"  # the new one, the old
KEPT = 8192  # pieces, of some 50 KiB each: 0.4 GB where so many shapes are ever run


def keep_more() -> None:
    """Let oneDNN keep code for all subnets and batches; a user's own setting stays.

    On a processor torch runs convolutions and matrices by code that oneDNN makes for their shapes,
    which takes some milliseconds a call. It keeps the 1,024 pieces that were used last. A menu of
    six nets of 20 layers needs twice as many for batches of 1 to 16, so that under changing load
    calls take twice as long now and then. oneDNN reads the setting when it makes the first piece:
    what has run a net before comes too late, and keeps what it had.

    Source: oneDNN, Primitive Cache (developer guide).
    """
    if not any(os.environ.get(name) for name in NAMES):  # an empty one is none to oneDNN
        os.environ[NAMES[0]] = str(KEPT)
