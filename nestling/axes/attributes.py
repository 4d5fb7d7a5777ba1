"""Size attributes: which integers of a module follow the axes.

For torch's own layers a table says so. Other modules hold sizes under names of their own; these are
found by the proof, which tries the attributes that equal a size the code passed to an op.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from torch import nn

from nestling.axes.tracer import SizeArgument
from nestling.extent import Extent, Fixed, Product, axes_of, parts_of
from nestling.spec import Attribute, Layout

Dims: TypeAlias = Callable[[str, int], Extent | None]
"""Extent of dimension `dim` of the module's own parameter or buffer `key`, if it has it."""


def known_attributes(
    model: nn.Module,
    layouts: Mapping[str, Layout],
    sizes: Sequence[tuple[SizeArgument, Extent]],
) -> list[Attribute]:
    """Return the attributes of torch's own layers that follow an axis."""
    alias = _first_names(model)
    found = []
    for path, module in model.named_modules():

        def dim(key: str, at: int, path: str = path) -> Extent | None:
            layout = layouts.get(alias.get(f"{path}.{key}" if path else key, ""))
            return layout.extents[at] if layout is not None else None

        passed = [pair for pair in sizes if pair[0].module == path]
        for name, index, extent in _sizes_of(module, dim, passed):
            if extent is not None and any(axes_of(extent)):
                found.append(Attribute(path, name, index, extent))
    return found


def _first_names(model: nn.Module) -> dict[str, str]:
    """Map every name of a parameter or buffer to the first name of the same tensor."""
    first: dict[int, str] = {}
    names = {}
    for items in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in items:
            names[name] = first.setdefault(id(tensor), name)
    return names


def _sizes_of(
    module: nn.Module, dim: Dims, passed: Sequence[tuple[SizeArgument, Extent]]
) -> list[tuple[str, int | None, Extent | None]]:
    """One row a layer: (attribute, index in a tuple, extent)."""
    norms = (nn.modules.batchnorm._NormBase,)
    match module:
        case nn.Linear():
            return [
                ("out_features", None, dim("weight", 0)),
                ("in_features", None, dim("weight", 1)),
            ]
        case nn.modules.conv._ConvNd():
            return _conv_sizes(module, dim, passed)
        case nn.Embedding() | nn.EmbeddingBag():
            return [("embedding_dim", None, dim("weight", 1))]
        case nn.LayerNorm() | nn.RMSNorm():
            dims = range(len(module.normalized_shape))
            return [("normalized_shape", i, dim("weight", i)) for i in dims] or []
        case nn.GroupNorm():
            groups = [e for size, e in passed if size.value == module.num_groups]
            return [
                ("num_channels", None, dim("weight", 0)),
                ("num_groups", None, groups[0] if groups else None),
            ]
        case nn.RNNBase() | nn.RNNCellBase():
            return _recurrent_sizes(module, dim)
        case nn.Bilinear():
            return [
                ("out_features", None, dim("weight", 0)),
                ("in1_features", None, dim("weight", 1)),
                ("in2_features", None, dim("weight", 2)),
            ]
        case nn.MultiheadAttention():
            return _attention_sizes(module, dim)
        case nn.Transformer():
            return [("d_model", None, dim("encoder.layers.0.self_attn.out_proj.weight", 1))]
        case nn.PReLU():
            return [("num_parameters", None, dim("weight", 0))]
        case _ if isinstance(module, norms):
            own = dim("weight", 0) or dim("running_mean", 0)
            return [("num_features", None, own or _passed_part(module.num_features, passed))]
    return []


def _attention_sizes(
    module: nn.MultiheadAttention, dim: Dims
) -> list[tuple[str, int | None, Extent | None]]:
    """The input is as wide as the heads together; keys and values may have widths of their own."""
    embedding = dim("out_proj.weight", 1)
    heads, size = _heads_of(embedding, module.num_heads)
    packed = module.in_proj_weight is not None
    return [
        ("embed_dim", None, embedding),
        ("num_heads", None, heads),
        ("head_dim", None, size),
        ("kdim", None, embedding if packed else dim("k_proj_weight", 1)),
        ("vdim", None, embedding if packed else dim("v_proj_weight", 1)),
    ]


def _recurrent_sizes(
    module: nn.RNNBase | nn.RNNCellBase, dim: Dims
) -> list[tuple[str, int | None, Extent | None]]:
    """The hidden state may be projected to a smaller size, which the next step then sees."""
    layer = "_l0" if isinstance(module, nn.RNNBase) else ""
    hidden, inputs = dim(f"weight_hh{layer}", 1), dim(f"weight_ih{layer}", 1)
    if isinstance(module, nn.RNNBase) and module.proj_size:
        return [
            ("input_size", None, inputs),
            ("hidden_size", None, dim("weight_hr_l0", 1)),
            ("proj_size", None, dim("weight_hr_l0", 0)),
        ]
    return [("input_size", None, inputs), ("hidden_size", None, hidden)]


def _heads_of(embedding: Extent | None, heads: int) -> tuple[Extent | None, Extent | None]:
    """Divide (heads, head size) into the two."""
    outer: list[Extent] = []
    inner: list[Extent] = [embedding or Fixed(1)]
    if isinstance(embedding, Product):
        inner = list(embedding.factors)
    while inner and math.prod(extent.size for extent in outer) < heads:
        outer.append(inner.pop(0))
    if math.prod(extent.size for extent in outer) != heads:
        return None, None
    return _product(outer), _product(inner)


def _product(factors: list[Extent]) -> Extent:
    return factors[0] if len(factors) == 1 else Product(tuple(factors)) if factors else Fixed(1)


def _passed_part(value: int, passed: Sequence[tuple[SizeArgument, Extent]]) -> Extent | None:
    """Return the elastic part of that size in what a layer without weights passed to its ops."""
    parts = (part for _, extent in passed for part in parts_of(extent))
    return next((part for part in parts if part.size == value and any(axes_of(part))), None)


def _conv_sizes(
    module: nn.modules.conv._ConvNd, dim: Dims, passed: Sequence[tuple[SizeArgument, Extent]]
) -> list[tuple[str, int | None, Extent | None]]:
    found = [e for size, e in passed if size.value == module.groups]
    group: Extent = found[0] if module.groups > 1 and found else Fixed(module.groups)
    first, second = dim("weight", 0), dim("weight", 1)
    inner = Product((group, second)) if second is not None else None
    outputs, inputs = (inner, first) if module.transposed else (first, inner)
    return [
        ("out_channels", None, outputs),
        ("in_channels", None, inputs),
        ("groups", None, group),
    ]
