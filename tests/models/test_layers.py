import pytest
import torch
from torch import nn

from nestling.models.layers import chain, conv, conv_norm


def test_a_chain_names_its_layers_and_runs_them_in_order():
    layers = chain(first=nn.Linear(2, 3), second=nn.ReLU())
    x = torch.randn(4, 2)
    assert list(dict(layers.named_children())) == ["first", "second"]
    assert torch.equal(layers(x), layers.first(x).relu())


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize(("stride", "side"), [(1, 9), (2, 5)])
def test_a_convolution_keeps_the_size_up_to_its_stride(kernel, stride, side):
    out = conv(2, 3, kernel=kernel, stride=stride)(torch.zeros(1, 2, 9, 9))
    assert out.shape == (1, 3, side, side)


def test_a_convolution_with_norm_has_an_activation_only_if_given():
    kinds = [type(layer) for layer in conv_norm(4, 4, kernel=3, groups=4)]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d]
    assert isinstance(conv_norm(4, 4, kernel=3, activation=nn.ReLU6())[2], nn.ReLU6)
