"""Steps that leave the dropped units as they are."""

import copy

import pytest
import torch
import torch.nn.functional as F

import nestling
from nestling.binding import binding
from nestling.execution.resting import Resting
from nestling.objectives import ordered_dropout

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


def dense(small):
    return small.supernet(small.seeded(small.Dense))


def residual(small):
    torch.manual_seed(0)
    model = nestling.models.digits_resnet(width=4, num_classes=3)
    return nestling.Supernet(model, torch.randn(2, 1, 8, 8), step=2)


def few_bits(small):
    bits = nestling.Bits((2, 4), inputs=(2, 8))
    return nestling.Supernet(small.seeded(small.Dense), small.pictures(4)[0], bits=bits)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("make", [dense, residual, few_bits])
def test_what_a_subnet_lacks_keeps_weight_and_state(small, make, kind):
    """Concatenations (gathered weights), depth, and bits; against marks made by the cuts."""
    net = make(small)
    optimizer = OPTIMIZERS[kind](net.parameters())
    optimizer.zero_grad(set_to_none=False)
    steps = Resting(net, ordered_dropout)
    torch.manual_seed(1)
    rested = moved = 0
    for images, labels in small.batches(64) * 2:
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        states = copy.deepcopy(optimizer.state_dict()["state"])
        for subnet, loss in steps.objective(net):
            loss(subnet(images), labels).backward()
        absent = _absent(net, subnet)
        steps.step(optimizer)
        optimizer.zero_grad(set_to_none=False)
        after = optimizer.state_dict()["state"]
        for number, (name, parameter) in enumerate(net.named_parameters()):
            gone = absent[name]
            assert torch.equal(parameter[gone], before[name][gone]), name
            rested += int(gone.sum())
            moved += int((parameter != before[name]).sum())
            for key, state in after.get(number, {}).items():
                if torch.is_tensor(state) and state.shape == parameter.shape:
                    rested += int(gone.sum())
                    old = states.get(number, {}).get(key)
                    old = torch.zeros_like(state) if old is None else old
                    assert torch.equal(state[gone], old[gone]), (name, key)
    assert rested > 100
    assert moved > 100


def _absent(net, subnet):
    """Return which entries of each parameter a subnet lacks, by the cuts of what it has."""
    marks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in net.named_parameters()}
    links = binding(subnet).parameters
    for name, mark in marks.items():
        mark[...] = True
        if name in links:
            inside = torch.ones_like(mark, dtype=torch.float32)
            links[name].cut.put(inside, torch.zeros_like(links[name].cut.take(inside)))
            mark[...] = inside.bool()
    return marks


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_scales_and_clips_rest_where_their_bits_are_not_drawn(small, kind):
    """The full net among them: it has all weights, but no scale and no clip."""
    net = few_bits(small)
    optimizer = OPTIMIZERS[kind](net.parameters())
    few = [{"*.bits": 2, "*.input_bits": 2}, {"*.bits": 4, "*.input_bits": 8}]
    x, y = small.pictures(16)
    for counts in (*few, {}, few[0]):
        subnet = net.subnet(counts).train()
        steps = Resting(net, lambda net, subnet=subnet: iter([(subnet, F.cross_entropy)]))
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        for module, loss in steps.objective(net):
            loss(module(x), y).backward()
        gradients = {name: p.grad for name, p in net.named_parameters()}
        steps.step(optimizer)
        assert all(p.grad is gradients[name] for name, p in net.named_parameters())
        optimizer.zero_grad(set_to_none=False)
        moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
        assert moved == {name for name, _ in subnet.named_parameters()}
        kinds = {name.rpartition(".")[2] for name in moved}
        clip = f"input_clip_{counts['*.input_bits']}" if counts else ""
        assert {kind for kind in kinds if "clip" in kind} == {clip} - {""}


def test_what_is_kept_steps_as_an_optimiser_of_the_slices(small):
    """Two steps of different prefixes of a linear net, against SGD written out by hand."""
    net = small.supernet(small.seeded(small.Mlp), torch.randn(2, 6))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    weights = {n: p.detach().clone() for n, p in net.named_parameters()}
    momenta = {n: torch.zeros_like(p) for n, p in weights.items()}
    x, y = torch.randn(8, 6), torch.randint(3, (8,))
    for counts in ({"one": 4, "two": 6}, {"one": 6, "two": 2}, {"one": 4, "two": 8}):
        spec = net.space.spec(counts)
        steps = Resting(net, lambda net, spec=spec: iter([(net.pooled(spec), F.cross_entropy)]))
        for subnet, loss in steps.objective(net):
            loss(subnet(x), y).backward()
        steps.step(optimizer)
        optimizer.zero_grad(set_to_none=False)
        one, two = counts["one"], counts["two"]
        box = {
            "one.weight": (slice(one),), "one.bias": (slice(one),),
            "two.weight": (slice(two), slice(one)), "two.bias": (slice(two),),
            "three.weight": (slice(None), slice(two)), "three.bias": (slice(None),),
        }  # fmt: skip
        own = {n: weights[n][box[n]].clone().requires_grad_() for n in weights}
        hidden = F.relu(F.linear(x, own["one.weight"], own["one.bias"]))
        hidden = F.relu(F.linear(hidden, own["two.weight"], own["two.bias"]))
        F.cross_entropy(F.linear(hidden, own["three.weight"], own["three.bias"]), y).backward()
        for name, part in own.items():
            change = part.grad + 0.01 * part.detach()
            momenta[name][box[name]] = 0.9 * momenta[name][box[name]] + change
            weights[name][box[name]] -= 0.1 * momenta[name][box[name]]
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(parameter, weights[name], msg=name)


def test_a_full_net_steps_as_ever(small):
    found = []
    for rests in (True, False):
        net = small.supernet(small.seeded(small.Mlp), torch.randn(2, 6))
        optimizer = OPTIMIZERS["sgd"](net.parameters())
        full = net.pooled(net.space.full).train()
        steps = Resting(net, lambda net, full=full: iter([(full, F.cross_entropy)]))
        torch.manual_seed(0)
        for _ in range(3):
            for subnet, loss in steps.objective(net):
                loss(subnet(torch.randn(8, 6)), torch.randint(3, (8,))).backward()
            (steps.step if rests else lambda each: each.step())(optimizer)
            optimizer.zero_grad(set_to_none=False)
        found.append({name: p.detach().clone() for name, p in net.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
