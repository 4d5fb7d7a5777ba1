"""Ownership: the norm weights that a live subnet has of its own, beside its slices.

Norm statistics are a subnet's own always. Scales and shifts of norms may be too: they are few, and
with them every member of a list can bring the shared features to a level of its own.

Source: Yu et al., Slimmable Neural Networks (ICLR 2019), section 3.3 (switchable batch norm).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nestling.binding import binding
from nestling.units import norms
from nestling.weights import parameter_like, put


def own_norms(subnet: nn.Module) -> dict[str, nn.Parameter]:
    """Give a live subnet norm weights of its own, which start as copies of the shared ones.

    Norms are those of `units.norms`. The full net's stay the shared ones, so for that one, as
    for a stand-alone module, nothing is done; and nothing more where it was done before.

    Returns:
        The subnet's own parameters by name: they are to be trained beside the shared weights.
        `net.zero_grad` clears shared gradients alone; `subnet.zero_grad` clears these too, as does
        an optimiser that holds them.

    Example:
        >>> subnet = net.subnet(net.space.spec(fraction=0.5))
        >>> optimizer.add_param_group({"params": list(own_norms(subnet).values())})
    """
    tie = binding(subnet)
    if tie is None or tie.full:
        return {}
    weights = {id(each) for norm in norms(subnet) for each in norm.parameters(recurse=False)}
    shared = {name: p for name, p in subnet.named_parameters() if name not in tie.own}
    take(subnet, {name: p for name, p in shared.items() if id(p) in weights})
    return dict(tie.own)


def take(subnet: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Let a live subnet have some of its parameters for itself, with these values.

    Args:
        subnet: of a supernet.
        tensors: by name, of the subnet's shapes; a weight of several names under the first.
    """
    tie = binding(subnet)
    assert tie is not None
    with torch.inference_mode(False):
        for name, tensor in tensors.items():
            before = subnet.get_parameter(name)
            values = tensor.detach().to(before.device, before.dtype, copy=True)
            tie.own[name] = parameter_like(values, before, before.requires_grad)
            put(subnet, before, tie.own[name])
            tie.parameters.pop(name, None)
