"""Nestling: one network, every size.

Turns your own PyTorch model into one set of weights in which smaller networks are nested. Each is
an ordinary module that runs at its own cost, so a deployed program trades accuracy against
latency, memory and computation in microseconds.
"""

from nestling import axes, costs, data, exporters, methods, models, objectives, rankers, search
from nestling.bits import Bits
from nestling.engine import Engine
from nestling.entry import Entry
from nestling.errors import (
    BudgetError,
    DataError,
    EngineError,
    FileError,
    ModelError,
    NestlingError,
    SpecError,
    UncalibratedWarning,
)
from nestling.evaluation import evaluate
from nestling.exporting import export
from nestling.fitting import fit
from nestling.menu import Menu, make_menu
from nestling.objectives import sandwich
from nestling.packing import pack
from nestling.rankers import rank
from nestling.runtime import LoadedModel, load
from nestling.spec import Axis, Space, Spec
from nestling.supernet import Supernet

__version__ = "0.1.0"

__all__ = [
    "Axis",
    "Bits",
    "BudgetError",
    "DataError",
    "Engine",
    "EngineError",
    "Entry",
    "FileError",
    "LoadedModel",
    "Menu",
    "ModelError",
    "NestlingError",
    "Space",
    "Spec",
    "SpecError",
    "Supernet",
    "UncalibratedWarning",
    "axes",
    "costs",
    "data",
    "evaluate",
    "export",
    "exporters",
    "fit",
    "load",
    "make_menu",
    "methods",
    "models",
    "objectives",
    "pack",
    "rank",
    "rankers",
    "sandwich",
    "search",
]
