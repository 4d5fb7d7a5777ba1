import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestling
from nestling import BudgetError, DataError, FileError, ModelError, SpecError
from nestling.costs.latency import Latency
from nestling.menu import replace


@pytest.fixture(scope="module")
def menu(small):
    net = small.supernet()
    for _ in range(3):  # the norms have seen something
        net.subnet(net.space.full).train()(small.pictures(16)[0])
    specs = [net.space.spec(width=width) for width in (0.75, 0.5, 0.25)]
    menu = nestling.make_menu(net, specs, calibrate=small.batches(), measure=False)
    assert len(menu) == 4
    entries = tuple(
        replace(entry, accuracy=accuracy)
        for entry, accuracy in zip(menu, (0.9, 0.8, 0.7, 0.6), strict=True)
    )
    table = {
        e.name: Latency(ms, ms, ms, 9) for e, ms in zip(menu, (8.0, 6.0, 4.0, 2.0), strict=True)
    }
    profile = menu.profile.with_table(menu.key(2), table)
    return replace(menu, entries=entries, profile=profile)


@pytest.fixture
def model(menu):
    return nestling.LoadedModel(menu)


def test_every_budget(model, menu):
    for entry in menu:
        assert model.choose(macs=entry.macs) == entry
        assert model.choose(params=entry.params) == entry
        assert model.choose(bytes=entry.bytes) == entry
        assert model.choose(fraction=entry.macs / menu.full.macs) == entry
    assert model.choose(latency_ms=5, batch=2) == menu.entries[2]
    assert model.choose() == model.choose(fraction=1.0) == menu.full
    assert model.choose(fraction=torch.tensor(0.99)) == menu.entries[1]


def test_several_budgets_hold_at_once(model, menu):
    small, medium = menu.entries[3], menu.entries[2]
    assert model.choose(macs=1e9, latency_ms=4.5, batch=2) == medium
    assert model.choose(macs=small.macs, latency_ms=9, batch=2) == small
    assert model.choose(fraction=1, params=10**9, bytes=medium.bytes) == medium
    with pytest.raises(BudgetError, match="closest is"):
        model.choose(macs=1, params=10**9)
    with pytest.raises(BudgetError, match="params= is a number"):
        model.choose(macs=1e9, params="x")


def test_entries_that_are_not_offered_still_meet_budgets_in_other_costs(menu):
    offers = (True, True, False, False)
    entries = tuple(
        replace(entry, offered=offered) for entry, offered in zip(menu, offers, strict=True)
    )
    model = nestling.LoadedModel(replace(menu, entries=entries))
    _, second, third, last = entries
    assert model.choose(macs=second.macs) == second
    assert model.choose(macs=third.macs) == third
    assert model.choose(fraction=last.macs / menu.full.macs) == last
    assert model.choose(bytes=third.bytes, params=10**9) == third
    with pytest.raises(BudgetError, match=f"closest is '{last.name}'.*params={last.params};"):
        model.choose(params=1)
    assert model.choose(latency_ms=100, batch=2) == entries[0]
    with pytest.raises(BudgetError, match=f"closest is '{second.name}'"):
        model.choose(latency_ms=5, batch=2)
    with pytest.raises(BudgetError, match=f"at once: the closest is '{second.name}'"):
        model.choose(latency_ms=7, macs=third.macs, batch=2)


def test_budgets_that_only_exclude_one_another(menu):
    first, *_, last = menu.entries
    crossed = replace(menu, entries=(replace(first, params=1), replace(last, params=10**6)))
    model = nestling.LoadedModel(crossed)
    with pytest.raises(BudgetError, match=r"at once: the closest is .*allow at least"):
        model.choose(macs=last.macs, params=5)


def test_a_latency_budget_needs_a_profile_of_this_call(model, small):
    images, _ = small.pictures(2)
    assert model(images, latency_ms=3).shape == (2, 3)
    with pytest.raises(BudgetError, match="nestling profile FILE --batch 3"):
        model(small.pictures(3)[0], latency_ms=3)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.raises(BudgetError, match=f"--threads {threads + 1}"):
            model(images, latency_ms=3)
    finally:
        torch.set_num_threads(threads)
    for batch in (0, -1, "x", 1.5):
        with pytest.raises(BudgetError, match="batch="):
            model.choose(latency_ms=3, batch=batch)


@pytest.mark.parametrize("budget", [0, -3, float("nan"), "8", [], {}, True])
@pytest.mark.parametrize("cost", ["fraction", "latency_ms", "macs", "params", "bytes"])
def test_bad_budgets(model, small, cost, budget):
    with pytest.raises(BudgetError, match=cost):
        model(small.pictures(2)[0], **{cost: budget})


def test_names(model, menu, small):
    images, _ = small.pictures(2)
    for entry in menu:
        assert torch.equal(model(images, subnet=entry.name), menu.module(entry.name)(images))
        assert model.subnet(entry.name) is model.subnet(entry.name)
    with pytest.raises(SpecError, match="did you mean 'full'"):
        model(images, subnet="ful")
    with pytest.raises(BudgetError, match="not both"):
        model(images, subnet="full", macs=3)


@pytest.mark.parametrize(
    "inputs",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 1, 8, 8).double(),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(8),
        [[1.0]],
        None,
        "text",
    ],
)
def test_inputs_that_do_not_fit(model, inputs):
    with pytest.raises(ModelError, match=r"takes inputs like \(batch, 1, 8, 8\) float32"):
        model(inputs)


def test_no_input_and_bad_numbers(model):
    with pytest.raises(ModelError, match="fails on nothing"):
        model()
    for bad in (float("nan"), float("inf")):
        images = torch.zeros(2, 1, 8, 8)
        images[1, 0, 3, 3] = bad
        with pytest.raises(DataError, match="finite"):
            model(images)


def test_keywords(small):
    net = nestling.Supernet(
        small.TwoInputs(), kwargs={"left": torch.randn(2, 4), "right": torch.randn(2, 5)}, step=2
    )
    model = nestling.LoadedModel(nestling.make_menu(net, [net.space.uniform[0]], measure=False))
    left, right = torch.randn(3, 4), torch.randn(3, 5)
    assert torch.equal(model(left=left, right=right), model(left, right))
    with pytest.raises(ModelError, match="left="):
        model(left=left)


def test_no_gradients_and_no_copies(model, menu, small):
    images, _ = small.pictures(2)
    assert not model(images).requires_grad
    shared = {p.untyped_storage().data_ptr() for p in menu.net.parameters()}
    for entry in menu:
        module = model.subnet(entry.name)
        assert {p.untyped_storage().data_ptr() for p in module.parameters()} <= shared


def test_calls_from_threads(model, menu, small):
    images, _ = small.pictures(4)
    expected = {entry.name: model(images, subnet=entry.name) for entry in menu}
    wrong = []

    def work(entry):
        for _ in range(20):
            if not torch.equal(model(images, macs=entry.macs), expected[entry.name]):
                wrong.append(entry.name)

    threads = [threading.Thread(target=work, args=(entry,)) for entry in menu for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_packed_entries_are_copies_with_latencies_of_their_own(menu, small, tmp_path):
    images, _ = small.pictures(2)
    views = nestling.LoadedModel(menu)
    packed = nestling.load(menu.save(tmp_path / "m.nest"), model=small.ConvNet(), packed=True)
    shared = {p.untyped_storage().data_ptr() for p in packed.menu.net.parameters()}
    for entry in menu:
        module = packed.subnet(entry.name)
        assert not module.training
        for parameter in module.parameters():
            assert parameter.is_contiguous()
            assert parameter.untyped_storage().data_ptr() not in shared
        torch.testing.assert_close(
            packed(images, subnet=entry.name), views(images, subnet=entry.name)
        )
    assert views.choose(latency_ms=3, batch=2)
    with pytest.raises(BudgetError, match=r"packed.*--backend packed"):
        packed.choose(latency_ms=3, batch=2)
    measured = packed.measured(2, seconds=0.05, precision=0.5)
    assert measured.packed
    assert {key.backend for key in measured.menu.profile.tables} == {"eager", "packed"}
    assert measured.choose(latency_ms=1e6, batch=2) == measured.menu.full
    table = measured.menu.latencies(2, "packed")
    assert table != measured.menu.latencies(2)


def test_a_model_that_is_tuned_goes_on(menu, small):
    net = small.supernet()
    menu = nestling.make_menu(net, [net.space.uniform[0]], calibrate=small.batches(), measure=False)
    model = nestling.LoadedModel(menu)
    with torch.no_grad():
        next(net.parameters()).add_(1)
    images, _ = small.pictures(2)
    assert model(images, fraction=0.9).shape == (2, 3)
    with pytest.raises(SpecError, match="weights changed"):
        model.measured()


def test_a_fraction_is_no_percentage(model, small):
    with pytest.raises(BudgetError, match="but it is 50; for 50 % write"):
        model.choose(fraction=50)
    with pytest.raises(BudgetError, match="at most 1, but it is inf; for the full net write 1"):
        model(small.pictures(2)[0], fraction=float("inf"))
    with pytest.raises(BudgetError, match="fraction= is a number"):
        model.choose(fraction="x")


def test_a_misspelt_budget_is_suggested(model, small):
    with pytest.raises(ModelError, match="did you mean 'latency_ms'"):
        model(small.pictures(2)[0], latncy_ms=8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"latency": 3}, "did you mean 'latency_ms'"),
        ({"mac": 3, "fraction": 0.5}, "did you mean 'macs'"),
        ({"subnet": "full"}, r"model\.subnet\(name\)"),
        ({"energy": 3}, "a budget is fraction=, latency_ms=.* got energy="),
    ],
)
def test_an_unknown_budget_is_refused(model, given, said):
    with pytest.raises(ModelError, match=said):
        model.choose(**given)


class Attentive(nn.Module):
    """Its weights tell nothing of its number of heads."""

    def __init__(self, heads=4):
        super().__init__()
        self.heads = heads
        self.mix, self.out, self.head = nn.Linear(8, 48), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        parts = self.mix(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts))
        return self.head(self.out(mixed.transpose(1, 2).flatten(2)).mean(1))


def test_a_model_of_other_sizes_is_the_fault_of_the_argument(tmp_path):
    net = nestling.Supernet(Attentive(), torch.randn(2, 5, 8))
    path = nestling.make_menu(net, [{}], measure=False).save(tmp_path / "own.nest")
    with pytest.raises(FileError, match=r"model= gives.*heads is 8, where the file has 4") as found:
        nestling.load(path, model=Attentive(8))
    assert "intact" not in str(found.value)
    nestling.load(path, model=Attentive())
