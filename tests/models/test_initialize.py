import math

import pytest
import torch
from torch import nn

from nestling.errors import ModelError
from nestling.models import initialize, resnet20


def state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_seed_repeats_and_another_one_differs():
    module = resnet20(width=4)
    first = state(initialize(module, seed=3))
    assert same(first, state(initialize(module, seed=3)))
    assert same(first, state(initialize(resnet20(width=4), seed=3)))
    assert not same(first, state(initialize(module, seed=4)))


def test_a_seed_leaves_the_global_generator_alone():
    module = resnet20(width=4)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    initialize(module, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_global_generator_decides():
    module = resnet20(width=4)
    torch.manual_seed(1)
    first = state(initialize(module))
    second = state(initialize(module))
    torch.manual_seed(1)
    assert same(first, state(initialize(module)))
    assert not same(first, second)


def test_builders_initialise_from_the_global_generator():
    torch.manual_seed(1)
    first = state(resnet20(width=4))
    torch.manual_seed(1)
    assert same(first, state(resnet20(width=4)))


def test_all_state_of_training_is_forgotten():
    module = resnet20(width=4)
    fresh = state(initialize(module, seed=0))
    module(torch.randn(4, 3, 8, 8)).sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert not same(fresh, state(module))
    assert same(fresh, state(initialize(module, seed=0)))


@pytest.mark.parametrize(
    ("layer", "fan_out"),
    [
        (nn.Conv2d(64, 128, 3), 128 * 9),
        (nn.Conv1d(300, 200, 5), 200 * 5),
        (nn.ConvTranspose2d(128, 64, 3), 64 * 9),
    ],
)
def test_convolutions_follow_kaiming_over_what_goes_out(layer, fan_out):
    initialize(layer, seed=0)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.02)
    assert layer.weight.mean().abs().item() < 0.001
    assert not layer.bias.any()


def test_sizes_are_read_off_the_weights_not_the_attributes():
    layer = nn.Conv2d(64, 512, 3)
    layer.weight = nn.Parameter(torch.empty(128, 64, 3, 3))
    layer.bias = nn.Parameter(torch.empty(128))
    linear = nn.Linear(4096, 64)
    linear.weight = nn.Parameter(torch.empty(64, 16))
    norm = nn.BatchNorm2d(64)
    norm.weight = nn.Parameter(torch.zeros(5))
    norm.running_var = torch.zeros(5)
    initialize(nn.ModuleList([layer, linear, norm]), seed=0)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    assert linear.weight.abs().max().item() == pytest.approx(1 / math.sqrt(16), rel=0.02)
    assert torch.equal(norm.weight, torch.ones(5))
    assert torch.equal(norm.running_var, torch.ones(5))


def test_views_are_written_through():
    shared = torch.zeros(8, 4, 3, 3)
    layer = nn.Conv2d(4, 8, 3)
    layer.weight = nn.Parameter(shared[:5])
    initialize(layer, seed=0)
    assert shared[:5].all()
    assert not shared[5:].any()


def test_norms_start_as_one_and_zero():
    norms = nn.ModuleList([nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4)])
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    norms[0](torch.randn(8, 4, 2, 2))
    initialize(norms)
    for norm in norms:
        assert (norm.weight == 1).all()
        assert not norm.bias.any()
    assert not norms[0].running_mean.any()
    assert (norms[0].running_var == 1).all()
    assert norms[0].num_batches_tracked == 0


def test_other_layers_reset_themselves():
    class Head(nn.Module):
        """Knows better than its child how that starts."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.bare = nn.Parameter(torch.full((3,), 7.0))

        def reset_parameters(self):
            nn.init.zeros_(self.linear.weight)

    model = nn.ModuleList(
        [nn.Embedding(5, 4, padding_idx=0), nn.MultiheadAttention(8, 2), Head(), nn.GRU(3, 4)]
    )
    before = state(model)
    initialize(model, seed=0)
    after = state(model)
    kept = {key for key in before if torch.equal(before[key], after[key])}
    assert kept == {"1.in_proj_bias", "1.out_proj.bias", "2.bare"}
    assert not model[0].weight[0].any()
    assert not model[2].linear.weight.any()


def test_the_module_itself_is_returned_and_keeps_its_mode():
    module = nn.Sequential(nn.Conv2d(1, 1, 1)).eval()
    assert initialize(module) is module
    assert not module.training
    assert all(p.requires_grad for p in module.parameters())


def test_a_lazy_layer_is_refused_with_the_cure():
    with pytest.raises(ModelError, match=r"'0.weight' is lazy.*run the model once"):
        initialize(nn.Sequential(nn.LazyConv2d(4, 3)))
