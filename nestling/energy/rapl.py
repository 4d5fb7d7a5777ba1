"""rapl: the energy counters of Intel's and AMD's processors, as Linux shows them.

Packages are added up, and memory where it has a counter of its own. Most systems let only root read
them: `chmod a+r /sys/class/powercap/*/energy_uj` opens them.

Source: https://docs.kernel.org/power/powercap/powercap.html
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import torch

from nestling.energy.meter import Meter

FOLDER = "sys/class/powercap"
_PACKAGE = re.compile(r"[a-z-]+rapl:\d+")
_PART = re.compile(r"[a-z-]+rapl:\d+:\d+")
MICRO = 1e-6


def meter(device: torch.device, root: Path) -> Meter | None:
    """Return the meter of the processor's packages and memory; None where it cannot be read."""
    if device.type != "cpu":
        return None
    domains = []
    try:
        for folder in sorted((root / FOLDER).iterdir()):
            if _is_counted(folder.name, _text(folder / "name") if folder.is_dir() else ""):
                _count(folder / "energy_uj")
                domains.append(folder)
        wraps = [_count(folder / "max_energy_range_uj") + 1 for folder in domains]
    except (OSError, ValueError):
        return None
    if not domains:
        return None
    what = ", ".join(_text(folder / "name") for folder in domains)
    readers = [partial(_count, folder / "energy_uj") for folder in domains]
    return Meter(f"rapl: {what}", readers, MICRO, wraps)


def _is_counted(place: str, name: str) -> bool:
    """Return whether a domain is a package, or memory, which no package includes."""
    return bool(
        (_PACKAGE.fullmatch(place) and name.startswith("package"))
        or (_PART.fullmatch(place) and name == "dram")
    )


def _text(file: Path) -> str:
    return file.read_text(encoding="ascii").strip()


def _count(file: Path) -> int:
    return int(_text(file))
