"""The noise ranker: its gradients against a net written by hand, and units worth nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestling
from nestling import ModelError, rankers
from nestling.rankers.noise import KEEP, SIZE, Gains, Noisy
from nestling.training import Run


def gains_of(net, scaled=False):
    return Gains(net.space, torch.device("cpu"), scaled=scaled)


def parts_of(gains):
    """Return the gains by axis and weight."""
    keys = [(place.axis, place.parameter) for place in gains.places]
    return dict(zip(keys, gains.alpha.split(gains.sizes), strict=True))


def test_gradients_are_those_of_a_net_with_noise_written_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(7, 4), torch.randint(3, (7,))
    net = nestling.Supernet(model, x, step=1)
    gains = gains_of(net)
    with torch.no_grad():
        gains.alpha.normal_(std=0.3)
    weights = [model[place].weight.detach().clone().requires_grad_() for place in (0, 2)]
    alphas = [part.clone().requires_grad_() for part in gains.alpha.detach().split([5, 6])]

    torch.manual_seed(1)
    noise = [torch.randn_like(w) * w.detach().std(unbiased=False) for w in weights]
    noised = [w + a[:, None] * n for w, a, n in zip(weights, alphas, noise, strict=True)]
    for each in noised:
        each.retain_grad()
    hidden = F.relu(F.linear(x, noised[0], model[0].bias))
    hidden = F.relu(F.linear(hidden, noised[1], model[2].bias))
    expected = F.linear(hidden, model[4].weight, model[4].bias)
    F.cross_entropy(expected, y).backward()

    torch.manual_seed(1)
    noisy = Noisy(net.subnet(net.space.full), gains).train()
    outputs = noisy(x)
    F.cross_entropy(outputs, y).backward()
    torch.testing.assert_close(outputs, expected)
    mine = dict(net.named_parameters())
    for place, weight in zip((0, 2), weights, strict=True):
        torch.testing.assert_close(mine[f"{place}.weight"].grad, weight.grad)
    torch.testing.assert_close(gains.alpha.grad, torch.cat([a.grad for a in alphas]))
    # The formula of the paper, and no gradient through the noise's standard deviation.
    formula = torch.cat([(w.grad * n).sum(1) for w, n in zip(noised, noise, strict=True)])
    torch.testing.assert_close(gains.alpha.grad, formula)
    assert all(torch.equal(w.grad, n.grad) for w, n in zip(weights, noised, strict=True))


def test_heads_and_what_is_in_them_have_noise_of_their_own(nets):
    """One weight makes heads, the parts of heads; the embedding is made by three."""
    net, _ = nets("attention")
    gains = gains_of(net)
    parts = parts_of(gains)
    with torch.no_grad():
        parts["qkv.heads", "qkv.weight"][2] = 1.0
        parts["embedding", "embedding.weight"][5] = 1.0
    weights = dict(net.named_parameters())
    moved = {n: (t != weights[n]).detach() for n, t in gains.noised(weights).items()}
    qkv = moved["qkv.weight"].view(3, 4, 3, 8)
    assert qkv[:, 2].all()
    assert not qkv[:, [0, 1, 3]].any()
    assert moved["embedding.weight"][:, 5].all()
    assert not moved["embedding.weight"][:, :5].any()
    assert not moved["out.weight"].any()


def test_noise_is_drawn_anew_and_only_in_training(nets):
    net, batches = nets("attention")
    gains = gains_of(net)
    subnet = net.subnet(net.space.full)
    noisy = Noisy(subnet, gains)
    inputs = batches[0][0]
    before = {name: p for name, p in subnet.named_parameters()}
    plain = noisy.eval()(inputs)
    assert torch.equal(noisy.train()(inputs), plain)  # gains of 0
    with torch.no_grad():
        gains.alpha.fill_(0.5)
    assert not torch.equal(noisy(inputs), noisy(inputs))
    assert torch.equal(noisy.eval()(inputs), plain)
    assert all(p is before[name] for name, p in subnet.named_parameters())
    assert subnet.head.weight is subnet.embedding.weight


def test_noise_has_the_standard_deviation_of_the_weight(nets):
    net, _ = nets("joined")
    gains = gains_of(net)
    with torch.no_grad():
        gains.alpha.fill_(2.0)
    weights = {name: p.detach() for name, p in net.named_parameters()}
    torch.manual_seed(0)
    drawn = torch.stack([gains.noised(weights)["left.weight"] for _ in range(400)])
    noise = (drawn - weights["left.weight"]).detach()
    assert float(noise.std()) == pytest.approx(2 * float(weights["left.weight"].std()), rel=0.05)
    assert float(noise.mean().abs()) < 0.02


def test_parameters_with_attributes_of_their_own_still_learn(nets):
    """As those of model libraries have."""
    net, batches = nets("joined")
    for parameter in net.parameters():
        parameter.marked = True
    gains = gains_of(net)
    noisy = Noisy(net.subnet(net.space.full), gains).train()
    F.cross_entropy(noisy(batches[0][0]), batches[0][1]).backward()
    assert gains.alpha.grad.any()
    assert dict(net.named_parameters())["left.weight"].grad.any()


def test_scaled_gradients_are_those_of_rmsprop(nets):
    net, _ = nets("joined")
    gains = gains_of(net, scaled=True)
    twin = torch.zeros_like(gains.alpha).requires_grad_()
    mine = torch.optim.SGD([gains.alpha], lr=1.0)
    theirs = torch.optim.RMSprop([twin], lr=1.0, alpha=KEEP, eps=0)
    torch.manual_seed(0)
    for number in range(1, 5):
        pull = torch.randn(twin.shape)
        before = twin.detach().clone(), gains.alpha.detach().clone()
        for each, optimizer in ((twin, theirs), (gains.alpha, mine)):
            optimizer.zero_grad()
            (each * pull).sum().backward()
            optimizer.step()
        moved = twin.detach() - before[0], gains.alpha.detach() - before[1]
        # torch's mean square starts from zero and does not make up for it.
        torch.testing.assert_close(moved[1], moved[0] * (1 - KEEP**number) ** 0.5 * SIZE)


class Weak(nn.Module):
    """The second half of the hidden units reaches the output through a fixed small factor."""

    def __init__(self, factor):
        super().__init__()
        self.one = nn.Linear(12, 16)
        self.two = nn.Linear(16, 3)
        self.register_buffer("factor", torch.cat([torch.ones(8), torch.full((8,), factor)]))

    def forward(self, x):
        return self.two(F.relu(self.one(x)) * self.factor)


def separable(batches=20):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 12, generator=generator)
    labels = torch.randint(3, (batches, 32), generator=generator)
    return [(torch.randn(32, 12, generator=generator) + centres[y], y) for y in labels]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def ranks(factor, seed=0, epochs=5, **options):
    """Return the mean place of the weak units, from -1 (all first) to 1 (all last)."""
    torch.manual_seed(seed)
    net = nestling.Supernet(Weak(factor), torch.randn(2, 12), step=1)
    run = dict(epochs=epochs, optimizer=sgd, precision="float32", seed=seed)
    order = nestling.rank(net, "noise", separable(), **run, **options)["one"]
    places = [place for place, unit in enumerate(order) if unit >= 8]
    return (sum(places) / 8 - 7.5) / 4


@pytest.mark.parametrize("direction", ["descending", "ascending"])
@pytest.mark.parametrize("steps", ["scaled", "plain"])
@pytest.mark.parametrize("score", ["spread", "last"])
def test_units_that_nothing_reads_come_last(direction, steps, score):
    assert ranks(0.0, direction=direction, steps=steps, score=score) == 1


def test_spread_is_the_root_mean_square_over_the_run(nets):
    net, _ = nets("joined")
    gains = gains_of(net)
    weights = dict(net.named_parameters())
    values = torch.randn(5, *gains.alpha.shape, generator=torch.Generator().manual_seed(0))
    for value in values:
        with torch.no_grad():
            gains.alpha.copy_(value)
        gains.noised(weights)
    spread = values.double().square().sum(0).sqrt().split(gains.sizes)
    last = values[-1].double().abs().split(gains.sizes)
    for score, expected in (("spread", spread), ("last", last)):
        found = gains.scores("ascending", score)
        for place, size in zip(gains.places, expected, strict=True):
            torch.testing.assert_close(found[place.axis], size / size.mean(), rtol=1e-6, atol=1e-6)


def test_weak_units_bear_noise_under_scaled_steps():
    for score in ("spread", "last"):
        mean = sum(ranks(0.02, seed, epochs=20, score=score) for seed in range(3)) / 3
        assert mean > 0.5


def test_weak_units_hardly_move_under_plain_steps():
    """So that the paper's direction has them first: see the file's docstring."""
    assert ranks(0.02, steps="plain", direction="descending") < -0.5
    assert ranks(0.02, steps="plain", direction="ascending") > 0.5


def test_several_weights_count_alike(nets):
    net, _ = nets("residual")
    gains = gains_of(net)
    parts = parts_of(gains)
    with torch.no_grad():
        gains.alpha.fill_(1.0)
        parts["wide", "wide.weight"][:] = torch.arange(1.0, 13)
        parts["wide", "shortcut.weight"][:] = 0.001 * torch.arange(12.0, 0, -1)
    for sign, direction in ((-1, "descending"), (1, "ascending")):
        scores = gains.scores(direction, "last")["wide"]
        torch.testing.assert_close(scores, torch.full((12,), sign * 1.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "up"}, "direction= is one of descending, ascending"),
        ({"steps": "big"}, "steps= is one of scaled, plain"),
        ({"score": "first"}, "score= is one of spread, last"),
        ({"epochs": 0}, "epochs= is a whole number of at least 1"),
    ],
)
def test_options_are_checked(nets, options, message):
    net, batches = nets("joined")
    with pytest.raises(ModelError, match=message):
        rankers.scores(Run(net, batches, 1), "noise", **options)
