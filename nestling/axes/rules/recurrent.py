"""Recurrent layers: gates are (gate, unit), and all layers and directions have one hidden size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nestling.axes.expression import Atom, Expression, constant, join, times
from nestling.axes.rules.modules import module_rule
from nestling.axes.rules.table import rule


@module_rule(nn.LSTM, nn.GRU, nn.RNN)
def recurrent_layer(trace: Any, module: nn.RNNBase) -> None:
    """Layers and directions share `hidden_size` and `proj_size`, which the code checks."""
    weights = [w for w in module._flat_weights if w is not None]
    number = 2 + 2 * module.bias + bool(module.proj_size)
    if len(weights) == len(module._flat_weights):
        _couple(trace, weights, number, module.hidden_size, 1 + module.bidirectional)


@module_rule(nn.LSTMCell, nn.GRUCell, nn.RNNCell)
def recurrent_cell(trace: Any, module: nn.RNNCellBase) -> None:
    """Gates are (gate, unit)."""
    weights = [module.weight_ih, module.weight_hh]
    weights += [module.bias_ih, module.bias_hh] if module.bias else []
    _couple(trace, weights, len(weights), module.hidden_size, 1)


@rule("_cudnn_rnn")
def cudnn_rnn(trace: Any, out: Any, x: Tensor, weights: Sequence[Tensor], *args: Any) -> None:
    """All layers of a recurrent net on a GPU, as one op."""
    number, _, hx, cx, _, hidden, *_ = args
    directions = 1 + bool(args[11])
    unit, state = _couple(trace, weights, number, hidden, directions, trace.of(x)[-1])
    for given, expression in ((hx, state), (cx, unit)):
        if given is not None:
            trace.unify(trace.of(given)[-1], expression)
    batch = trace.of(hx)[:2]
    for cell in range(0, len(weights), number):
        for weight in weights[cell : cell + 2]:
            trace.work([*trace.of(x)[:-1], *trace.of(weight)])
    trace.put(out[0], [*trace.of(x)[:-1], join([state] * directions)])
    trace.put(out[1], [*batch, state])
    trace.put(out[2], [*batch, unit] if cx is not None else [*map(constant, out[2].shape)])
    for workspace in out[3:]:
        trace.put(workspace, [*map(constant, workspace.shape)])


@rule("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell")
def fused_cell(
    trace: Any, out: Any, inputs: Tensor, hidden: Tensor, state: Tensor, *biases: Tensor | None
) -> None:
    """One step on a GPU: four gates of an LSTM, three of a GRU."""
    unit = trace.of(state)[-1]
    gates = times([constant(inputs.shape[-1] // unit.size, "gates"), unit])
    for given in (inputs, hidden, *biases):
        if given is not None:
            trace.unify(trace.of(given)[-1], gates)
    *new, workspace = out
    for tensor in new:
        trace.put(tensor, [trace.of(inputs)[0], unit])
    trace.put(workspace, [*map(constant, workspace.shape)])


@rule("_pack_padded_sequence")
def pack(trace: Any, out: Any, x: Tensor, lengths: Tensor, batch_first: bool) -> None:
    """Time and batch become one dimension; features stay."""
    data, sizes = out
    for dim in trace.of(x)[:2]:
        trace.freeze(dim, "a dimension of time or batch")
    trace.put(data, [constant(data.shape[0]), *trace.of(x)[2:]])
    trace.put(sizes, [constant(sizes.shape[0])])


def _couple(
    trace: Any,
    weights: Sequence[Tensor],
    number: int,
    hidden: int,
    directions: int,
    inputs: Expression | None = None,
) -> tuple[Expression, Expression]:
    """Couple the weights of all layers and directions; return hidden units and states.

    Args:
        trace: the trace.
        weights: input weight, hidden weight, biases and projection of each layer and direction.
        number: how many of them belong to one layer and direction.
        hidden: size of the hidden state.
        directions: 1 or 2.
        inputs: what the first layer is given, if it is known.
    """
    unit = Atom(hidden)
    projected = number % 2 == 1
    state: Expression = Atom(weights[number - 1].shape[0]) if projected else unit
    gates = times([constant(weights[0].shape[0] // hidden, "gates"), unit])
    for place in range(0, len(weights), number):
        cell = weights[place : place + number]
        taken = inputs if place < number * directions else join([state] * directions)
        rows = [(cell[0], 0, gates), (cell[0], 1, taken), (cell[1], 0, gates), (cell[1], 1, state)]
        if projected:
            rows += [(cell[-1], 0, state), (cell[-1], 1, unit)]
        rows += [(bias, 0, gates) for bias in cell[2:4] if bias.dim() == 1]
        for weight, dim, expression in rows:
            if expression is not None and trace.knows(weight):
                trace.unify(trace.of(weight)[dim], expression)
        for weight in (*cell[:2], *(cell[-1:] if projected else ())):
            trace.make(weight, 0)
    if projected:  # `at::lstm` knows projections by the two sizes that differ
        trace.freeze(unit, "a projected LSTM must have more hidden units than it projects to")
    trace.produce(unit, "neurons")
    trace.produce(state, "neurons")
    return unit, state
