"""The engine: requests from any thread through one loaded model, batched and governed."""

from nestling.engine.engine import Engine
from nestling.engine.reply import Reply
from nestling.engine.sight import Sight

__all__ = ["Engine", "Reply", "Sight"]
