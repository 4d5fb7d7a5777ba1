"""Packing: a detached, contiguous copy of a subnet, an ordinary module of the user's class.

Every way of copying a live subnet ends here: views would drag all of the shared weights along, and
cannot be moved or saved alone.
"""

from __future__ import annotations

import copy
import functools
import warnings
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from nestling.binding import ORDER, OWN, TIE, Binding, Hook, alive, binding
from nestling.coding import rounded, settle
from nestling.errors import SpecError
from nestling.integers import convert
from nestling.weights import loose_tensors, parameter_like, put

__all__ = ["REDUCER", "copiers", "pack"]

_SAVE = "save_pretrained"  # how several libraries save a model: its weights and its config
REDUCER = "_ddp_params_and_buffers_to_ignore"  # what DistributedDataParallel reads of a module
# What a live subnet holds besides its class's own: `pack` leaves it out.
_LIVE = (TIE, "_apply", "zero_grad", "__deepcopy__", "__reduce_ex__", REDUCER, _SAVE)


def pack(subnet: nn.Module, *, integers: bool = False) -> nn.Module:
    """Return a detached, contiguous copy of a subnet: an ordinary module of the user's class.

    It runs at the full speed of a net of that shape, shares nothing with the supernet, and can be
    moved, trained, exported or saved on its own. `net.absorb(spec, packed)` takes it back. Weights
    in few bits are stored as the floating-point numbers that those bits stand for.

    Args:
        subnet: live, or any module.
        integers: let layers in few bits hold integers of 8 bits instead, with which runtimes that
            know quantised nets compute (`nestling.integers`). Such a copy is to run, not to train.

    Raises:
        SpecError: the supernet's units were reordered since the subnet was made; or `integers`, but
            no layer of the subnet is in few bits.

    Example:
        >>> small = nestling.pack(net.subnet(net.space.spec(fraction=0.25)))
    """
    packed = _pack(subnet, {})
    return convert(packed, subnet) if integers else packed


def copiers(
    subnet: nn.Module,
    tie: Binding,
    again: Callable[[], nn.Module],
    conflicts: Callable[[], list[str]],
) -> dict[str, Any]:
    """Return by name what a live subnet needs, so that every copy of it is packed.

    Args:
        subnet: that is copied; it is held weakly.
        tie: of the subnet.
        again: makes the same subnet anew.
        conflicts: returns what its config cannot say of it.
    """
    reference = weakref.ref(subnet)
    found: dict[str, Any] = {
        "_apply": functools.partial(_stand_alone, reference),
        "__deepcopy__": functools.partial(_deepcopy, reference),
        "__reduce_ex__": functools.partial(_reduce, reference),
    }
    if callable(getattr(type(subnet), _SAVE, None)):
        found[_SAVE] = _Saver(reference, tie, again, conflicts)
    return found


def _pack(subnet: nn.Module, memo: dict[int, Any]) -> nn.Module:
    tie = binding(subnet)
    if tie is not None:
        if tie.refusal:
            raise SpecError(tie.refusal)
        tie.refresh()
    with torch.inference_mode(False):
        for identity, instead in rounded(subnet).items():
            memo.setdefault(identity, instead)
        for parameter in subnet.parameters():
            if id(parameter) not in memo:
                dense, thawed = _dense(parameter), parameter.requires_grad
                memo[id(parameter)] = parameter_like(dense, parameter, thawed)
        for buffer in subnet.buffers():
            if id(buffer) not in memo:
                memo[id(buffer)] = _dense(buffer)
        for tensor in loose_tensors(subnet):
            if not tensor.is_leaf:  # what a run with gradients left behind
                memo.setdefault(id(tensor), _dense(tensor))
        twin = _copy_root(subnet, memo)
    if tie is not None:
        twin.__dict__[ORDER] = tie.order
        if tie.own:
            twin.__dict__[OWN] = tuple(tie.own)
    settle(twin)
    for module in twin.modules():
        _drop_own_hooks(module)
    return twin


def _copy_root(subnet: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return `copy.deepcopy(subnet)` as its class would do it, without what makes it live."""
    kind = type(subnet)
    own_way: Any = getattr(kind, "__deepcopy__", None)
    if own_way is not None:
        copied = cast(nn.Module, own_way(subnet, memo))
        for key in _LIVE:
            copied.__dict__.pop(key, None)
        return copied
    reduced: Any = kind.__reduce_ex__(subnet, 4)
    make, arguments, state, *_ = reduced
    twin: nn.Module = make(*arguments)
    memo[id(subnet)] = twin
    kept = {key: value for key, value in state.items() if key not in _LIVE}
    twin.__setstate__(copy.deepcopy(kept, memo))  # type: ignore[no-untyped-call]
    return twin


def _dense(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.preserve_format)


def _stand_alone(
    subnet: weakref.ref[nn.Module], change: Callable[[Tensor], Tensor], recurse: bool = True
) -> nn.Module:
    """`subnet.to(...)` and its kin: a stand-alone copy, since views cannot be moved alone."""
    warnings.warn(
        "a subnet's weights are views of its supernet's: subnet.to(...) returns a stand-alone copy "
        "and leaves the subnet as it is; to move them all, use net.to(...)",
        UserWarning,
        stacklevel=3,
    )
    return cast(nn.Module, pack(alive(subnet))._apply(change))  # type: ignore[no-untyped-call]


def _deepcopy(subnet: weakref.ref[nn.Module], memo: dict[int, Any]) -> nn.Module:
    module = alive(subnet)
    memo[id(module)] = _pack(module, memo)
    return cast(nn.Module, memo[id(module)])


def _reduce(subnet: weakref.ref[nn.Module], protocol: int) -> Any:
    """Pickle and `torch.save` store a packed copy: views would drag all shared weights along."""
    return pack(alive(subnet)).__reduce_ex__(protocol)


class _Saver:
    """`subnet.save_pretrained(...)`: saves a packed copy, as its class does it.

    It holds the subnet weakly, for the subnet holds it. In `net.subnet(spec).save_pretrained(path)`
    nothing else does, so the subnet is gone when the call comes: then the saver makes it again,
    with the norm statistics that were its own.

    Args:
        subnet: that is saved.
        tie: of the subnet.
        again: makes the same subnet anew.
        conflicts: returns what the config cannot say of it.
    """

    __slots__ = ("again", "conflicts", "subnet", "tie")

    def __init__(
        self,
        subnet: weakref.ref[nn.Module],
        tie: Binding,
        again: Callable[[], nn.Module],
        conflicts: Callable[[], list[str]],
    ) -> None:
        self.subnet = subnet
        self.tie = tie
        self.again = again
        self.conflicts = conflicts

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Save it.

        Raises:
            SpecError: the supernet's units were reordered since the subnet was made.
        """
        lines = self.conflicts()
        if lines:
            warnings.warn(
                "the config that is saved cannot say all of this subnet, so the library will "
                f"refuse to load it: {'; '.join(lines[:3])}{' ...' if len(lines) > 3 else ''}; "
                "save the subnet of net.space.config_spec(spec) instead",
                UserWarning,
                stacklevel=2,
            )
        return getattr(pack(self._subnet()), _SAVE)(*args, **kwargs)

    def _subnet(self) -> nn.Module:
        subnet = self.subnet()
        if subnet is not None:
            return subnet
        if self.tie.refusal:
            raise SpecError(self.tie.refusal)
        made = self.again()
        own = binding(made)
        if own is not None and not own.full:  # the full one has the net's own
            with torch.no_grad():
                for name, buffer in own.private.items():
                    buffer.copy_(self.tie.private[name])
            for name, parameter in self.tie.own.items():
                put(made, made.get_parameter(name), parameter)
        return made


def _drop_own_hooks(module: nn.Module) -> None:
    before = module._forward_pre_hooks
    for key in [key for key, hook in before.items() if isinstance(hook, Hook)]:
        del before[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
    saving = module._state_dict_pre_hooks
    for key in [key for key, hook in saving.items() if isinstance(hook, Hook)]:
        del saving[key]
