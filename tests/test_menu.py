import copy

import pytest
import torch

import nestling
from nestling import BudgetError, DataError, ModelError, SpecError
from nestling.costs.latency import Latency
from nestling.entry import Entry
from nestling.menu import names_for, settle_offers
from nestling.weights import Versions


@pytest.fixture(scope="module")
def net(small):
    return small.supernet()


def made(small, net, specs, **options):
    options = {"calibrate": small.batches(), "measure": False, **options}
    return nestling.make_menu(net, specs, small.batches(16), **options)


def test_names_follow_the_share_of_macs(net):
    full = net.space.macs(net.space.full)
    named = names_for(net, [*net.space.uniform, net.space.full])
    assert list(named.values()) == list(net.space.uniform)
    for name, spec in named.items():
        share = 100 * net.space.macs(spec) / full
        assert name == "full" if spec == net.space.full else name.startswith(f"m{share:.0f}")
    twice = names_for(net, [net.space.full] * 2)
    assert list(twice) == ["full"]


def test_entries_have_the_right_figures(small, net):
    spec = net.space.spec(width=0.5)
    menu = made(small, net, {"half": spec})
    assert [entry.name for entry in menu] == ["full", "half"]
    half = menu["half"]
    alone = nestling.pack(menu.module("half"))
    assert half.params == sum(p.numel() for p in alone.parameters())
    assert half.accuracy == nestling.evaluate(alone, small.batches(16))
    subnet = net.recalibrate(net.subnet(spec), small.batches())
    images, _ = small.pictures(4)
    assert torch.equal(menu.module("half")(images), subnet.eval()(images))
    with pytest.raises(SpecError, match="did you mean 'half'"):
        menu["hafl"]


def test_a_menu_of_the_full_net_leaves_its_statistics_alone(small):
    net = small.supernet()
    menu = made(small, net, [net.space.full])
    net.subnet(net.space.full).train()(small.pictures(8)[0])  # training goes on
    after = net.state_dict()["norm1.running_mean"].clone()
    menu.module("full")
    assert torch.equal(net.state_dict()["norm1.running_mean"], after)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "at least one"),
        ({}, "at least one"),
        (3, "list of specs"),
        ([3], "maps axis names"),
        ({"a": 3}, "maps axis names"),
        ({"a/b": {}}, "no '/'"),
        ({"": {}}, "1 to 100"),
        ({1: {}}, "1 to 100"),
        ({"a": {}, "b": {}}, "two are equal"),
        ([{"nowhere": 3}], "unknown axis"),
    ],
)
def test_bad_specs(small, net, specs, message):
    with pytest.raises(SpecError, match=message):
        made(small, net, specs)
    with pytest.raises(SpecError, match=r"\[spec\]"):
        made(small, net, net.space.full)
    with pytest.raises(SpecError, match="'full' is the full net's"):
        made(small, net, {"full": net.space.spec(width=0.5)})


def test_norms_need_calibration(small, net):
    specs = [net.space.spec(width=0.5)]
    with pytest.raises(ModelError, match="calibrate="):
        made(small, net, specs, calibrate=None)
    with pytest.raises(DataError, match="calibrate="):
        made(small, net, specs, calibrate=[])
    bad = [(torch.full((4, 1, 8, 8), float("nan")), torch.zeros(4))]
    with pytest.raises(DataError, match="NaN"):
        made(small, net, specs, calibrate=bad)
    plain = nestling.Supernet(small.seeded(small.Mlp), torch.randn(2, 6), step=2)
    menu = nestling.make_menu(plain, [plain.space.uniform[0]], measure=False)
    assert [entry.accuracy for entry in menu] == [None, None]


def test_validation_data_that_is_read_once_is_refused(small, net):
    with pytest.raises(DataError, match="val="):
        nestling.make_menu(
            net, [net.space.full], iter(small.batches()), calibrate=small.batches(), measure=False
        )


def entry(name, accuracy, macs=1):
    return Entry(name, {}, macs, 1, 1, accuracy)


def latency(low, high):
    return Latency((low + high) / 2, low, high, 10)


@pytest.mark.parametrize(
    ("rows", "offered"),
    [
        # clearly slower and no more accurate
        ([("a", 0.9, 9, 10), ("b", 0.9, 4, 5)], [False, True]),
        # clearly slower and more accurate
        ([("a", 0.91, 9, 10), ("b", 0.9, 4, 5)], [True, True]),
        # less accurate, but the intervals touch
        ([("a", 0.8, 5, 10), ("b", 0.9, 4, 5)], [True, True]),
        # beaten by any of several
        ([("a", 0.8, 9, 10), ("b", 0.7, 1, 2), ("c", 0.85, 5, 6)], [False, True, True]),
        # without accuracy the larger one is the better one
        ([("a", None, 4, 5), ("b", None, 9, 10)], [True, False]),
    ],
)
def test_what_is_offered(rows, offered):
    size = len(rows)
    entries = [entry(name, acc, size - i) for i, (name, acc, _, _) in enumerate(rows)]
    table = {name: latency(low, high) for name, _, low, high in rows}
    assert [each.offered for each in settle_offers(entries, table)] == offered
    partly = {name: table[name] for name in list(table)[1:]}
    assert settle_offers(entries, partly)[0].offered


def test_measuring_files_the_profile_under_this_machine(small, net):
    menu = made(small, net, [net.space.uniform[0]])
    with pytest.raises(BudgetError, match="nestling profile"):
        menu.latencies()
    measured = menu.measured(batch=2, seconds=0.05, precision=0.5)
    assert measured.key(2) in measured.profile.tables
    assert measured.key(2).threads == torch.get_num_threads()
    assert set(measured.latencies(2)) == {entry.name for entry in menu}
    with pytest.raises(BudgetError, match="--batch 1"):
        measured.latencies(1)
    assert not menu.profile.tables
    for batch in (0, -1, 1.5, "x", True):
        with pytest.raises(ModelError, match="batch="):
            menu.measured(batch)


def test_identity_follows_names_specs_and_weights(small):
    net = small.supernet()
    menu = made(small, net, [net.space.uniform[0]])
    first = menu.identity()
    assert first == menu.identity() == menu.profile.file_id
    assert first != made(small, net, {"other": net.space.uniform[0]}).identity()
    menu.entries[1].private["norm1.running_mean"].add_(1)
    assert menu.identity() != first
    second = menu.identity()
    with torch.no_grad():
        next(net.parameters()).add_(1)
    assert menu.identity() != second


def test_a_menu_of_an_older_order_refuses(small, tmp_path):
    net = small.supernet()
    menu = made(small, net, [net.space.uniform[0]])
    name, axis = next(iter(net.space.axes.items()))
    net.reorder({name: list(reversed(range(axis.size)))})
    for use in (
        lambda: menu.module("full"),
        lambda: menu.save(tmp_path / "old.nest"),
        lambda: menu.measured(),
        lambda: nestling.LoadedModel(menu),
    ):
        with pytest.raises(SpecError, match="reordered"):
            use()
    assert not list(tmp_path.iterdir())


def train(net, small):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.subnet(net.space.uniform[0]).train()(small.pictures(8)[0]).sum().backward()
    optimizer.step()


def absorb(net, small):
    spec = net.space.uniform[0]
    net.absorb(spec, nestling.pack(net.recalibrate(net.subnet(spec), small.batches())))


def average(net, small):
    torch._foreach_lerp_(
        [p.detach() for p in net.parameters()], [torch.ones_like(p) for p in net.parameters()], 0.1
    )


def load_state(net, small):
    net.load_state_dict(small.supernet().state_dict())


@pytest.mark.parametrize("change", [train, absorb, average, load_state])
def test_a_menu_of_older_weights_refuses(small, tmp_path, change):
    net = small.supernet()
    old = made(small, net, [net.space.uniform[0]])
    change(net, small)
    for menu in (old, nestling.menu.replace(old, facts={"seed": 1})):
        for use in (
            lambda menu=menu: menu.module("full"),
            lambda menu=menu: menu.save(tmp_path / "old.nest"),
            lambda menu=menu: menu.measured(),
            lambda menu=menu: nestling.LoadedModel(menu),
        ):
            with pytest.raises(SpecError, match="weights changed since this menu was made"):
                use()
    assert not list(tmp_path.iterdir())
    made(small, net, [net.space.uniform[0]]).save(tmp_path / "new.nest")


def test_a_menu_outlives_what_leaves_its_weights(small, tmp_path):
    net = small.supernet()
    spec = net.space.uniform[0]
    menu = made(small, net, [spec])
    net.recalibrate(net.subnet(spec), small.batches())
    nestling.evaluate(net.subnet(net.space.full), small.batches())
    net.subnet(spec).train()(small.pictures(8)[0]).sum().backward()
    made(small, net, [spec])
    nestling.LoadedModel(menu.measured(seconds=0.02, precision=0.9))
    net.to(torch.float64).to(torch.float32).to(memory_format=torch.channels_last)
    path = menu.save(tmp_path / "model.nest")
    loaded = nestling.load(path, model=small.ConvNet()).menu
    loaded.net.to(torch.float64)
    nestling.menu.replace(loaded, facts={}).save(tmp_path / "again.nest")


def test_a_copy_of_a_menu_watches_its_own_weights(small):
    net = small.supernet()
    with torch.no_grad():
        next(net.parameters()).add_(1)  # versions of the copy start anew
    menu = made(small, net, [net.space.uniform[0]])
    twin = copy.deepcopy(menu)
    train(menu.net, small)
    stale = copy.deepcopy(menu)
    twin.module("full")
    train(twin.net, small)
    for each in (menu, stale, twin):
        with pytest.raises(SpecError, match="weights changed"):
            each.module("full")


def test_weights_made_in_inference_mode_are_not_watched():
    with torch.inference_mode():
        assert not Versions([torch.zeros(2)]).changed()


def test_a_menu_prints_a_line_an_entry(small, net):
    lines = str(made(small, net, {"half": net.space.spec(width=0.5)})).splitlines()
    assert lines[0].split() == ["name", "MACs", "params", "accuracy", "offered"]
    assert [line.split()[0] for line in lines[1:]] == ["full", "half"]
    assert len({len(line) for line in lines}) == 1
