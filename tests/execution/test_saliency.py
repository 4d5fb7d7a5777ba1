"""Saliencies against autograd on the activations themselves."""

import pytest
import torch
import torch.nn.functional as F

import nestling
from nestling.execution.clock import Clock
from nestling.execution.saliency import EXAMPLES, Saliency
from nestling.units import loose_axes

CLOCK = Clock(torch.device("cpu"))


def relative(values):
    return values / values.mean()


def run(net, module, kind, batch, counts=None):
    counts = counts or {axis.name: axis.size for axis in loose_axes(net.space)}
    axes = loose_axes(net.space)
    saliency = Saliency(kind, module, space=net.space, axes=axes, counts=counts, clock=CLOCK)
    F.cross_entropy(module(batch[0]), batch[1]).backward()
    parts = saliency.rewards().split([counts[axis.name] for axis in axes])
    saliency.close()
    return {axis.name: part.double() for axis, part in zip(axes, parts, strict=True)}


def watched(module, layers, batch):
    """Outputs of layers and the gradients of the loss with respect to them."""
    kept = {}

    def keep(name):
        def hook(_, __, outputs):
            kept[name] = outputs
            outputs.retain_grad()

        return hook

    handles = [module.get_submodule(n).register_forward_hook(keep(n)) for n in layers]
    F.cross_entropy(module(batch[0]), batch[1]).backward()
    for handle in handles:
        handle.remove()
    return {name: (a.detach(), a.grad) for name, a in kept.items()}


def test_fisher_is_that_of_the_norms_outputs(nets):
    net, _ = nets("block")
    torch.manual_seed(0)
    batch = torch.randn(20, 1, 8, 8).double(), torch.randint(3, (20,))
    for norm in (m for m in net.model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    module = nestling.pack(net.subnet(net.space.full)).train()
    found = run(net, module, "fisher", batch)
    module = nestling.pack(net.subnet(net.space.full)).train()
    layers = ["first", "norms.0", "norms.1", "norms.2", "norms.3"]
    seen = watched(module, layers, batch)

    def fisher(name):
        a, g = seen[name]
        per_example = torch.stack([(a[n] * g[n]).sum((1, 2)) for n in range(EXAMPLES)])
        return relative((per_example**2).mean(0))

    coupled = torch.stack([fisher(n) for n in ("first", "norms.1", "norms.3")]).mean(0)
    by_size = {tuple(part.tolist()): part for part in found.values()}
    for want in (coupled, fisher("norms.0"), fisher("norms.2")):
        assert any(torch.allclose(want, part, rtol=1e-5) for part in by_size.values())


def test_taylor_is_the_sum_over_activations(nets):
    net, _ = nets("dense")
    torch.manual_seed(0)
    batch = torch.randn(12, 1, 8, 8).double(), torch.randint(3, (12,))
    for norm in (m for m in net.model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    module = nestling.pack(net.subnet(net.space.full)).train()
    found = run(net, module, "taylor", batch)
    module = nestling.pack(net.subnet(net.space.full)).train()
    seen = watched(module, ["norms.1", "norms.2", "norm"], batch)
    # The first layer's four channels come behind the stem's six in what the later norms put out.
    parts = []
    for a, g in seen.values():
        parts.append(relative((a * g).sum((0, 2, 3))[6:10].abs()))
    want = torch.stack(parts).mean(0)
    assert any(
        part.shape == want.shape and torch.allclose(part, want, rtol=1e-5)
        for part in found.values()
    )


def test_taylor_of_neurons_and_heads_is_what_their_readers_take_in(nets):
    net, batches = nets("attention")
    module = nestling.pack(net.subnet(net.space.full)).train()
    found = run(net, module, "taylor", batches[0])
    module = nestling.pack(net.subnet(net.space.full)).train()
    inputs = {}

    def keep(name):
        def hook(_, given):
            inputs[name] = given[0]
            given[0].retain_grad()

        return hook

    module.down.register_forward_pre_hook(keep("down"))
    module.out.register_forward_pre_hook(keep("out"))
    F.cross_entropy(module(batches[0][0]), batches[0][1]).backward()
    product = inputs["down"] * inputs["down"].grad
    assert torch.allclose(found["up"], relative(product.sum((0, 1)).abs()), rtol=1e-4)
    heads = (inputs["out"] * inputs["out"].grad).unflatten(-1, (4, 3)).sum((0, 1, 3))
    assert torch.allclose(found["qkv.heads"], relative(heads.abs()), rtol=1e-4)


def test_fisher_of_layers_without_norms(nets):
    net, batches = nets("joined")
    module = nestling.pack(net.subnet(net.space.full)).train()
    found = run(net, module, "fisher", batches[0])
    module = nestling.pack(net.subnet(net.space.full)).train()
    a, g = watched(module, ["left"], batches[0])["left"]
    assert torch.allclose(found["left"], relative(((a * g) ** 2).mean(0)), rtol=1e-4)
    a, g = watched(module, ["gated"], batches[0])["gated"]
    values = (a * g)[:, :8] + (a * g)[:, 8:]  # a unit is a value and its gate
    assert torch.allclose(found["gated"], relative((values**2).mean(0)), rtol=1e-4)


def test_scale_and_random(nets):
    net, batches = nets("residual")
    module = nestling.pack(net.subnet(net.space.full)).train()
    torch.nn.init.normal_(module.norm.weight)
    found = run(net, module, "scale", batches[0])
    assert torch.allclose(found["one"], relative(module.norm.weight.detach().abs()), rtol=1e-5)
    both = [module.wide.weight, module.shortcut.weight]
    want = torch.stack([relative(w.detach().abs().sum((1, 2, 3))) for w in both]).mean(0)
    assert torch.allclose(found["wide"], want, rtol=1e-5)
    torch.manual_seed(0)
    first = run(net, module, "random", batches[0])
    torch.manual_seed(0)
    assert all(
        torch.equal(first[n], part) for n, part in run(net, module, "random", batches[0]).items()
    )
    assert len({float(x) for x in first["one"]}) == 6


@pytest.mark.parametrize("kind", ["fisher", "taylor", "scale"])
def test_every_axis_kind_is_measured_at_executed_counts(nets, name, kind):
    net, batches = nets(name)
    counts = {axis.name: axis.nearest(axis.size / 2) for axis in loose_axes(net.space)}
    module = nestling.pack(net.subnet(counts)).train()
    found = run(net, module, kind, batches[0], counts)
    for axis, part in found.items():
        assert part.shape == (counts[axis],)
        assert torch.isfinite(part).all()
        assert part.mean() == pytest.approx(1, rel=1e-5)


def test_a_layer_that_runs_twice_counts_twice(nets):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Linear(5, 6)
            self.two = torch.nn.Linear(6, 3)

        def forward(self, x):
            return self.two(F.relu(self.one(x)) + F.relu(self.one(x * 2)))

    torch.manual_seed(0)
    net = nestling.Supernet(Twice(), torch.randn(2, 5), step=1).to(torch.float64)
    batch = torch.randn(7, 5).double(), torch.randint(3, (7,))
    module = nestling.pack(net.subnet(net.space.full)).train()
    found = run(net, module, "fisher", batch)["one"]
    a, b = (module.one(batch[0] * k).detach().requires_grad_() for k in (1, 2))
    F.cross_entropy(module.two(F.relu(a) + F.relu(b)), batch[1]).backward()
    want = sum(((each.detach() * each.grad) ** 2).mean(0) for each in (a, b))
    assert torch.allclose(found, relative(want), rtol=1e-5)
    kept = [hook for m in module.modules() for hook in m._forward_hooks.values()]
    assert not kept
