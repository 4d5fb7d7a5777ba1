"""The picture of a comparison: what is drawn where, and that names stay apart."""

import io
import itertools
import sys

import numpy as np
import pytest
from scipy.optimize import minimize

from nestling.errors import FileError, NestlingError
from nestling.report import Point, Result, summarize
from nestling.report import comparison as draw
from nestling.report.comparison import spread
from nestling.report.picture import COLORS, deep, in_lines

FULL = 40e6


def rows(methods=3, seeds=3, spread=0.01):
    return [
        Result(f"method {m}", s, share * FULL, 0.9 - 0.1 * (1 - share) - 0.01 * m + spread * s)
        for m in range(methods)
        for s in range(seeds)
        for share in (1, 0.75, 0.5, 0.25, 0.15)
    ]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw, and return the figure instead of the file."""
    module = sys.modules["nestling.report.comparison"]

    def call(results, **options):
        kept = []
        monkeypatch.setattr(module, "save", lambda figure, path: kept.append(figure))
        draw(results, tmp_path / "p.png", **{"title": "t", **options})
        return kept[0]

    return call


def lines_of(figure):
    """Return the lines that have data points, in the order of the labels."""
    (axes,) = figure.axes
    return [line for line in axes.get_lines() if line.get_transform() == axes.transData
            and line.get_marker() not in ("None", "_", "|")]  # fmt: skip


def names_of(figure):
    (axes,) = figure.axes
    return {text.get_text(): text for text in axes.texts if text.get_text()}


def test_points_are_means_and_bars_standard_deviations(drawn):
    figure = drawn(rows(methods=1), whole=FULL)
    (line,) = lines_of(figure)
    assert line.get_xdata() == pytest.approx([15, 25, 50, 75, 100])
    assert line.get_ydata() == pytest.approx(
        [100 * (0.81 + 0.1 * s) for s in (0.15, 0.25, 0.5, 0.75, 1)]
    )
    bars = [b.get_segments()[0] for b in figure.axes[0].collections]
    assert len(bars) == 5
    for x, y, bar in zip(line.get_xdata(), line.get_ydata(), bars, strict=True):
        assert bar[:, 0] == pytest.approx([x, x])
        assert bar[:, 1] == pytest.approx([y - 1, y + 1])  # values 0, 0.01, 0.02: std is 1 point


def test_one_seed_has_no_bars_and_says_so(drawn):
    figure = drawn(rows(seeds=1))
    assert not figure.axes[0].collections
    assert any("one seed, so no bars" in text.get_text() for text in figure.texts)
    assert any("3 seeds" in t.get_text() for t in drawn(rows()).texts)


def test_budgets_choose_where_to_look(drawn):
    (line,) = lines_of(drawn(rows(methods=1), budgets=[0.6 * FULL, 0.3 * FULL]))
    assert line.get_xdata() == pytest.approx([0.3 * FULL, 0.6 * FULL])
    with pytest.raises(NestlingError, match="largest of the budgets"):
        drawn(rows(), budgets=[1.0])


def test_finished_points_are_drawn_as_they_are(drawn):
    """A dearer point may be less accurate: other figures have chosen it."""
    finished = [
        Point("b", 0.5 * FULL, summarize([0.7, 0.8])),
        Point("a", FULL, summarize([0.6, 0.62])),
        Point("b", FULL, summarize([0.5])),
        Point("b", 0.2 * FULL, summarize([0.9, 0.9])),
    ]
    figure = drawn(finished, whole=FULL)
    first, second = lines_of(figure)
    assert first.get_xdata() == pytest.approx([20, 50, 100])
    assert first.get_ydata() == pytest.approx([90, 75, 50])
    assert second.get_ydata() == pytest.approx([61])
    assert [first.get_color(), second.get_color()] == list(COLORS[:2])
    heights = [np.ptp(b.get_segments()[0][:, 1]) for b in figure.axes[0].collections]
    assert heights == pytest.approx([100 * 0.1 * 2**0.5, 100 * 0.02 * 2**0.5])  # std of two
    assert any("1 to 2 seeds" in text.get_text() for text in figure.texts)
    for wrong, options in (
        ([*finished, Result("a", 0, FULL, 0.5)], {}),
        (finished, {"budgets": [FULL]}),
        ([Point("a", FULL, summarize([60.0]))], {}),
    ):
        with pytest.raises(NestlingError, match=r"leave out|divide a percentage"):
            drawn(wrong, **options)


@pytest.mark.parametrize("methods", [1, 2, 7, 9])
@pytest.mark.parametrize("step", [0.0, 0.0004])
def test_names_stand_apart_and_inside(drawn, methods, step):
    """Even where all methods end at the same point, and beside lone points."""
    same = [each._replace(accuracy=0.9 + step * n % 0.01) for n, each in enumerate(rows(methods))]
    same.append(Result("a lone point with quite a long name", 0, 0.9 * FULL, 0.9))
    figure = drawn(same)
    renderer = figure.canvas.get_renderer()
    names = names_of(figure)
    assert len(names) == methods + 1
    boxes = [text.get_window_extent(renderer) for text in names.values()]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    width, height = figure.bbox.size
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)


def test_each_label_has_its_colour_and_names_can_be_read(drawn):
    figure = drawn(rows(methods=7))
    assert [line.get_color() for line in lines_of(figure)] == list(COLORS)
    assert len({line.get_marker() for line in lines_of(figure)}) == 7
    for color in COLORS:
        rgb = [int(deep(color)[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (light + 0.05) >= 4.4


def test_bars_at_one_cost_stand_in_a_row(drawn):
    figure = drawn(rows(methods=3))
    places = [
        c.get_transform().transform(c.get_segments()[0])[0, 0] for c in figure.axes[0].collections
    ]
    assert len({round(place, 1) for place in places[::5]}) == 3


def test_costs_have_their_units(drawn):
    def words(**options):
        figure = drawn(rows(), **options)
        figure.canvas.draw()
        axes = figure.axes[0]
        return axes.get_xlabel(), [tick.get_text() for tick in axes.get_xticklabels()][:5]

    assert words() == ("MACs (lower is better)", ["0", "10 M", "20 M", "30 M", "40 M"])
    assert words(cost="bytes")[1][1] == "10 MB"
    assert words(whole=FULL)[0] == "MACs, % of the full net (lower is better)"
    assert words(cost="latency")[0] == "measured latency, ms (lower is better)"
    wide = [*rows(), Result("method 0", 0, FULL / 100, 0.3)]
    assert drawn(wide).axes[0].get_xscale() == "linear"  # not every seed is there
    wide = [*rows(seeds=1), Result("method 0", 0, FULL / 100, 0.3)]
    assert drawn(wide).axes[0].get_xscale() == "log"


def test_what_cannot_be_drawn(tmp_path):
    path = tmp_path / "p.png"
    for wrong, words in (
        ([], "at least one result"),
        ([("a", 0, 1.0, 92.1)], "divide a percentage by 100"),
        ([("a", 0, 0.0, 0.9)], "positive cost"),
    ):
        with pytest.raises(NestlingError, match=words):
            draw(wrong, path, title="t")
    with pytest.raises(NestlingError, match="did you mean 'macs'"):
        draw(rows(), path, title="t", cost="mac")
    with pytest.raises(NestlingError, match="whole="):
        draw(rows(), path, title="t", whole=-1)
    with pytest.raises(FileError, match="make the folder"):
        draw(rows(), tmp_path / "nowhere" / "p.png", title="t")
    assert not path.exists()


def test_a_file_is_written(tmp_path):
    draw([("a", 0, 1, 0.5), ("$x_ \x1b", 0, 2, 0.6)], tmp_path / "p.png", title="$x_ \x1b")
    from matplotlib.image import imread

    image = imread(io.BytesIO((tmp_path / "p.png").read_bytes()), format="png")
    assert image.shape[1] == 1280
    assert np.any(np.all(np.abs(image[..., :3] - [0, 0x72 / 255, 0xB2 / 255]) < 0.01, axis=-1))


@pytest.mark.parametrize("seed", range(6))
def test_spread_is_the_least_squares_solution(seed):
    generator = np.random.default_rng(seed)
    wanted = np.sort(generator.uniform(0, 10, 2 + seed))
    found = np.array(spread(list(wanted), 1.2, 0.0, 10.0))
    gaps = {"type": "ineq", "fun": lambda p: np.diff(p) - 1.2}
    start = np.linspace(0, 10, len(wanted))
    best = minimize(
        lambda p: ((p - wanted) ** 2).sum(), start, constraints=gaps, bounds=[(0, 10)] * len(start)
    )
    assert np.all(np.diff(found) >= 1.2 - 1e-9)
    assert found == pytest.approx(best.x, abs=1e-3)
    assert spread([], 1, 0, 1) == []
    assert spread([5.0] * 11, 2, 0, 10) == pytest.approx(list(range(11)))  # no room: closer


def test_long_names_take_two_lines():
    assert in_lines("a b", 10) == "a b"
    assert (
        in_lines("progressive search, threshold=0.85", 22) == "progressive search,\nthreshold=0.85"
    )
    assert max(map(len, in_lines("x" * 100, 22).split("\n"))) <= 22
    assert in_lines("", 5) == ""
