"""The comparison of nested kinds: parts, figures, tables and the command."""

import json
from dataclasses import replace

import pytest
import torch
from benchmark_scripts import opened
from comparison import protocols, recipes, results, trial
from comparison.cases import BASELINE, PLAIN, Case
from comparison.figures import Comparison
from comparison.protocols import PROTOCOLS, supernet
from made_results import TINY, made
from nesting import figures, parts, tables
from nesting.parts import ALL, EQUAL, FEW, METHOD, PARTS, Part, protocol_of

import nestling
from nestling.errors import ModelError
from nestling.objectives import draws_of


@pytest.fixture(scope="module")
def nested():
    return opened("nested")


def result(label, rows, seed=0, **more):
    """A result without a training: rows of (counts, macs, held-out, test) of axes a, b, c."""
    options = {} if label == ALL else {"kinds": [label.partition(",")[0]]}
    method = "uniform" if label == BASELINE else METHOD
    found = made(label, seed, case=Case(label, method, options, seed), **more)
    content = dict(found.content)
    content["axes"], content["kinds"] = ["a", "b", "c"], ["channels", "channels", "depth"]
    content["trained"] = more.get("trained", 5)
    content["subnets"] = [
        {"name": f"m{n}", "counts": counts, "macs": macs, "params": 1}
        | {"held_out": held_out, "test": test}
        for n, (counts, macs, held_out, test) in enumerate(rows)
    ]
    return results.Result(content)


def front(label, tests, seed=0, **more):
    """The full net and one subnet at each share of the grid, with these test accuracies."""
    shares = (1.0, *figures.GRID)
    rows = [
        ([8, 8, 4], round(1000 * share), test, test)
        for share, test in zip(shares, tests, strict=True)
    ]
    return result(label, rows, seed, **more)


# -- parts -----------------------------------------------------------------------------------------


def test_parts_are_those_of_the_papers_comparison():
    asked = {name: (part.net, part.data, part.labels) for name, part in PARTS.items()}
    assert asked["depth"] == ("resnet56", "cifar10", ("depth",))
    assert asked["neurons"] == ("mlp", "fashion-mnist", ("neurons",))
    assert asked["paths"] == ("resnext29", "cifar10", ("paths",))
    assert asked["all"] == ("resnext29", "cifar10", (ALL, "channels", "paths", "depth"))
    assert asked["bits"] == ("resnet20-bits", "cifar10", ("bits",))
    assert asked["wide bits"] == ("preact-resnet20-bits", "cifar10", ("bits",))
    assert [name for name, part in PARTS.items() if part.rival] == ["channels"]
    assert {name: part.bits for name, part in PARTS.items() if part.bits} == {
        "bits": (8, 4, 3, 2),
        "wide bits": (8, 4, 3, 2, 1),
    }


def test_protocols_ask_for_the_parts_that_they_are_for():
    asked = {of: {n for n, part in PARTS.items() if part.asked_of(of)} for of in PROTOCOLS}
    assert asked["full"] == set(PARTS)
    assert asked["short"] == set(PARTS) - {"wide bits"}
    assert asked["pretrained"] == {"channels", "bits"}  # there are weights of ResNet-20 alone


def test_from_trained_weights_all_begin_alike():
    of = protocol_of(PARTS["bits"], "pretrained")
    assert of.weights is not None
    assert (of.pictures, of.epochs) == (FEW["pictures"], FEW["epochs"])
    assert of.lr < protocol_of(PARTS["bits"], "short").lr
    by_name = {case.label: case for case in parts.cases(PARTS["bits"], of)}
    assert by_name[PLAIN].options == {"start": "given"}  # nets alone are initialised otherwise


@pytest.mark.parametrize("name", PARTS)
def test_every_case_has_a_name_of_its_own_and_options_of_its_method(name):
    part = PARTS[name]
    of = protocol_of(part, "short", seeds=(0, 1))
    assert (of.net, of.data, of.folder) == (part.net, part.data, f"short-{part.data}-{part.net}")
    every = parts.cases(part, of)
    assert len({case.name for case in every}) == len(every)
    labels = [case.label for case in every]
    for case in every:
        assert all(labels.index(label) >= 0 for label in case.needs)
        kinds = case.options.get("kinds", [])
        assert not kinds or case.label.startswith(kinds[0])
        recipe = recipes.find(case.method)
        assert set(case.options) <= set(nestling.methods.options(recipe))
    if part.rival:
        assert {BASELINE, PLAIN, part.labels[0] + EQUAL} < set(labels)
    assert PLAIN in labels


def test_equal_compute_is_that_of_the_rival():
    (long,) = [
        case
        for case in parts.cases(
            PARTS["channels"], protocol_of(PARTS["channels"], "short", seeds=(0,))
        )
        if case.equals
    ]
    assert (long.label, long.compute, long.equals) == ("channels" + EQUAL, BASELINE, ("channels",))
    assert set(long.needs) == {BASELINE, "channels"}
    kept = {
        BASELINE: made(BASELINE, seconds={"sandwich": 400.0}),
        "channels": made("channels", seconds={"ordered dropout": 80.0, "search": 40.0}),
    }
    needed = type("Needed", (), {"__getitem__": lambda _, label: kept[label]})()
    net = supernet(TINY, (1, 8, 8), 10)
    _, epochs = trial._settled(long, net, needed, 10)
    assert epochs == 50  # 8 seconds an epoch, in 400; those of the search are told apart


def test_the_search_of_a_short_training_is_short():
    for protocol, search in (("short", parts.SHORT_SEARCH), ("full", None)):
        every = parts.cases(PARTS["depth"], protocol_of(PARTS["depth"], protocol, seeds=(0,)))
        (case,) = [case for case in every if case.label == "depth"]
        assert case.options.get("search_options") == search
        assert case.looked_at == (parts.LOOKED if search else None)
        assert set(figures.GRID) <= set(case.options["fractions"]) <= set(parts.DENSE)
        assert (len(case.options["fractions"]) < 15) == (protocol == "short")
    every = parts.cases(PARTS["channels"], protocol_of(PARTS["channels"], "short", seeds=(0,)))
    (case,) = [case for case in every if case.label == "channels, all axes looked at"]
    assert case.options["search_options"] == {"groups": 4, "look": None}


@pytest.mark.parametrize("name", PARTS)
def test_variants_can_be_chosen_on_held_out_pictures(name):
    """No method trains on them where a search looks at them, in the full protocol too."""
    assert protocol_of(PARTS[name], "full").all_pictures == bool(PARTS[name].bits)
    assert not protocol_of(PARTS[name], "short").all_pictures


def test_unknown_parts():
    with pytest.raises(ModelError, match="unknown part 'dept'; did you mean 'depth'"):
        parts.part_of("dept")


# -- figures ---------------------------------------------------------------------------------------


def test_shares_removed_are_those_of_the_nested_kinds():
    rows = [([8, 8, 4], 1000, 0.9, 0.91), ([4, 6, 4], 600, 0.8, 0.81), ([2, 2, 4], 200, 0.5, 0.51)]
    one = result("channels", rows)
    assert [figures.removed(one, row) for row in one.rows] == [0, 6 / 16, 12 / 16]
    everything = result(ALL, [([8, 8, 4], 1000, 0.9, 0.9), ([8, 8, 2], 700, 0.8, 0.8)])
    assert figures.removed(everything, everything.rows[1]) == pytest.approx(2 / 20)
    found = figures.by_share_removed(Comparison([one]), "channels")
    reached = {share: each and each.mean for share, each in found.items()}
    assert reached == {0.0: 0.91, 0.25: 0.81, 0.5: 0.51, 0.65: 0.51, 0.75: 0.51}
    missing = figures.by_share_removed(Comparison([result("channels", rows[:2])]), "channels")
    assert missing[0.5] is None


def test_the_joint_front_dominates_where_no_single_one_is_above():
    high, low = [0.9, 0.9, 0.8, 0.7, 0.6, 0.5], [0.9, 0.8, 0.8, 0.65, 0.6, 0.4]
    part = PARTS["all"]
    every = [front(ALL, high), front("channels", low), front("paths", low)]
    short = front("depth", low)
    cut = {**short.content, "subnets": short.content["subnets"][:3]}  # depth reaches no further
    found = Comparison([*every, results.Result(cut)])
    line = figures.summary(part, found)
    assert line["joint_dominates"] is True
    assert line["least_lead_over"] == {"channels": 0.0, "paths": 0.0, "depth": 0.0}
    assert list(figures.lead(found, "depth")) == [0.9, 0.75]
    better = [*low[:3], 0.71, *low[4:]]
    found = Comparison([*every[:2], front("paths", better), results.Result(cut)])
    line = figures.summary(part, found)
    assert line["joint_dominates"] is False
    assert line["least_lead_over"]["paths"] == pytest.approx(-1.0)


def test_gains_over_the_rival_and_over_seeds():
    part = PARTS["channels"]
    group = []
    for seed in (0, 1):
        group += [
            front(BASELINE, [0.9, 0.9, 0.8, 0.7, 0.6, 0.5], seed, trained=7),
            front("channels", [0.9, 0.9, 0.8, 0.7, 0.6, 0.5 + 0.04 * seed], seed, trained=900),
            front("channels" + EQUAL, [0.95, 0.95, 0.85, 0.75, 0.65, 0.55], seed),
        ]
    line = figures.summary(part, Comparison(group))
    assert line["seeds"] == 2
    assert line["mean_gain_over_us_equal_epochs"] == pytest.approx(0.5)
    assert line["mean_gain_over_us_equal_compute"] == pytest.approx(5.0)
    assert (line["nets_trained"], line["nets_trained_by_us"]) == (900, 7)


def test_what_is_not_known_is_left_open():
    part = PARTS["channels"]
    line = figures.summary(part, Comparison([front("channels", [0.9] * 6)]))
    assert line["mean_gain_over_us_equal_epochs"] is None
    assert line["nets_trained_by_us"] is None
    assert figures.dominates({"depth": {}}) is None


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def tiny_part(monkeypatch):
    part = Part("channels", "small", "digits", ("channels",), rival=True)
    monkeypatch.setitem(PARTS, "channels", part)
    monkeypatch.setitem(protocols.PROTOCOLS, "tiny", replace(TINY, shares=(1.0,)))
    return part


def test_from_end_to_end(nested, tiny_part, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(parts, "DENSE", (1.0, 0.5, 0.25))
    words = ["--protocol", "tiny", "--part", "channels", "--seeds", "0"]
    words += ["--results", str(tmp_path / "kept"), "--work", str(tmp_path / "work")]
    threads = torch.get_num_threads()
    assert nested.main([*words, "--list"]) == 0
    assert "channels, equal compute" in capsys.readouterr().out
    assert nested.main(words) == 0
    torch.set_num_threads(threads)
    capsys.readouterr()
    assert nested.main(["--summary", "--results", str(tmp_path / "kept")]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (line["part"], line["protocol"], line["net"]) == ("channels", "tiny", "small")
    assert line["mean_gain_over_us_equal_compute"] is None  # this net is never as small as 15 %
    (group,) = results.groups(tmp_path / "kept").values()
    found = Comparison(group)
    assert set(found.labels) == {PLAIN, BASELINE, "channels", "channels" + EQUAL}
    assert found.gain("channels" + EQUAL, BASELINE, [0.5]) is not None
    ours = found["channels", 0]
    net = supernet(TINY, (1, 8, 8), 10)
    assert ours.content["trained"] == draws_of(net.space, kinds=["channels"]).number
    assert {"ordered dropout", "search"} <= set(ours.seconds)
    assert ours.updates == 1
    an_epoch = (ours.spent - ours.seconds["search"]) / ours.epochs
    epochs = max(1, round(found[BASELINE, 0].spent / an_epoch))
    assert found["channels" + EQUAL, 0].epochs == epochs
    page = tables.page(tmp_path / "kept")
    assert "| channels, equal compute |" in page
    assert "Search, of the time" in page
    assert nested.main([*words, "--only", "chanels*"]) == 1
    assert "no case is called 'chanels*'" in capsys.readouterr().err


@pytest.fixture
def bits_part(monkeypatch):
    """Nets in 4, 2 and 1 bits that train in no time."""
    counts = (1, 2, 4)
    ends = {"inputs": counts, "first": counts, "last": counts}
    bits = nestling.Bits(counts, layers="3", **ends)
    monkeypatch.setitem(protocols.NETS, "small-bits", protocols.Net("small", step=2, bits=bits))
    part = Part("bits", "small-bits", "digits", ("bits",), bits=counts[::-1])
    monkeypatch.setitem(PARTS, "bits", part)
    monkeypatch.setitem(protocols.PROTOCOLS, "tiny", replace(TINY, epochs=1))
    return part


def test_bits_from_end_to_end(nested, bits_part, tmp_path, capsys):
    words = ["--protocol", "tiny", "--part", "bits", "--seeds", "0"]
    words += ["--results", str(tmp_path / "kept"), "--work", str(tmp_path / "work")]
    threads = torch.get_num_threads()
    assert nested.main(words) == 0
    assert nested.main([*words, "--only", "alone 2 bits"]) == 0
    torch.set_num_threads(threads)
    capsys.readouterr()
    rows = [
        {"runtime": "some", "bits": 7, "batch": batch, "speedup": 3.0 + batch, "integers_ms": 1.0}
        for batch in (1, 32)
    ]
    (tmp_path / "integers.json").write_text(json.dumps({"net": "resnet18", "rows": rows}))
    assert nested.main(["--summary", "--results", str(tmp_path / "kept")]) == 0
    line, speed = map(json.loads, capsys.readouterr().out.splitlines())
    assert speed.keys() >= {"part", "protocol", "net", "data", "seeds"}
    assert (speed["int8_speedup_b1"], speed["int8_speedup_b32"]) == (4.0, 35.0)
    assert (line["part"], line["net"], line["seeds"]) == ("bits", "small", 1)
    assert list(line["accuracy_by_bits"]) == ["32", "4", "2", "1"]
    assert list(line["any_precision_by_bits"]) == ["32", "4", "2", "1"]
    assert list(line["adabits_by_bits"]) == ["4", "2", "1"]
    assert [reached is None for reached in line["adabits_by_bits"].values()] == [False, False, True]
    difference = line["accuracy_by_bits"]["4"] - line["accuracy_by_bits"]["2"]
    assert line["points_from_4_to_2_bits"] == pytest.approx(100 * difference, abs=0.02)
    (group,) = results.groups(tmp_path / "kept").values()
    found = Comparison(group)
    rival, ours = found["any-precision", 0], found["bits", 0]
    equal = found["bits" + EQUAL, 0]
    assert equal.epochs == max(1, round(rival.spent / (ours.trained / ours.epochs)))
    assert rival.updates == ours.updates == 1
    assert all(row.held_out is not None for each in group for row in each.rows)
    shown = tables.page(tmp_path / "kept")
    assert "| any-precision | 1 |" in shown
    assert "AdaBits is for 2 bits and more" in shown
    (cells,) = [row.split("|")[1:-1] for row in shown.splitlines() if row.startswith("| adabits")]
    assert [bool(cell.strip()) for cell in cells[2:6]] == [False, True, True, False]
    assert "| each alone |" in shown
    assert "Search, of the time" not in shown


def test_bits_are_those_of_all_layers():
    kinds = ["channels", "bits", "bits"]
    rows = [([8, 4, 4], 1000, 0.9, 0.8), ([8, 4, 2], 1000, 0.7, 0.6), ([8, 32, 32], 1000, 0.9, 0.9)]
    one = results.Result({**result("bits", rows).content, "kinds": kinds})
    assert [figures.bits_of(one, row) for row in one.rows] == [4, None, 32]
    found = figures.by_bits(Comparison([one]), "bits")
    assert {n: each.mean for n, each in found.items()} == {32: 0.9, 4: 0.8}


def test_mistakes(nested, capsys):
    assert nested.main(["--part", "width"]) == 1
    assert "unknown part 'width'" in capsys.readouterr().err
    assert nested.main(["--only", "nothing"]) == 1
    assert "no part has a case called" in capsys.readouterr().err
    assert nested.main(["--part", "depth", "--slice", "5/4"]) == 1
    assert "--slice is i/n" in capsys.readouterr().err
    trained = ["--protocol", "pretrained", "--part"]
    assert nested.main([*trained, "paths"]) == 1
    assert "those of resnet20, not of resnext29" in capsys.readouterr().err
    assert nested.main([*trained, "bits", "--weights", "nowhere"]) == 1
    assert "there is no nowhere/cifar10_resnet20.safetensors" in capsys.readouterr().err


def test_tables_of_every_part():
    full = [0.9, 0.9, 0.8, 0.7, 0.6, 0.5]
    every = [front(label, full) for label in PARTS["all"].labels]
    own = {"kinds": ["channels", "paths", "depth"]}
    group = [
        results.Result({**each.content, **own, "protocol": {**each.settings, "net": "resnext29"}})
        for each in every
    ]
    page = tables.section(group)
    assert "All kinds together" in page
    assert "nowhere below" in page
    assert "with a share of them removed" in page  # the part "paths" is answered too
