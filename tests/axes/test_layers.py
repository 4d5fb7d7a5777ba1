"""Torch's own layers: what is elastic in them, and that cut ones compute what torch computes."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestling
from nestling.axes.comparison import difference
from nestling.axes.preparation import lively_norms
from nestling.errors import UncalibratedWarning
from nestling.supernet import Supernet
from nestling.testing import check_full, check_masked, check_order


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        yield


class Between(nn.Module):
    """A linear layer, the layer under test, and a linear head."""

    def __init__(self, layer: nn.Module, inputs: int, outputs: int, given: int = 4) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(given, inputs), layer
        self.head = nn.Linear(outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(self.first(x))
        return self.head(found[0] if isinstance(found, tuple) else found)


class Attention(nn.Module):
    """Attention of a sequence to itself, or to another one of other widths."""

    def __init__(self, weights: bool = False, keys: int = 0, values: int = 0, **options: Any):
        super().__init__()
        self.weights = weights
        self.query = nn.Linear(4, 12)
        self.key = nn.Linear(4, keys or 12) if keys or values else None
        self.value = nn.Linear(4, values or 12) if keys or values else None
        own = {"kdim": keys, "vdim": values} if keys != values else {}
        self.attention = nn.MultiheadAttention(12, 4, **{"batch_first": True, **own, **options})
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        query = key = value = self.query(x)
        if self.key is not None:
            key, value = self.key(x), self.value(x)
        found, _ = self.attention(query, key, value, need_weights=self.weights)
        return self.head(found)


class Memory(nn.Module):
    """A decoder's attention to what an encoder made."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 12), nn.Linear(4, 12)
        self.attention, self.head = nn.MultiheadAttention(12, 2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.two(x)
        return self.head(self.attention(self.one(x), memory, memory)[0])


class Sequences(nn.Module):
    """Encoder and decoder, called with two sequences made of one."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first = nn.Linear(4, 12)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it tells of fast paths that it leaves
            self.both = nn.Transformer(12, 2, 1, 1, 16, batch_first=True, **options)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.head(self.both(y, y[:, 1:]))


class Steps(nn.Module):
    """A recurrent cell in a loop of the user's own."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.first, self.cell, self.head = nn.Linear(4, 6), cell, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x:
            state = self.cell(self.first(step), state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Packed(nn.Module):
    """Sequences of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(4, 6), nn.LSTM(6, 8, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.first(x), torch.tensor([3, 3, 2, 1]))
        return self.head(nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0])[0])


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(4, 8)
        self.both, self.head = nn.Bilinear(6, 8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.both(self.one(x), self.two(x)))


class Waves(nn.Module):
    """A global filter in the frequencies of the image (GFNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 3)
        self.filter = nn.Parameter(torch.randn(6, 4, 8, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.rfft2(self.first(x).permute(0, 2, 3, 1), dim=(1, 2), norm="ortho")
        x = torch.fft.irfft2(x * torch.view_as_complex(self.filter), s=(6, 6), dim=(1, 2))
        return self.head(F.gelu(x).mean((1, 2)))


class Localised(nn.Module):
    """A spatial transformer: the image is sampled on a grid that a layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.place = nn.Conv2d(3, 8, 1), nn.Linear(8, 6)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        corners = self.place(x.mean((2, 3))).view(-1, 2, 3)
        grid = F.affine_grid(corners, [len(x), 2, 5, 5], align_corners=False)
        return self.head(F.relu(F.grid_sample(x, grid, align_corners=False)).mean((2, 3)))


class Unpooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.head = conv(inputs=3), conv(), conv(outputs=2)

    def forward(self, x: Tensor) -> Tensor:
        x, places = F.max_pool2d(self.first(x), 2, return_indices=True)
        return self.head(F.max_unpool2d(torch.tanh(self.inner(x)), places, 2))


class Prototypes(nn.Module):
    """Distances from learned points."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(10, 3)
        self.points = nn.Parameter(torch.randn(10, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        near = torch.cdist(x, self.points).neg().exp()
        return self.head(near + F.cosine_similarity(x[:, None], self.points, dim=-1))


def conv(inputs: int = 8, outputs: int = 8) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1)


def images(*layers: nn.Module, width: int = 8) -> nn.Module:
    first = nn.Conv2d(3, 8, 3, padding=1)
    return nn.Sequential(first, *layers, nn.Flatten(2), Mean(), nn.Linear(width, 3))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


def _old(make: Callable[..., nn.Module], layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return make(layer)


SEQUENCE, IMAGE = (3, 4, 4), (2, 3, 6, 6)  # (batch or time, time or batch, features), (n, c, h, w)
NORM = nn.utils.parametrizations

# name: (builder, shape of the input, least number of axes)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "attention": (Attention, SEQUENCE, 3),
    "attention with weights": (lambda: Attention(weights=True), SEQUENCE, 3),
    "attention, no bias": (lambda: Attention(bias=False, batch_first=False), SEQUENCE, 3),
    "attention, more keys": (
        lambda: Attention(add_bias_kv=True, add_zero_attn=True),
        *(SEQUENCE, 3),
    ),
    "attention, other widths": (lambda: Attention(keys=6, values=10), SEQUENCE, 5),
    "attention to a memory": (Memory, SEQUENCE, 3),
    "encoder": (
        lambda: Between(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 16, batch_first=True), 2),
            *(12, 12),
        ),
        *(SEQUENCE, 4),
    ),
    "encoder and decoder": (Sequences, SEQUENCE, 4),
    "norm first": (lambda: Sequences(norm_first=True, activation="gelu"), SEQUENCE, 4),
    "LSTM": (lambda: Between(nn.LSTM(6, 8), 6, 8), SEQUENCE, 2),
    "LSTM, projected": (
        lambda: Between(nn.LSTM(6, 8, 2, bidirectional=True, proj_size=5, bias=False), 6, 10),
        *(SEQUENCE, 2),
    ),
    "GRU": (
        lambda: Between(nn.GRU(6, 8, 2, bidirectional=True, batch_first=True), 6, 16),
        *(SEQUENCE, 2),
    ),
    "RNN": (lambda: Between(nn.RNN(6, 8, nonlinearity="relu", bias=False), 6, 8), SEQUENCE, 2),
    "LSTM cell": (lambda: Steps(nn.LSTMCell(6, 8)), SEQUENCE, 2),
    "GRU cell": (lambda: Steps(nn.GRUCell(6, 8)), SEQUENCE, 2),
    "RNN cell": (lambda: Steps(nn.RNNCell(6, 8, bias=False)), SEQUENCE, 2),
    "packed": (Packed, SEQUENCE, 2),
    "bilinear": (Pairs, (3, 4), 3),
    "distances": (Prototypes, (3, 4), 2),
    "filter of frequencies": (Waves, IMAGE, 1),
    "spatial transformer": (Localised, IMAGE, 1),
    "unpooled": (Unpooled, IMAGE, 1),
    "windows": (
        lambda: images(nn.Unfold(2), nn.Conv1d(32, 16, 1), nn.Fold((6, 6), 2), width=4),
        *(IMAGE, 2),
    ),
    "norm without affine": (lambda: images(nn.BatchNorm2d(8, affine=False), conv()), IMAGE, 2),
    "norm without statistics": (
        lambda: images(nn.BatchNorm2d(8, affine=False, track_running_stats=False), conv()),
        *(IMAGE, 2),
    ),
    "instance norm": (lambda: images(nn.InstanceNorm2d(8, affine=True), conv()), IMAGE, 2),
    "rms norm": (lambda: Between(nn.RMSNorm(8), 8, 8), (3, 4), 1),
    "parametric": (lambda: images(nn.PReLU(8), conv()), IMAGE, 2),
    "old weight norm": (lambda: images(nn.ReLU(), _old(nn.utils.weight_norm, conv())), IMAGE, 2),
    "weight norm": (lambda: images(nn.ReLU(), NORM.weight_norm(conv())), IMAGE, 2),
    "spectral norm": (lambda: images(nn.ReLU(), NORM.spectral_norm(conv())), IMAGE, 2),
    "old spectral norm": (lambda: images(nn.ReLU(), nn.utils.spectral_norm(conv())), IMAGE, 2),
    "transposed groups": (
        lambda: images(nn.ConvTranspose2d(8, 12, 2, stride=2, groups=4), width=12),
        *(IMAGE, 2),
    ),
    "pooled": (
        lambda: images(nn.AdaptiveMaxPool2d(3), nn.LPPool2d(2, 2), conv(), nn.Upsample(4)),
        *(IMAGE, 2),
    ),
}


@functools.cache
def made(name: str) -> tuple[Supernet, Tensor]:
    torch.manual_seed(0)
    build, shape, _ = LAYERS[name]
    x = torch.randn(shape)
    return Supernet(build().eval(), x, step=1), x


def some(net: Supernet, seed: int) -> dict[str, int]:
    draw = random.Random(seed)
    return {name: draw.choice(axis.counts) for name, axis in net.space.axes.items()}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_elastic(name: str) -> None:
    net, x = made(name)
    assert len(net.space.axes) >= LAYERS[name][2], str(net.space)
    assert net.space.elastic_share() > 0.9, str(net.space)
    for seed in range(2):
        spec = net.space.spec(some(net, seed))
        found, packed = (nestling.pack(net.subnet(spec)).eval()(x) for _ in range(2))
        assert torch.equal(found, packed)


@pytest.mark.parametrize("name", LAYERS)
def test_cut_layer_is_the_masked_layer(name: str) -> None:
    net, x = made(name)
    check_full(net, x)
    check_order(net, x)
    check_masked(net, x)


# -- layers that torch makes in the smaller size -------------------------------------------------


def twin_of(layer: nn.Module) -> nn.Module:
    """Return a fresh layer of the sizes that a cut one names, with its weights."""
    if isinstance(layer, nn.MultiheadAttention):
        fresh: nn.Module = nn.MultiheadAttention(
            layer.embed_dim, layer.num_heads, batch_first=layer.batch_first,
            bias=layer.in_proj_bias is not None, kdim=layer.kdim, vdim=layer.vdim,
        )  # fmt: skip
        plain = layer.out_proj  # its width is free
        fresh.out_proj = nn.Linear(layer.embed_dim, plain.out_features, plain.bias is not None)
    elif isinstance(layer, nn.RNNBase):
        fresh = type(layer)(
            layer.input_size, layer.hidden_size, layer.num_layers,
            bidirectional=layer.bidirectional, batch_first=layer.batch_first, bias=layer.bias,
            **({"proj_size": layer.proj_size} if layer.proj_size else {}),
            **({"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}),
        )  # fmt: skip
    else:
        fresh = type(layer)(layer.input_size, layer.hidden_size, bias=layer.bias)
    fresh.load_state_dict(layer.state_dict())
    return fresh.eval()


SMALLER = ["LSTM", "LSTM, projected", "GRU", "RNN", "LSTM cell", "GRU cell", "RNN cell"]
SMALLER += ["attention", "attention with weights", "attention, no bias", "attention, other widths"]


@pytest.mark.parametrize("name", SMALLER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cut_layer_is_one_that_torch_makes(name: str, dtype: torch.dtype) -> None:
    """In float32 the recurrent layers run as fused kernels."""
    net, x = made(name)
    for seed in range(3):
        model = nestling.pack(net.subnet(net.space.spec(some(net, seed)))).eval().to(dtype)
        live = net.subnet(net.space.spec(some(net, seed))).eval()
        key = next(n for n in ("layer", "cell", "attention") if hasattr(model, n))
        found = model(x.to(dtype))
        torch.testing.assert_close(live(x).to(dtype), found, rtol=1e-4, atol=1e-5)
        setattr(model, key, twin_of(getattr(model, key)).to(dtype))
        torch.testing.assert_close(model(x.to(dtype)), found, rtol=1e-6, atol=1e-6)


def test_recurrent_layer_runs_on_its_own_weights() -> None:
    net, _ = made("LSTM, projected")
    layer = net.subnet(net.space.uniform[0]).layer
    own = dict(layer.named_parameters())
    assert [id(w) for w in layer._flat_weights] == [id(own[n]) for n in layer._flat_weights_names]


def test_gates_of_a_recurrent_layer_are_cut_one_by_one() -> None:
    """Rows (gate, unit): the kept units of each of the four gates, cut by hand."""
    torch.manual_seed(0)
    model, x = Between(nn.LSTM(6, 8), 6, 8), torch.randn(SEQUENCE)
    net = Supernet(model, x, step=1)
    (hidden,) = (a.name for a in net.space.axes.values() if a.size == 8)
    found = net.subnet(net.space.spec({hidden: 5})).eval()
    small = Between(nn.LSTM(6, 5), 6, 5)
    rows = [8 * gate + unit for gate in range(4) for unit in range(5)]
    whole, part = model.state_dict(), small.state_dict()
    part.update({n: whole[n] for n in ("first.weight", "first.bias", "head.bias")})
    part["head.weight"] = whole["head.weight"][:, :5]
    part["layer.weight_hh_l0"] = whole["layer.weight_hh_l0"][rows][:, :5]
    for name in ("layer.weight_ih_l0", "layer.bias_ih_l0", "layer.bias_hh_l0"):
        part[name] = whole[name][rows]
    small.load_state_dict(part)
    torch.testing.assert_close(found(x), small(x))


def test_heads_of_attention_are_cut_by_hand() -> None:
    torch.manual_seed(0)
    model, x = Attention(), torch.randn(SEQUENCE)
    net = Supernet(model, x, step=1)
    heads, size = (n for n, a in net.space.axes.items() if a.kind in ("heads", "head_size"))
    found = net.subnet(net.space.spec({heads: 3, size: 2})).eval()
    units = [3 * head + unit for head in range(3) for unit in range(2)]  # of 4 heads of 3 units
    rows = [12 * part + unit for part in range(3) for unit in units]
    small, whole = Attention(), model.state_dict()
    small.query, small.attention = nn.Linear(4, 6), nn.MultiheadAttention(6, 3, batch_first=True)
    small.attention.out_proj = nn.Linear(6, 12)  # what comes out is as wide as before
    part = dict(whole)
    for name in ("query.weight", "query.bias"):
        part[name] = whole[name][units]
    part["attention.in_proj_weight"] = whole["attention.in_proj_weight"][rows][:, units]
    part["attention.in_proj_bias"] = whole["attention.in_proj_bias"][rows]
    part["attention.out_proj.weight"] = whole["attention.out_proj.weight"][:, units]
    small.load_state_dict(part)
    torch.testing.assert_close(found(x), small(x))


# -- torch's fused path of attention, in evaluation without gradients ------------------------------


@pytest.fixture
def fused() -> Iterator[Callable[[bool], None]]:
    before = torch.backends.mha.get_fastpath_enabled()
    yield torch.backends.mha.set_fastpath_enabled
    torch.backends.mha.set_fastpath_enabled(before)


class Noting(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the names of the ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["attention", "attention with weights", "encoder"])
@pytest.mark.parametrize("packed", [False, True])
def test_fused_path_computes_the_same(name: str, packed: bool, fused: Any) -> None:
    net, x = made(name)
    ran = set()
    for seed in range(6):
        subnet = net.subnet(net.space.spec(some(net, seed))).eval()
        model = nestling.pack(subnet).eval() if packed else subnet
        fused(False)
        with torch.no_grad():
            slow = model(x)
        fused(True)
        with torch.inference_mode(), Noting() as noting:
            fast = model(x)
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
        ran |= {name for name in noting.names if name.startswith(("_native_m", "_transformer_e"))}
    assert ran, "the fused path did not run, so nothing was compared"


# -- what stays frozen says why ------------------------------------------------------------------


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.head = nn.Linear(4, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(F.relu(self.inner(x + torch.fft.fft(x, dim=-1).real)))


@pytest.mark.parametrize(
    ("build", "shape", "reason"),
    [
        (Mixed, (3, 4), "a Fourier transform mixes its units"),
        (lambda: images(nn.LocalResponseNorm(3), conv()), IMAGE, "neighbours matter"),
        (
            lambda: Between(nn.LSTM(6, 8, proj_size=5), 6, 5),
            *(SEQUENCE, "more hidden units than it projects to"),
        ),
        (
            lambda: Between(nn.Sequential(NORM.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 9)), 8, 9),
            (3, 4),
            "linalg_matrix_exp",
        ),
    ],
)
def test_frozen_dimension_says_why(build: Any, shape: tuple[int, ...], reason: str) -> None:
    net = Supernet(build(), torch.randn(shape))
    assert reason in " ".join(f"{row.reason} {row.op}" for row in net.space.frozen)
    check_masked(net, torch.randn(shape))


class Deep(nn.Module):
    """Many norms that see few values: rounding must not grow on its way through them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 3)
        self.layers = nn.Sequential(
            *(nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(80))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.first(x)).mean((2, 3)))


def test_rounding_does_not_grow_in_a_deep_net_of_few_values() -> None:
    """Else the units of wide axes could not be put in another order, it would seem."""
    torch.manual_seed(0)
    model, x = Deep().double().eval(), torch.randn(1, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        with lively_norms(model):
            found = model(x)
        x += 1e-14 * torch.randn_like(x)
        assert difference(model(x), found) < 1e-10
        assert difference(model(1.1 * x), found) > 1e-7
