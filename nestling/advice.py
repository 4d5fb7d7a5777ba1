"""Advice: what a user can do about each reason for which a dimension keeps its size."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """What is known about a reason.

    Attributes:
        key: a short name of the reason, which programs can rely on.
        text: what the user can do; empty where there is nothing to be done.
        expected: for sizes that the data or the user set, what they are, as in "2 {expected}".
    """

    key: str
    text: str = ""
    expected: str = ""


REGISTER = (
    "keep it in the module, with self.register_buffer(name, tensor) in __init__, or make it in "
    "forward from the shape of another tensor"
)
SIZES = (
    "read sizes from tensors (x.shape[-1], x.flatten(1)) where the code has a number of its own; "
    "freeze= says that the size is meant"
)
ORDER = "the code tells the units apart, so none of them can go: cut other axes"

ADVICE: dict[str, Advice] = {
    r"size of an input": Advice(
        "input",
        "it is as wide as an input, for both are added or joined: give the input a layer of its "
        "own first",
        "of the inputs",
    ),
    r"size of the model's output": Advice(
        "output",
        "name what you need of the outputs with outputs= (a key, an index or a function): what is "
        "not needed does not keep its size",
        "of the outputs",
    ),
    r"space|padding|kernel size|a dimension of time or batch|pixels of a window": Advice(
        "positions",
        "a convolution, a window or a view runs along it, so its units keep their places: cut "
        "other axes",
        "of positions",
    ),
    r"(rows are )?looked up by value": Advice("lookup", expected="of rows of lookup tables"),
    r"freeze=": Advice("wish", expected="frozen by freeze="),
    r"no rule for the op": Advice(
        "no_rule", "teach it the op in a few lines: docs/models.md#a-rule-of-your-own"
    ),
    r"the rule for .* does not fit": Advice(
        "rule",
        "write it with a more usual op, or enter a rule that knows this use: "
        "docs/models.md#a-rule-of-your-own",
    ),
    r"meets a tensor that is no input": Advice("loose_tensor", REGISTER),
    r"its size is fixed here": Advice(
        "fixed",
        "it meets a tensor whose size is written in the code: take that size from the shape of "
        "another tensor",
    ),
    r"as wide as a buffer": Advice(
        "buffer",
        "let a layer make its units: what a buffer holds is as fixed as an input",
        "of buffers",
    ),
    r"not used in the forward run": Advice(
        "unused", "give example inputs that reach it, or take it out of the model"
    ),
    r"the training run needs its full size": Advice(
        "training_code", "it runs in training only (an auxiliary loss?): " + SIZES
    ),
    r"the code needs the full size|the cut subnet returns another shape": Advice("code", SIZES),
    r"masked units are refused": Advice(
        "refused",
        "the code does not take units that are zero: look at what it raised; freeze= says that the "
        "size is meant",
    ),
    r"the code takes another path": Advice(
        "path",
        "let the code branch on its inputs' shapes alone: a branch on values (if x.sum() > 0, "
        "experts that no row is sent to) or on sizes that are cut runs other ops in a subnet; "
        "compute both sides and choose with torch.where",
    ),
    r"the output is not finite": Advice(
        "not_finite",
        "guard divisions and logarithms (eps) against zero, as where a unit is missing",
    ),
    r"the cut subnet differs": Advice(
        "differs",
        "a size in the code, or an op with units of its own kind: tie= it with the axis that it "
        "belongs to, or " + SIZES,
    ),
    r"(cutting it|passing blocks by) does not change the output": Advice(
        "no_effect",
        "give example inputs on which it matters; a gate that is closed or a mask that hides it "
        "leaves nothing to prove",
    ),
    r"(step=|.* only the full size)": Advice("step", "make step= smaller for this axis"),
    r"a projected LSTM must": Advice("recurrent", "give it more hidden units, or no projection"),
    r"channels of one group are normalised": Advice(
        "groups", "groups go as wholes: give the norm more groups, or none"
    ),
    r"incompatible|.* units meet here": Advice(
        "incompatible",
        "two sizes of the code are one here: give both layers the same size, or keep them apart",
    ),
    r"it is coupled with parts of itself": Advice("coupled", ORDER),
    r"experts are chosen by number": Advice(
        "experts", "the router tells the experts apart: cut the neurons inside them"
    ),
    r"(positions matter|units are indexed|indexed by a tensor|every n-th|one of every n"
    r"|its units are|the order of its units|a part of it is looked up|looks up a part"
    r"|indexes a tensor|windows slide along it|written where a tensor says"
    r"|a Fourier transform)": Advice("order", ORDER),
    r"(cut inside a unit|real and imaginary part|stacked tensors|padded with a negative"
    r"|pixel (un)?shuffle)": Advice(
        "layout", "the code takes the dimension apart at fixed places: cut other axes"
    ),
}

UNKNOWN = Advice("other")


def advice_on(reason: str) -> Advice:
    """Return the advice on a reason, by its words.

    Args:
        reason: as in `Frozen.reason`.

    Example:
        >>> advice_on("no rule for the op 'renorm'").text
        'teach it the op in a few lines: docs/models.md#a-rule-of-your-own'
    """
    plain = re.sub(r"^in [^()]* \(\w+\), ", "", reason)  # the module that the proof found guilty
    found = (advice for words, advice in ADVICE.items() if re.match(words, plain))
    return next(found, UNKNOWN)
