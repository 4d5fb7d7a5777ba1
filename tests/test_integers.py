"""Packed copies that hold integers compute what the subnet computes, in PyTorch and in runtimes."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestling
from nestling.bits import Bits
from nestling.errors import SpecError


class Mixed(nn.Module):
    """Plain, grouped and depthwise convolutions, a user's own class of them, and linear layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.plain = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.depthwise = Scaled(8, 8, 3, padding=1, groups=8)
        self.line = nn.Conv1d(8, 8, 3, padding=1)
        self.wide = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.plain(F.relu(self.stem(x))))
        x = F.relu(self.depthwise(input=F.relu(self.grouped(x))))
        x = self.line(x.mean(3))
        return self.head(torch.tanh(self.wide(x.mean(2))))


class Scaled(nn.Conv2d):
    """Computes with twice its weight."""

    def forward(self, input):
        return self._conv_forward(input, 2 * self.weight, self.bias)


def images(count=3):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bits = Bits((1, 4, 7, 8), inputs=(2, 8), first=(7, 8), last=(7, 8))
        return nestling.Supernet(Mixed(), images(), bits=bits)


def subnet_of(net, bits, inputs, **widths):
    counts = {
        name: inputs if name.endswith("input_bits") else max(bits, axis.counts[0])
        for name, axis in net.space.axes.items()
        if axis.kind == "bits"
    }
    return net.subnet({**counts, **widths}).eval()


@pytest.mark.parametrize("inputs", [2, 8, 32])
@pytest.mark.parametrize("bits", [1, 4, 7, 8])
def test_it_computes_what_the_subnet_computes(net, bits, inputs):
    subnet = subnet_of(net, bits, inputs, wide=8)
    packed = nestling.pack(subnet, integers=True)
    with torch.no_grad():
        torch.testing.assert_close(packed(images()), subnet(images()), rtol=1e-5, atol=1e-5)
    codes = packed.plain.weight_integers
    assert codes.dtype == torch.int8
    assert codes.unique().numel() <= 2**bits
    assert "plain.weight" not in packed.state_dict()
    assert "wide.weight_scale" not in packed.state_dict()
    assert f"bits={bits}, integers" in str(packed.plain)


def test_copies_and_pickles_hold_the_integers(net):
    packed = nestling.pack(subnet_of(net, 8, 8), integers=True)
    buffer = io.BytesIO()
    torch.save(packed, buffer)
    buffer.seek(0)
    for again in (copy.deepcopy(packed), torch.load(buffer, weights_only=False)):
        assert torch.equal(again(images()), packed(images()))
        assert torch.equal(again.wide.weight_integers, packed.wide.weight_integers)
    packed.load_state_dict(copy.deepcopy(packed).state_dict())


def test_it_holds_a_quarter_of_the_bytes(net):
    subnet = subnet_of(net, 4, 8)
    floats, codes = (
        sum(
            tensor.numel() * tensor.element_size()
            for name, tensor in nestling.pack(subnet, integers=given).state_dict().items()
            if name.endswith((".weight", ".weight_integers"))
        )
        for given in (False, True)
    )
    assert codes * 4 == floats


def test_it_keeps_nothing_of_the_net_alive():
    net = nestling.Supernet(Mixed(), images(), bits=Bits((4,), inputs=(8,)))
    subnet = net.subnet({"*.bits": 4, "*.input_bits": 8}).eval()
    packed = nestling.pack(subnet, integers=True)
    floats = [weakref.ref(parameter) for parameter in net.parameters()]
    del net, subnet
    gc.collect()
    assert not any(each() is not None for each in floats)
    packed(images())


def test_depthwise_inputs_of_8_bits_are_sums_already():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
        net = nestling.Supernet(nn.Sequential(*layers), images(), bits=Bits((8,), inputs=(8,)))
    subnet = net.subnet({"1.bits": 8, "1.input_bits": 8}).eval()
    packed = nestling.pack(subnet, integers=True)
    with torch.no_grad():
        torch.testing.assert_close(packed(images()), subnet(images()), rtol=1e-4, atol=1e-5)
    code = torch.export.export(packed, (images(),)).graph
    assert "weight_half" in packed[1]._buffers
    assert not any("split" in str(node.target) for node in code.nodes)


@pytest.mark.filterwarnings("ignore")  # of torch's own exporter, about its own code
def test_a_runtime_computes_it_with_integers(tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3 if n == 0 else 8, 8, 3, padding=1) for n in range(4)]
        model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
        net = nestling.Supernet(model, images(), bits=Bits((4, 8), inputs=4), step=4)
    subnet = net.subnet({"2.bits": 4, "4.bits": 8}).eval()
    packed, path = nestling.pack(subnet, integers=True), tmp_path / "integers.onnx"
    torch.onnx.export(packed, (images(),), str(path), dynamo=True, verbose=False)
    graph = onnx.load(path).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") == 2
    assert kinds.count("Clip") == 2  # a runtime itself would cut where 8 bits end
    assert kinds.count("Conv") == 5  # one adds the half steps of 8 bits
    stored = {each.name: each for each in graph.initializer if each.name.endswith("integers")}
    assert {each.data_type for each in stored.values()} == {onnx.TensorProto.INT8}
    assert len(stored) == 2
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
    with torch.no_grad():
        away = (torch.from_numpy(found) - subnet(images())).abs()
    # An input on the border of two levels may go to either.
    assert float(away.max()) < 5e-2
    assert float(away.median()) < 1e-6


def test_what_has_no_bits_is_refused(net):
    for subnet in (net.subnet({}), nn.Linear(3, 3), nestling.pack(subnet_of(net, 4, 8))):
        with pytest.raises(SpecError, match="no layer of this one is"):
            nestling.pack(subnet, integers=True)
    packed = nestling.pack(subnet_of(net, 4, 8), integers=True)
    with pytest.raises(SpecError, match=r"'stem.weight' must have"):
        net.absorb(net.space.full, packed)
