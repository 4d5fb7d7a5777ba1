"""The engine: requests from any number of threads through one loaded model, batched and governed."""

from nestling.engine.engine import Engine
from nestling.engine.sight import Sight

__all__ = ["Engine", "Sight"]
