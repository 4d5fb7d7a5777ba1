"""The log of a search read back, against what the search itself returned."""

import itertools
import json

import pytest
import torch

import nestling
from nestling.errors import FileError
from nestling.report import read_search, search_path
from nestling.report.search_path import front_of, shares_left
from nestling.report.searchlog import Seen
from nestling.search import conduct, greedy, progressive, uniform


@pytest.fixture(scope="module")
def net():
    return nestling.Supernet(nestling.models.mlp(6, (8, 8, 8)), torch.randn(2, 6), step=2)


def score(spec):
    """Falls with every unit, most with those of the first axis."""
    first, *others = spec.values()
    return 0.3 + 0.04 * first + 0.01 * sum(others)


class Tune:
    """As if fine-tuning had gained 5 points."""

    def __call__(self, spec, until, epochs):
        return score(spec) + 0.05


@pytest.fixture(scope="module")
def searched(net, tmp_path_factory, request):
    log = tmp_path_factory.mktemp("search") / "search.jsonl"
    search = progressive(net.space, groups=4, threshold=0.7, reselect=False, look=1)
    if getattr(request, "param", "") == "greedy":
        search = greedy(net.space, groups=4, threshold=0.7, look=1)
    return log, conduct(search, net, score=score, tune=Tune(), log=log)


@pytest.fixture
def figure(monkeypatch):
    """Draw, and return the figure instead of the file."""
    import sys

    kept = []
    module = sys.modules["nestling.report.search_path"]
    monkeypatch.setattr(module, "save", lambda drawn, path: kept.append(drawn))

    def call(*args, **options):
        search_path(*args, **options)
        return kept[-1]

    return call


def test_the_chain_is_what_the_search_returned(net, searched):
    log, found = searched
    told = read_search(log, net.space)
    assert told.search == "progressive"
    assert told.options["groups"] == 4
    assert told.steps
    assert [(e.spec, e.accuracy) for e in told.chain] == list(found)
    assert [(e.spec, e.accuracy) for e in told.found] == list(found)
    assert all(e.macs == net.space.macs(e.spec) for e in told.seen)
    kinds = [json.loads(line).get("kind") for line in log.read_text().splitlines()]
    assert len(told.seen) == kinds.count("candidate") + 1
    assert len(told.tuned) == kinds.count("tune") > 2


def bowl(spec):
    """The axis that loses the least changes from step to step."""
    return sum(0.3 * (1 - (1 - count / 8) ** 2) for count in spec.values())


@pytest.mark.parametrize("stop", [0, 7, 10, 13, 99])
@pytest.mark.parametrize("even_below", [None, 0.8])
def test_the_chain_of_a_search_that_picks_more_than_once_a_step_or_never(
    net, tmp_path, even_below, stop
):
    def make():
        return greedy(net.space, groups=4, look=1, slack=1e-9, even_below=even_below)

    log = tmp_path / "greedy.jsonl"
    found = conduct(make(), net, score=bowl, log=log)
    whole = log.read_bytes()
    kinds = [json.loads(line).get("kind") for line in whole.splitlines()]
    assert kinds.count("step") == len(found) != kinds.count("pick") + 1
    log.write_bytes(b"".join(whole.splitlines(keepends=True)[: 1 + stop]))
    assert conduct(make(), net, score=bowl, log=log, resume=True) == found
    again = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert [row.get("kind") for row in again] == kinds
    told = read_search(log, net.space)
    assert told.steps
    assert [(each.spec, each.accuracy) for each in told.chain] == list(found)


@pytest.mark.parametrize("searched", ["progressive", "greedy"], indirect=True)
def test_a_tuning_belongs_to_the_step_before_it(net, searched):
    told = read_search(searched[0], net.space)
    assert told.tuned
    for each in told.tuned:
        assert each.before == told.chain[each.step].accuracy < 0.7
        assert each.macs == told.chain[each.step].macs
        assert each.after == pytest.approx(score(told.chain[each.step].spec) + 0.05)


def test_a_search_without_steps_shows_what_it_found(net, tmp_path):
    log = tmp_path / "u.jsonl"
    found = conduct(uniform(net.space, fractions=(0.3, 0.6)), net, score=score, log=log)
    told = read_search(log, net.space)
    assert not told.steps
    assert [each.macs for each in told.chain] == sorted(
        (net.space.macs(each.spec) for each in found), reverse=True
    )


def test_each_step_lowers_one_axis(net, searched):
    told = read_search(searched[0], net.space)
    shares = shares_left(told, net.space)
    assert shares.shape == (3, len(told.chain))
    assert (shares[:, 0] == 1).all()
    lowered = (shares[:, 1:] < shares[:, :-1]).sum(0)
    assert (lowered == 1).all()
    last = told.chain[-1].spec
    assert list(shares[:, -1]) == [last[n] / a.size for n, a in net.space.axes.items()]


def test_the_front_is_what_nothing_beats():
    chain = [Seen(None, a / 10, m) for a, m in [(9, 10), (7, 8), (8, 6), (8, 5), (3, 5), (5, 2)]]
    beaten = {
        one
        for one, other in itertools.permutations(chain, 2)
        if (other.accuracy >= one.accuracy and other.macs <= one.macs)
        and (other.accuracy, other.macs) != (one.accuracy, one.macs)
    }
    assert front_of(chain) == sorted(set(chain) - beaten, key=lambda each: each.macs)


def test_the_picture_shows_all_of_it(net, searched, figure):
    told = read_search(searched[0], net.space)
    drawn = figure(searched[0], net.space, "p.png", title="t")
    upper, lower, _ = drawn.axes
    dots, way, best = upper.get_lines()[:3]
    whole = net.space.macs(net.space.full)
    assert len(dots.get_xdata()) == len(told.seen)
    assert way.get_xdata() == pytest.approx([100 * e.macs / whole for e in told.chain])
    assert way.get_ydata() == pytest.approx([100 * e.accuracy for e in told.chain])
    assert len(best.get_xdata()) == len(front_of(told.chain))
    arrows = [text for text in upper.texts if text.get_text() == ""]
    assert [text.xy[1] for text in arrows] == pytest.approx([100 * e.after for e in told.tuned])
    steps = lower.get_lines()[0]
    assert len(steps.get_xdata()) == len(told.chain) - 1  # a dot a step
    words = " ".join(text.get_text() for text in drawn.texts)
    assert f"{len(told.seen)} evaluations, {len(told.chain) - 1} steps" in words
    bottom = upper.get_ylim()[0]
    assert bottom < 100 * min(each.accuracy for each in told.chain)


def test_a_search_that_was_stopped_can_be_drawn(net, searched, tmp_path, figure):
    lines = searched[0].read_bytes().splitlines(keepends=True)
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(b"".join(lines[: len(lines) // 2]) + b'{"kind": "sco')
    told = read_search(torn, net.space)
    assert not told.found
    assert 1 < len(told.chain) < len(searched[1])
    drawn = figure(told, net.space, "p.png", title="t")
    assert any("not finished" in text.get_text() for text in drawn.texts)


def test_what_is_no_log_of_this_net(net, searched, tmp_path):
    log, lines = tmp_path / "log.jsonl", searched[0].read_text().splitlines(keepends=True)
    with pytest.raises(FileError, match=r"give the \.jsonl file"):
        read_search(log, net.space)
    for text, words in (
        ("", "no log of a search"),
        ('{"some": "json"}\n', "no log of a search"),
        ("\x00\xff", "no log of a search"),
        (lines[0], "no evaluation yet"),
        ("".join([lines[0], "{}\n", *lines[1:]]), "line 2"),
        ("".join([lines[0], '{"kind":"score","spec":[],"accuracy":0.5}\n', "{"]), "another one"),
        ("".join([lines[0], '{"kind":"score","spec":{},"accuracy":"x"}\n']), "has an accuracy"),
        ("".join([lines[0], '{"kind":"score","spec":{},"accuracy":7}\n']), "between 0 and 1"),
    ):
        log.write_text(text)
        with pytest.raises(FileError, match=words):
            read_search(log, net.space)
    other = nestling.Supernet(nestling.models.mlp(6, (4,)), torch.randn(2, 6), step=2)
    with pytest.raises(FileError, match="does not fit the net"):
        read_search(searched[0], other.space)
