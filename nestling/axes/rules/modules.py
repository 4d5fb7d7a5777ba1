"""Module rules: what the code of torch's own modules demands of their sizes beyond their ops.

An op rule sees only the tensors. `nn.MultiheadAttention` checks in Python that its input is as wide
as its heads are together: no op says so, but every subnet has to obey.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn

from nestling.axes.expression import Atom, Expression, constant, join, times

ModuleRule: TypeAlias = Callable[[Any, Any], None]

MODULES: dict[type[nn.Module], ModuleRule] = {}


def module_rule(*kinds: type[nn.Module]) -> Callable[[ModuleRule], ModuleRule]:
    """Return a decorator that enters a rule for modules of these classes.

    The rule is called as `rule(trace, module)` when a call of such a module has ended.
    """

    def enter(couple: ModuleRule) -> ModuleRule:
        for kind in kinds:
            MODULES[kind] = couple
        return couple

    return enter


def lookup_module(module: nn.Module) -> ModuleRule | None:
    """Return the rule for a module: that of its class, if its code is that class's own."""
    for kind in type(module).__mro__:
        if kind in MODULES:
            own: Any = kind
            return MODULES[kind] if type(module).forward is own.forward else None
    return None


@module_rule(nn.MultiheadAttention)
def multihead_attention(trace: Any, module: nn.MultiheadAttention) -> None:
    """The embedding of the input is (heads, head size), and so are queries, keys and values.

    Its code reads one number, `embed_dim`, for the width of the input and of the projections
    (`torch.nn.functional.multi_head_attention_forward`).
    """
    heads, size = (Atom(n) if n > 1 else constant(n) for n in (module.num_heads, module.head_dim))
    embedding = times([heads, size])
    three = join([embedding] * 3)
    packed: list[tuple[Tensor | None, int, Expression]] = [
        (module.in_proj_weight, 0, three),
        (module.in_proj_weight, 1, embedding),
    ]
    packed += [(module.in_proj_bias, 0, three)]
    packed += [(w, 0, embedding) for w in (module.q_proj_weight, module.k_proj_weight)]
    packed += [(module.v_proj_weight, 0, embedding), (module.q_proj_weight, 1, embedding)]
    packed += [(bias, 2, embedding) for bias in (module.bias_k, module.bias_v)]
    packed += [(module.out_proj.weight, 1, embedding)]
    for weight, dim, expression in packed:
        if weight is not None and trace.knows(weight):
            trace.unify(trace.of(weight)[dim], expression)
    trace.produce(heads, "heads")
    trace.produce(size, "head_size")
