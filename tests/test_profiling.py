import pytest
import torch

import nestling
from nestling import ModelError, backends, profiling
from nestling.costs import latency
from nestling.energy import Meter
from nestling.menu import replace
from nestling.profiling import profiled


@pytest.fixture(scope="module")
def menu(small):
    net = small.supernet()
    specs = {"half": net.space.spec(width=0.5)}
    return nestling.make_menu(net, specs, calibrate=small.batches(), measure=False)


QUICK = {"seconds": 0.01, "precision": 0.9}


def test_every_entry_on_every_backend(menu):
    found = profiled(menu, 3, backends=("eager", "packed", "eager"), **QUICK).profile
    assert set(found.tables) == {menu.key(3, "eager"), menu.key(3, "packed")}
    for key, table in found.tables.items():
        assert list(table) == ["full", "half"]
        assert all(each.runs >= 11 for each in table.values())
        upkeep = found.upkeeps[key]
        weights = sum(entry.bytes for entry in menu)
        assert upkeep.bytes == 0 if key.backend == "eager" else upkeep.bytes >= weights
        assert upkeep.switch_us > 0
        assert (upkeep.energy, upkeep.joules) == ("not available here", {})
        assert upkeep.drift is None


def test_energy_is_that_of_one_example(menu, monkeypatch):
    monkeypatch.setattr(profiling, "joules_of", lambda call, meter, **_: call() is None or 6.0)
    meter = Meter("made up", [lambda: 0], 1.0, [0])
    found = profiled(menu, 3, meter=meter, **QUICK).profile.upkeeps[menu.key(3)]
    assert found.energy == "made up"
    assert found.joules.keys() == {"full", "half"}


def test_a_sustained_measurement_keeps_its_drift(menu, monkeypatch):
    asked = []
    real = profiling.latency.sustained

    def shorter(calls, seconds, **options):
        asked.append(seconds)
        found, drifts = real(calls, seconds=0.01, **options)
        return found, dict.fromkeys(drifts, 0.125)

    monkeypatch.setattr(profiling.latency, "sustained", shorter)
    found = profiled(menu, backends=("packed",), sustained=2.5).profile
    assert asked == [150]
    upkeep = found.upkeeps[menu.key(1, "packed")]
    assert (upkeep.minutes, upkeep.drift) == (2.5, 0.125)


def test_what_fails_for_one_entry_is_left_out_with_the_reason(menu, monkeypatch):
    found = backends.find("packed")

    def failing(subject):
        if subject.name in broken:
            raise RuntimeError("no such op")
        return found.prepare(subject)

    swapped, find = replace(found, prepare=failing), backends.find
    monkeypatch.setattr(backends, "find", lambda name: swapped if name == "packed" else find(name))
    broken = {"half"}
    profile = profiled(menu, backends=("eager", "packed"), **QUICK).profile
    key = menu.key(1, "packed")
    assert list(profile.tables[key]) == ["full"]
    assert list(profile.tables[menu.key(1)]) == ["full", "half"]
    said = "packed fails on 'half': RuntimeError: no such op"
    assert profile.upkeeps[key].left_out == {"half": said}
    broken, told = {"half", "full"}, []
    known = replace(menu, profile=profile)
    found_again = profiled(known, backends=("packed", "eager"), say=told.append, **QUICK)
    assert list(found_again.profile.tables) == [menu.key(1)]  # no figures of an earlier time
    assert found_again.profile.upkeeps.keys() == {menu.key(1)}
    assert told == ["left out: no entry runs on the backend packed: packed fails on 'full': "
                    "RuntimeError: no such op"]  # fmt: skip
    with pytest.raises(ModelError, match="no entry runs on the backend packed: packed fails on"):
        profiled(menu, backends=("packed",), **QUICK)


def test_samples_of_several_backends_follow_calls_of_their_own(menu, monkeypatch):
    asked = []
    real = profiling.latency.measure
    monkeypatch.setattr(
        profiling.latency,
        "measure",
        lambda calls, settle, **rest: asked.append(settle) or real(calls, **rest),
    )
    for names in (("packed",), ("eager", "packed")):
        profiled(menu, backends=names, **QUICK)
    assert asked == [0.0, latency.SETTLE_SECONDS]


def test_bad_requests(menu):
    with pytest.raises(ModelError, match="did you mean 'packed'"):
        profiled(menu, backends=("pakced",))
    with pytest.raises(ModelError, match="auto is the fastest"):
        profiled(menu, backends=("auto",))
    with pytest.raises(ModelError, match="batch= is a whole number"):
        profiled(menu, 0)


def test_offers_are_settled_on_the_fastest_backend(menu, monkeypatch):
    """`half` is as slow as `full` on views, but not where both are packed."""
    times = {"eager/full": 2.0, "eager/half": 2.1, "packed/full": 2.0, "packed/half": 1.0}
    made = {
        name: nestling.costs.Latency(ms, 0.99 * ms, 1.01 * ms, 20) for name, ms in times.items()
    }
    monkeypatch.setattr(
        profiling.latency, "measure", lambda calls, **_: {n: made[n] for n in calls}
    )
    accuracies = {"full": 0.9, "half": 0.8}
    entries = tuple(replace(entry, accuracy=accuracies[entry.name]) for entry in menu)
    known = replace(menu, entries=entries)
    assert not profiled(known, backends=("eager",))["half"].offered
    assert profiled(known, backends=("eager", "packed"))["half"].offered


def test_figures_are_those_of_calls_without_gradients(menu, monkeypatch):
    seen = []
    monkeypatch.setattr(
        profiling.latency,
        "measure",
        lambda calls, **_: {
            name: (seen.append(call().requires_grad), nestling.costs.Latency(1, 1, 1, 11))[1]
            for name, call in calls.items()
        },
    )
    torch.set_grad_enabled(True)
    profiled(menu, backends=("eager",))
    assert seen == [False, False]
