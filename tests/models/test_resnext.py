import pytest
import torch
import torch.nn.functional as F

import nestling
from nestling.models import built, resnext29


def block(inputs, outputs, inside, paths, projected):
    weights = inputs * inside + 9 * inside * inside // paths + inside * outputs
    norms = 2 * (2 * inside + outputs)
    return weights + norms + projected * (inputs * outputs + 2 * outputs)


def test_parameters_are_the_papers():
    """34.4 M for 8x64d (table 7 of the paper), and what the blocks add up to."""
    with torch.device("meta"):
        count = sum(p.numel() for p in resnext29().parameters())
    expected = 3 * 64 * 9 + 2 * 64 + 1024 * 10 + 10
    inputs = 64
    for stage in range(3):
        inside, outputs = 512 * 2**stage, 256 * 2**stage
        for number in range(3):
            expected += block(inputs, outputs, inside, 8, number == 0)
            inputs = outputs
    assert count == expected
    assert round(count / 1e6, 1) == 34.4


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = resnext29(num_classes=5, width=4, paths=4, path_width=2)
    return nestling.Supernet(model, torch.randn(2, 3, 8, 8))


def test_each_block_has_an_axis_of_whole_paths(net):
    kinds = {}
    for axis in net.space.axes.values():
        kinds.setdefault(axis.kind, []).append(axis)
    assert len(kinds["paths"]) == 9
    assert all(axis.size == 4 and axis.counts == (1, 2, 3, 4) for axis in kinds["paths"])
    assert len(kinds["depth"]) == 3
    assert "channels" in kinds


def test_fewer_paths_are_whole_groups(net):
    """A subnet of two paths is the model without the other groups' channels."""
    (name,) = [n for n, axis in net.space.axes.items() if axis.kind == "paths" and "layer2.1" in n]
    subnet = net.subnet(net.space.spec({name: 2})).eval()
    cut, whole = subnet.layer2[1], net.model.layer2[1]
    assert (cut.conv2.groups, whole.conv2.groups) == (2, 4)
    assert cut.conv2.weight.shape == (8, 4, 3, 3)
    x = torch.randn(3, 32, 4, 4)
    masked = torch.zeros(16)
    masked[:8] = 1
    with torch.no_grad():
        hidden = F.relu(whole.bn1.eval()(whole.conv1(x)))
        hidden = F.relu(whole.bn2.eval()(whole.conv2(hidden))) * masked.view(1, -1, 1, 1)
        expected = F.relu(whole.bn3.eval()(whole.conv3(hidden)) + x)
        torch.testing.assert_close(cut(x), expected)


def test_a_builder_remembers(net):
    assert built(net.model).arguments["paths"] == 4
    with pytest.raises(nestling.ModelError, match="path_width"):
        resnext29(path_width=0)
