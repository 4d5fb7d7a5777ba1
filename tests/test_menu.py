import copy
import json
from dataclasses import replace

import pytest
import torch

import nestling
from nestling import BudgetError, DataError, ModelError, SpecError
from nestling.costs.latency import Latency, Ratio
from nestling.entry import Entry, is_as_good, names_for, noise
from nestling.narrowing import Comparison, Narrowing
from nestling.offers import settle_offers
from nestling.upkeep import Upkeep
from nestling.weights import Versions


@pytest.fixture(scope="module")
def net(small):
    return small.supernet()


def made(small, net, specs, **options):
    options = {"calibrate": small.batches(), "measure": False, **options}
    return nestling.make_menu(net, specs, small.batches(16), **options)


def test_names_follow_the_share_of_macs(net):
    full = net.space.macs(net.space.full)
    named = names_for(net.space, [*net.space.uniform, net.space.full])
    assert list(named.values()) == list(net.space.uniform)
    for name, spec in named.items():
        share = 100 * net.space.macs(spec) / full
        assert name == "full" if spec == net.space.full else name.startswith(f"m{share:.0f}")
    twice = names_for(net.space, [net.space.full] * 2)
    assert list(twice) == ["full"]


def test_an_entry_as_json_is_all_of_it_but_its_tensors(small, net):
    for entry in made(small, net, {"half": net.space.spec(width=0.5)}):
        row = entry.to_json()
        assert json.loads(json.dumps(row)) == row
        assert row == {
            "name": entry.name,
            "spec": dict(entry.spec),
            "macs": entry.macs,
            "params": entry.params,
            "bytes": entry.bytes,
            "accuracy": entry.accuracy,
            "offered": True,
            "reason": "",
            "scored": 16,
        }


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


def held(name, right, macs, scored=300):
    return Entry(name, {}, macs, 1, 1, right / scored, scored=scored)


@pytest.mark.parametrize(
    ("right", "offered"),
    [
        ((296, 297), [True, True]),  # a picture more by the smaller net: luck
        ((296, 296), [True, True]),  # as many: the larger one is expected to be better
        ((240, 297), [False, True]),  # far beyond luck
        ((300, 300), [True, True]),  # none wrong, which is no certainty either
    ],
)
def test_the_full_net_is_not_refused_by_luck(right, offered):
    full, small = held("full", right[0], 2), held("m63", right[1], 1)
    table = {"full": latency(9, 10), "m63": latency(4, 5)}
    found = settle_offers([full, small], table)
    assert [each.offered for each in found] == offered
    if not found[0].offered:
        assert found[0].reason == "slower than m63 (4.5 ms, not 9.5) and no better"
    # Where nobody knows how many pictures it were, the figures are taken at their word.
    bare = [replace(each, scored=None) for each in (full, small)]
    assert settle_offers(bare, table)[0].offered == (right[0] > right[1])


def test_a_smaller_net_gives_way_to_a_larger_one_that_is_faster():
    """Being larger and measured as equal is enough; being measured as worse is not."""
    table = {"full": latency(4, 5), "m63": latency(9, 10)}
    for right, offered in ((296, False), (297, True)):
        found = settle_offers([held("full", 296, 2), held("m63", right, 1)], table)
        assert [each.offered for each in found] == [True, offered]


def test_the_margin_is_that_of_simulated_luck():
    """Two nets that are equally good differ by more than the margin in at most 5 % of the tests."""
    generator = torch.Generator().manual_seed(0)
    for share, scored in ((0.5, 100), (0.98, 300), (0.9, 50)):
        hits = torch.rand(2000, 2, scored, generator=generator).lt(share).sum(2).tolist()
        pairs = [(held("a", a, 1, scored), held("b", b, 1, scored)) for a, b in hits]
        beyond = sum(abs(a.accuracy - b.accuracy) > noise(a, b) for a, b in pairs)
        assert 0.01 * len(pairs) < beyond <= 0.06 * len(pairs)
    for unknown in (Entry("x", {}, 1, 1, 1, 0.5), Entry("x", {}, 1, 1, 1, -3.0, scored=9)):
        assert noise(unknown, held("y", 150, 1)) == 0
    assert is_as_good(held("a", 150, 1), held("b", 10, 2))
    assert not is_as_good(held("a", 150, 1), held("b", 149, 2))


def test_the_menu_knows_how_many_examples_its_accuracies_rest_on(small, net, tmp_path):
    menu = made(small, net, [net.space.uniform[0]])
    assert [entry.scored for entry in menu] == [16, 16]
    path = menu.save(tmp_path / "model.nest")
    assert [e.scored for e in nestling.load(path, model=small.ConvNet()).menu] == [16, 16]
    other = made(small, net, [net.space.full], metric=lambda outputs, targets: 0.5)
    assert other["full"].scored is None
    unknown = nestling.make_menu(net, [net.space.full], measure=False)
    assert unknown["full"].scored is None


# -- narrowed menus -------------------------------------------------------------------------------


@pytest.fixture
def device(monkeypatch):
    """A machine that works in blocks of units; what it was asked is in its list."""
    asked = []

    def comparer(net, batch, packed):
        def compare(smaller, larger, precision, seconds):
            asked.append((smaller, larger, batch, packed))
            small, large = (sum(-(-n // 4) for n in spec.values()) for spec in (smaller, larger))
            return Ratio(small / large, small / large, small / large, 40)

        return compare

    monkeypatch.setattr("nestling.timing._comparer", comparer)
    return asked


def uneven(space, count):
    return space.spec({name: count for name in space.axes})


def test_a_narrowed_menu(small, net, device):
    """Counts go in steps of 2 of 8, and the machine works in blocks of 4."""
    space = net.space
    assert all(axis.counts == (2, 4, 6, 8) for axis in space.axes.values())
    specs = [uneven(space, count) for count in (2, 4, 6)]
    plain = made(small, net, specs)
    assert [set(entry.spec.values()) for entry in plain] == [{8}, {6}, {4}, {2}]
    assert not device
    menu = made(small, net, specs, narrow=30)
    assert [set(entry.spec.values()) for entry in menu] == [{8}, {4}]
    # The name tells the share of MACs, and the figures are of the subnet that is there.
    assert menu[plain.entries[2].name] == plain.entries[2]
    wider = nestling.make_menu(
        net, {"tiny": specs[0]}, small.batches(16), calibrate=small.batches(), measure=False,
        narrow=30,
    )  # fmt: skip
    assert set(wider["tiny"].spec.values()) == {4}
    assert wider["tiny"].accuracy == plain.entries[2].accuracy
    assert wider["tiny"].macs == plain.entries[2].macs
    # What an axis allows stays.
    assert all(axis.counts == (2, 4, 6, 8) for axis in net.space.axes.values())
    (narrowing,) = menu.profile.narrowings.values()
    assert menu.profile.narrowings[menu.key()] == narrowing
    for bad in (-1, True, "x", float("nan"), float("inf")):
        with pytest.raises(ModelError, match="time to narrow in"):
            made(small, net, specs, narrow=bad)


def test_stand_alone_nets_are_not_narrowed(small, net, device):
    spec = uneven(net.space, 2)
    narrowing = Narrowing(specs=(comparison(spec, uneven(net.space, 4)),))
    alone = nestling.pack(net.subnet(spec))
    modules = {"alone": (spec, alone), "shared": (spec, net.subnet(spec))}
    menu = nestling.menu.menu_of(
        net, modules, None, calibrate=small.batches(), measure=False, narrowing=narrowing
    )
    assert set(menu["alone"].spec.values()) == {2}
    assert set(menu["shared"].spec.values()) == {4}


def comparison(smaller, larger, ratio=1.0):
    return Comparison(dict(smaller), dict(larger), 0.4, Ratio(ratio, ratio, ratio, 40))


def test_a_file_means_the_same_on_a_device_with_another_narrowing(small, net, device, tmp_path):
    space = net.space
    there = made(small, net, [uneven(space, count) for count in (2, 4, 6)])
    path = there.save(tmp_path / "model.nest")
    here = nestling.menu.Menu.load(path, small.ConvNet())
    narrowed = here.narrowed(batch=3, seconds=30)
    assert {batch for *_, batch, _ in device} == {3}
    assert narrowed.net.space == space
    # No spec changes, since the accuracy of another one is unknown. The ones that are no faster
    # than a larger one of the menu are not offered, and that one takes their place.
    assert [e.spec for e in narrowed] == [e.spec for e in there]
    full, six, four, two = narrowed
    assert six.reason == "no faster than full here and no better" or six.accuracy > full.accuracy
    assert two.reason == f"no faster than {four.name} here and no better"
    assert not two.offered
    assert four.offered
    assert full.offered
    asked = len(device)
    again = narrowed.narrowed(batch=3, seconds=30)
    assert len(device) == asked  # what is known is not measured again
    assert again.entries == narrowed.entries
    # The profile beside the file decides when it is loaded again, on this device only.
    narrowed.profile.save(nestling.profile.beside(path))
    loaded = nestling.menu.Menu.load(path, small.ConvNet())
    assert loaded.entries == narrowed.entries
    assert loaded.net.space == space
    key = narrowed.key(3)
    elsewhere = nestling.profile.Profile(
        narrowed.profile.file_id,
        narrowings={replace(key, device="another"): narrowed.profile.narrowings[key]},
    )
    elsewhere.save(nestling.profile.beside(path))
    assert all(entry.offered for entry in nestling.menu.Menu.load(path, small.ConvNet()))


def test_an_idle_entry_is_offered_unless_a_larger_one_takes_its_place(net):
    space = net.space
    two, four, six = (uneven(space, count) for count in (2, 4, 6))
    low = Entry("low", two, 1, 1, 1, 0.5)
    high = Entry("high", four, 2, 1, 1, 0.5)
    idle = Narrowing(specs=(comparison(two, four),))

    def offered(entries, table=None, narrowing=idle):
        return [each.offered for each in settle_offers(entries, table or {}, narrowing)]

    assert offered([low, high]) == [False, True]
    assert offered([low, high], narrowing=None) == [True, True]
    assert offered([low]) == [True]  # what would take its place is not on the menu
    assert offered([low, replace(high, accuracy=0.4)]) == [True, True]  # worse
    assert offered([low, replace(high, spec=six)]) == [True, True]  # rounded to another one
    slower = {"low": latency(4, 5), "high": latency(9, 10)}
    assert offered([low, high], slower) == [True, False]  # measured as a whole, it is slower
    level = [replace(low, scored=300), replace(high, scored=300)]  # neither is better beyond luck
    assert offered(level, slower) == [True, True]
    fast = Entry("fast", uneven(space, 8), 3, 1, 1, 0.5)
    times = {"high": latency(9, 10), "fast": latency(1, 2)}
    assert offered([low, high, fast], times) == [True, False, True]  # only those on offer count
    alike = {"low": latency(4, 6), "high": latency(5, 7)}
    assert offered([low, high], alike) == [False, True]
    unclear = Narrowing(specs=(comparison(two, four, 0.9),))
    assert offered([low, high], narrowing=unclear) == [True, True]


def test_measuring_anew_minds_the_narrowing(small, net, device, monkeypatch):
    specs = [uneven(net.space, count) for count in (2, 4)]
    menu = nestling.make_menu(net, specs, calibrate=small.batches(), measure=False)
    alike = {entry.name: latency(4, 5) for entry in menu}
    monkeypatch.setattr("nestling.costs.latency.measure", lambda *given, **options: alike)
    assert all(entry.offered for entry in menu.measured(3))
    narrowed = menu.narrowed(3, seconds=30)
    assert [entry.offered for entry in narrowed.measured(3)] == [True, True, False]
    assert all(entry.offered for entry in narrowed.measured(5))  # of another batch


def test_narrowing_measures_a_real_net(small):
    """With the real clock: whatever it finds, it is of the net's axes and within the time or so."""
    plain = nestling.Supernet(small.seeded(small.Mlp), torch.randn(2, 6), step=3)
    for packed in (False, True):
        menu = nestling.make_menu(plain, [plain.space.uniform[0]], measure=False)
        found = menu.narrowed(2, seconds=0.2, packed=packed)
        key = found.key(2, "packed" if packed else "eager")
        assert list(found.profile.narrowings) == [key]
        for each in found.profile.narrowings[key].axes:
            assert set(each.smaller) <= set(plain.space.axes)
            assert each.ratio.runs >= 11
    with pytest.raises(ModelError, match="batch="):
        menu.narrowed(0)


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


def test_measuring_times_anew_keeps_what_else_was_measured(small, net):
    menu = made(small, net, [net.space.uniform[0]])
    table = {entry.name: latency(1, 2) for entry in menu}
    upkeep = Upkeep(bytes=9, energy="made up", joules={"full": 2.0}, minutes=3.0, drift=0.5)
    known = menu.with_tables(2, {"eager": table, "packed": table}, {"eager": upkeep})
    assert known.profile.upkeeps == {menu.key(2): upkeep}
    again = known.measured(2, seconds=0.02, precision=0.9)
    assert again.profile.upkeeps == {
        menu.key(2): Upkeep(bytes=9, energy="made up", joules={"full": 2.0})
    }
    assert again.profile.tables[menu.key(2)] != table
    assert again.profile.tables[menu.key(2, "packed")] == table


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
    hidden = replace(
        made(small, net, [net.space.full]),
        entries=(replace(entry("a", 0.5), offered=False, reason="slower than b"),),
    )
    assert str(hidden).splitlines()[-1] == "a is not offered: slower than b"
