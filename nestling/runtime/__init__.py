"""Run time: load a file, choose a subnet by budget, run it."""

from nestling.runtime.loaded import LoadedModel, load

__all__ = ["LoadedModel", "load"]
