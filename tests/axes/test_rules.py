"""Each family of op rules on the smallest code that shows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestling
from nestling.axes import expression as algebra
from nestling.axes import rules
from nestling.axes.expression import Atom, Expression, Times
from nestling.axes.rules import RULES, lookup, rule
from nestling.axes.tracer import trace


class Code(nn.Module):
    """Runs a function on parameters `a`, `b` ... of given shapes."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, shape in zip("abcdef", shapes, strict=False):
            self.register_parameter(name, nn.Parameter(torch.rand(shape) + 0.5))

    def forward(self) -> Tensor:
        return self.function(*self.parameters())


def traced(function: Callable[..., Tensor], *shapes: tuple[int, ...]):
    """Return the expressions of the parameters' dimensions, of the outputs', and the trace."""
    code = Code(function, *shapes)
    record, tensors, out = trace(code, (), {})
    outs = record.of(out) if isinstance(out, Tensor) else [record.of(t) for t in out]
    return [[algebra.normal(e) for e in tensors[n]] for n in tensors], outs, record


def text(expression: Expression, names: dict[Atom, str]) -> str:
    """Write an expression with letters in the order of their first use; frozen ones as numbers."""
    expression = algebra.normal(expression)
    if isinstance(expression, Atom):
        if expression.frozen is not None or expression.size == 1:
            return str(expression.size)
        return names.setdefault(expression, "pqrstuvwxyz"[len(names)])
    if isinstance(expression, Times):
        return f"({' '.join(text(f, names) for f in expression.factors)})"
    return f"[{' + '.join(text(p, names) for p in expression.parts)}]"


def result(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> str:
    """Return all dimensions as text: `a's dimensions; b's; ... -> output's`."""
    parameters, outs, _ = traced(function, *shapes)
    names: dict[Atom, str] = {}
    before = "; ".join(", ".join(text(e, names) for e in each) for each in parameters)
    return f"{before} -> {', '.join(text(e, names) for e in outs)}"


CASES = {
    # pointwise and factories
    "add": (lambda a, b: a + b, [(4, 6), (6,)], "p, q; q -> p, q"),
    "broadcast": (lambda a, b: a * b, [(4, 1), (6,)], "p, 1; q -> p, q"),
    "where": (lambda a, b: torch.where(a > 0, a, b), [(4, 6), (4, 6)], "p, q; p, q -> p, q"),
    "zeros": (lambda a: a + torch.zeros(4, 6), [(4, 6)], "p, q -> p, q"),
    "in place": (lambda a, b: (a + 0).add_(b).relu_(), [(4, 6), (4, 6)], "p, q; p, q -> p, q"),
    # views
    "merge": (lambda a: a.view(24), [(4, 6)], "p, q -> (p q)"),
    "divide": (lambda a: a.view(4, 6), [(24,)], "(p q) -> p, q"),
    "regroup": (lambda a: a.view(6, 4), [(4, 6)], "4, 6 -> 6, 4"),
    "transpose": (lambda a: a.transpose(0, -1), [(4, 5, 6)], "p, q, r -> r, q, p"),
    "permute": (lambda a: a.permute(2, 0, -2), [(4, 5, 6)], "p, q, r -> r, p, q"),
    "squeeze": (lambda a: a.unsqueeze(-2).squeeze(1), [(4, 6)], "p, q -> p, q"),
    "split": (lambda a: torch.cat(a.split([2, 4])[::-1]), [(6,)], "[p + q] -> [q + p]"),
    "slice": (lambda a: a[1:3], [(6,)], "[1 + p + q] -> p"),
    "slice end": (lambda a: a[-2:], [(6,)], "[p + q] -> q"),
    "every second": (lambda a: a[1::2], [(6,)], "(p 2) -> p"),
    "every second, some": (lambda a: a[2::2], [(6,)], "6 -> 2"),
    "cat": (lambda a, b: torch.cat([a, b], -1), [(4, 6), (4, 3)], "p, q; p, r -> p, [q + r]"),
    "stack": (lambda a, b: torch.stack([a, b], -1), [(4,), (4,)], "p; p -> p, 2"),
    "repeat": (lambda a: a.repeat(2, 3), [(4,)], "p -> q, (r p)"),
    "expand": (lambda a: a.expand(5, 4), [(4,)], "p -> q, p"),
    "pad": (lambda a: F.pad(a, (2, 3)), [(4,)], "p -> [q + p + r]"),
    "crop": (lambda a: F.pad(a, (-1, 0)), [(4,)], "4 -> 3"),
    "glu": (lambda a: F.glu(a, 0), [(6,)], "[p + p] -> p"),
    "chunk": (lambda a: a.chunk(2)[0] * a.chunk(2)[1], [(6,)], "[p + p] -> p"),
    "pixel shuffle": (
        lambda a: F.pixel_shuffle(a, 2),
        [(1, 8, 2, 2)],
        "1, (p 4), 2, 2 -> 1, p, 4, 4",
    ),
    # contractions
    "mm": (lambda a, b: a @ b, [(4, 6), (6, 5)], "p, q; q, r -> p, r"),
    "bmm": (lambda a, b: torch.bmm(a, b), [(2, 4, 6), (2, 6, 5)], "p, q, r; p, r, s -> p, q, s"),
    "mv": (lambda a, b: a @ b, [(4, 6), (6,)], "p, q; q -> p"),
    "linear": (lambda a, b, c: F.linear(a, b, c), [(4, 6), (5, 6), (5,)], "p, q; r, q; r -> p, r"),
    "conv": (
        lambda a, b, c: F.conv2d(a, b, c, padding=1),
        *([(1, 3, 4, 4), (6, 3, 3, 3), (6,)], "1, p, 4, 4; q, p, 3, 3; q -> 1, q, 4, 4"),
    ),
    "depthwise": (
        lambda a, b: F.conv2d(a, b, groups=6),
        *([(1, 6, 4, 4), (6, 1, 3, 3)], "1, p, 4, 4; p, 1, 3, 3 -> 1, p, 2, 2"),
    ),
    "grouped": (
        lambda a, b: F.conv1d(a, b, groups=2),
        *([(1, 6, 4), (8, 3, 3)], "1, (p q), 4; (p r), q, 3 -> 1, (p r), 2"),
    ),
    "transposed": (
        lambda a, b: F.conv_transpose1d(a, b, groups=2),
        *([(1, 6, 4), (6, 5, 3)], "1, (p q), 4; (p q), r, 3 -> 1, (p r), 6"),
    ),
    "experts": (
        lambda a, b: torch._grouped_mm(a, b, offs=torch.tensor([2, 6], dtype=torch.int32)),
        *([(6, 4), (2, 4, 8)], "p, q; 2, q, r -> p, r"),
    ),
    "embedding": (lambda a: F.embedding(torch.tensor([0, 2]), a), [(4, 6)], "4, p -> 2, p"),
    # norms and reductions
    "mean": (lambda a: a.mean(1), [(4, 6)], "p, q -> p"),
    "keepdim": (lambda a: a.sum(1, keepdim=True), [(4, 6)], "p, q -> p, 1"),
    "max": (lambda a: a.max(0).values, [(4, 6)], "p, q -> q"),
    "maximum": (lambda a, b: torch.max(a, b), [(4,), (4,)], "p; p -> p"),
    "argmax": (lambda a: a.argmax(1), [(4, 6)], "p, 6 -> p"),
    "softmax": (lambda a: a.softmax(-1), [(4, 6)], "p, q -> p, q"),
    "layer norm": (
        lambda a, b: F.layer_norm(a, (6,), b),
        *([(4, 6), (6,)], "p, q; q -> p, q"),
    ),
    "group norm": (
        lambda a, b: F.group_norm(a, 2, b),
        *([(2, 6, 3), (6,)], "p, (q 3), r; (q 3) -> p, (q 3), r"),
    ),
    "batch norm": (
        lambda a, b: F.batch_norm(a, None, None, b, training=True),
        *([(4, 6), (6,)], "p, q; q -> p, q"),
    ),
    "pool": (lambda a: F.max_pool2d(a, 2), [(1, 3, 4, 4)], "1, p, 4, 4 -> 1, p, 2, 2"),
    "upsample": (
        lambda a: F.interpolate(a, scale_factor=2, mode="bilinear"),
        *([(1, 3, 4, 4)], "1, p, 4, 4 -> 1, p, 8, 8"),
    ),
    # positions
    "select": (lambda a: a[:, -1] + 0, [(4, 6)], "p, 6 -> p"),
    "select shape": (lambda a: a + a[:, -1].shape[0], [(4, 6)], "p, q -> p, q"),
    "cumsum": (lambda a: a.cumsum(1), [(4, 6)], "p, 6 -> p, 6"),
    "flip": (lambda a: a.flip(0), [(4, 6)], "4, p -> 4, p"),
    "roll": (lambda a: a.roll(1, 1), [(4, 6)], "p, 6 -> p, 6"),
    "sort": (lambda a: a.sort(1).values, [(4, 6)], "p, 6 -> p, 6"),
    "top": (lambda a: a.topk(2, 0).values, [(4, 6)], "4, p -> 2, p"),
    "top of last": (lambda a: a.topk(2).indices, [(4, 6)], "p, 6 -> p, 2"),
    "gather": (
        lambda a: a.gather(1, torch.zeros(4, 2).long()),
        *([(4, 6)], "p, 6 -> p, q"),
    ),
    "gather some": (
        lambda a: a.gather(1, torch.zeros(3, 2).long()),
        *([(4, 6)], "4, 6 -> 3, p"),
    ),
    "scatter": (
        lambda a, b: a.scatter(1, torch.zeros(4, 2).long(), b),
        *([(4, 6), (4, 2)], "p, 6; p, 2 -> p, 6"),
    ),
    "add at": (
        lambda a, b: a.index_add(0, torch.tensor([1, 0]), b),
        *([(4, 6), (2, 6)], "4, p; 2, p -> 4, p"),
    ),
    "put at": (
        lambda a, b: torch.ops.aten.index_put(a, [None, torch.tensor([1, 0])], b),
        *([(4, 6), (4, 2)], "p, 6; p, 2 -> p, 6"),
    ),
    "mask": (
        lambda a, b: a.index_put((torch.tensor([True, False, True, False]),), b),
        *([(4, 6), (6,)], "4, p; p -> 4, p"),
    ),
    "tril": (lambda a: a.tril(), [(3, 4, 6)], "p, 4, 6 -> p, 4, 6"),
    "index": (lambda a: a[:, torch.tensor([1, 0])], [(4, 6)], "p, 6 -> p, 2"),
    "index twice": (
        lambda a: a[torch.tensor([1, 0]), :, torch.tensor([1, 0])],
        *([(4, 5, 6)], "4, p, 6 -> 2, p"),
    ),
    # attention
    "attention": (
        lambda a, b, c: F.scaled_dot_product_attention(a, b, c),
        *(
            [(1, 2, 5, 4), (1, 2, 6, 4), (1, 2, 6, 3)],
            "1, p, q, r; 1, p, s, r; 1, p, s, t -> 1, p, q, t",
        ),
    ),
    # bilinear forms, bags, distances
    "bilinear": (
        lambda a, b, c, d: F.bilinear(a, b, c, d),
        *([(2, 3), (2, 4), (5, 3, 4), (5,)], "p, q; p, r; s, q, r; s -> p, s"),
    ),
    "bag": (
        lambda a: F.embedding_bag(torch.tensor([[0, 1, 2], [2, 3, 0]]), a, mode="mean"),
        *([(5, 4)], "5, p -> 2, p"),
    ),
    "largest of a bag": (
        lambda a: F.embedding_bag(torch.tensor([[0, 1, 2]]), a, mode="max"),
        *([(5, 4)], "5, p -> 1, p"),
    ),
    "distances": (lambda a, b: torch.cdist(a, b), [(4, 6), (5, 6)], "p, q; r, q -> p, r"),
    # signals
    "fft": (lambda a: torch.fft.fft(a, dim=0).real, [(4, 6)], "4, p -> 4, p"),
    "inverse fft": (
        lambda a: torch.fft.irfft2(torch.fft.rfft2(a, dim=(0, 1)), s=(4, 4), dim=(0, 1)),
        *([(4, 4, 6)], "4, 4, p -> 4, 4, p"),
    ),
    "complex": (lambda a: torch.view_as_complex(a).abs(), [(6, 2)], "p, 2 -> p"),
    "windows": (lambda a: F.unfold(a, 2), [(1, 3, 3, 3)], "1, p, 3, 3 -> 1, (p 4), 4"),
    "folded": (lambda a: F.fold(a, (3, 3), 2), [(1, 12, 4)], "1, (p 4), 4 -> 1, p, 3, 3"),
    "sliding": (lambda a: a.unfold(1, 2, 1), [(3, 6)], "p, 6 -> p, 5, 2"),
    "grid": (
        lambda a: F.grid_sample(a, torch.zeros(1, 5, 6, 2), align_corners=False),
        *([(1, 3, 4, 4)], "1, p, 4, 4 -> 1, p, 5, 6"),
    ),
    "unpool": (
        lambda a: F.max_unpool2d(*F.max_pool2d(a, 2, return_indices=True), 2),
        *([(1, 3, 4, 4)], "1, p, 4, 4 -> 1, p, 4, 4"),
    ),
    # sequences
    "packed": (
        lambda a: nn.utils.rnn.pack_padded_sequence(a, torch.tensor([3, 1])).data,
        *([(3, 2, 6)], "3, 2, p -> 4, p"),
    ),
    # no rule
    "exponential": (lambda a: torch.linalg.matrix_exp(a), [(4, 4)], "4, 4 -> 4, 4"),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_couples_dimensions(name):
    function, shapes, expected = CASES[name]
    assert result(function, *shapes) == expected


def test_attention_couples_heads_and_head_size():
    parameters, outs, record = traced(
        F.scaled_dot_product_attention, (1, 2, 5, 4), (1, 2, 6, 4), (1, 2, 6, 3)
    )
    q, k, v = ([algebra.find(e) for e in each] for each in parameters)
    assert algebra.normal(q[3]) is algebra.normal(k[3])
    assert algebra.normal(k[2]) is algebra.normal(v[2])
    assert algebra.normal(outs[3]) is algebra.normal(v[3])
    assert record.works


def test_op_without_a_rule_freezes_with_its_name():
    parameters, _, _ = traced(lambda a: torch.linalg.matrix_exp(a), (4, 4))
    assert parameters[0][0].frozen.text == "no rule for the op 'linalg_matrix_exp'"


def test_rule_that_fails_freezes_and_never_raises(monkeypatch):
    monkeypatch.setitem(RULES, "_fft_r2c", RULES["pointwise"])  # taken out again afterwards

    @rule("_fft_r2c")
    def broken(trace, out, *args):
        raise IndexError("list index out of range")

    parameters, _, _ = traced(lambda a: torch.fft.fft(a).real, (4,))
    assert parameters[0][0].frozen.text == (
        "the rule for '_fft_r2c' does not fit: list index out of range"
    )


def test_rule_that_gives_a_wrong_shape_freezes(monkeypatch):
    monkeypatch.setitem(RULES, "_fft_r2c", RULES["pointwise"])  # taken out again afterwards

    @rule("_fft_r2c")
    def wrong(trace, out, x, *args):
        trace.put(out, [*trace.of(x), *trace.of(x)])

    parameters, _, _ = traced(lambda a: torch.fft.fft(a).real, (4,))
    assert "does not fit" in parameters[0][0].frozen.text


def test_lookup_knows_names_in_place_forms_and_tags():
    aten = torch.ops.aten
    assert lookup(aten.mm.default) is RULES["mm"]
    assert lookup(aten.hardswish_.default) is RULES["hardswish"]
    assert lookup(aten.sin_.default) is RULES["pointwise"]
    assert lookup(aten.linalg_matrix_exp.default) is None


def test_every_rule_says_what_it_does():
    for name, entry in RULES.items():
        assert entry.couple.__doc__, name


def test_every_named_rule_is_an_op():
    extra = {"pointwise", "dropout", "contiguous", "numpy_T", "swapaxes", "tile", "unbind"}
    missing = [n for n in RULES if not hasattr(torch.ops.aten, n) and n not in extra]
    known_elsewhere = {"device", "item", "hardswish", "grouped_mm_fallback"}
    assert set(missing) <= known_elsewhere


@torch.library.custom_op("nestling_tests::swish", mutates_args=())
def swish(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x * w)


@swish.register_fake
def _(x, w):
    return torch.empty_like(x)


class Swishing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one = torch.nn.Linear(8, 32)
        self.beta = torch.nn.Parameter(torch.rand(32))
        self.two = torch.nn.Linear(32, 4)

    def forward(self, x):
        return self.two(swish(self.one(x), self.beta))


@pytest.mark.parametrize(
    "name",
    ["swish", "nestling_tests::swish", "nestling_tests::swish.default", "swish.default"],
)
def test_a_rule_of_an_op_of_ones_own(name, monkeypatch):
    for known in ("swish", "nestling_tests::swish"):  # so that they are taken away again
        monkeypatch.setitem(rules.RULES, known, None)
        monkeypatch.delitem(rules.RULES, known)
    x = torch.randn(4, 8)
    with pytest.raises(nestling.ModelError, match="nothing in Swishing is elastic"):
        nestling.Supernet(Swishing(), x)

    @rules.rule(name)
    def couple(trace, out, x, w):
        trace.unify(trace.of(x)[-1], trace.of(w)[0])
        trace.put(out, trace.of(x))

    assert set(nestling.Supernet(Swishing(), x).space.axes) == {"one"}


def test_a_rule_of_one_library_rules_over_that_of_any(monkeypatch):
    made = {name: rules.Rule(lambda: None) for name in ("swish", "nestling_tests::swish")}
    for name, given in made.items():
        monkeypatch.setitem(rules.RULES, name, given)
    op = torch.ops.nestling_tests.swish.default
    assert rules.lookup(op) is made["nestling_tests::swish"]
    assert rules.lookup(torch.ops.aten.add_.Tensor) is rules.RULES["pointwise"]
