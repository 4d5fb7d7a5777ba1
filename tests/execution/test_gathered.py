"""A gathered step against independent implementations, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F

from nestling import ModelError
from nestling import extent as extents
from nestling.cut import Cut
from nestling.execution.clock import Clock
from nestling.execution.gathered import GatheredNet
from nestling.units import loose_axes

CLOCK = Clock(torch.device("cpu"))


def halves(net):
    """Counts of about half of every axis."""
    return {axis.name: axis.nearest(axis.size / 2) for axis in loose_axes(net.space)}


def drawn(net, counts, generator):
    sizes = {name: net.space.axes[name].size for name in counts}
    return {
        name: torch.randperm(sizes[name], generator=generator)[:n].tolist()
        for name, n in counts.items()
    }


def flat(units):
    return torch.tensor([unit for part in units.values() for unit in part])


# -- the rules of the optimisers, in plain formulas --------------------------------------------


def sgd(weight, grad, state, *, lr, momentum, weight_decay, nesterov):
    grad = grad + weight_decay * weight
    state["m"] = momentum * state.get("m", 0 * weight) + grad
    return weight - lr * (grad + momentum * state["m"] if nesterov else state["m"])


def adamw(weight, grad, state, *, lr, betas, eps, weight_decay):
    one, two = betas
    state["t"] = state.get("t", 0) + 1
    state["m"] = one * state.get("m", 0 * weight) + (1 - one) * grad
    state["v"] = two * state.get("v", 0 * weight) + (1 - two) * grad**2
    mean, square = state["m"] / (1 - one ** state["t"]), state["v"] / (1 - two ** state["t"])
    return weight * (1 - lr * weight_decay) - lr * mean / (square.sqrt() + eps)


RULES = {
    "sgd": (torch.optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01,
                                   "nesterov": False}),
    "nesterov": (torch.optim.SGD, sgd, {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1,
                                        "nesterov": True}),
    "plain": (torch.optim.SGD, sgd, {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0,
                                     "nesterov": False}),
    "adamw": (torch.optim.AdamW, adamw, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6,
                                         "weight_decay": 0.1}),
}  # fmt: skip


class Reference:
    """Steps of chosen units by way of reordering: they come first, so that they are a subnet.

    The subnet is one of views (proven elsewhere to be the masked net); the step is a formula on
    whole tensors, of which only the entries of the subnet are taken.
    """

    def __init__(self, net, rule, options):
        self.net = copy.deepcopy(net)
        self.rule, self.options = rule, options
        self.states = {name: {} for name, _ in self.net.named_parameters()}

    def step(self, units, batch):
        net, space = self.net, self.net.space
        orders = {
            name: [*own, *(u for u in range(space.axes[name].size) if u not in own)]
            for name, own in units.items()
        }
        counts = {name: len(own) for name, own in units.items()}
        net.reorder(orders)
        subnet = net.subnet(counts).train()
        F.cross_entropy(subnet(batch[0]), batch[1]).backward()
        part = net.space.spec(counts)
        state = dict(net.model.named_buffers())
        buffers = {name: b.detach().clone() for name, b in subnet.named_buffers()}
        with torch.no_grad():
            for name, weight in net.named_parameters():
                kept = Cut.of(space.layouts[name], part)
                mask = torch.zeros_like(weight)
                kept.put(mask, torch.ones_like(kept.take(weight)))
                permuted = {
                    k: self._in_order(name, v, orders) for k, v in self.states[name].items()
                }
                new = self.rule(weight, weight.grad, permuted, **self.options)
                weight.copy_(torch.where(mask > 0, new, weight))
                self._put_back(name, permuted, mask > 0, orders)
            for name, buffer in buffers.items():
                if name in net.private:
                    Cut.of(space.layouts[name], part).put(state[name], buffer)
        net.zero_grad()
        net.reorder(
            {name: torch.tensor(order).argsort().tolist() for name, order in orders.items()}
        )

    def _in_order(self, name, value, orders):
        if not isinstance(value, torch.Tensor):
            return value
        for dim, index in self._places(name, orders):
            value = value.index_select(dim, index)
        return value

    def _put_back(self, name, permuted, mask, orders):
        for key, value in permuted.items():
            if isinstance(value, torch.Tensor):
                before = self._in_order(name, self.states[name].get(key, 0 * value), orders)
                value = torch.where(mask, value, before)
                for dim, index in self._places(name, orders):
                    value = value.index_select(dim, index.argsort())
            self.states[name][key] = value

    def _places(self, name, orders):
        for dim, each in enumerate(self.net.space.layouts[name].extents):
            yield dim, torch.tensor(extents.permuted(each, orders))


def executed(net, optimizer, gathered, units, batch):
    gathered.hold(flat(units))
    F.cross_entropy(gathered.module(batch[0]), batch[1]).backward()
    gathered.step(optimizer, CLOCK)


@pytest.mark.parametrize("rule", RULES)
def test_steps_are_those_of_the_reordered_subnet(nets, name, rule):
    net, batches = nets(name)
    kind, formula, options = RULES[rule]
    reference = Reference(net, formula, options)
    optimizer = kind(net.parameters(), **options)
    counts, generator = halves(net), torch.Generator().manual_seed(0)
    gathered = GatheredNet(net, counts)
    for number in range(5):
        units = drawn(net, counts, generator)
        executed(net, optimizer, gathered, units, batches[number % len(batches)])
        reference.step(units, batches[number % len(batches)])
    gathered.write_back()
    want = reference.net.state_dict()
    for key, value in net.state_dict().items():
        assert torch.allclose(value, want[key], rtol=1e-9, atol=1e-11), key
    for key, parameter in net.named_parameters():
        state, other = optimizer.state[parameter], reference.states[key]
        for ours, theirs in (("momentum_buffer", "m"), ("exp_avg", "m"), ("exp_avg_sq", "v")):
            if ours in state:
                assert torch.allclose(state[ours], other[theirs], rtol=1e-9, atol=1e-11), key


def test_steps_are_those_of_the_masked_net(small):
    """The full net with idle channels masked to zero behind their norms; every mask by hand."""
    net = small.supernet(step=1).to(torch.float64)
    model = copy.deepcopy(net.model).train()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": False}
    optimizer = torch.optim.SGD(net.parameters(), **options)
    images, labels = small.pictures()
    images, states = images.double(), {name: {} for name, _ in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    counts = {name: 3 for name in net.space.axes}
    gathered = GatheredNet(net, counts)
    first, second = net.space.axes
    for _ in range(6):
        units = drawn(net, counts, generator)
        executed(net, optimizer, gathered, units, (images, labels))
        one, two = torch.zeros(8).double(), torch.zeros(8).double()
        one[units[first]], two[units[second]] = 1, 1
        x = F.relu(model.norm1(model.conv1(images))) * one[:, None, None]
        x = F.relu(model.norm2(model.conv2(x))) * two[:, None, None]
        F.cross_entropy(model.head(x.mean((2, 3))), labels).backward()
        masks = {
            "conv1.weight": one[:, None, None, None], "norm1.weight": one, "norm1.bias": one,
            "conv2.weight": (two[:, None] * one)[:, :, None, None], "norm2.weight": two,
            "norm2.bias": two, "head.weight": two[None], "head.bias": torch.ones(3).double(),
        }  # fmt: skip
        with torch.no_grad():
            for name, weight in model.named_parameters():
                before = {key: value.clone() for key, value in states[name].items()}
                new, mask = sgd(weight, weight.grad, states[name], **options), masks[name] > 0
                weight.copy_(torch.where(mask, new, weight))
                old = before.get("m", torch.zeros_like(weight))
                states[name]["m"] = torch.where(mask, states[name]["m"], old)
                weight.grad = None
    gathered.write_back()
    for name, weight in model.named_parameters():
        ours = dict(net.named_parameters())[name]
        assert torch.allclose(ours, weight, rtol=1e-9, atol=1e-12), name
        assert torch.allclose(optimizer.state[ours]["momentum_buffer"], states[name]["m"]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_idle_units_are_untouched_bit_for_bit(nets, name, dtype):
    net, batches = nets(name, dtype)
    net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    counts, generator = halves(net), torch.Generator().manual_seed(0)
    gathered = GatheredNet(net, counts)
    for parameter in net.parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(3.0),
            "exp_avg": torch.randn_like(parameter),
            "exp_avg_sq": torch.rand_like(parameter),
        }
    for batch in batches:
        units = drawn(net, counts, generator)
        gathered.write_back()
        tensors = {**dict(net.named_parameters()), **{n: net.state_dict()[n] for n in net.private}}
        before = {key: value.detach().clone() for key, value in tensors.items()}
        averages = {k: optimizer.state[p]["exp_avg"].clone() for k, p in net.named_parameters()}
        executed(net, optimizer, gathered, units, batch)
        gathered.write_back()
        for key, value in tensors.items():
            idle = torch.zeros(value.shape, dtype=torch.bool)
            for dim, extent in enumerate(net.space.layouts[key].extents):
                for axis, own in units.items():
                    lost = [e for e, unit in extents.owned(extent, axis) if unit not in own]
                    idle.index_fill_(dim, torch.tensor(lost, dtype=torch.int64), True)
            assert torch.equal(value[idle], before[key][idle]), key
            assert idle.all() or not torch.equal(value[~idle], before[key][~idle]), key
            if key in averages:
                state = optimizer.state[dict(net.named_parameters())[key]]["exp_avg"]
                assert torch.equal(state[idle], averages[key][idle]), key


def test_other_optimizers_are_refused(nets):
    net, batches = nets("joined")
    counts = halves(net)
    gathered = GatheredNet(net, counts)
    before = copy.deepcopy(net.state_dict())
    gathered.hold(flat({name: list(range(n)) for name, n in counts.items()}))
    F.cross_entropy(gathered.module(batches[0][0]), batches[0][1]).backward()
    for kind in (torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adam):
        optimizer = kind(net.parameters())
        with pytest.raises(ModelError, match=f"and AdamW, but optimizer= makes {kind.__name__};"):
            gathered.step(optimizer, CLOCK)
    gathered.write_back()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_what_is_executed_whole_is_the_shared_tensor(nets):
    net, _ = nets("joined")
    gathered = GatheredNet(net, {"left": 8, "right": 4, "gated": 3})
    shared, own = dict(net.named_parameters()), dict(gathered.module.named_parameters())
    same = {name for name in own if own[name].data_ptr() == shared[name].data_ptr()}
    assert same == {"left.weight", "left.bias", "right.weight", "right.bias", "head.bias"}
    assert all(parameter.grad is None for parameter in net.parameters())
