"""The zoo: architectures in small configurations with random weights, for the coverage benchmark.

Every architecture is a function that returns a `Case`: a model with the example inputs that a user
would give to `nestling.Supernet`. A library is imported when one of its architectures is made, so
the zoo works without it: `make` then raises `ImportError`.

    >>> from zoo import ARCHITECTURES, make
    >>> model, args, kwargs, outputs = make("transformers/gpt2")
    >>> net = nestling.Supernet(model, *args, kwargs=kwargs, outputs=outputs)
"""

from zoo import hf_language, hf_vision, nestling_nets, plain, timm_nets, traps, vision
from zoo.registry import ARCHITECTURES, Architecture, Case, make

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Case",
    "hf_language",
    "hf_vision",
    "make",
    "nestling_nets",
    "plain",
    "timm_nets",
    "traps",
    "vision",
]
