from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import nestling
from nestling import SpecError
from nestling.binding import binding
from nestling.objectives import soft_cross_entropy
from nestling.objectives.sandwich import random_widths


@pytest.fixture
def net(small):
    return small.supernet()


def members(net, **options):
    pairs = list(nestling.sandwich(net, **options))
    return [binding(subnet).counts for subnet, _ in pairs], pairs


def test_members_are_the_largest_two_at_random_and_the_smallest(net):
    torch.manual_seed(0)
    widths = 0.25 + 0.75 * torch.rand(2)
    torch.manual_seed(0)
    counts, pairs = members(net)
    assert counts[0] == dict(net.space.full)
    assert counts[1:3] == [dict(net.space.spec(width=float(width))) for width in widths]
    assert counts[3] == dict(net.space.spec(width=0.25))
    assert all(subnet.training for subnet, _ in pairs)


def test_random_draws_repeat_under_a_seed(net):
    def draws(seed):
        torch.manual_seed(seed)
        return [random_widths(net, 0.25, 2) for _ in range(8)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)


@given(low=st.floats(0.01, 1.0), random=st.integers(0, 4), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_no_member_is_narrower_than_low(shared_net, low, random, seed):
    torch.manual_seed(seed)
    specs = random_widths(shared_net, low, random)
    least = shared_net.space.spec(width=low)
    assert len(specs) == random + 1
    assert specs[-1] == least
    assert all(spec[axis] >= least[axis] for spec in specs for axis in spec)


@pytest.fixture(scope="module")
def shared_net(small):
    return small.supernet()


def test_gradient_equals_an_independent_computation(net, small):
    """Sum of cross-entropy on the full net and soft cross-entropy of the others on its outputs."""
    images, labels = small.pictures(16)
    torch.manual_seed(5)
    for subnet, loss in nestling.sandwich(net):
        loss(subnet(images), labels).backward()
    found = {name: p.grad.clone() for name, p in net.named_parameters()}

    torch.manual_seed(5)
    specs = random_widths(net, 0.25, 2)
    total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    teacher = None
    for spec in [net.space.full, *specs]:
        alone = nestling.pack(net.subnet(spec)).train()
        logits = alone(images)
        log = logits - logits.exp().sum(1, keepdim=True).log()
        if teacher is None:
            teacher = (logits.exp() / logits.exp().sum(1, keepdim=True)).detach()
            value = -log[torch.arange(16), labels].mean()
        else:
            value = -(teacher * log).sum(1).mean()
        value.backward()
        for name, p in alone.named_parameters():
            total[name][tuple(slice(n) for n in p.shape)] += p.grad
    assert found.keys() == total.keys()
    for name in total:
        torch.testing.assert_close(found[name], total[name], rtol=1e-4, atol=1e-6)


def test_the_user_loop_of_the_design(net, small):
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        for images, labels in small.batches():
            for subnet, loss_fn in nestling.sandwich(net):
                value = loss_fn(subnet(images), labels)
                value.backward()
                if len(losses) % 4 == 0:
                    losses.append(value.item())
                else:
                    losses.append(None)
            optimizer.step()
            optimizer.zero_grad()
    full = losses[::4]
    assert full[-1] < 0.7 * full[0]
    specs = [net.space.spec(width=width) for width in (0.25, 0.5)]
    menu = nestling.make_menu(
        net, specs, small.batches(seed=1), calibrate=small.batches(), measure=False
    )
    assert next(entry.name for entry in menu) == "full"
    assert menu["full"].accuracy > 0.6


def test_custom_losses(net):
    seen = []

    def loss(outputs, targets):
        seen.append(("loss", targets))
        return outputs.mean()

    def distill(outputs, teacher):
        seen.append(("distill", teacher))
        return outputs.mean()

    for subnet, fn in nestling.sandwich(net, random=0, loss=loss, distill=distill):
        outputs = subnet(torch.ones(2, 1, 8, 8))
        fn(outputs, "targets")
    assert [kind for kind, _ in seen] == ["loss", "distill"]
    assert seen[0][1] == "targets"
    assert seen[1][1].shape == (2, 3)
    assert not seen[1][1].requires_grad

    seen.clear()
    for subnet, fn in nestling.sandwich(net, random=1, loss=loss):
        fn(subnet(torch.ones(2, 1, 8, 8)), "targets")
    assert seen == [("loss", "targets")] * 3


def test_soft_cross_entropy_is_least_at_the_teacher():
    teacher = torch.randn(5, 4)
    entropy = -(teacher.softmax(1) * teacher.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(soft_cross_entropy(teacher, teacher), entropy)
    assert soft_cross_entropy(torch.randn(5, 4), teacher) > entropy
    hard = torch.tensor([1, 0])
    certain = F.one_hot(hard, 4) * 100.0
    logits = torch.randn(2, 4)
    torch.testing.assert_close(soft_cross_entropy(logits, certain), F.cross_entropy(logits, hard))


@pytest.mark.parametrize("low", [0, -1, 1.5, float("nan"), "x", None, True])
def test_low_must_be_a_width(net, low):
    with pytest.raises(SpecError, match="low="):
        list(nestling.sandwich(net, low=low))


@pytest.mark.parametrize("random", [-1, 1.5, "x", True])
def test_random_must_be_a_count(net, random):
    with pytest.raises(SpecError, match="random="):
        list(nestling.sandwich(net, random=random))


def test_the_teacher_must_be_asked_first(net):
    _, pairs = members(net)
    with pytest.raises(SpecError, match="teaches"):
        pairs[1][1](torch.zeros(2, 3), torch.zeros(2).long())


def test_with_micro_batches_each_learns_from_the_same_pictures(net, small):
    """Gradients summed over micro-batches are those of separate steps with the same widths."""

    def gradients(groups):
        net.zero_grad()
        for micro in groups:
            torch.manual_seed(5)
            for subnet, loss in nestling.sandwich(net):
                for images, labels in micro:
                    loss(subnet(images), labels).backward()
        return {name: p.grad.clone() for name, p in net.named_parameters()}

    micro = small.batches(32, 8)
    together, apart = gradients([micro]), gradients([[each] for each in micro])
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, apart[name], rtol=1e-4, atol=1e-6)


def test_a_micro_batch_that_was_not_taught_is_refused(net):
    _, pairs = members(net)
    outputs, labels = torch.zeros(2, 3), torch.zeros(2).long()
    pairs[0][1](outputs, labels)
    for _, learn in pairs[1:]:
        learn(outputs, labels)
        with pytest.raises(SpecError, match="call 2 after 1"):
            learn(outputs, labels)


def test_outputs_in_a_dataclass_teach_without_gradient(net):
    @dataclass
    class Out:
        logits: torch.Tensor

    seen = []

    def distill(outputs, teacher):
        seen.append(teacher)
        return outputs.logits.mean()

    options = {"random": 0, "loss": lambda out, _: out.logits.mean(), "distill": distill}
    for subnet, loss in nestling.sandwich(net, **options):
        loss(Out(subnet(torch.ones(2, 1, 8, 8))), None)
    (teacher,) = seen
    assert isinstance(teacher, Out)
    assert not teacher.logits.requires_grad


@pytest.mark.parametrize("kind", ["model", "class", "nothing"])
def test_only_a_supernet_makes_subnets(kind, small):
    given = {"model": small.ConvNet(), "class": small.ConvNet, "nothing": None}[kind]
    batches = small.batches()
    for name, call in {
        "sandwich": lambda: list(nestling.sandwich(given)),
        "fit": lambda: nestling.fit(given, batches, progress=False),
        "make_menu": lambda: nestling.make_menu(given, [{}], calibrate=batches),
    }.items():
        with pytest.raises(nestling.ModelError, match=rf"{name} takes a supernet.*nestling\.Sup"):
            call()


@pytest.mark.parametrize("option", ["loss", "distill"])
def test_a_loss_that_is_no_function_is_refused(net, option):
    with pytest.raises(SpecError, match=f"{option}= is a function from .* not True"):
        list(nestling.sandwich(net, **{option: True}))
