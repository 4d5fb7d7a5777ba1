"""Runs compared: what is one curve, what it is called, what is warned of, what the page holds."""

import json
import re
import statistics
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

import nestling
from nestling.costs.latency import Latency
from nestling.errors import FileError, NestlingError
from nestling.profile import Key
from nestling.report import line_up, lineup_html, read_run
from nestling.report.lineup_html import head_line, title_of

HOSTILE = '<script>alert("x")</script>'
KEY = Key("some processor", "eager", threads=1, batch=8, dtype="float32")


@pytest.fixture(scope="module")
def menu():
    net = nestling.Supernet(nestling.models.mlp(6, (8, 8)), torch.randn(2, 6), step=2)
    specs = [net.space.spec(width=width) for width in (0.75, 0.5, 0.25)]
    return nestling.make_menu(net, specs, calibrate=[torch.randn(8, 6)], measure=False)


@pytest.fixture
def make(menu, tmp_path):
    """Make the folder of a run, with these accuracies from the full net on."""

    def call(
        name,
        accuracies,
        *,
        seed=0,
        facts=None,
        timed=(),
        metric="accuracy",
        second="",
        **settings,
    ):
        folder = tmp_path / name
        folder.mkdir()
        scored = zip(menu.entries, accuracies, strict=True)
        entries = tuple(replace(entry, accuracy=accuracy) for entry, accuracy in scored)
        if second:
            entries = (entries[0], replace(entries[1], name=second), *entries[2:])
        made = replace(
            menu,
            entries=entries,
            metric=metric,
            facts={"accuracy on": "50 held-out examples", "seed": seed, **(facts or {})},
        )
        if timed:
            table = {e.name: Latency(t, t, t, 9) for e, t in zip(entries, timed, strict=True)}
            made = replace(made, profile=made.profile.with_table(KEY, table))
        made.save(folder / "model.nest")
        given = {"model": "mlp", "data": "digits", "method": "uniform", "epochs": 3, "seed": seed}
        config = {"nestling": 1, "settings": {**given, "model_args": {}, **settings}}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return call


def lined_up(*folders, cost="macs"):
    return line_up([read_run(folder) for folder in folders], cost)


@pytest.fixture
def two(make):
    """Two methods of two seeds each: the second is 2 and 4 points better."""
    low = [make(f"u{s}", (0.9, 0.8 + 0.02 * s, 0.7, 0.5), seed=s) for s in (0, 1)]
    high = [
        make(f"p{s}", (0.9, 0.82 + 0.04 * s, 0.74, 0.55), seed=s, method="progressive")
        for s in (0, 1)
    ]
    return [*low, *high]


def test_seeds_are_one_curve(two):
    lineup = lined_up(*two)
    assert list(lineup.groups) == ["uniform", "progressive"]
    assert [run.seeds for run in lineup.groups["uniform"]] == [(0,), (1,)]
    assert lineup.warnings == []
    macs = [entry.macs for entry in lineup.runs[0].entries]
    points = lineup.curves()["uniform"]
    assert [cost for cost, _ in points] == macs[::-1]
    assert points[2][1].mean == pytest.approx(0.81)
    assert points[2][1].std == pytest.approx(statistics.stdev([0.8, 0.82]))
    assert lineup.whole == macs[0]


def test_budgets_and_gains_by_hand(two):
    lineup = lined_up(*two)
    macs = [entry.macs / lineup.whole for entry in lineup.runs[0].entries]
    accuracies = {"uniform": (0.9, 0.81, 0.7, 0.5), "progressive": (0.9, 0.84, 0.74, 0.55)}
    met = []
    for share in (0.75, 0.5, 0.25, 0.15):
        within = [place for place, cost in enumerate(macs) if cost <= share]
        found = lineup.at(share)
        for label, values in accuracies.items():
            if within:
                assert found[label].mean == pytest.approx(values[within[0]])
            else:
                assert found[label] is None
        if within:
            met.append(within[0])
        chosen = lineup.chosen(share)
        names = [lineup.runs[0].entries[place].name for place in within[:1]]
        assert [each.name for each in chosen.values()] == names * 2
    assert 1 in met
    first = [(0.0, 0.02, 0.04, 0.05)[place] for place in met]
    second = [(0.0, 0.04, 0.04, 0.05)[place] for place in met]
    gains = [statistics.fmean(first), statistics.fmean(second)]
    gain = lineup.gain("progressive", "uniform")
    assert (gain.mean, gain.std) == (
        pytest.approx(statistics.fmean(gains)),
        pytest.approx(statistics.stdev(gains)),
    )


def test_labels_say_what_differs(make):
    runs = [
        make("a", (0.9, 0.8, 0.7, 0.5), lr=0.1, held_out=0),
        make("b", (0.9, 0.8, 0.7, 0.5), lr=0.05, held_out=0),
        make("c", (0.9, 0.8, 0.7, 0.5), method="individual", model_args={"width": 3}),
        make("d", (0.9, 0.8, 0.7, 0.5), facts={"search": "greedy", "search seed": 1}),
        make("e", (0.9, 0.8, 0.7, 0.5), seed=4, facts={"search": "greedy", "search seed": 2}),
    ]
    labels = ["uniform, lr=0.1", "uniform, lr=0.05", "individual", "greedy search"]
    assert list(lined_up(*runs).groups) == labels


def test_options_of_a_search_are_settings_and_its_log_is_found(make):
    def searched(name, groups, seed):
        folder = make(name, (0.9, 0.8, 0.7, 0.5), seed=seed, facts={"search": "greedy"})
        first = {"nestling search": 1, "options": {"groups": groups, "seed": 5 + seed}}
        (folder / "model.jsonl").write_text(json.dumps(first) + "\n")
        return folder

    runs = [searched("a", 4, 0), searched("b", 4, 1), searched("c", 8, 0)]
    lineup = lined_up(*runs)
    assert list(lineup.groups) == ["greedy search, groups=4", "greedy search, groups=8"]
    assert [len(group) for group in lineup.groups.values()] == [2, 1]
    assert lineup.runs[0].log == runs[0] / "model.jsonl"
    assert sum("is not drawn" in line for line in lineup.warnings) == 2  # no evaluation yet


def test_menus_of_ones_own_are_told_apart(make):
    runs = [make(name, (0.9, 0.8, 0.7, 0.5)) for name in ("a", "b")]
    for run in runs:
        (run / "config.json").unlink()
    lineup = lined_up(*runs)
    assert list(lineup.groups) == ["a", "b"]
    assert [len(group) for group in lineup.groups.values()] == [1, 1]
    again = lined_up(runs[0] / "model.nest", runs[1])
    assert list(again.groups) == ["a", "b"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": "cifar10"}, "the data sets differ: uniform has digits; other has cifar10"),
        ({"model_args": {"width": 4}}, "the models differ: .*mlp\\(width=4\\)"),
        ({"epochs": 9}, "the numbers of epochs differ: uniform has 3; other has 9"),
        ({"facts": {"accuracy on": "9 examples"}}, "the held-out examples differ: .* 9 examples"),
        ({"seed": 7}, "the seeds differ: uniform has 0; other has 7"),
        (
            {"facts": {"accuracy on": "50 held-out examples, which also chose the subnets"}},
            "the accuracies of other flatter",
        ),
        ({"facts": {"chosen on": "the held-out batches"}}, "the accuracies of other flatter"),
    ],
)
def test_what_is_not_comparable_is_said(make, settings, words):
    accuracies = (0.9, 0.8, 0.7, 0.5)
    same = lined_up(make("a", accuracies), make("b", accuracies, method="other"))
    assert same.warnings == ["the spread is unknown with one seed: uniform, other"]
    other = lined_up(
        make("c", accuracies), make("d", accuracies, **{"method": "other", **settings})
    )
    assert len(other.warnings) == 2
    assert re.search(words, other.warnings[0])


def test_latencies_are_of_the_same_conditions(make, tmp_path):
    timed = [
        make("a", (0.9, 0.8, 0.7, 0.5), timed=(4.0, 3.0, 2.0, 1.0)),
        make("b", (0.9, 0.8, 0.7, 0.5), method="other", timed=(4.4, 2.0, 2.2, 1.0)),
    ]
    lineup = lined_up(*timed, cost="latency")
    assert lineup.key == KEY
    assert lineup.whole == 4.0
    assert {k: s.mean for k, s in lineup.at(0.5).items()} == {"uniform": 0.7, "other": 0.8}
    untimed = make("c", (0.9, 0.8, 0.7, 0.5), method="third")
    with pytest.raises(FileError, match=r"c/model.nest: not timed.*--cost macs"):
        lined_up(*timed, untimed, cost="latency")
    page = lineup_html(lineup, tmp_path).read_text()
    assert "some processor, eager, 1 thread(s), batch 8" in page


def test_what_cannot_be_compared(make, tmp_path):
    run = make("a", (0.9, 0.8, 0.7, 0.5))
    twin = make("b", (0.9, 0.8, 0.7, 0.5))
    with pytest.raises(FileError, match=r"a/model.nest and .*b/model.nest have the same settings"):
        lined_up(run, twin)
    with pytest.raises(FileError, match="'accuracy', 'loss'"):
        lined_up(run, make("c", (0.9, 0.8, 0.7, 0.5), metric="loss"))
    with pytest.raises(FileError, match="nothing to compare"):
        lined_up(run, make("d", (None, None, 7.5, -1), seed=1))
    with pytest.raises(NestlingError, match="did you mean 'bytes'"):
        lined_up(run, cost="byte")
    with pytest.raises(FileError, match="at least one run"):
        line_up([])
    (twin / "model.nest").unlink()
    with pytest.raises(FileError, match=r"not finished.*train --resume --out .*b"):
        read_run(twin)
    with pytest.raises(FileError, match="is no run"):
        read_run(tmp_path)
    with pytest.raises(FileError, match="does not exist"):
        read_run(tmp_path / "nothing")
    (run / "config.json").write_text('{"report": 1}')
    with pytest.raises(FileError, match="not that of a training"):
        read_run(run)


def test_the_head_line_claims_only_what_the_seeds_show(make, two):
    assert "No clear difference between progressive and uniform (" in head_line(lined_up(*two))
    sure = [make(f"s{s}", (0.9, 0.9, 0.9, 0.9), seed=s, method="sure") for s in (0, 1)]
    same = [make(f"t{s}", (0.9, 0.8, 0.7, 0.5), seed=s, method="same") for s in (0, 1)]
    line = head_line(lined_up(*same, *sure))
    assert re.match(r"sure is \d\d\.\d points more accurate than same at the same budgets", line)
    assert "less accurate than sure" in head_line(lined_up(*sure, *same))
    assert "which proves little" in head_line(lined_up(same[0], sure[0]))
    assert "a seed in common" in head_line(lined_up(same[0], sure[1]))
    assert head_line(lined_up(*same)) == "same, 2 seeds."
    assert title_of(lined_up(*same)) == "mlp on digits"


class Cells(HTMLParser):
    """Collects the rows of all tables, and the tags."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.cell = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.cell = tag in ("td", "th", "button")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.cell:
            self.rows[-1][-1] += data


def test_the_page_holds_the_numbers_and_needs_no_network(two, tmp_path):
    lineup = lined_up(*two)
    page = lineup_html(lineup, tmp_path)
    text = page.read_text()
    cells = Cells(text)
    macs = [each.macs for each in lineup.runs[0].entries]
    share = 0.75 if macs[1] <= 0.75 * macs[0] else 0.5
    found = lineup.at(share)["uniform"]
    row = ["uniform", f"{100 * share:.0f} %", f"{100 * found.mean:.2f} %", f"{100 * found.std:.2f}"]
    assert [*row, f"{100 * found.low:.2f}–{100 * found.high:.2f}", "0, 1"] in cells.rows
    assert len([row for row in cells.rows if row[0] == "progressive, seed 1"]) == 4
    assert not re.search(r"https?://|@import|url\(|fetch\(", text)
    for tag, attrs in cells.tags:
        assert attrs.get("src", "data:").startswith("data:"), tag
    assert "Before you compare" not in text
    images = [tag for tag, _ in cells.tags].count("img")
    assert images == 1 + len(list(tmp_path.glob("skyline-*.png"))) >= 3
    assert (tmp_path / "comparison.png").exists()


def test_hostile_text_stays_text(make, tmp_path):
    named = {"method": HOSTILE, "data": HOSTILE, "metric": f"top-1 {HOSTILE}", "second": "<b>x"}
    text = lineup_html(lined_up(make("a", (0.9, 0.8, 0.7, 0.5), **named)), tmp_path).read_text()
    assert "<b>x" not in text
    assert HOSTILE not in text
    assert text.count("<script>") == 1


def test_nets_with_other_axes_are_not_drawn_together(make, tmp_path):
    net = nestling.Supernet(nestling.models.mlp(6, (4,)), torch.randn(2, 6), step=2)
    menu = nestling.make_menu(
        net, [net.space.spec(width=0.5)], calibrate=[torch.randn(8, 6)], measure=False
    )
    entries = tuple(replace(entry, accuracy=0.5) for entry in menu.entries)
    other = replace(menu, entries=entries, facts={"method": "other", "seed": 0})
    other.save(tmp_path / "other.nest")
    lineup = lined_up(make("a", (0.9, 0.8, 0.7, 0.5)), tmp_path / "other.nest")
    assert any(line.startswith("the models differ") for line in lineup.warnings)
    out = tmp_path / "out"
    out.mkdir()
    assert "have other axes: other" in lineup_html(lineup, out).read_text()
